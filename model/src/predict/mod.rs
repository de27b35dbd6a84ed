//! Generation: insert one token per step into every unfinished row until the head on CLS is content.

mod choose;
mod prediction;
mod prompt;
#[cfg(test)]
mod properties;
mod scores;

use tch::Tensor;

use crate::batch::Batch;
use crate::config::{HeadKind, ModelShape, PredictorConfig};
use crate::error::{Error, Result};
use crate::head::{softmax, to_rows};
use crate::model::Model;
use crate::plan::Plan;
use choose::Chooser;
use prediction::INSERTED;
pub use prediction::{HistoryEntry, Insertion, Prediction};
pub use prompt::{Prompt, SpecialIds};
use scores::Scores;

/// Inserts tokens by a model's scores.
#[derive(Debug, Clone)]
pub struct Predictor {
    config: PredictorConfig,
    special: SpecialIds,
    suppressed: Vec<i64>,
    max_length: usize,
    threshold: f64,
    /// Smallest token type whose gap is open where the prompt does not say.
    lowest_open: i64,
}

/// A row that is being extended.
struct Row {
    out: Prediction,
    closed: Vec<bool>,
    max_length: usize,
    unfinished: bool,
}

impl Predictor {
    /// `suppressed` tokens are never inserted: by default the reference's PAD, CLS, MASK, EOS and BOS.
    ///
    /// # Errors
    /// A setting is out of range or does not fit the model's shape.
    pub fn new(
        config: PredictorConfig,
        special: SpecialIds,
        suppressed: &[i64],
        shape: &ModelShape,
    ) -> Result<Self> {
        config.validate()?;
        let positions = shape.positions() as usize;
        let max_length = config.max_length.unwrap_or(shape.max_length as usize);
        if max_length > positions {
            return Err(Error::Config(format!(
                "predictor.max_length = {max_length} is above the {positions} positions of the model; lower it or raise \
                 model.max_length"
            )));
        }
        let outside = suppressed.iter().find(|id| !(0..shape.num_embeddings).contains(id));
        if let Some(id) = outside {
            let vocabulary = shape.num_embeddings;
            return Err(Error::Config(format!(
                "the suppressed token {id} is not in the vocabulary of {vocabulary}"
            )));
        }
        let head = shape.config.class.head();
        let threshold = config.stopping_threshold.unwrap_or(if head == HeadKind::Length { 0.5 } else { 0.9 });
        // The reference's predictor for models without a head protects the prompt, the others only if told to.
        let lowest_open = if config.protect_prompt || head == HeadKind::None { 2 } else { 1 };
        Ok(Self { config, special, suppressed: suppressed.to_vec(), max_length, threshold, lowest_open })
    }

    /// Extends all prompts, each by at most `max_steps` tokens; results in the prompts' order.
    ///
    /// The choices depend on the seed, a prompt's id and the step only, up to rounding of the logits.
    ///
    /// # Errors
    /// A malformed prompt, or memory is short.
    pub fn predict(&self, model: &Model, prompts: &[Prompt], seed: u64) -> Result<Vec<Prediction>> {
        let mut rows: Vec<Row> = prompts.iter().map(|prompt| self.start(prompt)).collect::<Result<_>>()?;
        for step in 1..=self.config.max_steps as u64 {
            let forced = step == 1 && self.config.force_predict_first_step;
            let mut active: Vec<&mut Row> = rows.iter_mut().filter(|row| row.unfinished).collect();
            for row in &mut active {
                row.unfinished = forced || row.out.tokens.len() < row.max_length;
            }
            active.retain(|row| row.unfinished);
            if active.is_empty() {
                break;
            }
            self.step(model, &mut active, seed, step, forced)?;
        }
        Ok(rows.into_iter().zip(prompts).map(|(row, prompt)| self.finish(row, prompt)).collect())
    }

    fn start(&self, prompt: &Prompt) -> Result<Row> {
        let closed = prompt.closed(self.lowest_open)?;
        let out = Prediction {
            id: prompt.id,
            tokens: prompt.tokens.clone(),
            token_types: prompt.token_types.clone(),
            insertions: Vec::new(),
            history: Vec::new(),
        };
        let max_length = prompt.max_length.unwrap_or(usize::MAX).min(self.max_length);
        Ok(Row { out, closed, max_length, unfinished: true })
    }

