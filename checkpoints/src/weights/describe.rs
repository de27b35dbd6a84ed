//! What names and shapes alone say about a model.

use std::collections::{BTreeMap, BTreeSet};

use super::class::Family;
use super::error::WeightsError;
use super::file::WeightsFile;
use super::keys::{frequencies, layer};
use super::parameters::{CLASSES, POSITIONS};
use crate::error::Result;

/// The shapes of tensors by name.
pub(super) type Shapes<'a> = BTreeMap<&'a str, &'a [u64]>;

/// The shape of a model, as its tensors show it. No size is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The backbone.
    pub family: Family,
    /// Vocabulary size V, special tokens included.
    pub num_embeddings: u64,
    /// Model width d.
    pub d_model: u64,
    /// Layers.
    pub num_layers: u64,
    /// Feed-forward width F.
    pub dim_feedforward: u64,
    /// Positions that have an embedding (GPT-2 only).
    pub max_length: Option<u64>,
    /// Number of stored frequencies, half the rotary dimension (rotary only, and only if they were saved).
    pub frequencies: Option<u64>,
    /// Whether a norm precedes the output matrix.
    pub final_norm: bool,
    /// Classes of the head that reads the CLS position, if there is one.
    pub num_classes: Option<u64>,
}

impl WeightsFile {
    /// What the tensors alone say about the model. Looks at the tensors that size it; whether all others are there
    /// is for [`WeightsFile::read_into`] to see.
    ///
    /// # Errors
    /// [`WeightsError::UnknownModel`] if they are not those of a model of the reference.
    pub fn describe(&self) -> Result<Description> {
        let shapes = self.tensors().iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        Description::from_shapes(&shapes.collect())
            .map_err(|what| WeightsError::UnknownModel { path: self.path().into(), what }.into())
    }
}

impl Description {
    /// Says what is missing or odd if these are not the tensors of a model of the reference.
    pub(super) fn from_shapes(shapes: &Shapes<'_>) -> Result<Self, String> {
        let family = family(shapes)?;
        let names = family.names();
        let [num_embeddings, d_model] = sizes(shapes, names.embedding)?;
        let rows = |name: &str| match sizes(shapes, name)? {
            [rows, width] if width == d_model => Ok(rows),
            [_, width] => Err(format!("'{name}' is {width} wide and '{}' {d_model}", names.embedding)),
        };
        if rows(names.output)? != num_embeddings {
            return Err(format!("'{}' and '{}' have different vocabularies", names.output, names.embedding));
        }
        let max_length = match family {
            Family::Rotary => None,
            Family::Gpt2 => Some(rows(POSITIONS)?),
        };
        Ok(Self {
            family,
            num_embeddings,
            d_model,
            num_layers: layers(shapes, names.layers)?,
            dim_feedforward: rows(&format!("{}0.{}", names.layers, names.widening))?,
            max_length,
            frequencies: shapes.get(frequencies(0).as_str()).map(|shape| shape.iter().product()),
            final_norm: shapes.contains_key(names.final_norm),
            num_classes: shapes.contains_key(CLASSES).then(|| rows(CLASSES)).transpose()?,
        })
    }
}

/// The family is told by the name of its embedding.
fn family(shapes: &Shapes<'_>) -> Result<Family, String> {
    let [rotary, gpt2] = [Family::Rotary, Family::Gpt2].map(|family| family.names().embedding);
    match (shapes.contains_key(rotary), shapes.contains_key(gpt2)) {
        (true, false) => Ok(Family::Rotary),
        (false, true) => Ok(Family::Gpt2),
        (true, true) => Err(format!("it has both '{rotary}' and '{gpt2}'")),
        (false, false) => {
            let first: Vec<_> = shapes.keys().take(3).map(|name| format!("'{name}'")).collect();
            let first =
                if first.is_empty() { String::new() } else { format!(" ({}, ...)", first.join(", ")) };
            Err(format!("it has neither '{rotary}' nor '{gpt2}' among its {} tensors{first}", shapes.len()))
        }
    }
}

/// The two sizes of a matrix.
fn sizes(shapes: &Shapes<'_>, name: &str) -> Result<[u64; 2], String> {
    match shapes.get(name) {
        None => Err(format!("it has no '{name}'")),
        Some(&&[rows, width]) if rows > 0 && width > 0 => Ok([rows, width]),
        Some(shape) => Err(format!("'{name}' has shape {shape:?}, which is no matrix")),
    }
}

/// How many layers there are; they must be numbered from 0 without a gap.
fn layers(shapes: &Shapes<'_>, prefix: &str) -> Result<u64, String> {
    let numbers: BTreeSet<u64> = shapes.keys().filter_map(|name| layer(name, prefix)).collect();
    match (0..).zip(&numbers).find(|(expected, number)| expected != *number) {
        Some((expected, _)) => Err(format!("it has layers beyond '{prefix}{expected}' but not that one")),
        None if numbers.is_empty() => Err(format!("it has no layers '{prefix}0', ...")),
        None => Ok(numbers.len() as u64),
    }
}
