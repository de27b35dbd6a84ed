//! Generation: insert one token per step into every unfinished row until the stopping head is content.

use tch::Tensor;

use crate::batch::Batch;
use crate::config::{ModelShape, PredictorConfig, SamplingMethod};
use crate::error::{Error, Result};
use crate::head::{to_floats, to_pairs};
use crate::plan::Plan;
use crate::random::{Purpose, keyed_rng, uniform};
use crate::sample::{sample, sample_top_k, sample_top_p};
use crate::step::StoppingModel;

/// Logits alive at once while choosing insertions.
const LOGITS_BYTES: usize = 64 << 20;

/// Token type of inserted tokens.
const INSERTED: i64 = 2;

/// Where one row starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Keys the random choices, so results do not depend on how rows are batched.
    pub id: u64,
    /// Tokens in text order, CLS among them.
    pub tokens: Vec<i64>,
    /// 0 for CLS, 1 for prompt tokens, 2 for BOS and everything else.
    pub token_types: Vec<i64>,
    /// True where nothing may be inserted right of a token; none takes it from the token types.
    pub closed: Option<Vec<bool>>,
    /// The row stops at this many tokens, whatever the settings allow.
    pub max_length: Option<usize>,
}

/// One step of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insertion {
    /// The new token.
    pub token: i64,
    /// Its index in the row after the step.
    pub index: usize,
}

/// What became of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// The prompt's id.
    pub id: u64,
    /// Tokens in text order.
    pub tokens: Vec<i64>,
    /// Their types; inserted tokens have 2.
    pub token_types: Vec<i64>,
    /// The steps in order: replayed on the prompt they give `tokens`.
    pub insertions: Vec<Insertion>,
}