    /// Takes out what is no text and writes the history.
    fn finish(&self, row: Row, prompt: &Prompt) -> Prediction {
        let mut out = row.out;
        let is_text = |&(&token, &kind): &(&i64, &i64)| kind < INSERTED || !self.special.is_blank(token);
        let (tokens, token_types) = out.tokens.iter().zip(&out.token_types).filter(is_text).unzip();
        (out.tokens, out.token_types) = (tokens, token_types);
        if self.config.return_history {
            out.history = prediction::history(prompt, &out.insertions, self.special);
        }
        out
    }

    /// One model evaluation of the active rows, and one insertion into each that goes on.
    fn step(&self, model: &Model, rows: &mut [&mut Row], seed: u64, step: u64, forced: bool) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let plan = plan(model, rows)?;
        let hidden = model.hidden(&plan)?;
        let classes = model.class_logits(&plan, &hidden)?.map(|logits| to_rows(&logits)).transpose()?;
        let mut going = Vec::new();
        for (place, &row) in plan.order.iter().enumerate() {
            let row = &mut *rows[row];
            let wanted = classes.as_ref().is_none_or(|classes| self.goes_on(&classes[place]));
            row.unfinished = (forced || wanted) && row.closed.contains(&false);
            if row.unfinished {
                going.push(place);
            }
        }
        if going.is_empty() {
            return Ok(());
        }
        let chooser = Chooser { config: &self.config, seed, step };
        self.insert(model, &chooser, &plan, &hidden, &going, rows)
    }

    /// Chooses and makes the insertions of some sorted places.
    fn insert(
        &self,
        model: &Model,
        chooser: &Chooser,
        plan: &Plan,
        hidden: &Tensor,
        places: &[usize],
        rows: &mut [&mut Row],
    ) -> Result<()> {
        let gaps: Vec<Vec<usize>> = places.iter().map(|&place| open_gaps(rows[plan.order[place]])).collect();
        let packed: Vec<i64> = (places.iter().zip(&gaps))
            .flat_map(|(&place, gaps)| gaps.iter().map(move |&gap| plan.row_ptr[place] + gap as i64))
            .collect();
        let device = model.arena().device();
        let packed = Tensor::f_from_slice(&packed)?.f_to_device(device)?;
        let (states, matrix) = model.token_operands(&hidden.f_index_select(0, &packed)?)?;
        let scores = Scores { states, matrix, suppressed: &self.suppressed };
        let ids: Vec<u64> = places.iter().map(|&place| rows[plan.order[place]].out.id).collect();
        let widths: Vec<usize> = gaps.iter().map(Vec::len).collect();
        let choices = chooser.choose(&scores, &widths, &ids)?;
        for ((&place, gaps), choice) in places.iter().zip(&gaps).zip(choices) {
            let row = &mut *rows[plan.order[place]];
            match choice {
                Some((gap, token)) => row.insert(gaps[gap], token),
                None => row.unfinished = false, // every token is suppressed
            }
        }
        Ok(())
    }

    /// Whether the head's probability of class 0, nothing is missing, is still low.
    fn goes_on(&self, logits: &[f32]) -> bool {
        let scaled: Vec<f32> = logits
            .iter()
            .map(|&logit| (f64::from(logit) / self.config.stopping_temperature) as f32)
            .collect();
        softmax(&scaled)[0] < self.threshold
    }
}

impl Row {
    /// Puts a token right of `gap`; the gap right of it is open.
    fn insert(&mut self, gap: usize, token: i64) {
        let index = gap + 1;
        self.out.tokens.insert(index, token);
        self.out.token_types.insert(index, INSERTED);
        self.closed.insert(index, false);
        self.out.insertions.push(Insertion { token, index });
    }
}

fn open_gaps(row: &Row) -> Vec<usize> {
    (0..row.closed.len()).filter(|&gap| !row.closed[gap]).collect()
}

/// The active rows as a batch without targets, checked and planned.
fn plan(model: &Model, rows: &[&mut Row]) -> Result<Plan> {
    let (mut row_ptr, mut cls) = (vec![0], Vec::new());
    let (mut tokens, mut positions) = (Vec::new(), Vec::new());
    for row in rows {
        tokens.extend(&row.out.tokens);
        positions.extend(0..row.out.tokens.len() as i64);
        let place = row.out.token_types.iter().position(|&kind| kind == 0);
        cls.push(place.expect("checked when the row was started") as i64);
        row_ptr.push(tokens.len() as i64);
    }
    let tgt_ptr = vec![0; tokens.len() + 1];
    let batch = Batch {
        row_ptr: &row_ptr,
        tokens: &tokens,
        positions: &positions,
        cls: &cls,
        tgt_ptr: &tgt_ptr,
        tgt_ids: &[],
        tgt_counts: &[],
    };
    batch.validate(model.shape())?;
    model.plan(&batch)
}
