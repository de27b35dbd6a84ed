//! The fixed order of all parameters in the flat buffers: embedding, blocks, output, stopping head.

use std::ops::Range;

use crate::config::ModelShape;
use crate::error::{Error, Result};

/// Every parameter starts at a multiple of this many elements (64 bytes of f32: one cache line).
pub const ALIGNMENT: usize = 16;

/// Place of one parameter in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamEntry {
    /// The reference's state-dict key.
    pub name: String,
    /// Shape; matrices are (out, in).
    pub shape: Vec<i64>,
    /// First element; a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// True if weight decay applies: all but biases and layer norms.
    pub decay: bool,
}

impl ParamEntry {
    /// Elements of the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Where every parameter lies; a pure function of the model's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamLayout {
    entries: Vec<ParamEntry>,
    len: usize,
    /// First element of block 0, 1, ..., n-1 and of what follows the last block.
    block_starts: Vec<usize>,
}

impl ParamLayout {
    /// Lays the model's parameters out.
    ///
    /// # Errors
    /// The shape does not validate, or its size does not fit this machine's address space.
    pub fn new(shape: &ModelShape) -> Result<Self> {
        shape.validate()?;
        let d = shape.config.d_model;
        let f = shape.config.feed_forward();
        let v = shape.num_embeddings;
        let mut layout = Self { entries: Vec::new(), len: 0, block_starts: Vec::new() };
        layout.push("embed_tokens.weight".into(), &[v, d])?;
        for i in 0..shape.config.num_layers {
            layout.block_starts.push(layout.len);
            let name = |part: &str| format!("encoder.{i}.{part}");
            layout.push_pair(&name("norm1"), &[d], d)?;
            layout.push(name("attn_qkv.weight"), &[3 * d, d])?;
            layout.push(name("o_proj.weight"), &[d, d])?;
            layout.push_pair(&name("norm2"), &[d], d)?;
            layout.push_pair(&name("mlp.0"), &[f, d], f)?;
            layout.push_pair(&name("mlp.2"), &[d, f], d)?;
        }
        layout.block_starts.push(layout.len);
        if !shape.config.final_layer_without_normalization {
            layout.push_pair("output_layer.norm_final", &[d], d)?;
        }
        layout.push("output_layer.linear.weight".into(), &[v, d])?;
        layout.push_pair("length_output_layer.norm_final", &[d], d)?;
        layout.push_pair("length_output_layer.mlp.0", &[2 * d, d], 2 * d)?;
        layout.push_pair("length_output_layer.mlp.2", &[d, 2 * d], d)?;
        layout.push("length_output_layer.linear.weight".into(), &[2, d])?;
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

    /// The ranges that become final one after the other during backward: everything after the last block, the blocks
    /// from the last to the first, the embedding. Together they are the whole buffer.
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

    fn push_pair(&mut self, name: &str, weight: &[i64], bias: i64) -> Result<()> {
        self.push(format!("{name}.weight"), weight)?;
        self.push(format!("{name}.bias"), &[bias])
    }

    fn push(&mut self, name: String, shape: &[i64]) -> Result<()> {
        let too_big = || {
            Error::Config(format!(
                "the model does not fit this machine's address space at '{name}' {shape:?}; use a smaller model"
            ))
        };
        let len = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?))
            .filter(|&len| len < isize::MAX as usize / 8)
            .ok_or_else(too_big)?;
        let end = self.len.checked_add(len).ok_or_else(too_big)?;
        let next = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_big)?;
        if next > isize::MAX as usize / 8 {
            return Err(too_big());
        }
        let decay = !(name.contains("bias") || name.contains("norm"));
        self.entries.push(ParamEntry { name, shape: shape.to_vec(), offset: self.len, len, decay });
        self.len = next;
        Ok(())
    }
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
            rotary_emb_dim: 4,
            final_layer_without_normalization: !norm,
            ..ModelConfig::default()
        };
        ModelShape {
            config,
            num_embeddings: 7,
            padding_idx: 0,
            max_length: 5,
            precision: crate::config::Precision::Fp32,
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
            end = entry.range().end;
        }
        assert_eq!(layout.len(), end.next_multiple_of(ALIGNMENT));
        assert_eq!(layout.len() % ALIGNMENT, 0);
    }

    #[test]
    fn stages_tile_the_buffer_from_its_end_and_cut_at_blocks() {
        let layout = ParamLayout::new(&shape(true)).unwrap();
        let stages = layout.stages();
        assert_eq!(stages.len(), 4);
        assert_eq!(stages[0].start, layout.entry("output_layer.norm_final.weight").unwrap().offset);
        assert_eq!(stages[1].start, layout.entry("encoder.1.norm1.weight").unwrap().offset);
        assert_eq!(stages[3], 0..layout.entry("encoder.0.norm1.weight").unwrap().offset);
        assert_eq!(stages[0].end, layout.len());
        assert!(stages.windows(2).all(|pair| pair[1].end == pair[0].start));
    }

    #[test]
    fn biases_and_norms_do_not_decay_and_the_final_norm_is_optional() {
        let layout = ParamLayout::new(&shape(false)).unwrap();
        assert!(layout.entry("output_layer.norm_final.weight").is_err());
        assert!(layout.entry("embed_tokens.weight").unwrap().decay);
        assert!(layout.entry("encoder.0.mlp.0.weight").unwrap().decay);
        assert!(!layout.entry("encoder.0.mlp.0.bias").unwrap().decay);
        assert!(!layout.entry("encoder.0.norm1.weight").unwrap().decay);
    }
}