/// Inserts tokens by a model's scores.
#[derive(Debug, Clone)]
pub struct Predictor {
    config: PredictorConfig,
    suppressed: Vec<i64>,
    max_length: usize,
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
    pub fn new(config: PredictorConfig, suppressed: &[i64], shape: &ModelShape) -> Result<Self> {
        config.validate()?;
        let longest = shape.max_length as usize + 1;
        let max_length = config.max_length.unwrap_or(shape.max_length as usize);
        if max_length > longest {
            return Err(Error::Config(format!(
                "predictor.max_length = {max_length} is above the {longest} positions of the model; lower it or raise \
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
        Ok(Self { config, suppressed: suppressed.to_vec(), max_length })
    }

    /// Extends all prompts, each by at most `max_steps` tokens; results in the prompts' order.
    ///
    /// The choices depend on the seed, a prompt's id and the step only, up to rounding of the logits.
    ///
    /// # Errors
    /// A malformed prompt, or memory is short.
    pub fn predict(&self, model: &StoppingModel, prompts: &[Prompt], seed: u64) -> Result<Vec<Prediction>> {
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
        Ok(rows.into_iter().map(|row| row.out).collect())
    }

    fn start(&self, prompt: &Prompt) -> Result<Row> {
        let fail = |problem: String| Err(Error::Prompt { id: prompt.id, problem });
        let len = prompt.tokens.len();
        if prompt.token_types.len() != len {
            return fail(format!("it has {len} tokens but {} token types", prompt.token_types.len()));
        }
        if !prompt.token_types.contains(&0) {
            return fail("it has no CLS (no token of type 0)".to_owned());
        }
        let lowest_open = if self.config.protect_prompt { 2 } else { 1 };
        let by_type = || prompt.token_types.iter().map(|&kind| kind < lowest_open).collect();
        let closed: Vec<bool> = prompt.closed.clone().unwrap_or_else(by_type);
        if closed.len() != len {
            return fail(format!("it has {len} tokens but {} marks of closed gaps", closed.len()));
        }
        let out = Prediction {
            id: prompt.id,
            tokens: prompt.tokens.clone(),
            token_types: prompt.token_types.clone(),
            insertions: Vec::new(),
        };
        let max_length = prompt.max_length.unwrap_or(usize::MAX).min(self.max_length);
        Ok(Row { out, closed, max_length, unfinished: true })
    }

    /// One model evaluation of the active rows, and one insertion into each that goes on.
    fn step(
        &self,
        model: &StoppingModel,
        rows: &mut [&mut Row],
        seed: u64,
        step: u64,
        forced: bool,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let plan = plan(model, rows)?;
        let hidden = model.hidden(&plan)?;
        let stop = to_pairs(&model.stop_logits(&plan, &hidden)?)?;
        let mut going = Vec::new();
        for (place, (&row, &logits)) in plan.order.iter().zip(&stop).enumerate() {
            let row = &mut *rows[row];
            row.unfinished = (forced || self.goes_on(logits)) && row.closed.contains(&false);
            if row.unfinished {
                going.push(place);
            }
        }
        let most_rows = (LOGITS_BYTES / 4) / model.shape().num_embeddings as usize;
        let mut rest = going.as_slice();
        while !rest.is_empty() {
            let mut scored = 0;
            let fitting = rest
                .iter()
                .take_while(|&&place| {
                    scored += rows[plan.order[place]].out.tokens.len();
                    scored <= most_rows
                })
                .count();
            let (group, after) = rest.split_at(fitting.max(1));
            self.insert(model, &plan, &hidden, group, rows, seed, step)?;
            rest = after;
        }
        Ok(())
    }

    fn goes_on(&self, logits: [f32; 2]) -> bool {
        let [complete, missing] = logits.map(|logit| f64::from(logit) / self.config.stopping_temperature);
        let probability = (1.0 + (missing - complete).exp()).recip();
        probability < self.config.stopping_threshold
    }

    /// Chooses and makes the insertions of some sorted places.
    #[allow(clippy::too_many_arguments)] // one step's whole state; a struct for it would be used once
    fn insert(
        &self,
        model: &StoppingModel,
        plan: &Plan,
        hidden: &Tensor,
        places: &[usize],
        rows: &mut [&mut Row],
        seed: u64,
        step: u64,
    ) -> Result<()> {
        let gaps: Vec<Vec<usize>> = places.iter().map(|&place| open_gaps(rows[plan.order[place]])).collect();
        let packed: Vec<i64> = places
            .iter()
            .zip(&gaps)
            .flat_map(|(&place, gaps)| gaps.iter().map(move |&gap| plan.row_ptr[place] + gap as i64))
            .collect();
        let hidden = hidden.f_index_select(0, &Tensor::f_from_slice(&packed)?)?;
        let mut logits = model.token_logits(&hidden)?;
        if !self.suppressed.is_empty() {
            let suppressed = Tensor::f_from_slice(&self.suppressed)?;
            let _ = logits.f_index_fill_(1, &suppressed, f64::NEG_INFINITY)?;
        }
        let ids: Vec<u64> = places.iter().map(|&place| rows[plan.order[place]].out.id).collect();
        let choices = self.choose(&logits, &gaps, &ids, seed, step)?;
        for ((&place, gaps), choice) in places.iter().zip(&gaps).zip(choices) {
            let row = &mut *rows[plan.order[place]];
            match choice {
                Some((gap, token)) => row.insert(gaps[gap], token),
                None => row.unfinished = false, // every token is suppressed
            }
        }
        Ok(())
    }

    /// (index among the row's open gaps, token) for each row, from the logits [open gaps of all rows, V].
    fn choose(
        &self,
        logits: &Tensor,
        gaps: &[Vec<usize>],
        ids: &[u64],
        seed: u64,
        step: u64,
    ) -> Result<Vec<Option<(usize, i64)>>> {
        let starts: Vec<usize> = gaps
            .iter()
            .scan(0, |next, gaps| {
                let start = *next;
                *next += gaps.len();
                Some(start)
            })
            .collect();
        let mut rngs: Vec<_> = ids.iter().map(|&id| keyed_rng(seed, Purpose::Predict, id, step)).collect();
        let Self { config, .. } = self;
        let Some(second) = config.second_sampling_method else {
            return (starts.iter().zip(gaps).zip(&mut rngs))
                .map(|((&start, gaps), rng)| {
                    let scores = logits.f_narrow(0, start as i64, gaps.len() as i64)?;
                    let scores = to_floats(&scores.f_reshape([-1])?)?;
                    let vocabulary = scores.len() / gaps.len();
                    let choice = draw(config.sampling_method, config.top, config.p, &scores, || uniform(rng));
                    Ok(choice.map(|flat| (flat / vocabulary, (flat % vocabulary) as i64)))
                })
                .collect();
        };
        let gap_scores = to_floats(&logits.f_logsumexp(1, false)?)?;
        let chosen: Vec<Option<usize>> = (starts.iter().zip(gaps).zip(&mut rngs))
            .map(|((&start, gaps), rng)| {
                let scores = &gap_scores[start..start + gaps.len()];
                draw(second, config.second_top, config.second_p, scores, || uniform(rng))
            })
            .collect();
        (starts.iter().zip(chosen).zip(&mut rngs))
            .map(|((&start, gap), rng)| {
                let Some(gap) = gap else { return Ok(None) };
                let scores = to_floats(&logits.f_select(0, (start + gap) as i64)?)?;
                let token = draw(config.sampling_method, config.top, config.p, &scores, || uniform(rng));
                Ok(token.map(|token| (gap, token as i64)))
            })
            .collect()
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

fn draw(
    method: SamplingMethod,
    top: i64,
    p: f64,
    scores: &[f32],
    uniform: impl FnMut() -> f64,
) -> Option<usize> {
    match method {
        SamplingMethod::Sample => sample(scores, uniform),
        SamplingMethod::SampleTopK => sample_top_k(top as usize, scores, uniform),
        SamplingMethod::SampleTopP => sample_top_p(p, scores, uniform),
    }
}

/// The active rows as a batch without targets, checked and planned.
fn plan(model: &StoppingModel, rows: &[&mut Row]) -> Result<Plan> {
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
    Plan::new(&batch, model.shape().config.nhead)
}
