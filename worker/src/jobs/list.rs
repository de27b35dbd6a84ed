//! `ilm-worker experiments` and `ilm-worker config`.

use crate::cli::{ConfigDirArgs, ExperimentArgs};
use crate::say;
use crate::{config, exit};

/// Prints the name and description of every experiment.
///
/// # Errors
/// If a file of the configuration cannot be read.
pub fn experiments(args: &ConfigDirArgs) -> anyhow::Result<i32> {
    let listed = config::list_experiments(args.config_dir.as_deref())?;
    let width = listed.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, description) in listed {
        say!("{name:width$}  {description}");
    }
    Ok(exit::OK)
}

/// Prints every resolved value with its origin.
///
/// # Errors
/// If the configuration is wrong.
pub fn show_config(args: &ExperimentArgs) -> anyhow::Result<i32> {
    let resolved = config::load(&args.experiment, &args.overrides, args.config_dir.config_dir.as_deref())?;
    say!("{}", resolved.render().trim_end());
    Ok(exit::OK)
}
