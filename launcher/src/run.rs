//! The life of one run: mpirun is started, events and signals are handled in one loop, and at the end nothing is left.

use crate::error::{Error, Result};
use crate::event::{Ending, Event, Happening};
use crate::outcome::Outcome;
use crate::output::{Output, complain};
use crate::plan::RunPlan;
use crate::process;
use crate::session::{EventReader, Session};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use std::fs::{self, File};
use std::io::{Stderr, Stdout};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long mpirun may take to end the ranks before it is killed; its own SIGTERM and SIGKILL take two seconds.
const HARD_END: Duration = Duration::from_secs(6);

/// How long the last processes and their last lines are waited for.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What the loop waits for.
enum Message {
    Signal(i32),
    Event(Event),
}

/// Starts the ranks, waits for their end, reports, and gives the exit code.
///
/// # Errors
/// Folder, pipe, logs or mpirun cannot be created or started. A failing rank is no error: it is the exit code.
pub fn run(plan: &RunPlan) -> Result<u8> {
    let (mut session, reader) = Session::create()?;
    let logs = plan.logs(&session);
    fs::create_dir_all(&logs).map_err(Error::io("create", &logs))?;
    let (messages, received) = sync_channel(1024);
    let signals = listen(&messages).map_err(Error::io("handle signals in", &plan.wrapper))?;
    read_events(reader, messages);
    process::adopt_orphans().map_err(Error::io("adopt the processes of", &plan.wrapper))?;

    let mpirun_log = logs.join("mpirun.log");
    let mut launch = Launch::start(plan, &session, &mpirun_log)?;
    let mpirun = launch.wait(&received)?;
    process::kill_descendants(LAST_WAIT);
    session.close_pipe();
    signals.close();
    launch.drain(&received);

    let outcome = launch.outcome(mpirun);
    launch.report(outcome, &logs, &mpirun_log);
    if plan.run_dir.is_none() && outcome != Outcome::Finished {
        session.keep();
    }
    Ok(outcome.code())
}

fn listen(messages: &SyncSender<Message>) -> std::io::Result<Handle> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGCHLD])?;
    let handle = signals.handle();
    let messages = messages.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if messages.send(Message::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(handle)
}

fn read_events(reader: EventReader, messages: SyncSender<Message>) {
    thread::spawn(move || {
        for event in reader {
            if messages.send(Message::Event(event)).is_err() {
                return;
            }
        }
    });
}

/// A run under way.
struct Launch {
    mpirun: Child,
    mpirun_path: PathBuf,
    ranks: usize,
    output: Output<Stdout, Stderr>,
    started: usize,
    endings: Vec<(usize, Ending)>,
    /// Whether a request to save waits for the last rank to start: before that mpirun would lose it.
    save_pending: bool,
    /// Whether SIGTERM or SIGINT came.
    asked_to_end: bool,
    /// The second of them.
    aborted: Option<i32>,
    /// When mpirun is killed.
    deadline: Option<Instant>,
}

impl Launch {
    fn start(plan: &RunPlan, session: &Session, log: &Path) -> Result<Self> {
        let log_file = File::create(log).map_err(Error::io("create", log))?;
        let log_again = log_file.try_clone().map_err(Error::io("open", log))?;
        let mut command = plan.command(session);
        // A group of its own: a Ctrl-C in the terminal goes to the launcher alone, which passes it on its way.
        command.stdin(Stdio::null()).stdout(log_file).stderr(log_again).process_group(0);
        // SIGTERM rather than SIGKILL, so that mpirun clears its files away; the wrappers end by themselves.
        process::die_with_parent(&mut command, Signal::SIGTERM);
        Ok(Self {
            mpirun: command.spawn().map_err(Error::io("start", &plan.mpirun))?,
            mpirun_path: plan.mpirun.clone(),
            ranks: plan.ranks,
            output: Output::new(plan.ranks, std::io::stdout(), std::io::stderr()),
            started: 0,
            endings: Vec::new(),
            save_pending: false,
            asked_to_end: false,
            aborted: None,
            deadline: None,
        })
    }

