//! The wrapper around the worker of one rank: it sees every line and the true ending of the worker, and neither of
//! the two outlives the other, mpirun, or the launcher.

use crate::args::RankArgs;
use crate::error::{Error, Result};
use crate::event::{Ending, Event, Happening, MAX_PIECE, Stream};
use crate::heartbeat::{self, unix_ms};
use crate::mpirun::STOPS_BY_USR1;
use crate::outcome::PREEMPTED;
use crate::status::this_host;
use crate::{leftovers, machine, process, session};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, setpgid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Where MPI and Slurm say which rank a process is.
const RANK_VARIABLES: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// How long output is still read after the worker's end, in case a process it left behind holds it open.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How often the heartbeat is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Runs the worker and gives the exit code for mpirun: the worker's own, or 128 + signal.
///
/// A preempted worker counts as ended well here, because mpirun would otherwise give the ranks that are still
/// saving one second; the launcher gets the true code from the event.
///
/// # Errors
/// The rank is unknown, or pipe, log or worker cannot be opened.
pub fn run(args: &RankArgs) -> Result<u8> {
    let rank = own_rank()?;
    let reporter = Arc::new(Reporter::open(rank, args)?);
    end_with_others(&reporter).map_err(Error::io("watch", Path::new(&args.events)))?;
    if args.bind_cores {
        bind(&args.worker)?;
    }

    let mut command = Command::new(&args.worker);
    command.args(&args.worker_args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env(STOPS_BY_USR1, "1");
    process::die_with_parent(&mut command, Signal::SIGKILL);
    let began = unix_ms(SystemTime::now());
    let mut worker = command.spawn().map_err(Error::io("start", &args.worker))?;
    reporter.tell(Happening::Started { job: job() });
    watch_heartbeat(&reporter, args, began);

    let (reading, all_read) = mpsc::channel();
    if let Some(output) = worker.stdout.take() {
        forward(&reporter, Stream::Out, output, reading.clone());
    }
    if let Some(output) = worker.stderr.take() {
        forward(&reporter, Stream::Err, output, reading);
    }
    let ending = Ending::from(worker.wait().map_err(Error::io("wait for", &args.worker))?);
    // Nothing is ever sent: the channel closes when both outputs are read to their end.
    let _ = all_read.recv_timeout(LAST_OUTPUT);
    reporter.tell(Happening::Ended(ending));
    Ok(if ending == Ending::Exit(PREEMPTED) { 0 } else { ending.code() })
}

fn own_rank() -> Result<usize> {
    RANK_VARIABLES
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .ok_or_else(|| Error::NoRank { variables: RANK_VARIABLES.join(", ") })
}

/// Open MPI's number of this job.
fn job() -> Option<u32> {
    std::env::var(leftovers::JOB_VARIABLE).ok()?.parse().ok()
}

/// Tells the launcher, once, when the heartbeat that the worker writes after `began` has stood still for too long.
///
/// A job beside a run, such as an evaluation, writes none while the run does, and has nothing to do with how that goes on.
/// Only changes are looked at, by this process's own clock: so a clock that differs, or is set once a heartbeat was seen, does no
/// harm.
fn watch_heartbeat(reporter: &Arc<Reporter>, args: &RankArgs, began: u64) {
    let (Some(run_dir), limit @ 1..) = (args.run_dir.clone(), args.hang_timeout) else { return };
    let reporter = Arc::clone(reporter);
    thread::spawn(move || {
        let host = this_host();
        let mut last = (None, Instant::now());
        while last.0.is_none() || last.1.elapsed() < Duration::from_secs(limit) {
            thread::sleep(LOOK_AGAIN);
            let beat = heartbeat::read(&run_dir, reporter.rank, 0);
            let beat = beat.filter(|beat| beat.is_since(began, last.0.as_ref()));
            let own = beat.filter(|beat| beat.host == host && process::is_own(beat.pid));
            if own.is_some() && own != last.0 {
                last = (own, Instant::now());
            }
        }
        reporter.tell(Happening::Hangs(limit));
    });
}

/// Restricts this process, and so the worker, to an equal share of this machine's usable cores.
fn bind(worker: &Path) -> Result<()> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    let rank: usize = number("OMPI_COMM_WORLD_LOCAL_RANK").unwrap_or(0);
    let ranks: usize = number("OMPI_COMM_WORLD_LOCAL_SIZE").unwrap_or(1).max(1);
    let usable = machine::usable_cores();
    let share = usable.len() / ranks;
    if share == 0 {
        return Err(Error::TooFewCores { ranks, cores: usable.len() });
    }
    let refused = |error| Error::io("bind to its cores", worker)(error);
    let mut set = CpuSet::new();
    for cpu in usable.into_iter().skip(rank * share).take(share).flatten() {
        set.set(cpu).map_err(refused)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(refused)
}

/// Ties this process and its group to mpirun and to the launcher, and keeps it alive while the worker saves.
fn end_with_others(reporter: &Arc<Reporter>) -> io::Result<()> {
    // Not SIGKILL, which would end the wrapper before it can end what its worker has started.
    let (mpirun_gone, notify) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGHUP, notify)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGHUP)?;
    // mpirun signals the whole process group, so the worker gets them by itself. The wrapper has to survive them to
    // report its end; handlers, unlike ignored signals, are not inherited by the worker.
    for signal in [SIGTERM, SIGINT, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    if getpgrp() != Pid::this() {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    }
    let launcher = reporter.launcher.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?;
    thread::Builder::new().name("ilm-launch-alive".into()).spawn(move || {
        wait_for_either(&launcher, &mpirun_gone);
        // With the launcher or mpirun gone nobody would see the worker through, or remove what it shares with others:
        // it needs the name of that no more.
        if let Some(job) = job() {
            leftovers::remove_segments(job);
        }
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    })?;
    Ok(())
}

