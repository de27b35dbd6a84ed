//! `ilm-worker prepare`: generated graphs as Parquet files.

use anyhow::bail;
use data_pipeline::{Task, materialise};

use crate::cli::PrepareArgs;
use crate::say;
use crate::{config, exit};

/// Writes all splits of a star experiment into the output folder.
///
/// # Errors
/// If the experiment has nothing to generate, or the disk refuses.
pub fn prepare(args: &PrepareArgs) -> anyhow::Result<i32> {
    let named = &args.experiment;
    let resolved = config::load(&named.experiment, &named.overrides, named.config_dir.config_dir.as_deref())?;
    let config = &resolved.experiment;
    if config.data.task != Task::Star {
        bail!(
            "experiment '{}' reads text, which is tokenised while training; only star experiments are prepared",
            named.experiment
        );
    }
    for file in materialise(&config.data.star, config.seed, &args.output)? {
        say!("{}", file.display());
    }
    Ok(exit::OK)
}
