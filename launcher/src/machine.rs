//! Facts about this machine: which cores may be used, and where executables are.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{AccessFlags, Pid, access};
use std::env;
use std::path::{Path, PathBuf};

/// The physical cores this process may run on, in ascending order, each with the hardware threads of it that it may use.
///
/// mpirun counts one slot for each core, not for each hardware thread. Never empty.
pub fn usable_cores() -> Vec<Vec<usize>> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return vec![vec![0]] };
    let mut cores: Vec<(String, Vec<usize>)> = Vec::new();
    for cpu in (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)) {
        // Hardware threads of one core name the same siblings; where the kernel does not say, each counts as a core.
        let name = siblings(cpu).unwrap_or_else(|| cpu.to_string());
        match cores.iter_mut().find(|(known, _)| *known == name) {
            Some((_, cpus)) => cpus.push(cpu),
            None => cores.push((name, vec![cpu])),
        }
    }
    cores.into_iter().map(|(_, cpus)| cpus).collect()
}

fn siblings(cpu: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Whether `path` is a file this user may execute.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// The first executable `name` in the folders of PATH.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usable_hardware_thread_belongs_to_one_core() {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let usable: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect();
        let mut of_cores = usable_cores().concat();
        of_cores.sort_unstable();
        assert_eq!(of_cores, usable);
    }

    #[test]
    fn executables_are_found_and_plain_files_are_not() {
        assert!(find_in_path("sh").is_some());
        assert_eq!(find_in_path("no-such-program-anywhere"), None);
        assert!(!is_executable(Path::new("/etc/passwd")));
        assert!(!is_executable(Path::new("/")));
    }
}