/// Waits until nobody reads what is written to `launcher` any more, or something can be read from `signalled`.
fn wait_for_either(launcher: &File, signalled: &UnixStream) {
    let watch = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
    let mut watched =
        [watch(launcher.as_raw_fd(), libc::POLLRDHUP), watch(signalled.as_raw_fd(), libc::POLLIN)];
    loop {
        // SAFETY: `watched` holds two valid pollfds, borrowed for the call only, and their descriptors are open.
        let ready = unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) };
        if ready > 0 {
            return;
        }
    }
}

/// Where the output and the state of this rank go.
struct Reporter {
    rank: usize,
    /// Locked for a whole record, which a connection may take in parts.
    launcher: Mutex<File>,
    log: Mutex<File>,
}

impl Reporter {
    fn open(rank: usize, args: &RankArgs) -> Result<Self> {
        let path = args.logs.join(format!("rank-{rank}.log"));
        let log =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        let launcher = session::open_for_events(&args.events)?;
        Ok(Self { rank, launcher: Mutex::new(launcher), log: Mutex::new(log) })
    }

    fn tell(&self, what: Happening) {
        let launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        // A broken pipe means that the launcher is gone, and `end_with_others` sees to that.
        let _ = Event { rank: self.rank, what }.send(&*launcher);
    }

    /// Copies lines to the log and, in pieces, to the launcher until the output ends.
    fn copy(&self, stream: Stream, output: impl Read) {
        let mut output = BufReader::new(output);
        loop {
            let mut piece = Vec::new();
            match (&mut output).take(MAX_PIECE).read_until(b'\n', &mut piece) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            // A full disk must not stop the training: the launcher still shows the line.
            let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(&piece);
            let ends_line = piece.pop_if(|last| *last == b'\n').is_some();
            self.tell(Happening::Output { stream, piece, ends_line });
        }
    }
}

/// Copies an output on a thread that holds `reading` for as long as it does so.
fn forward(
    reporter: &Arc<Reporter>,
    stream: Stream,
    output: impl Read + Send + 'static,
    reading: mpsc::Sender<()>,
) {
    let reporter = Arc::clone(reporter);
    thread::spawn(move || {
        reporter.copy(stream, output);
        drop(reading);
    });
}
