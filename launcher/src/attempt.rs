//! One attempt at a run: mpirun is started, events and signals are handled in one loop, and at the end nothing is left.

use crate::error::{Error, Result};
use crate::event::{Ending, Event, Happening};
use crate::heartbeat::{self, Heartbeat, unix_ms};
use crate::outcome::Outcome;
use crate::output::{Output, complain};
use crate::plan::{Place, RunPlan};
use crate::session::{Events, Session};
use crate::trace::{self, Trace};
use crate::{hosts, leftovers, mpirun, process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGUSR1};
use std::fs::{self, File};
use std::io::{Stderr, Stdout};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How long mpirun may take to end the ranks before it is killed; its own SIGTERM and SIGKILL take two seconds.
const HARD_END: Duration = Duration::from_secs(6);

/// How long the last processes and their last lines are waited for.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What the loop waits for.
pub enum Message {
    /// This process got a signal.
    Signal(i32),
    /// A rank reports.
    Event(Event),
    /// Every rank of the attempt is gone, and so are the events.
    NoMoreEvents,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How its ranks did.
    pub outcome: Outcome,
    /// Whether the launcher was asked to stop meanwhile.
    pub told_to_stop: bool,
}

/// Starts the ranks, waits for their end and reports it.
///
/// `received` gets what is sent to `messages`: signals, and here the events of the ranks.
///
/// # Errors
/// Folder, pipe, logs or mpirun cannot be created or started. A failing rank is no error: it is the outcome.
pub fn attempt(
    plan: &RunPlan,
    messages: &SyncSender<Message>,
    received: &Receiver<Message>,
) -> Result<Ended> {
    let (session, events) = plan.session()?;
    let logs = plan.logs(&session);
    fs::create_dir_all(&logs).map_err(Error::io("create", &logs))?;
    if let Place::Elsewhere { hosts, agent, .. } = &plan.place {
        let complaints = hosts::check(hosts, agent, plan, &logs);
        complaints.iter().for_each(|why| complain(format_args!("ilm-launch: {why}")));
        if !complaints.is_empty() {
            return Ok(Ended {
                outcome: Outcome::HostsUnusable { hosts: complaints.len() },
                told_to_stop: false,
            });
        }
    }
    read_events(events, messages.clone());

    let mpirun_log = logs.join("mpirun.log");
    let mut launch = Launch::start(plan, session, &mpirun_log)?;
    let mpirun = launch.wait(received)?;
    process::kill_descendants(LAST_WAIT);
    if let Some(job) = launch.job {
        leftovers::remove_segments(job);
    }
    launch.drain(received);

    let outcome = launch.outcome(mpirun);
    launch.report(outcome, &logs, &mpirun_log);
    if plan.run_dir.is_none() && outcome != Outcome::Finished {
        launch.session.keep();
    }
    Ok(Ended { outcome, told_to_stop: launch.told_to_stop })
}

/// When so many seconds are over; never for 0.
fn after(seconds: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_secs(seconds)).filter(|_| seconds > 0)
}

fn read_events(events: Events, messages: SyncSender<Message>) {
    thread::spawn(move || {
        for event in events {
            if messages.send(Message::Event(event)).is_err() {
                return;
            }
        }
        // Nobody waits for it if the launcher is about to end.
        let _ = messages.send(Message::NoMoreEvents);
    });
}

/// An attempt under way.
struct Launch<'a> {
    plan: &'a RunPlan,
    session: Session,
    mpirun: Child,
    /// Whether its end was waited for, so that its process id may be another's.
    reaped: bool,
    /// When it was started, in milliseconds since 1970.
    began: u64,
    /// Open MPI's number for it.
    job: Option<u32>,
    output: Output<Stdout, Stderr>,
    started: usize,
    /// Until when all ranks have to be; none once they are, or if they may take for ever.
    start_by: Option<Instant>,
    /// Whether the run is ended because they were not.
    late: bool,
    endings: Vec<(usize, Ending)>,
    /// Whether a request to save waits for the last rank to start: before that mpirun would lose it.
    save_pending: bool,
    /// Whether SIGUSR1, SIGTERM or SIGINT came.
    told_to_stop: bool,
    /// Whether SIGTERM or SIGINT came.
    asked_to_end: bool,
    /// The second of them.
    aborted: Option<i32>,
    /// A rank that hangs, and for how many seconds.
    hangs: Option<(usize, u64)>,
    /// When a run that hangs was ended, in milliseconds since 1970.
    ended_at: Option<u64>,
    /// When mpirun is killed.
    deadline: Option<Instant>,
}

