//! The reference's own view of a batch: padded rows, attention masks, every place computed. For comparing with it and for small
//! tools; training and prediction use packed rows.

use tch::Tensor;

use crate::config::ModelShape;
use crate::error::{Error, Result};

/// B padded rows of L places, all arrays row-major.
#[derive(Debug, Clone, Copy)]
pub struct DenseBatch<'a> {
    /// B.
    pub rows: usize,
    /// L.
    pub width: usize,
    /// `[B, L]` token ids.
    pub tokens: &'a [i64],
    /// `[B, L]` position numbers; none counts from 0 in every row.
    pub positions: Option<&'a [i64]>,
    /// Which places are seen.
    pub mask: AttentionMask<'a>,
    /// `[B]` place of CLS, which a head reads; none is the first.
    pub cls: Option<&'a [i64]>,
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub enum AttentionMask<'a> {
    /// Every query sees every key of its row.
    None,
    /// `[B, L]`: every query sees the keys that are true.
    Keys(&'a [bool]),
    /// `[B, L, L]`: query i sees key j where `[b, i, j]` is true.
    Pairs(&'a [bool]),
}

/// What a model says of every place.
#[derive(Debug)]
pub struct DenseOutput {
    /// `[B, L, d]` hidden states that the class head reads: behind the last block, in GPT-2 models behind the final norm.
    pub hidden: Tensor,
    /// `[B, L, V]` logits of "insert this token right of this place".
    pub token_logits: Tensor,
    /// `[B, C]` logits of the head on CLS, if there is one.
    pub class_logits: Option<Tensor>,
}

impl DenseBatch<'_> {
    /// Checks every size and index.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first place that is wrong; also for a query that sees no key, whose attention is not defined.
    pub fn validate(&self, shape: &ModelShape) -> Result<()> {
        let (rows, width) = (self.rows, self.width);
        let fail = |place: &str, problem: String| Err(Error::Batch { place: place.to_owned(), problem });
        let places = rows.checked_mul(width).filter(|&places| places > 0);
        let Some(places) = places else {
            return fail("its shape", format!("{rows} rows of {width} places"));
        };
        let (mask, keys) = match self.mask {
            AttentionMask::None => (None, 0),
            AttentionMask::Keys(mask) => (Some(mask), places),
            AttentionMask::Pairs(mask) => (Some(mask), places.saturating_mul(width)),
        };
        let sizes = [
            ("tokens", Some(self.tokens.len()), places),
            ("positions", self.positions.map(<[i64]>::len), places),
            ("mask", mask.map(<[bool]>::len), keys),
            ("cls", self.cls.map(<[i64]>::len), rows),
        ];
        for (name, found, expected) in sizes {
            if let Some(found) = found.filter(|&found| found != expected) {
                return fail(name, format!("it has {found} entries instead of {expected}"));
            }
        }
        let largest_position = shape.positions() - 1;
        let values = [
            ("tokens", Some(self.tokens), shape.num_embeddings - 1),
            ("positions", self.positions, largest_position),
            ("cls", self.cls, width as i64 - 1),
        ];
        for (name, values, high) in values {
            if let Some(&value) = values.unwrap_or(&[]).iter().find(|value| !(0..=high).contains(*value)) {
                return fail(name, format!("{value} is not in 0..={high}"));
            }
        }
        if self.positions.is_none() && width as i64 - 1 > largest_position {
            return fail(
                "positions",
                format!("the rows have {width} places, the model {}", shape.positions()),
            );
        }
        if let Some(blind) = mask.and_then(|mask| mask.chunks(width).position(|keys| !keys.contains(&true))) {
            return fail("mask", format!("row {blind} of it lets its query see no key"));
        }
        Ok(())
    }
}
