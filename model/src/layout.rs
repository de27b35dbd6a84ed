//! The fixed order of all parameters in the flat buffers. First come those that are used as they are, whatever products take:
//! embeddings, norms, biases, the class head. Behind them lie the matrices of products that take rounded ones, if any do: those of
//! the blocks, then the output. So each of the two is one range, and only the first need be exchanged in full.

use std::ops::Range;

use crate::backbone;
use crate::config::{Family, ModelShape};
use crate::error::{Error, Result};
use crate::parts::{HEAD, Parts};

/// Every parameter starts at a multiple of this many elements (64 bytes of f32: one cache line).
pub const ALIGNMENT: usize = 16;

/// The output matrix has a multiple of this many rows in the flat buffers, so that every row of logits begins at a cache line and
/// a GPU's tensor cores have whole tiles.
const OUTPUT_ROWS: i64 = 64;

/// Place of one parameter in the flat buffers.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamEntry {
    /// The reference's state-dict key.
    pub name: String,
    /// Shape; matrices are (out, in).
    pub shape: Vec<i64>,
    /// First element; a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Rows in the flat buffers. Those beyond the shape are 0, for ever: they are no parameters.
    pub(crate) padded_rows: i64,
    /// Where its initial values come from.
    pub(crate) init: Init,
}

/// Where a parameter's initial values come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// All alike.
    Constant(f32),
    /// Uniform on `-bound..bound`.
    Uniform {
        /// The largest value.
        bound: f64,
    },
    /// Around 0; the row with this number, if any, is 0.
    Normal {
        /// Standard deviation.
        std: f64,
        /// A row of zeros.
        zero_row: Option<i64>,
    },
}

impl ParamEntry {
    /// Elements of the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Whether weight decay applies: to matrices, not to biases and norms. (The reference tells rotary parameters apart by name and
    /// those of GPT-2 by dimensions, with the same outcome.)
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Where every parameter lies; a pure function of the model's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamLayout {
    entries: Vec<ParamEntry>,
    len: usize,
    /// First element of the matrices of block 0, 1, ..., n-1 and of what follows the last block.
    block_starts: Vec<usize>,
}

impl ParamLayout {
    /// Lays the model's parameters out.
    ///
    /// # Errors
    /// The shape does not validate, or its size does not fit this machine's address space.
    pub fn new(shape: &ModelShape) -> Result<Self> {
        shape.validate()?;
        let config = &shape.config;
        let parts = Parts::of(config.class);
        let start = Start::of(shape);
        let (d, v) = (config.d_model, shape.num_embeddings);
        let mut layout = Self { entries: Vec::new(), len: 0, block_starts: Vec::new() };
        for (name, rows, init) in backbone::embeddings(shape) {
            layout.push(format!("{name}.weight"), &[rows, d], init)?;
        }
        for i in 0..config.num_layers {
            layout.push_block_vectors(|part| parts.in_block(i, part), parts, shape, start)?;
        }
        if config.has_final_norm() {
            layout.push_norm(parts.final_norm, d, parts.biased)?;
        }
        if let Some(classes) = shape.num_classes() {
            layout.push_head(d, classes)?;
        }
        for i in 0..config.num_layers {
            layout.block_starts.push(layout.len);
            layout.push_block_matrices(|part| parts.in_block(i, part), parts, shape, start)?;
        }
        layout.block_starts.push(layout.len);
        layout.push_output(parts.output, [v, d], start.plain(d))?;
        Ok(layout)
    }

    /// All parameters, by offset.
    pub fn entries(&self) -> &[ParamEntry] {
        &self.entries
    }

