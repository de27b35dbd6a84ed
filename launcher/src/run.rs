//! The life of one run: one attempt after another, with waits between them, until there is nothing more to be done.

use crate::attempt::{Ended, Message, attempt};
use crate::error::{Error, Result};
use crate::heartbeat::unix_ms;
use crate::notes::Notes;
use crate::outcome::Outcome;
use crate::output::complain;
use crate::plan::{self, RunPlan};
use crate::process;
use crate::record::{End, Record};
use crate::restart::{Restart, Restarts};
use crate::status::this_host;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Makes attempts until one ends for good, and gives the exit code of the last.
///
/// # Errors
/// What [`attempt`] cannot create or start.
pub fn run(mut plan: RunPlan) -> Result<u8> {
    let (messages, received) = sync_channel(1024);
    listen(&messages).map_err(Error::io("handle signals in", &plan.wrapper))?;
    process::adopt_orphans().map_err(Error::io("adopt the processes of", &plan.wrapper))?;
    let mut restarts = Restarts::new(plan.restarts, plan.run_dir.clone());
    let mut record = first_record(&plan);
    let mut notes = Notes::new(&plan);
    loop {
        record.started_unix_ms = unix_ms(SystemTime::now());
        notes.begin(&record);
        let Ended { outcome, told_to_stop } = attempt(&plan, &messages, &received)?;
        record.end = Some(End::now(outcome));
        notes.end(&record, outcome);

        // Slurm takes nodes away by signals to the ranks themselves: they are wanted back, and the job is queued again.
        let wanted_back = outcome == Outcome::Preempted && plan::allocated_nodes() > 0;
        let again =
            if told_to_stop || wanted_back { None } else { restarts.after(outcome, &mut plan.worker_args) };
        let Some(restart) = again else { return Ok(outcome.code()) };
        announce(outcome, restart);
        if stop_comes_within(restart.delay, &received) {
            complain(format_args!("ilm-launch: told to stop, so there is no restart"));
            // The run would have gone on, and does when it is started again.
            return Ok(Outcome::StoppedEarly.code());
        }
        record.restarts += 1;
    }
}

fn listen(messages: &SyncSender<Message>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGCHLD])?;
    let messages = messages.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if messages.send(Message::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn announce(outcome: Outcome, Restart { delay, left }: Restart) {
    let restarts = if left == 1 { "restart" } else { "restarts" };
    complain(format_args!(
        "ilm-launch: starting again in {} s because {outcome} ({left} more {restarts} without a new checkpoint)",
        delay.as_secs_f64()
    ));
}

/// Waits for `delay`, or less if a signal says that the run shall end.
fn stop_comes_within(delay: Duration, messages: &Receiver<Message>) -> bool {
    let end = Instant::now() + delay;
    loop {
        match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Message::Signal(signal)) if signal != SIGCHLD => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

fn first_record(plan: &RunPlan) -> Record {
    let arguments = plan.worker_args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let (ranks, pid) = (plan.ranks, std::process::id());
    Record { arguments, ranks, host: this_host(), pid, started_unix_ms: 0, restarts: 0, end: None }
}
