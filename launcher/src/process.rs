//! No process outlives its launch: children die with their parent, and what slipped away is found and killed.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, getppid};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Has the kernel send `signal` to the child of `command` when the calling thread ends.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = Pid::this();
    let arm = move || {
        prctl::set_pdeathsig(signal)?;
        // A parent that ended before the call above is not noticed by it.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    // SAFETY: between fork and exec `arm` makes two system calls and neither allocates nor takes a lock.
    unsafe { command.pre_exec(arm) };
}

/// Makes this process the parent of descendants whose own parent ends, so that [`kill_descendants`] finds them.
///
/// # Errors
/// Those of the system call.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Kills and reaps all children, and with [`adopt_orphans`] all descendants, of this process, for at most `limit`.
pub fn kill_descendants(limit: Duration) {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::EINTR) => {}
            Err(_) => return,
            Ok(WaitStatus::StillAlive) => {
                for child in children() {
                    // It may have ended meanwhile.
                    let _ = kill(child, Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(_) => {}
        }
    }
}

fn children() -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let this = Pid::this();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|&process| parent(process) == Some(this))
        .collect()
}

fn parent(process: Pid) -> Option<Pid> {
    let (_, after_name) = stat(process.as_raw())?;
    Some(Pid::from_raw(after_name.split_whitespace().nth(1)?.parse().ok()?))
}

/// Whether a process belongs to this one: it is of its group, or below it.
pub fn is_own(process: u32) -> bool {
    // For the kernel 0 means the one who asks.
    let Some(process) = i32::try_from(process).ok().filter(|&process| process > 0) else { return false };
    let process = Pid::from_raw(process);
    // Process groups are what is left of a family whose middle is gone; ancestry, of one that made a group of its own.
    getpgid(Some(process)) == Ok(getpgrp()) || ancestors(process).any(|ancestor| ancestor == Pid::this())
}

fn ancestors(process: Pid) -> impl Iterator<Item = Pid> {
    std::iter::successors(Some(process), |&process| parent(process).filter(|parent| parent.as_raw() > 0))
}

/// The name of a process that lives; one that waits for its parent to notice its end does not.
pub fn name(process: u32) -> Option<String> {
    let (name, after_name) = stat(i32::try_from(process).ok()?)?;
    (!after_name.trim_start().starts_with(['Z', 'X'])).then_some(name)
}

/// The name of a process, and what the kernel says after it: state, parent and more.
fn stat(process: i32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in brackets, may itself hold blanks and brackets.
    let (begin, after_name) = stat.rsplit_once(')')?;
    Some((begin.split_once('(')?.1.to_owned(), after_name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_a_process_is_read() {
        assert_eq!(parent(Pid::this()), Some(getppid()));
        assert_eq!(parent(Pid::from_raw(i32::MAX)), None);
    }

    #[test]
    fn own_are_the_group_and_what_is_below() {
        assert!(is_own(std::process::id()));
        assert!(!is_own(1) && !is_own(u32::MAX) && !is_own(0));
        let mut elsewhere = Command::new("sleep");
        let mut child = elsewhere.arg("1000").process_group(0).spawn().unwrap();
        assert!(is_own(child.id()), "a child that has a group of its own");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_own(child.id()));
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "the function under test waits for it")]
    fn descendants_are_killed_and_reaped() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let child = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children().contains(&child));
        assert_eq!(name(child.as_raw().unsigned_abs()).as_deref(), Some("sleep"));
        kill(child, Signal::SIGKILL).unwrap();
        while name(child.as_raw().unsigned_abs()).is_some() {}
        assert_eq!(parent(child), Some(Pid::this()), "not reaped yet");
        kill_descendants(Duration::from_secs(60));
        assert_eq!(parent(child), None);
    }
}
