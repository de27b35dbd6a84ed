//! `ilm-worker generate`: texts out of nothing, behind prompts, or in the gaps of given texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::offline::Offline;
use crate::cli::GenerateArgs;
use crate::comm::{Collectives, assert_equal};
use crate::exit;
use crate::generate::{Limits, Record, Request, Source, Summary, generate as generate_all, requests};
use crate::partial::{self, Partial, digest, share_done};
use crate::run_dir::replace_file;
use crate::say;
use crate::signals::StopRequest;
use crate::vitals::{self, Phase};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn generate(args: &GenerateArgs) -> anyhow::Result<i32> {
    let mut signals = StopRequest::install()?;
    let offline = Offline::open(&args.checkpoint)?;
    signals.listen_to(&offline.config.trainer.stop_signals)?;
    let stop = signals.request();
    let (source, kind) = match (&args.prompts, &args.infill) {
        (Some(path), _) => (Source::Prompts(path), "prompts"),
        (None, Some(path)) => (Source::Infill { path, blank: &args.blank }, "infill"),
        (None, None) => (Source::Unconditional(args.num), "unconditional"),
    };
    args.output.as_deref().map_or(Ok(()), partial::check_output)?;
    let Offline { config, assembly, .. } = &offline;
    // Settings that fit no model are refused before the ranks connect.
    assembly.predictor(config)?;
    let limits = Limits::new(&config.predictor, &assembly.model_shape(config));
    let wanted = requests(source, config.data.task, &assembly.tokenizer, assembly.special_ids(), limits)?;
    let (rank, world_size) = offline.rank_and_world_size();
    let mut comm = offline.connect()?;
    let generation = Generation { offline, requests: wanted, kind, output: args.output.clone(), stop };
    generation.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// What was opened before the ranks connected.
struct Generation<'a> {
    offline: Offline<'a>,
    requests: Vec<Request>,
    kind: &'static str,
    output: Option<PathBuf>,
    stop: StopRequest,
}

impl Generation<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        let Offline { config, assembly, .. } = &self.offline;
        self.offline.show_life(comm, &self.stop);
        let loaded = self.offline.load(comm)?;
        let _phase = vitals::phase(Phase::Generate);
        let rank = comm.rank();
        // The run's state holds the digest of all of its steps, so no two models share it.
        let (lengths, precision) = (config.max_length(), config.trainer.precision);
        let settings = (&config.predictor, lengths, config.seed, &loaded.run, loaded.weights, precision);
        let settings = serde_json::to_string(&settings)?;
        assert_equal(comm, "requests", digest(&settings, &self.requests))?;
        let output = self.output(loaded.run.step, &settings);
        let partial = Partial::new(&output, &settings);
        let _lock = if rank == 0 { Some(partial.lock()?) } else { None };
        let found = if rank == 0 { partial.take(&self.requests)? } else { BTreeMap::new() };
        let done = share_done(comm, found.keys())?;
        let wanted: Vec<_> =
            self.requests.iter().filter(|request| !done.contains(&request.prompt.id)).collect();
        let mut records: Vec<Record> = found.into_values().collect();
        let started = Instant::now();
        let generated = generate_all(
            (config, assembly, &loaded.model),
            &wanted,
            &mut partial.open(rank)?,
            &self.stop,
            comm,
        )?;
        let new = generated.records.iter().map(|record| record.inserted).sum();
        records.extend(generated.records);
        if !generated.complete {
            if rank == 0 {
                let (done, all) = (records.len(), self.requests.len());
                say!("stopped by a signal with {done} of {all} texts; start again to go on");
            }
            return Ok(exit::PREEMPTED);
        }
        if rank == 0 {
            records.sort_by_key(|record| record.id);
            self.publish(&output, &records)?;
            let summary = Summary::of(&records, new, started.elapsed());
            say!("step {}, {}: {summary}", loaded.run.step, loaded.weights);
            say!("written to {}", output.display());
        }
        // The texts are whole before a rank's own part of them goes.
        comm.barrier("texts are written")?;
        partial.remove(rank)?;
        vitals::end();
        Ok(exit::OK)
    }

    /// Other requests or settings have another file, so that none is written over by chance.
    fn output(&self, step: u64, settings: &str) -> PathBuf {
        let default = || {
            let digest = digest(settings, &self.requests);
            let name = format!("step-{step:09}-{}-{digest}.jsonl", self.kind);
            self.offline.run_dir.generations().join(name)
        };
        self.output.clone().unwrap_or_else(default)
    }

    fn publish(&self, output: &Path, records: &[Record]) -> anyhow::Result<()> {
        let mut lines = String::new();
        for record in records {
            lines.push_str(&serde_json::to_string(record)?);
            lines.push('\n');
        }
        Ok(replace_file(output, &lines)?)
    }
}