impl<'a> Launch<'a> {
    fn start(plan: &'a RunPlan, session: Session, log: &Path) -> Result<Self> {
        let log_file = File::create(log).map_err(Error::io("create", log))?;
        let log_again = log_file.try_clone().map_err(Error::io("open", log))?;
        let mut command = mpirun::command(plan, &session);
        // A group of its own: a Ctrl-C in the terminal goes to the launcher alone, which passes it on its way.
        command.stdin(Stdio::null()).stdout(log_file).stderr(log_again).process_group(0);
        // SIGTERM rather than SIGKILL, so that mpirun clears its files away; the wrappers end by themselves.
        process::die_with_parent(&mut command, Signal::SIGTERM);
        Ok(Self {
            plan,
            session,
            began: unix_ms(SystemTime::now()),
            job: None,
            mpirun: command.spawn().map_err(Error::io("start", &plan.mpirun))?,
            reaped: false,
            output: Output::new(plan.ranks, std::io::stdout(), std::io::stderr()),
            started: 0,
            start_by: after(plan.start_timeout),
            late: false,
            endings: Vec::new(),
            save_pending: false,
            told_to_stop: false,
            asked_to_end: false,
            aborted: None,
            hangs: None,
            ended_at: None,
            deadline: None,
        })
    }

    /// Handles messages until mpirun has ended.
    fn wait(&mut self, messages: &Receiver<Message>) -> Result<Ending> {
        loop {
            // Looked at before every wait: SIGCHLD says only that something ended, and comes once for several.
            if let Some(status) = self.mpirun.try_wait().map_err(Error::io("wait for", &self.plan.mpirun))? {
                self.reaped = true;
                return Ok(status.into());
            }
            let next = self.deadline.or(self.start_by);
            let patience = next.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            match messages.recv_timeout(patience) {
                Ok(Message::Event(event)) => self.event(event),
                Ok(Message::Signal(SIGCHLD) | Message::NoMoreEvents) => {}
                Ok(Message::Signal(signal)) => self.signal(signal),
                Err(_) if self.deadline.is_none() => {
                    self.late = true;
                    self.end_now();
                }
                Err(_) => {
                    self.signal_mpirun(Signal::SIGKILL);
                    self.deadline = Some(Instant::now() + HARD_END);
                }
            }
        }
    }

