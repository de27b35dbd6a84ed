//! The arguments of `ilm-worker bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ConfigDirArgs;
use crate::bench::Group;

/// `ilm-worker bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is measured.
    #[arg(value_enum, default_value = "all")]
    pub group: BenchGroupArg,
    /// Measure this experiment on its own data instead of the built-in cases.
    #[arg(long, value_name = "NAME", conflicts_with = "case")]
    pub experiment: Option<String>,
    /// Own group files.
    #[command(flatten)]
    pub config_dir: ConfigDirArgs,
    /// Measure only this case, DATA_MODEL_EXAMPLES such as lm1b_full_64; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Type of the matrix products [default: both].
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// Rounds of which the median is taken.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = at_least_one)]
    pub repeats: usize,
    /// No round of a case begins after so many seconds.
    #[arg(long, value_name = "N", default_value_t = 60.0)]
    pub seconds: f64,
    /// One round of the smallest cases: whether everything works.
    #[arg(long)]
    pub quick: bool,
    /// Measure nothing: print the lines of this file as tables in Markdown, beside the figures of the Python reference.
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub table: Option<PathBuf>,
    /// Changes: `key.path=value`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// What `ilm-worker bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchGroupArg {
    /// The training step.
    Step,
    /// The matrix products of a step, which bound its speed.
    Gemm,
    /// The joint token loss, beside its plain form.
    Head,
    /// Attention of a block by the length of rows.
    Attention,
    /// The update of all parameters, beside a copy.
    Optimizer,
    /// The sum of the gradient over two ranks or more.
    Reduce,
    /// Drops and packing by one data thread.
    Collate,
    /// Generation.
    Predict,
    /// All of these; the reduction only where there are ranks.
    All,
}

impl BenchGroupArg {
    /// What it stands for on so many ranks.
    pub fn groups(self, ranks: usize) -> Vec<Group> {
        vec![match self {
            Self::Step => Group::Step,
            Self::Gemm => Group::Gemm,
            Self::Head => Group::Head,
            Self::Attention => Group::Attention,
            Self::Optimizer => Group::Optimizer,
            Self::Reduce => Group::Reduce,
            Self::Collate => Group::Collate,
            Self::Predict => Group::Predict,
            Self::All => return Group::all(ranks),
        }]
    }
}

/// Type of the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Exact.
    Fp32,
    /// Rounded operands.
    Bf16,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "it must be a number from 1 up".to_owned())
}
