//! The parameters of a judge under the names that the library transformers gives them.

use tch::{Device, Kind, Tensor};

use super::config::{Gpt2Config, LlamaConfig, refused};
use super::parts::{Attention, Block, FeedForward, Map, Norm};
use super::{Network, Positions};
use crate::error::Error;

/// Gives the values of the parameter of that name and shape.
pub(super) type Read<'a, E> = dyn FnMut(&str, &[u64]) -> Result<Vec<f32>, E> + 'a;

/// Where parameters come from, and what becomes of them.
pub(super) struct Loader<'a, E> {
    pub(super) read: &'a mut Read<'a, E>,
    pub(super) device: Device,
    /// Type of matrices.
    pub(super) kind: Kind,
}

impl<E: From<Error>> Loader<'_, E> {
    fn tensor(&mut self, name: &str, shape: &[u64], kind: Kind) -> Result<Tensor, E> {
        let values = (self.read)(name, shape)?;
        let size: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let make = || Tensor::f_from_slice(&values)?.f_view(size.as_slice())?.f_to_device(self.device);
        let tensor = make().and_then(|tensor| tensor.f_to_kind(kind));
        Ok(tensor.map_err(Error::from)?)
    }

    fn vector(&mut self, name: &str, size: u64) -> Result<Tensor, E> {
        self.tensor(name, &[size], Kind::Float)
    }

    fn matrix(&mut self, name: &str, shape: [u64; 2]) -> Result<Tensor, E> {
        self.tensor(name, &shape, self.kind)
    }

    /// A map kept as [out, in].
    fn map(&mut self, name: &str, [inputs, outputs]: [u64; 2], biased: bool) -> Result<Map, E> {
        let weight = self.matrix(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = biased.then(|| self.vector(&format!("{name}.bias"), outputs)).transpose()?;
        Ok(Map { weight, bias })
    }

    /// A map with bias, kept as [in, out].
    fn turned_map(&mut self, name: &str, [inputs, outputs]: [u64; 2]) -> Result<Map, E> {
        let weight = self.matrix(&format!("{name}.weight"), [inputs, outputs])?;
        let weight = weight.f_tr().and_then(|weight| weight.f_contiguous()).map_err(Error::from)?;
        Ok(Map { weight, bias: Some(self.vector(&format!("{name}.bias"), outputs)?) })
    }

    fn layer_norm(&mut self, name: &str, width: u64, eps: f64) -> Result<Norm, E> {
        let weight = self.vector(&format!("{name}.weight"), width)?;
        Ok(Norm::Layer { weight, bias: self.vector(&format!("{name}.bias"), width)?, eps })
    }

    fn rms_norm(&mut self, name: &str, width: u64, eps: f64) -> Result<Norm, E> {
        Ok(Norm::Rms { weight: self.vector(&format!("{name}.weight"), width)?, eps })
    }

    /// The output matrix: one of its own, or the embedding.
    fn head(&mut self, embedding: &Tensor, tied: bool, shape: [u64; 2]) -> Result<Map, E> {
        let weight = if tied { embedding.shallow_clone() } else { self.matrix("lm_head.weight", shape)? };
        Ok(Map { weight, bias: None })
    }
}

/// GPT-2.
pub(super) fn gpt2<E: From<Error>>(loader: &mut Loader<'_, E>, config: &Gpt2Config) -> Result<Network, E> {
    let (width, heads, eps) = (config.n_embd, config.n_head, config.layer_norm_epsilon);
    check_heads(width.is_multiple_of(heads.max(1)), [heads, heads], "n_head")?;
    let inner = config.n_inner.unwrap_or(width.saturating_mul(4));
    let curve = config.curve()?;
    let tokens = loader.matrix("wte.weight", [config.vocab_size, width])?;
    let positions = loader.matrix("wpe.weight", [config.n_positions, width])?;
    let mut blocks = Vec::new();
    for layer in 0..config.n_layer {
        let name = |part: &str| format!("h.{layer}.{part}");
        blocks.push(Block {
            norm1: loader.layer_norm(&name("ln_1"), width, eps)?,
            attention: Attention {
                qkv: loader.turned_map(&name("attn.c_attn"), [width, width.saturating_mul(3)])?,
                project: loader.turned_map(&name("attn.c_proj"), [width, width])?,
                heads: heads as i64,
                shared: heads as i64,
                scale: config.scale(layer),
            },
            norm2: loader.layer_norm(&name("ln_2"), width, eps)?,
            feed_forward: FeedForward::Plain {
                widen: loader.turned_map(&name("mlp.c_fc"), [width, inner])?,
                curve,
                narrow: loader.turned_map(&name("mlp.c_proj"), [inner, width])?,
            },
        });
    }
    Ok(Network {
        last_norm: loader.layer_norm("ln_f", width, eps)?,
        head: loader.head(&tokens, config.tie_word_embeddings, [config.vocab_size, width])?,
        most_tokens: config.n_positions as usize,
        positions: Positions::Learned(positions),
        tokens,
        blocks,
    })
}

