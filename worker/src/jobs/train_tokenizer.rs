//! `ilm-worker train-tokenizer`: a `tokenizer.json` for texts that come without one.

use data_pipeline::{TokenizerKind, TokenizerOptions, train_tokenizer as train};

use super::prepare::refuse_ranks;
use crate::cli::{TokenizerKindArg, TrainTokenizerArgs};
use crate::config;
use crate::exit;
use crate::say;
use crate::signals::StopRequest;
use crate::telemetry::JobProgress;
use crate::threads::processors;

/// Trains on `data.train` and writes the file; the result is the exit code.
///
/// # Errors
/// If there are several ranks, the texts cannot be read, the vocabulary is too small, or the disk refuses.
pub fn train_tokenizer(args: &TrainTokenizerArgs) -> anyhow::Result<i32> {
    refuse_ranks("train-tokenizer")?;
    let named = &args.experiment;
    let resolved = config::load(&named.experiment, &named.overrides, named.config_dir.config_dir.as_deref())?;
    let progress = JobProgress::new(StopRequest::install()?.request());
    let options = TokenizerOptions {
        kind: match args.kind {
            TokenizerKindArg::Bpe => TokenizerKind::Bpe,
            TokenizerKindArg::Wordpiece => TokenizerKind::WordPiece,
        },
        vocab_size: args.vocab_size,
        threads: args.threads.unwrap_or_else(processors),
    };
    let size = train(&resolved.experiment.data, &options, &args.output, &progress)?;
    progress.finish();
    match size {
        Some(size) => {
            say!("{} tokens; use it with data.tokenizer={}", size, args.output.display());
            Ok(exit::OK)
        }
        None => {
            say!("stopped by a signal; nothing is written");
            Ok(exit::PREEMPTED)
        }
    }
}
