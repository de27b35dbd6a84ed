//! The stacks of all threads of this process, for the log of a run that hangs.
//!
//! A thread can only walk its own stack, so each gets a signal in whose handler it leaves its addresses in memory that was set
//! aside; the thread that asked turns them into names. It is the last thing before the process ends, and every wait is bounded.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Frames of a stack that are kept.
const FRAMES: usize = 48;
/// Threads that are asked.
const THREADS: usize = 128;
/// How long a thread may take to answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// How a frame of the handler shows.
const HERE: &str = "(stacks.rs:";

static ADDRESSES: [AtomicUsize; FRAMES] = [const { AtomicUsize::new(0) }; FRAMES];
static FOUND: AtomicUsize = AtomicUsize::new(0);
static ANSWERED: AtomicBool = AtomicBool::new(false);

/// A signal that neither libtorch nor MPI uses.
fn signal() -> c_int {
    libc::SIGRTMIN() + 3
}

/// Installs the handler.
///
/// # Errors
/// Those of the operating system.
pub(super) fn prepare() -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = answer as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: a valid action; its handler allocates nothing and takes no lock of ours.
    if unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Leaves the stack of the thread that the signal has interrupted.
extern "C" fn answer(_signal: c_int) {
    let mut found = 0;
    // SAFETY: threads are asked one after the other, and the lock that this does without is for turning addresses into names.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            if let Some(place) = ADDRESSES.get(found) {
                place.store(frame.ip() as usize, Ordering::Relaxed);
                found += 1;
            }
            found < FRAMES
        });
    }
    FOUND.store(found, Ordering::Relaxed);
    ANSWERED.store(true, Ordering::Release);
}

/// Stacks of threads; equal ones are shown once.
#[derive(Debug, Default)]
pub struct Stacks {
    found: Vec<(Vec<usize>, Vec<String>)>,
    silent: Vec<String>,
}

impl Stacks {
    /// Those of all threads of this process but the calling one. To be called by one thread at a time, after
    /// [`attach`](super::attach); without it there are none.
    pub fn take() -> Self {
        let mut stacks = Self::default();
        if super::VITALS.flight.get().is_none() {
            return stacks;
        }
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let mut threads: Vec<c_int> =
            tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
        threads.sort_unstable();
        // SAFETY: no arguments.
        let own = unsafe { libc::gettid() };
        for thread in threads.into_iter().filter(|thread| *thread != own).take(THREADS) {
            let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
            let name = format!("{} ({thread})", name.trim());
            match ask(thread) {
                None => stacks.silent.push(name),
                Some(stack) => match stacks.found.iter_mut().find(|(other, _)| *other == stack) {
                    Some((_, names)) => names.push(name),
                    None => stacks.found.push((stack, vec![name])),
                },
            }
        }
        stacks
    }
}

/// The addresses of a thread's stack, innermost first; none if it does not answer.
fn ask(thread: c_int) -> Option<Vec<usize>> {
    ANSWERED.store(false, Ordering::Release);
    // SAFETY: a system call on numbers; a thread that has ended gives an error.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
    let asked = Instant::now();
    while sent == 0 && asked.elapsed() < PATIENCE {
        if ANSWERED.load(Ordering::Acquire) {
            let found = FOUND.load(Ordering::Relaxed).min(FRAMES);
            return Some(ADDRESSES[..found].iter().map(|place| place.load(Ordering::Relaxed)).collect());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    None
}

impl fmt::Display for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stack, names) in &self.found {
            writeln!(f, "  {}", names.join(", "))?;
            let frames: Vec<Vec<String>> = stack.iter().map(|address| lines(*address)).collect();
            // The innermost frames are those of the handler and of the kernel's call of it.
            let handler = frames.iter().rposition(|lines| lines.iter().any(|line| line.contains(HERE)));
            for line in frames.iter().skip(handler.map_or(0, |at| at + 2)).flatten() {
                writeln!(f, "    {line}")?;
            }
        }
        for name in &self.silent {
            writeln!(f, "  {name}: no answer")?;
        }
        Ok(())
    }
}

/// The functions at an address: several where one was compiled into another.
fn lines(address: usize) -> Vec<String> {
    let mut lines = Vec::new();
    backtrace::resolve(address as *mut c_void, |symbol| {
        let name = symbol.name().map_or_else(|| format!("{address:#x}"), |name| format!("{name:#}"));
        // What a function is generic over fills pages.
        let name = name
            .split_once('<')
            .map_or(name.as_str(), |(head, _)| if head.is_empty() { &name } else { head });
        let place = symbol.filename().and_then(|file| file.file_name()).zip(symbol.lineno());
        let place = place.map(|(file, line)| format!(" ({}:{line})", file.display()));
        lines.push(format!("{name}{}", place.unwrap_or_default()));
    });
    if lines.is_empty() && address > 0 {
        lines.push(format!("{address:#x}"));
    }
    lines
}
