//! A run whose ranks and mpirun are killed at chosen moments is always started again, and ends with the bits of one that was
//! left alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::program::{
    Signal, checkpoint_bits, checkpoint_path, checkpoint_steps, children_called, figures, kill, last_step,
    program, run, tiny_star, variable, wait_until, workers_below,
};

const RANKS: usize = 2;

/// Longer than a step, so that a kill may fall anywhere within one.
const LONGEST_DELAY: Duration = Duration::from_millis(200);

/// Every second kill waits for a new checkpoint, which gives the restarts back: so these two are enough for any number of kills.
const RESTARTS: &str = "2";

/// When a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The ranks run and have not begun to look at checkpoints.
    Starting,
    /// A rank has a shard open, before the first step.
    Loading,
    /// Steps are made and nothing is being saved.
    Stepping,
    /// The staging directory is there and no shard in it.
    Staging,
    /// A shard is there in part.
    Writing,
    /// Every shard is written, and the manifest is missing.
    WithoutManifest,
    /// A checkpoint has just become valid; old ones are removed now.
    Committed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Rank(usize),
    Mpirun,
}

/// What was killed, how often.
type Tally = BTreeMap<(Moment, Victim), usize>;

/// Big enough that the shards of a checkpoint are not written in one blink (28 MB); a step is still short.
fn training(run_dir: &Path, steps: u64) -> Vec<String> {
    let mut arguments = tiny_star(run_dir);
    arguments.extend(
        [
            "model.d_model=192",
            "model.dim_feedforward=1536",
            "model.dropout=0.1",
            "checkpoint.every_n_steps=3",
        ]
        .map(String::from),
    );
    arguments.push(format!("trainer.max_steps={steps}"));
    arguments
}

fn launch(run_dir: &Path, steps: u64) -> Command {
    let mut command = Command::new(program("ilm-launch"));
    command.args(["run", "-n", &RANKS.to_string(), "--max-restarts", RESTARTS, "--restart-delay", "0", "--"]);
    command.args(training(run_dir, steps));
    command
}

/// One start of the ranks, as it is found soon after.
struct Attempt<'a> {
    run_dir: &'a Path,
    mpirun: u32,
    /// By rank.
    workers: Vec<u32>,
    began: Instant,
    /// How far the run was.
    metrics: u64,
    checkpoint: u64,
    /// When the first step was noticed.
    stepped: Option<Instant>,
}

impl<'a> Attempt<'a> {
    /// Waits for one whose mpirun is not that of `before`.
    fn next(launcher: &mut Launcher, run_dir: &'a Path, before: u32) -> Self {
        let mut found = None;
        wait_until("the next attempt", || {
            assert!(launcher.child.try_wait().is_ok_and(|end| end.is_none()), "{}", launcher.said());
            let mpirun = children_called(launcher.child.id(), &["mpirun", "orterun"]);
            let mpirun = mpirun.into_iter().find(|id| *id != before);
            let mut workers = mpirun.map(workers_below).unwrap_or_default();
            let rank = |id: &u32| variable(*id, "OMPI_COMM_WORLD_RANK");
            workers.sort_by_key(rank);
            found =
                mpirun.filter(|_| workers.iter().filter_map(rank).count() == RANKS).map(|id| (id, workers));
            found.is_some()
        });
        let (mpirun, workers) = found.expect("it was waited for");
        let (began, metrics) = (Instant::now(), metrics_length(run_dir));
        Self { run_dir, mpirun, workers, began, metrics, checkpoint: newest(run_dir), stepped: None }
    }

    fn process(&self, victim: Victim) -> u32 {
        match victim {
            Victim::Rank(rank) => self.workers[rank],
            Victim::Mpirun => self.mpirun,
        }
    }

