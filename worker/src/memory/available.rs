//! How much memory a rank may still take: of the host what the machine and its control groups leave, shared by the ranks there, or
//! what is free on its GPU.

use std::fs;
use std::path::Path;

use crate::comm::{Collectives, CommError, CudaRuntime};
use crate::host;

/// Bytes that each rank may take: the least of any rank, so that all ranks get the same answer. To be called before the
/// ranks take much memory.
///
/// # Errors
/// If the ranks cannot exchange what they found.
pub fn available_per_rank(comm: &mut dyn Collectives) -> Result<u64, CommError> {
    let host = host::name();
    let mine = format!("{} {host}", available(Path::new("/")));
    let all = comm.all_gather("available memory", mine.as_bytes())?;
    let all: Vec<String> = all.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    Ok(least_share(&all))
}

/// Bytes that are free on this thread's GPU or on that of any other rank, whichever has least. To be called before the ranks take
/// much of it.
///
/// # Errors
/// CUDA does not answer, or the ranks cannot exchange what they found.
pub fn free_on_gpus(comm: &mut dyn Collectives, cuda: &CudaRuntime) -> Result<u64, CommError> {
    let (free, _) = cuda.memory()?;
    let all = comm.all_gather("free memory of GPUs", &(free as u64).to_be_bytes())?;
    // Nobody sends anything else; what is not understood counts as nothing.
    let bytes = |sent: &Vec<u8>| sent.as_slice().try_into().map_or(0, u64::from_be_bytes);
    Ok(all.iter().map(bytes).min().unwrap_or(0))
}

/// The least share of any rank, of lines "BYTES HOST": ranks of a host share what it has.
fn least_share(lines: &[String]) -> u64 {
    let parsed: Vec<(u64, &str)> = lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(b, h)| (b.parse().unwrap_or(0), h))
        .collect();
    let share = |&(bytes, host): &(u64, &str)| {
        let ranks = parsed.iter().filter(|(_, other)| *other == host).count();
        bytes / ranks as u64
    };
    parsed.iter().map(share).min().unwrap_or(u64::MAX)
}

/// Bytes that the processes of this one's control groups may still take in all; a system that does not say has no end.
fn available(root: &Path) -> u64 {
    let meminfo = read(&root.join("proc/meminfo"));
    let free = field(&meminfo, "MemAvailable:").map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    let groups = read(&root.join("proc/self/cgroup"));
    groups.lines().filter_map(|line| left_in_group(root, line)).fold(free, u64::min)
}

/// What a line of /proc/self/cgroup, "NUMBER:CONTROLLERS:PATH", leaves: the least of the group and those it lies in.
fn left_in_group(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    let version = if controllers.is_empty() {
        &VERSION_2
    } else if controllers.split(',').any(|name| name == "memory") {
        &VERSION_1
    } else {
        return None;
    };
    let mount = root.join(version.mount);
    // In a container the path may be that of the host, of which only the mount's own top is to be seen.
    let groups = Path::new(path).ancestors().map(|group| mount.join(group));
    groups.filter_map(|group| version.left(&group)).min()
}

/// The files of a version of control groups.
struct Version {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Field of `memory.stat` with the bytes of files that are dropped when memory is short.
    files: &'static str,
}

const VERSION_1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    files: "total_inactive_file",
};

const VERSION_2: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", usage: "memory.current", files: "inactive_file" };

impl Version {
    /// Bytes that a group may still take; none without a limit.
    fn left(&self, group: &Path) -> Option<u64> {
        let number = |name: &str| read(&group.join(name)).trim().parse::<u64>().ok();
        let limit = number(self.limit)?;
        let droppable = field(&read(&group.join("memory.stat")), self.files).unwrap_or(0);
        Some(limit.saturating_sub(number(self.usage)?.saturating_sub(droppable)))
    }
}

/// The first number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut words| (words.next()? == name).then(|| words.next()?.parse().ok())?)
}

/// A file's text; nothing if it is not there.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system of these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");

    #[test]
    fn the_machine_or_the_tightest_control_group_decides() {
        assert_eq!(available(system(&[]).path()), u64::MAX);
        assert_eq!(available(system(&[MEMINFO]).path()), 4_096_000);
        let second = [
            MEMINFO,
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/job/memory.max", "1000000\n"),
            ("sys/fs/cgroup/job/memory.current", "700000\n"),
            ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 200000\n"),
        ];
        assert_eq!(available(system(&second).path()), 500_000);
        let first = [
            MEMINFO,
            ("proc/self/cgroup", "3:cpu:/\n4:memory,x:/gone\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "9999\n"),
        ];
        assert_eq!(available(system(&first).path()), 0);
    }

    #[test]
    fn ranks_of_a_host_share_and_the_poorest_decides() {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(least_share(&lines(&["100 a", "90 a", "60 b"])), 45);
        assert_eq!(least_share(&lines(&["100 a"])), 100);
    }
}
