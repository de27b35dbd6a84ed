//! `ilm-worker generate`: texts out of nothing, behind prompts, or in the gaps of given texts.

use std::path::PathBuf;

use super::offline::Offline;
use crate::cli::GenerateArgs;
use crate::comm::Collectives;
use crate::exit;
use crate::generate::{Record, Request, Source, Summary, generate as generate_all, requests};
use crate::run_dir::replace_file;
use crate::say;

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn generate(args: &GenerateArgs) -> anyhow::Result<i32> {
    let offline = Offline::open(&args.checkpoint)?;
    let (source, kind) = match (&args.prompts, &args.infill) {
        (Some(path), _) => (Source::Prompts(path), "prompts"),
        (None, Some(path)) => (Source::Infill { path, blank: &args.blank }, "infill"),
        (None, None) => (Source::Unconditional(args.num), "unconditional"),
    };
    let assembly = &offline.assembly;
    let wanted = requests(source, offline.config.data.task, &assembly.tokenizer, assembly.special_ids())?;
    // Settings that fit no model are refused before the ranks connect.
    assembly.predictor(&offline.config)?;
    let (rank, world_size) = offline.rank_and_world_size();
    let mut comm = offline.connect()?;
    let generation = Generation { offline, requests: wanted, kind, output: args.output.clone() };
    generation.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// What was opened before the ranks connected.
struct Generation<'a> {
    offline: Offline<'a>,
    requests: Vec<Request>,
    kind: &'static str,
    output: Option<PathBuf>,
}

impl Generation<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        let Offline { config, assembly, .. } = &self.offline;
        let loaded = self.offline.load(comm)?;
        let (records, summary) = generate_all(config, assembly, &loaded.model, &self.requests, comm)?;
        if comm.rank() == 0 {
            self.publish(loaded.step, &records, summary)?;
        }
        Ok(exit::OK)
    }

    fn publish(&self, step: u64, records: &[Record], summary: Summary) -> anyhow::Result<()> {
        let default = || {
            let name = format!("step-{step:09}-{}.jsonl", self.kind);
            self.offline.run_dir.generations().join(name)
        };
        let path = self.output.clone().unwrap_or_else(default);
        let mut lines = String::new();
        for record in records {
            lines.push_str(&serde_json::to_string(record)?);
            lines.push('\n');
        }
        replace_file(&path, &lines)?;
        say!("step {step}, {}: {summary}", self.offline.weights());
        say!("written to {}", path.display());
        Ok(())
    }
}
