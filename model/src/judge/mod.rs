//! A judge: a causal language model that says how likely it finds texts, token by token.
//!
//! Texts that are computed together are padded behind their ends, which causal attention never looks at.

mod config;
mod load;
mod parts;

use tch::{Device, Kind, Tensor};

pub use self::config::{Gpt2Config, JudgeConfig, LlamaConfig, Rope};
use self::load::Loader;
use self::parts::{Angles, Block, Map, Norm};
use crate::config::Precision;
use crate::error::{Error, Result};
use crate::layers::operand_kind;

/// Bytes of logits that are there at a time.
const LOGITS_BYTES: i64 = 256 << 20;

/// A causal language model, on a device.
#[derive(Debug)]
pub struct Judge {
    network: Network,
    device: Device,
}

/// The parameters.
#[derive(Debug)]
struct Network {
    /// [V, d]
    tokens: Tensor,
    positions: Positions,
    blocks: Vec<Block>,
    last_norm: Norm,
    head: Map,
    /// Positions there are.
    most_tokens: usize,
}

/// How the network knows where a token is.
#[derive(Debug)]
enum Positions {
    /// [positions, d] a vector of each is added to the token's.
    Learned(Tensor),
    /// [h / 2] f64, how far queries and keys turn from one position to the next.
    Turned(Tensor),
}

impl Judge {
    /// Builds the model that `config` describes. `read` gives the values of a parameter of that name and shape; the names are those
    /// of the library transformers without the first part (`transformer.`, `model.`). Matrices, the embedding among them, have the
    /// type of `precision`.
    ///
    /// # Errors
    /// A configuration of something else, a parameter that cannot be read, lack of memory.
    pub fn load<E: From<Error>>(
        config: &JudgeConfig,
        device: Device,
        precision: Precision,
        mut read: impl FnMut(&str, &[u64]) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<Self, E> {
        let _guard = tch::no_grad_guard();
        let mut loader = Loader { read: &mut read, device, kind: operand_kind(precision) };
        let network = match config {
            JudgeConfig::Gpt2(config) => load::gpt2(&mut loader, config)?,
            JudgeConfig::Llama(config) => load::llama(&mut loader, config)?,
        };
        Ok(Self { network, device })
    }

    /// Most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.network.most_tokens
    }

    /// Tokens the judge knows: ids are below this.
    pub fn vocab_size(&self) -> i64 {
        self.network.tokens.size()[0]
    }

    /// For each text the log likelihood, in nats, of every token from the second on given those before it; logits and their softmax
    /// are f32. Memory follows the number of texts times the length of the longest.
    ///
    /// # Errors
    /// A text longer than [`max_length`](Self::max_length), ids that the judge does not know, failures of libtorch.
    pub fn log_likelihoods(&self, texts: &[&[i64]]) -> Result<Vec<Vec<f64>>> {
        Ok(self.log_likelihoods_unless(&|| false, texts)?.unwrap_or_default())
    }

    /// The same; none if `stop`, which is asked before every layer, ends it.
    ///
    /// # Errors
    /// As [`log_likelihoods`](Self::log_likelihoods).
    pub fn log_likelihoods_unless(
        &self,
        stop: &dyn Fn() -> bool,
        texts: &[&[i64]],
    ) -> Result<Option<Vec<Vec<f64>>>> {
        let _guard = tch::no_grad_guard();
        texts.iter().try_for_each(|text| self.check(text))?;
        let length = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        if length < 2 {
            return Ok(Some(vec![Vec::new(); texts.len()]));
        }
        let (mut ids, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let first = ids.len() as i64;
            ids.extend(text.iter().copied().chain(std::iter::repeat(0)).take(length));
            targets.extend(text.iter().skip(1));
            places.extend((first..).take(text.len().saturating_sub(1)));
        }
        let Some(hidden) = self.hidden(stop, &ids, [texts.len() as i64, length as i64])? else {
            return Ok(None);
        };
        let mut found = self.of_targets(&hidden, &places, &targets)?.into_iter();
        let of = |text: &&[i64]| found.by_ref().take(text.len().saturating_sub(1)).collect();
        Ok(Some(texts.iter().map(of).collect()))
    }

    fn check(&self, text: &[i64]) -> Result<()> {
        let (longest, known) = (self.max_length(), self.vocab_size());
        if text.len() > longest {
            let found = text.len();
            return Err(Error::Config(format!(
                "a text of {found} tokens is above the {longest} of the judge"
            )));
        }
        match text.iter().find(|id| !(0..known).contains(*id)) {
            Some(id) => Err(Error::Config(format!(
                "token {id} is none of the judge's {known}; its tokenizer.json is of another model"
            ))),
            None => Ok(()),
        }
    }

    /// `ids` of B L tokens -> [B L, d] f32, normed.
    fn hidden(
        &self,
        stop: &dyn Fn() -> bool,
        ids: &[i64],
        [rows, length]: [i64; 2],
    ) -> Result<Option<Tensor>> {
        let network = &self.network;
        let ids = Tensor::f_from_slice(ids)?.f_to_device(self.device)?;
        let mut x = network.tokens.f_index_select(0, &ids)?.f_to_kind(Kind::Float)?;
        let angles = match &network.positions {
            Positions::Learned(table) => {
                let here = table.f_narrow(0, 0, length)?.f_to_kind(Kind::Float)?.f_repeat([rows, 1])?;
                let _ = x.f_add_(&here)?;
                None
            }
            Positions::Turned(frequencies) => Some(Angles::new(frequencies, length)?),
        };
        for block in &network.blocks {
            if stop() {
                return Ok(None);
            }
            x = block.forward(x, [rows, length], angles.as_ref())?;
        }
        Ok(Some(network.last_norm.forward(&x)?))
    }

    /// The log likelihood of each target at its place among the rows of `hidden`.
    fn of_targets(&self, hidden: &Tensor, places: &[i64], targets: &[i64]) -> Result<Vec<f64>> {
        let at_once = (LOGITS_BYTES / (4 * self.vocab_size())).max(1) as usize;
        let mut found = Vec::with_capacity(targets.len());
        for (places, targets) in places.chunks(at_once).zip(targets.chunks(at_once)) {
            let sent = |values| Ok::<_, Error>(Tensor::f_from_slice(values)?.f_to_device(self.device)?);
            let logits = self.network.head.forward(&hidden.f_index_select(0, &sent(places)?)?)?;
            let picked = logits.f_gather(1, &sent(targets)?.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
            let picked = picked.f_sub(&logits.f_logsumexp([1].as_slice(), false)?)?;
            found.extend(Vec::<f64>::try_from(picked.f_to_kind(Kind::Double)?)?);
        }
        Ok(found)
    }
}