    /// Handles messages until mpirun has ended.
    fn wait(&mut self, messages: &Receiver<Message>) -> Result<Ending> {
        loop {
            // Looked at before every wait: SIGCHLD says only that something ended, and comes once for several.
            if let Some(status) = self.mpirun.try_wait().map_err(Error::io("wait for", &self.mpirun_path))? {
                return Ok(status.into());
            }
            let patience =
                self.deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            match messages.recv_timeout(patience) {
                Ok(Message::Event(event)) => self.event(event),
                Ok(Message::Signal(SIGCHLD)) => {}
                Ok(Message::Signal(signal)) => self.signal(signal),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.signal_mpirun(Signal::SIGKILL);
                    self.deadline = Some(Instant::now() + HARD_END);
                }
            }
        }
    }

    /// Handles the events that are left when every rank is gone.
    fn drain(&mut self, messages: &Receiver<Message>) {
        let end = Instant::now() + LAST_WAIT;
        while let Ok(message) = messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Message::Event(event) = message {
                self.event(event);
            }
        }
        (0..self.ranks).for_each(|rank| self.output.finish(rank));
    }

    fn event(&mut self, event: Event) {
        match event.what {
            Happening::Started => {
                self.started += 1;
                if self.started == self.ranks && self.save_pending {
                    self.ask_to_save();
                }
            }
            Happening::Output { stream, piece, ends_line } => {
                self.output.piece(event.rank, stream, &piece, ends_line);
            }
            Happening::Ended(ending) => {
                self.output.finish(event.rank);
                self.endings.push((event.rank, ending));
            }
        }
    }

    fn signal(&mut self, signal: i32) {
        if signal != SIGUSR1 && self.asked_to_end {
            self.aborted.get_or_insert(signal);
            self.signal_mpirun(Signal::SIGTERM);
            self.deadline.get_or_insert(Instant::now() + HARD_END);
            return;
        }
        self.asked_to_end |= signal != SIGUSR1;
        self.save_pending = true;
        if self.started == self.ranks {
            self.ask_to_save();
        }
    }

    /// mpirun passes SIGUSR1 on to the ranks, while SIGTERM and SIGINT would make it end them within two seconds.
    fn ask_to_save(&mut self) {
        self.save_pending = false;
        self.signal_mpirun(Signal::SIGUSR1);
    }

    fn signal_mpirun(&self, signal: Signal) {
        // The child is not reaped yet, so the number is still its own; it may have ended, and then this does nothing.
        if let Ok(pid) = i32::try_from(self.mpirun.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn outcome(&self, mpirun: Ending) -> Outcome {
        let judged = Outcome::judge(&self.endings, mpirun);
        match (self.aborted, judged) {
            // The ranks may have been through with saving when the second signal came.
            (_, Outcome::Finished | Outcome::Preempted) | (None, _) => judged,
            (Some(signal), _) => Outcome::Aborted { signal },
        }
    }

    fn report(&self, outcome: Outcome, logs: &Path, mpirun_log: &Path) {
        if outcome == Outcome::Finished {
            return;
        }
        complain(format_args!("ilm-launch: {outcome}"));
        match outcome {
            Outcome::RankFailed { rank, .. } => {
                // The output of an only rank stands right above.
                let lines = if self.ranks > 1 { self.output.last_lines(rank) } else { Vec::new() };
                for line in lines {
                    complain(format_args!("    {line}"));
                }
                let log = logs.join(format!("rank-{rank}.log"));
                complain(format_args!("ilm-launch: its whole output is in {}", log.display()));
            }
            Outcome::MpirunFailed(_) => {
                let said = fs::read_to_string(mpirun_log).unwrap_or_default();
                complain(format_args!("{}", said.trim_end()));
            }
            Outcome::Finished | Outcome::Preempted | Outcome::Aborted { .. } => {}
        }
    }
}
