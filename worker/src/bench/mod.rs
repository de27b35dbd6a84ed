//! Measurements: what each is of, how often it is repeated, and one line of JSON for every figure.
//!
//! Times are medians over rounds. What is compared is measured in turns in the same process.

mod attention;
mod case;
mod collate;
mod gemm;
mod head;
mod optimizer;
mod predict;
mod reduce;
mod report;
mod step;
mod table;
mod texts;
mod work;

use std::time::Instant;

use data_pipeline::StepBatch;
use serde::Serialize;

pub use self::case::{Case, quick};
pub use self::report::{Common, Samples};
pub use self::table::table;
pub use self::work::Work;
use crate::comm::{Collectives, CommError, ReduceOp};
use crate::say;

/// What was asked for cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No case has this name.
    #[error(
        "--case '{name}' is no case; write DATA_MODEL_EXAMPLES, where DATA is star_easy, star_medium, star_hard, lm1b or \
         owt, and MODEL is full, small or tiny: lm1b_full_64"
    )]
    Case {
        /// As it was given.
        name: String,
    },
    /// A reduction needs somebody to reduce with.
    #[error("bench reduce needs two ranks or more; start it with: mpirun -n 2 ilm-worker bench reduce")]
    OneRank,
    /// A file of figures is none.
    #[error("--table: line {number} is none that ilm-worker bench prints")]
    Line {
        /// From 1.
        number: usize,
    },
    /// A file of figures cannot be read.
    #[error("--table: cannot read '{path}': {reason}")]
    Table {
        /// As it was given.
        path: String,
        /// The system's.
        reason: std::io::Error,
    },
}

/// A thing that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The training step.
    Step,
    /// The matrix products of a step.
    Gemm,
    /// The joint token loss.
    Head,
    /// Attention by length.
    Attention,
    /// Norm and AdamW.
    Optimizer,
    /// The sum of the gradient over ranks.
    Reduce,
    /// Drops and packing.
    Collate,
    /// Generation.
    Predict,
}

impl Group {
    /// All of them that `ranks` ranks can measure, in the order in which they are measured.
    pub fn all(ranks: usize) -> Vec<Self> {
        use Group::{Attention, Collate, Gemm, Head, Optimizer, Predict, Reduce, Step};
        let mut all = vec![Step, Gemm, Head, Attention, Optimizer, Collate, Predict];
        if ranks > 1 {
            all.push(Reduce);
        }
        all
    }

    /// What is measured if no case is named.
    pub fn cases(self) -> &'static [&'static str] {
        match self {
            Self::Step | Self::Gemm => &[
                "star_easy_full_64",
                "lm1b_full_64",
                "lm1b_full_8",
                "owt_full_2",
                "owt_full_8",
                "star_easy_small_64",
                "lm1b_small_64",
                "lm1b_small_8",
                "owt_small_2",
                "owt_small_8",
            ],
            Self::Head => &["lm1b_full_16", "owt_full_2"],
            Self::Attention => &["owt_full_8"],
            Self::Optimizer | Self::Reduce => &["lm1b_full_8"],
            Self::Collate => &["star_easy_full_64", "lm1b_full_64", "owt_full_8"],
            Self::Predict => &["lm1b_small_16"],
        }
    }

    /// Measures a case and prints what was found.
    ///
    /// # Errors
    /// Whatever the thing that is measured fails with.
    pub fn measure(self, bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
        match self {
            Self::Step => step::step(bench, case),
            Self::Gemm => gemm::gemm(bench, case),
            Self::Head => head::head(bench, case),
            Self::Attention => attention::attention(bench, case),
            Self::Optimizer => optimizer::optimizer(bench, case),
            Self::Reduce => reduce::reduce(bench, case),
            Self::Collate => collate::collate(bench, case),
            Self::Predict => predict::predict(bench, case),
        }
    }
}

/// How things are measured.
pub struct Bench<'a> {
    /// The ranks.
    pub comm: &'a mut dyn Collectives,
    /// Threads of this rank.
    pub threads: usize,
    /// Rounds of which the median is taken.
    pub repeats: usize,
    /// No round of a case begins after so many seconds.
    pub seconds: f64,
    /// Whether as little as possible is measured.
    pub quick: bool,
}

impl Bench<'_> {
    /// The fields that every line begins with.
    fn common<'b>(&self, bench: &'b str, case: &'b Case) -> Common<'b> {
        Common {
            bench,
            case: &case.name,
            precision: case.experiment.trainer.precision,
            threads: self.threads,
            ranks: self.comm.world_size(),
        }
    }

    /// This rank's part of the steps that a round consists of: more of small ones, whose sizes differ more.
    fn batches(&self, case: &Case) -> anyhow::Result<Vec<StepBatch>> {
        let steps = if self.quick { 1 } else { (64 / case.experiment.global_batch_size).clamp(2, 8) };
        case.batches(steps, self.comm.rank(), self.comm.world_size())
    }

    /// Calls `round` as often as asked for, or until the time is over on any rank; once at least.
    fn rounds(
        &mut self,
        mut round: impl FnMut(&mut dyn Collectives) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        for _ in 0..self.repeats {
            round(self.comm)?;
            if self.longest(start.elapsed().as_secs_f64())? > self.seconds {
                break;
            }
        }
        Ok(())
    }

    /// The largest value of any rank.
    fn longest(&mut self, value: f64) -> Result<f64, CommError> {
        let mut values = [value];
        self.comm.all_reduce("bench clock", ReduceOp::Max, values[..].as_mut().into())?;
        Ok(values[0])
    }

    /// Prints a line on rank 0.
    fn print(&self, line: &impl Serialize) {
        if self.comm.rank() == 0
            && let Ok(json) = serde_json::to_string(line)
        {
            say!("{json}");
        }
    }
}