    /// Handles the events that are left when every rank is gone.
    fn drain(&mut self, messages: &Receiver<Message>) {
        self.session.close();
        let end = Instant::now() + LAST_WAIT;
        while let Ok(message) = messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
            match message {
                Message::Event(event) => self.event(event),
                Message::Signal(signal) => self.told_to_stop |= signal != SIGCHLD,
                Message::NoMoreEvents => break,
            }
        }
        (0..self.plan.ranks).for_each(|rank| self.output.finish(rank));
    }

    fn event(&mut self, event: Event) {
        match event.what {
            Happening::Started { job } => {
                self.job = self.job.or(job);
                self.started += 1;
                if self.started == self.plan.ranks {
                    self.start_by = None;
                    if self.save_pending {
                        self.ask_to_save();
                    }
                }
            }
            Happening::Output { stream, piece, ends_line } => {
                self.output.piece(event.rank, stream, &piece, ends_line);
            }
            Happening::Hangs(seconds) => self.end_hanging(event.rank, seconds),
            Happening::Ended(ending) => {
                self.output.finish(event.rank);
                self.endings.push((event.rank, ending));
            }
        }
    }

    fn signal(&mut self, signal: i32) {
        if signal != SIGUSR1 && self.asked_to_end {
            self.aborted.get_or_insert(signal);
            self.end_now();
            return;
        }
        self.told_to_stop = true;
        self.asked_to_end |= signal != SIGUSR1;
        self.save_pending = true;
        if self.started == self.plan.ranks {
            self.ask_to_save();
        }
    }

    /// mpirun passes SIGUSR1 on to the ranks, while SIGTERM and SIGINT would make it end them within two seconds.
    fn ask_to_save(&mut self) {
        self.save_pending = false;
        self.signal_mpirun(Signal::SIGUSR1);
    }

    /// mpirun ends the ranks within two seconds, or is killed with them; those of srun hear it from here alone.
    fn end_now(&mut self) {
        self.session.hang_up();
        self.signal_mpirun(Signal::SIGTERM);
        self.deadline.get_or_insert(Instant::now() + HARD_END);
    }

    /// Ends a run in which `rank` was the first to be noticed; those that wait for a rank may be noticed before it.
    fn end_hanging(&mut self, rank: usize, seconds: u64) {
        if self.hangs.is_some() || self.reaped {
            return;
        }
        let now = SystemTime::now();
        self.ended_at = Some(unix_ms(now));
        let is_still = |beat: &Heartbeat| beat.rank == rank || beat.age(now).as_secs() >= seconds;
        let still: Vec<Heartbeat> = self.heartbeats().into_iter().filter(is_still).collect();
        self.hangs = Some((heartbeat::last_of(&still).map_or(rank, |beat| beat.rank), seconds));
        self.end_now();
    }

    /// What the ranks of this attempt last said about themselves.
    fn heartbeats(&self) -> Vec<Heartbeat> {
        let Some(run_dir) = &self.plan.run_dir else { return Vec::new() };
        (0..self.plan.ranks).filter_map(|rank| heartbeat::read(run_dir, rank, self.began)).collect()
    }

    fn signal_mpirun(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.mpirun.id())
            && !self.reaped
        {
            // It may have ended, and then this does nothing.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn outcome(&self, mpirun: Ending) -> Outcome {
        let judged = match self.hangs {
            // What the ranks did when they were ended says nothing.
            Some((rank, seconds)) => Outcome::RankHangs { rank, seconds },
            None if self.late => Outcome::NotStarted {
                started: self.started,
                ranks: self.plan.ranks,
                seconds: self.plan.start_timeout,
            },
            None => Outcome::judge(&self.endings, mpirun),
        };
        let judged = if self.told_to_stop { judged.after_a_request() } else { judged };
        match (self.aborted, judged) {
            // The ranks may have been through with saving when the second signal came.
            (_, Outcome::Finished | Outcome::Preempted | Outcome::StoppedEarly) | (None, _) => judged,
            (Some(signal), _) => Outcome::Aborted { signal },
        }
    }

    /// Says where the rank to blame was, and who was behind if one rank only waited for another.
    fn report_places(&self, outcome: Outcome, blamed: usize) {
        let Some(run_dir) = &self.plan.run_dir else { return };
        let read = |until| Trace::read_all(run_dir, self.plan.ranks, self.began, until);
        let (now, ended) = (SystemTime::now(), self.ended_at.unwrap_or(u64::MAX));
        let traces = read(ended);
        let Some(blamed) = traces.iter().find(|trace| trace.rank == blamed) else { return };
        complain(format_args!("ilm-launch: its {}", blamed.describe(now)));
        if !outcome.is_about_waiting() {
            return;
        }
        // It was this rank that ended the others, unless it was the launcher.
        let traces = read(self.ended_at.unwrap_or(blamed.last_sign()));
        if let Some(behind) = trace::furthest_behind(&traces).filter(|trace| trace.rank != blamed.rank) {
            complain(format_args!(
                "ilm-launch: rank {} is furthest behind, the others waited for it; its {}",
                behind.rank,
                behind.describe(now)
            ));
        }
    }

    fn report(&self, outcome: Outcome, logs: &Path, mpirun_log: &Path) {
        if outcome == Outcome::Finished {
            return;
        }
        complain(format_args!("ilm-launch: {outcome}"));
        if let Some(rank) = outcome.blamed() {
            self.report_places(outcome, rank);
            // The output of an only rank stands right above.
            let lines = if self.plan.ranks > 1 { self.output.last_lines(rank) } else { Vec::new() };
            for line in lines {
                complain(format_args!("    {line}"));
            }
            let log = logs.join(format!("rank-{rank}.log"));
            complain(format_args!("ilm-launch: its whole output is in {}", log.display()));
        }
        if let Outcome::MpirunFailed(_) | Outcome::NotStarted { .. } = outcome {
            let said = fs::read_to_string(mpirun_log).unwrap_or_default();
            complain(format_args!("{}", said.trim_end()));
        }
    }
}