    /// Elements of a flat buffer, alignment gaps included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a model has parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of trainable values, alignment gaps left out.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(|entry| entry.len).sum()
    }

    /// The parameter of that name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn entry(&self, name: &str) -> Result<&ParamEntry> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| Error::UnknownParameter(name.to_owned()))
    }

    /// The parameters that are used as they are: embeddings, norms, biases, the class head. Behind them come the matrices.
    pub fn exact(&self) -> Range<usize> {
        0..self.block_starts[0]
    }

    /// The ranges that become final one after the other during backward: the output's matrix, those of the blocks from the last
    /// to the first, and what is used [as it is](Self::exact). Together they are the whole buffer.
    pub fn stages(&self) -> Vec<Range<usize>> {
        let mut end = self.len;
        let starts = self.block_starts.iter().rev().chain(std::iter::once(&0));
        starts
            .map(|&start| {
                let range = start..end;
                end = start;
                range
            })
            .collect()
    }

    fn push_block_vectors(
        &mut self,
        name: impl Fn(&str) -> String,
        parts: &Parts,
        shape: &ModelShape,
        start: Start,
    ) -> Result<()> {
        let (d, f) = (shape.config.d_model, shape.config.feed_forward());
        self.push_norm(&name(parts.norm1), d, parts.biased)?;
        self.push_norm(&name(parts.norm2), d, parts.biased)?;
        if parts.biased {
            self.push_bias(&name(parts.widen), f, start.plain(d))?;
            self.push_bias(&name(parts.narrow), d, start.projection(f))?;
        }
        Ok(())
    }

    fn push_block_matrices(
        &mut self,
        name: impl Fn(&str) -> String,
        parts: &Parts,
        shape: &ModelShape,
        start: Start,
    ) -> Result<()> {
        let (d, f) = (shape.config.d_model, shape.config.feed_forward());
        self.push_matrix(&name(parts.qkv), [3 * d, d], start.plain(d))?;
        self.push_matrix(&name(parts.project), [d, d], start.projection(d))?;
        self.push_matrix(&name(parts.widen), [f, d], start.plain(d))?;
        self.push_matrix(&name(parts.narrow), [d, f], start.projection(f))
    }

    /// The head is the same module in both families, with the same start.
    fn push_head(&mut self, d: i64, classes: i64) -> Result<()> {
        let name = |part: &str| format!("{HEAD}.{part}");
        self.push_norm(&name("norm_final"), d, true)?;
        for (part, size) in [("mlp.0", [2 * d, d]), ("mlp.2", [d, 2 * d])] {
            self.push_matrix(&name(part), size, torch_default(size[1]))?;
            self.push_bias(&name(part), size[0], torch_default(size[1]))?;
        }
        self.push_matrix(&name("linear"), [classes, d], torch_default(d))
    }

    fn push_norm(&mut self, name: &str, width: i64, biased: bool) -> Result<()> {
        self.push(format!("{name}.weight"), &[width], Init::Constant(1.0))?;
        if biased {
            self.push(format!("{name}.bias"), &[width], Init::Constant(0.0))?;
        }
        Ok(())
    }

    fn push_matrix(&mut self, name: &str, shape: [i64; 2], init: Init) -> Result<()> {
        self.push_padded(format!("{name}.weight"), &shape, shape[0], init)
    }

    fn push_bias(&mut self, name: &str, width: i64, init: Init) -> Result<()> {
        self.push(format!("{name}.bias"), &[width], init)
    }

    fn push_output(&mut self, name: &str, shape: [i64; 2], init: Init) -> Result<()> {
        let rows = shape[0].saturating_add(OUTPUT_ROWS - 1) / OUTPUT_ROWS * OUTPUT_ROWS;
        self.push_padded(format!("{name}.weight"), &shape, rows, init)
    }

    fn push(&mut self, name: String, shape: &[i64], init: Init) -> Result<()> {
        self.push_padded(name, shape, shape[0], init)
    }

    fn push_padded(&mut self, name: String, shape: &[i64], padded_rows: i64, init: Init) -> Result<()> {
        let too_big = || {
            Error::Config(format!(
                "the model does not fit this machine's address space at '{name}' {shape:?}; use a smaller model"
            ))
        };
        let elements = |rows: i64| {
            let sizes = std::iter::once(&rows).chain(&shape[1..]);
            sizes
                .copied()
                .try_fold(1usize, |product, size| product.checked_mul(usize::try_from(size).ok()?))
                .filter(|&len| len < isize::MAX as usize / 8)
                .ok_or_else(too_big)
        };
        let (len, padded) = (elements(shape[0])?, elements(padded_rows)?);
        let end = self.len.checked_add(padded).ok_or_else(too_big)?;
        let next = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_big)?;
        if next > isize::MAX as usize / 8 {
            return Err(too_big());
        }
        let (shape, offset) = (shape.to_vec(), self.len);
        self.entries.push(ParamEntry { name, shape, offset, len, padded_rows, init });
        self.len = next;
        Ok(())
    }
}

