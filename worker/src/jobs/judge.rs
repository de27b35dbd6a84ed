//! `ilm-worker judge`: how likely another language model finds generated texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use crate::cli::JudgeArgs;
use crate::comm::{Collectives, LaunchEnv, assert_equal, connect};
use crate::config::{self, TrainerConfig};
use crate::device::RankDevice;
use crate::judge::{Folder, Summary, Text, Verdict, judge as judge_all, texts};
use crate::partial::{self, Partial, digest, share_done};
use crate::run_dir::replace_file;
use crate::signals::StopRequest;
use crate::{exit, say, threads};

/// Tokens of a batch unless the settings say otherwise: enough for any processor's products.
const MOST_TOKENS: usize = 8192;

/// The settings that this job has.
const KNOWN: [&str; 7] = [
    "trainer.device",
    "trainer.precision",
    "trainer.threads",
    "trainer.deterministic",
    "trainer.stop_signals",
    "trainer.collective_timeout_secs",
    "trainer.max_tokens_per_micro_batch",
];

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn judge(args: &JudgeArgs) -> anyhow::Result<i32> {
    let mut signals = StopRequest::install()?;
    let config = config::load_alone(&args.overrides, &KNOWN)?;
    config::validate::settings(&config)?;
    signals.listen_to(&config.trainer.stop_signals)?;
    let folder = Folder::open(&args.judge)?;
    let output =
        args.output.clone().unwrap_or_else(|| with_ending(&args.texts, &format!("-{}.jsonl", folder.name)));
    partial::check_output(&output)?;
    if same_file(&output, &args.texts) {
        bail!("--output {} is the file of the texts; name another one", output.display());
    }
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    let mut comm = connect(launch.as_ref(), Duration::from_secs(config.trainer.collective_timeout_secs))?;
    let stop = signals.request();
    let judging = Judging { texts: &args.texts, folder, trainer: config.trainer, output, stop };
    judging.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

fn same_file(one: &Path, other: &Path) -> bool {
    let full = |path: &Path| std::fs::canonicalize(path).ok();
    full(one).is_some_and(|one| Some(one) == full(other))
}

/// The path with another ending than `.jsonl`.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{}{ending}", name.strip_suffix(".jsonl").unwrap_or(&name)))
}

/// What was opened before the ranks connected.
struct Judging<'a> {
    texts: &'a Path,
    folder: Folder,
    trainer: TrainerConfig,
    output: PathBuf,
    stop: StopRequest,
}

impl Judging<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        comm.share_stop(&self.stop);
        threads::set_threads(threads::threads_per_rank(comm, self.trainer.threads)?);
        let device = RankDevice::select(comm, &self.trainer)?;
        let precision = self.trainer.precision;
        let (model, identity) = self.folder.load(device.device(), precision)?;
        // Rank 0 writes the lines again.
        let texts = texts(self.texts, &self.folder.tokenizer, model.max_length(), comm.rank() == 0)?;
        let settings = serde_json::to_string(&(&self.folder.name, identity, precision))?;
        let wanted: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
        assert_equal(comm, "texts to judge", digest(&settings, &wanted))?;

        let rank = comm.rank();
        let partial = Partial::new(&self.output, &settings);
        let _lock = if rank == 0 { Some(partial.lock()?) } else { None };
        let mut verdicts = if rank == 0 { partial.take(&wanted)? } else { BTreeMap::new() };
        let done = share_done(comm, verdicts.keys())?;
        let most_tokens = self.trainer.max_tokens_per_micro_batch.unwrap_or(MOST_TOKENS);
        let mut file = partial.open(rank)?;
        let judged =
            judge_all((&self.folder, &model), (&texts, &done), most_tokens, &mut file, &self.stop, comm)?;
        verdicts.extend(judged.verdicts);
        if !judged.complete {
            if rank == 0 {
                let (done, all) = (verdicts.len(), texts.len());
                say!("stopped by a signal with {done} of {all} texts judged; start again to go on");
            }
            return Ok(exit::PREEMPTED);
        }
        if rank == 0 {
            self.publish(&texts, &verdicts)?;
        }
        // The verdicts are whole before a rank's own part of them goes.
        comm.barrier("verdicts are written")?;
        partial.remove(rank)?;
        Ok(exit::OK)
    }

    fn publish(&self, texts: &[Text], verdicts: &BTreeMap<u64, Verdict>) -> anyhow::Result<()> {
        let judge = &self.folder.name;
        let mut lines = String::new();
        for (text, verdict) in texts.iter().zip(verdicts.values()) {
            lines.push_str(&serde_json::to_string(&verdict.line(text, judge)?)?);
            lines.push('\n');
        }
        replace_file(&self.output, &lines)?;
        let summary = Summary::of(judge, self.trainer.precision, texts.iter().zip(verdicts.values()));
        let mut json = serde_json::to_string_pretty(&summary.to_json())?;
        json.push('\n');
        let beside = with_ending(&self.output, ".summary.json");
        replace_file(&beside, &json)?;
        say!("{summary}");
        say!("written to {} and {}", self.output.display(), beside.display());
        Ok(())
    }
}
