//! Attention of one block by the length of the rows, with dropout, forward and backward.

use std::time::Instant;

use ilm_model::Batch;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::case::Case;
use super::report::Common;
use super::{Bench, Samples};

/// Rows of a length hold so many tokens together, or are a single one.
const TOKENS: i64 = 4096;
const LENGTHS: [i64; 5] = [16, 64, 256, 512, 1024];
const QUICK_LENGTHS: [i64; 2] = [4, 16];

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    length: i64,
    rows: i64,
    median_s: f64,
    min_s: f64,
    tokens_per_s: f64,
    /// 12 d for every pair of tokens of a row.
    flops_per_s: f64,
}

/// Measures every length that the case's model has positions for.
///
/// # Errors
/// Memory is short.
pub fn attention(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let model = case.assembly.build_model(&case.experiment, Device::Cpu)?;
    let shape = model.shape();
    let (d, heads) = (shape.config.d_model, shape.config.nhead);
    let lengths = if bench.quick { &QUICK_LENGTHS[..] } else { &LENGTHS };
    for &length in lengths.iter().filter(|&&length| length <= shape.max_length) {
        let rows = (if bench.quick { 1 } else { TOKENS } / length).max(1);
        let places = Places::new(rows, length);
        let options = (Kind::Float, Device::Cpu);
        let qkv = Tensor::f_ones([rows * length, 3, heads, d / heads], options)?;
        let grad = Tensor::f_ones([rows * length, d], options)?;
        let run = || model.attention(&places.batch(), &qkv, &grad, 1).map(drop);
        run()?; // warms up
        let mut seconds = Samples::default();
        bench.rounds(|_| {
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
            Ok(())
        })?;
        let median_s = seconds.median();
        bench.print(&Line {
            common: bench.common("attention", case),
            length,
            rows,
            median_s,
            min_s: seconds.min(),
            tokens_per_s: (rows * length) as f64 / median_s,
            flops_per_s: (12 * d * rows * length * length) as f64 / median_s,
        });
    }
    Ok(())
}

/// Rows of one length.
struct Places {
    row_ptr: Vec<i64>,
    positions: Vec<i64>,
    /// A zero for every token and one more: ids, places of CLS, ends of empty gaps.
    zeros: Vec<i64>,
}

impl Places {
    fn new(rows: i64, length: i64) -> Self {
        Self {
            row_ptr: (0..=rows).map(|row| row * length).collect(),
            positions: (0..rows * length).map(|token| token % length).collect(),
            zeros: vec![0; (rows * length + 1) as usize],
        }
    }

    fn batch(&self) -> Batch<'_> {
        let tokens = self.positions.len();
        Batch {
            row_ptr: &self.row_ptr,
            tokens: &self.zeros[..tokens],
            positions: &self.positions,
            cls: &self.zeros[..self.row_ptr.len() - 1],
            tgt_ptr: &self.zeros,
            tgt_ids: &[],
            tgt_counts: &[],
        }
    }
}