/// Llama.
pub(super) fn llama<E: From<Error>>(loader: &mut Loader<'_, E>, config: &LlamaConfig) -> Result<Network, E> {
    config.check()?;
    let (width, heads, eps) = (config.hidden_size, config.num_attention_heads, config.rms_norm_eps);
    let shared = config.num_key_value_heads.unwrap_or(heads);
    let head_width = config.head_dim.unwrap_or(width / heads.max(1));
    check_heads(head_width.is_multiple_of(2) && head_width > 0, [heads, shared], "num_attention_heads")?;
    let inner = config.intermediate_size;
    let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
    let tokens = loader.matrix("embed_tokens.weight", [config.vocab_size, width])?;
    let mut blocks = Vec::new();
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let norm1 = loader.rms_norm(&name("input_layernorm"), width, eps)?;
        let parts = [("q", heads), ("k", shared), ("v", shared)].map(|(part, heads)| {
            let outputs = heads.saturating_mul(head_width);
            loader.map(&name(&format!("self_attn.{part}_proj")), [width, outputs], attention_bias)
        });
        blocks.push(Block {
            norm1,
            attention: Attention {
                qkv: side_by_side(parts)?,
                project: loader.map(
                    &name("self_attn.o_proj"),
                    [heads.saturating_mul(head_width), width],
                    attention_bias,
                )?,
                heads: heads as i64,
                shared: shared as i64,
                scale: (head_width as f64).sqrt().recip(),
            },
            norm2: loader.rms_norm(&name("post_attention_layernorm"), width, eps)?,
            feed_forward: FeedForward::Gated {
                gate: loader.map(&name("mlp.gate_proj"), [width, inner], mlp_bias)?,
                widen: loader.map(&name("mlp.up_proj"), [width, inner], mlp_bias)?,
                narrow: loader.map(&name("mlp.down_proj"), [inner, width], mlp_bias)?,
            },
        });
    }
    // Behind the blocks, whose shapes have shown that the width is no mistake.
    let frequencies = config.frequencies(head_width)?;
    let frequencies = Tensor::f_from_slice(&frequencies).and_then(|turns| turns.f_to_device(loader.device));
    Ok(Network {
        last_norm: loader.rms_norm("norm", width, eps)?,
        head: loader.head(&tokens, config.tie_word_embeddings, [config.vocab_size, width])?,
        most_tokens: config.max_position_embeddings as usize,
        positions: Positions::Turned(frequencies.map_err(Error::from)?),
        tokens,
        blocks,
    })
}

/// One map of several with the same inputs.
fn side_by_side<E: From<Error>>(maps: [Result<Map, E>; 3]) -> Result<Map, E> {
    let [first, second, third] = maps;
    let maps = [first?, second?, third?];
    let join = |tensors: Vec<&Tensor>| Tensor::f_cat(&tensors, 0).map_err(Error::from);
    let biases: Vec<&Tensor> = maps.iter().filter_map(|map| map.bias.as_ref()).collect();
    let bias = if biases.is_empty() { None } else { Some(join(biases)?) };
    Ok(Map { weight: join(maps.iter().map(|map| &map.weight).collect())?, bias })
}

/// Refuses numbers of heads by which the width, or each other, cannot be divided.
fn check_heads(fit: bool, [heads, shared]: [u64; 2], key: &str) -> Result<(), Error> {
    if fit && shared > 0 && heads.is_multiple_of(shared) {
        return Ok(());
    }
    refused(
        key,
        heads,
        "a number that divides the width into even parts, of equally many for each head of keys",
    )
}