    /// Waits for the moment and kills the victim in it; the moment that it was.
    fn kill_at(&mut self, moment: Moment, victim: Victim, delay: Duration) -> Moment {
        let id = self.process(victim);
        let mut killed = None;
        wait_until("the moment to kill at", || {
            killed = if self.is_now(moment, victim, delay) {
                // What is stopped cannot leave the moment any more.
                kill(Signal::SIGSTOP, id);
                self.is_now(moment, victim, delay).then_some(moment)
            } else {
                // The start is over: it will not come again.
                (self.stepped.is_some() && moment <= Moment::Loading).then_some(Moment::Stepping)
            };
            kill(if killed.is_some() { Signal::SIGKILL } else { Signal::SIGCONT }, id);
            killed.is_some()
        });
        killed.expect("it was waited for")
    }

    fn is_now(&mut self, moment: Moment, victim: Victim, delay: Duration) -> bool {
        if self.stepped.is_none() && metrics_length(self.run_dir) != self.metrics {
            self.stepped = Some(Instant::now());
        }
        let staging = staging(self.run_dir);
        let shards = staging.as_deref().map(shards).unwrap_or_default();
        let is_whole = |(name, length): &(PathBuf, u64)| Some(*length) == self.whole_length(name);
        match moment {
            Moment::Starting => {
                self.stepped.is_none() && self.began.elapsed() >= delay && !self.reads_checkpoint()
            }
            Moment::Loading => self.stepped.is_none() && self.reads_checkpoint(),
            Moment::Stepping => self.stepped.is_some_and(|at| at.elapsed() >= delay) && staging.is_none(),
            Moment::Staging => staging.is_some() && shards.iter().all(|(_, length)| *length == 0),
            Moment::Writing => {
                let is_its = |(name, _): &&(PathBuf, u64)| match victim {
                    Victim::Rank(rank) => name.ends_with(format!("rank-{rank:05}.safetensors")),
                    Victim::Mpirun => true,
                };
                shards.iter().filter(is_its).any(|shard| shard.1 > 0 && !is_whole(shard))
            }
            Moment::WithoutManifest => {
                let is_missing = staging.as_ref().is_some_and(|dir| !dir.join("manifest.json").exists());
                is_missing && shards.len() == RANKS && shards.iter().all(is_whole)
            }
            Moment::Committed => newest(self.run_dir) > self.checkpoint,
        }
    }

    /// The length of a shard of this name in a valid checkpoint.
    fn whole_length(&self, shard: &Path) -> Option<u64> {
        let whole = checkpoint_path(self.run_dir, newest(self.run_dir)).join(shard.file_name()?);
        Some(whole.metadata().ok()?.len())
    }

    fn reads_checkpoint(&self) -> bool {
        let step = self.run_dir.join("checkpoints/step-").display().to_string();
        let opens = |id: &u32| {
            let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|file| file.display().to_string().starts_with(&step))
        };
        self.workers.iter().any(opens)
    }
}

fn metrics_length(run_dir: &Path) -> u64 {
    run_dir.join("metrics.jsonl").metadata().map_or(0, |file| file.len())
}

fn newest(run_dir: &Path) -> u64 {
    checkpoint_steps(run_dir).pop().unwrap_or(0)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What lies hidden beside the checkpoints, but for the lock.
fn hidden(run_dir: &Path) -> Vec<PathBuf> {
    let mut found = entries(&run_dir.join("checkpoints"));
    found.retain(|path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with('.') && name != ".lock"
    });
    found
}

/// The directory of the save that is under way.
fn staging(run_dir: &Path) -> Option<PathBuf> {
    let is_save = |path: &PathBuf| path.display().to_string().contains("/.tmp-step-");
    hidden(run_dir).into_iter().find(is_save)
}

fn shards(staging: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = entries(staging);
    found.retain(|path| path.extension() == Some(OsStr::new("safetensors")));
    found.into_iter().filter_map(|path| Some((path.clone(), path.metadata().ok()?.len()))).collect()
}

