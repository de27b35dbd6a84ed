//! The joint token loss as training computes it, beside the plain form over padded rows x vocabulary.

use std::time::Instant;

use data_pipeline::PackedBatch;
use ilm_model::{Model, Precision};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::case::Case;
use super::report::{Common, current_rss_mib, forget_peak_rss, peak_rss_mib};
use super::work::Work;
use super::{Bench, Samples};
use crate::train::batch_view;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    median_s: f64,
    min_s: f64,
    dense_median_s: f64,
    /// Rows of logits that a loss needs.
    scored_rows: f64,
    /// Rows of logits of the plain form: examples x longest row.
    dense_rows: i64,
    /// 6 d V a scored row.
    flops_per_s: f64,
    /// Memory beyond what was in use before, if this is the first measurement of the process.
    peak_mib: f64,
    dense_peak_mib: f64,
}

/// Measures loss and gradients of the output layer, given hidden states.
///
/// # Errors
/// Rows that cannot be read, or memory is short.
pub fn head(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let batches = bench.batches(case)?;
    let Some(batch) = batches.iter().flat_map(|step| &step.micro_batches).next() else { return Ok(()) };
    let mut model = case.assembly.build_model(&case.experiment, Device::Cpu)?;
    let shape = model.shape().clone();
    let (d, vocabulary) = (shape.config.d_model, shape.num_embeddings);
    let hidden = Tensor::f_ones([batch.visible() as i64, d], (Kind::Float, Device::Cpu))?;
    let dense = Dense::new(batch, d, vocabulary, shape.precision)?;
    let fused = |model: &mut Model| -> anyhow::Result<f64> {
        let start = Instant::now();
        model.token_head(&batch_view(batch), &hidden, &case.experiment.loss)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let before = current_rss_mib();
    forget_peak_rss();
    fused(&mut model)?;
    let peak_mib = peak_rss_mib() - before;
    // What the first form left is used again, so the larger one shows all that it needs.
    dense.run()?;
    let dense_peak_mib = peak_rss_mib() - before;
    let (mut seconds, mut dense_seconds) = (Samples::default(), Samples::default());
    bench.rounds(|_| {
        seconds.push(fused(&mut model)?);
        let start = Instant::now();
        dense.run()?;
        dense_seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    let scored_rows = Work::of_batch(batch).scored;
    bench.print(&Line {
        common: bench.common("head", case),
        median_s: seconds.median(),
        min_s: seconds.min(),
        dense_median_s: dense_seconds.median(),
        scored_rows,
        dense_rows: dense.rows * dense.width,
        flops_per_s: 6.0 * (d * vocabulary) as f64 * scored_rows / seconds.median(),
        peak_mib,
        dense_peak_mib,
    });
    Ok(())
}

/// The plain form: padded rows, targets as an array, gradients by autograd.
struct Dense {
    rows: i64,
    width: i64,
    /// [B L, d].
    hidden: Tensor,
    /// [V, d].
    weight: Tensor,
    /// Flat index into [B L, V] and share of its row's drops, of every target.
    targets: Tensor,
    shares: Tensor,
    vocabulary: i64,
    kind: Kind,
}

impl Dense {
    fn new(batch: &PackedBatch, d: i64, vocabulary: i64, precision: Precision) -> anyhow::Result<Self> {
        let row_ptr = batch.row_ptr();
        let lengths = row_ptr.windows(2).map(|row| row[1] - row[0]);
        let (rows, width) = (batch.rows() as i64, lengths.max().unwrap_or(0));
        let (mut targets, mut shares) = (Vec::new(), Vec::new());
        for (row, tokens) in row_ptr.windows(2).enumerate() {
            let entries = |token: i64| batch.tgt_ptr()[token as usize] as usize;
            let drops: i64 = batch.tgt_counts()[entries(tokens[0])..entries(tokens[1])].iter().sum();
            for token in tokens[0]..tokens[1] {
                let place = row as i64 * width + token - tokens[0];
                for entry in entries(token)..entries(token + 1) {
                    targets.push(place * vocabulary + batch.tgt_ids()[entry]);
                    shares.push(batch.tgt_counts()[entry] as f32 / drops as f32);
                }
            }
        }
        let ones = |rows| Tensor::f_ones([rows, d], (Kind::Float, Device::Cpu))?.f_set_requires_grad(true);
        Ok(Self {
            rows,
            width,
            hidden: ones(rows * width)?,
            weight: ones(vocabulary)?,
            targets: Tensor::f_from_slice(&targets)?,
            shares: Tensor::f_from_slice(&shares)?,
            vocabulary,
            kind: match precision {
                Precision::Fp32 => Kind::Float,
                Precision::Bf16 => Kind::BFloat16,
            },
        })
    }

    fn run(&self) -> Result<(), tch::TchError> {
        let places = self.rows * self.width;
        let mut targets = Tensor::f_zeros([places * self.vocabulary], (Kind::Float, Device::Cpu))?;
        let _ = targets.f_index_add_(0, &self.targets, &self.shares)?;
        let logits = self.hidden.f_to_kind(self.kind)?.f_mm(&self.weight.f_to_kind(self.kind)?.f_tr()?)?;
        let scores = logits.f_to_kind(Kind::Float)?.f_view([self.rows, -1])?.f_log_softmax(1, Kind::Float)?;
        let loss = scores.f_mul(&targets.f_view([self.rows, -1])?)?.f_sum(Kind::Float)?.f_neg()?;
        drop(Tensor::f_run_backward(&[loss], &[&self.hidden, &self.weight], false, false)?);
        Ok(())
    }
}