/// How the matrices of a family start.
#[derive(Debug, Clone, Copy)]
struct Start {
    family: Family,
    layers: i64,
}

impl Start {
    fn of(shape: &ModelShape) -> Self {
        Self { family: shape.config.class.family(), layers: shape.config.num_layers }
    }

    /// A matrix with this input width.
    fn plain(self, fan_in: i64) -> Init {
        match self.family {
            Family::Rotary => torch_default(fan_in),
            Family::Gpt2 => Init::Normal { std: backbone::GPT2_STD, zero_row: None },
        }
    }

    /// A matrix whose output is added to the residual stream.
    fn projection(self, fan_in: i64) -> Init {
        match self.family {
            Family::Rotary => torch_default(fan_in),
            Family::Gpt2 => {
                let std = backbone::GPT2_STD / (2.0 * self.layers as f64).sqrt();
                Init::Normal { std, zero_row: None }
            }
        }
    }
}

/// torch's start of a linear map: weights and bias alike uniform within 1 / sqrt(fan in).
fn torch_default(fan_in: i64) -> Init {
    Init::Uniform { bound: (fan_in as f64).sqrt().recip() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn shape(norm: bool) -> ModelShape {
        let config = ModelConfig {
            d_model: 10,
            num_layers: 2,
            nhead: 1,
            rotary_emb_dim: Some(4),
            final_layer_without_normalization: Some(!norm),
            ..ModelConfig::default()
        };
        ModelShape {
            config,
            num_embeddings: 7,
            padding_idx: 0,
            max_length: 5,
            precision: crate::config::Precision::Fp32,
            recompute: crate::config::Recompute::None,
        }
    }

    #[test]
    fn offsets_are_aligned_ordered_and_inside_the_buffer() {
        let layout = ParamLayout::new(&shape(true)).unwrap();
        let mut end = 0;
        for entry in layout.entries() {
            assert_eq!(entry.offset % ALIGNMENT, 0, "{}", entry.name);
            assert!(entry.offset >= end && entry.offset < end + ALIGNMENT);
            assert_eq!(entry.len as i64, entry.shape.iter().product::<i64>());
            let rows = if entry.name == "output_layer.linear.weight" { 64 } else { entry.shape[0] };
            assert_eq!(entry.padded_rows, rows);
            end = entry.offset + entry.len / entry.shape[0] as usize * rows as usize;
        }
        assert_eq!(layout.len(), end.next_multiple_of(ALIGNMENT));
        assert_eq!(layout.len() % ALIGNMENT, 0);
    }

    #[test]
    fn stages_tile_the_buffer_from_its_end_and_cut_at_blocks() {
        let layout = ParamLayout::new(&shape(true)).unwrap();
        let stages = layout.stages();
        assert_eq!(stages.len(), 4);
        assert_eq!(stages[0].start, layout.entry("output_layer.linear.weight").unwrap().offset);
        assert_eq!(stages[1].start, layout.entry("encoder.1.attn_qkv.weight").unwrap().offset);
        assert_eq!(stages[3], layout.exact());
        assert_eq!(stages[0].end, layout.len());
        assert!(stages.windows(2).all(|pair| pair[1].end == pair[0].start));
    }

    #[test]
    fn biases_and_norms_do_not_decay_and_the_final_norm_is_optional() {
        let layout = ParamLayout::new(&shape(false)).unwrap();
        assert!(layout.entry("output_layer.norm_final.weight").is_err());
        assert!(layout.entry("embed_tokens.weight").unwrap().decays());
        assert!(layout.entry("encoder.0.mlp.0.weight").unwrap().decays());
        assert!(!layout.entry("encoder.0.mlp.0.bias").unwrap().decays());
        assert!(!layout.entry("encoder.0.norm1.weight").unwrap().decays());
    }
}