/// `count` moments and victims, alternately of any kind and of those that may wait for a new checkpoint.
fn plan(count: usize, random: &mut ChaCha8Rng) -> Vec<(Moment, Victim)> {
    use Moment::{Committed, Loading, Staging, Starting, Stepping, WithoutManifest, Writing};
    let mut shuffled = |from: &[Moment]| {
        let mut drawn: Vec<Moment> = from.iter().copied().cycle().take(count.div_ceil(2)).collect();
        drawn.shuffle(random);
        drawn
    };
    let any = shuffled(&[Loading, Starting, Staging, Writing, WithoutManifest]);
    let late = shuffled(&[Writing, WithoutManifest, Stepping, Staging, Committed]);
    let moments = any.into_iter().zip(late).flat_map(|(any, late)| [any, late]).take(count);
    let mut victims: Vec<Victim> =
        [Victim::Rank(0), Victim::Rank(1), Victim::Mpirun].into_iter().cycle().take(count).collect();
    victims.shuffle(random);
    moments.zip(victims).collect()
}

/// A launcher that a failed test does not leave behind; its ranks end with it.
struct Launcher {
    child: Child,
    log: PathBuf,
}

impl Launcher {
    fn start(run_dir: &Path) -> Self {
        // A file, because what is said of many kills would fill a pipe that nobody reads meanwhile.
        let log = run_dir.with_extension("log");
        let mut command = launch(run_dir, 1_000_000);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log).expect("a file can be made"));
        Self { child: command.spawn().expect("the launcher can be started"), log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a readable file")
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// Kills so often and lets the run be, until it is told to stop; gives the step it came to and what was killed.
fn disturbed(run_dir: &Path, kills: usize, seed: u64) -> (u64, Tally) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let plan = plan(kills, &mut random);
    let mut launcher = Launcher::start(run_dir);
    let (mut mpirun, mut tally) = (0, Tally::new());
    for (index, (moment, victim)) in plan.into_iter().enumerate() {
        let mut attempt = Attempt::next(&mut launcher, run_dir, mpirun);
        mpirun = attempt.mpirun;
        if index % 2 == 1 {
            wait_until("a new checkpoint", || newest(run_dir) > attempt.checkpoint);
        }
        let delay = LONGEST_DELAY.mul_f64(random.random());
        *tally.entry((attempt.kill_at(moment, victim, delay), victim)).or_default() += 1;
    }
    let last = Attempt::next(&mut launcher, run_dir, mpirun);
    wait_until("a new checkpoint", || newest(run_dir) > last.checkpoint);
    kill(Signal::SIGTERM, launcher.child.id());
    let status = launcher.child.wait().expect("the launcher is the test's own");
    let said = launcher.said();
    assert_eq!(status.code(), Some(75), "{said}");
    assert_eq!(said.matches("starting again in 0 s").count(), kills, "{said}");
    (newest(run_dir), tally)
}

fn check(kills: usize, seed: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [killed, reference] = ["killed", "reference"].map(|name| folder.path().join(name));
    let began = Instant::now();
    let (steps, tally) = disturbed(&killed, kills, seed);
    println!("{kills} kills, {steps} steps in {:.0} s: {tally:?}", began.elapsed().as_secs_f64());
    assert_eq!(hidden(&killed), Vec::<PathBuf>::new(), "nothing is left of what was killed");
    assert_eq!(last_step(&killed), steps);

    run(&mut launch(&reference, steps)).expect(0);
    assert!(checkpoint_bits(&reference, steps) == checkpoint_bits(&killed, steps), "the final states differ");
    for name in ["step", "loss", "grad_norm", "lr", "epoch"] {
        assert_eq!(figures(&reference, name), figures(&killed, name), "{name} of the steps differ");
    }
}

#[test]
fn a_run_killed_ten_times_ends_with_the_same_bits() {
    check(10, 1);
}

#[test]
#[ignore = "takes minutes: cargo nextest run --release -p test-support --run-ignored only fifty"]
fn a_run_killed_fifty_times_ends_with_the_same_bits() {
    check(50, 2);
}
