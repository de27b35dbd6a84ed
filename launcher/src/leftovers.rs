//! Files in shared memory that Open MPI leaves behind when it cannot clear up itself.

use nix::unistd::Uid;
use std::fs;
use std::path::Path;

/// Open MPI's number for the job of this process, where a rank finds it.
pub const JOB_VARIABLE: &str = "OMPI_MCA_ess_base_jobid";

/// Removes the shared-memory segments of one job of this user; those of other jobs stay.
///
/// mpirun does this when it ends in any other way than by SIGKILL. Each segment is named
/// `vader_segment.HOST.USER.JOB.RANK`, the job in hexadecimal digits.
pub fn remove_segments(job: u32) {
    remove_from(Path::new("/dev/shm"), job);
}

fn remove_from(folder: &Path, job: u32) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let of_job = format!(".{}.{job:x}.", Uid::effective());
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Host names may hold dots, so the end is looked at; it is never a directory.
        let is_ours = name.starts_with("vader_segment.")
            && name.rfind(&of_job).is_some_and(|at| name[at + of_job.len()..].parse::<u32>().is_ok());
        if is_ours {
            // mpirun may be faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_of_the_job_go() {
        let folder = tempfile::tempdir().unwrap();
        let user = Uid::effective();
        let name = |host: &str, job: &str, rank: &str| format!("vader_segment.{host}.{user}.{job}.{rank}");
        let gone = [name("vm", "1ed20001", "0"), name("vm.some.org", "1ed20001", "12")];
        let mut kept = [
            name("vm", "1ed20002", "0"),
            name("vm", "11ed20001", "0"),
            name("vm", "1ed20001", "0.x"),
            format!("other.vm.{user}.1ed20001.0"),
        ];
        for name in gone.iter().chain(&kept) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_from(folder.path(), 0x1ed2_0001);
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut left: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        kept.sort();
        assert_eq!(left, kept);
    }
}
