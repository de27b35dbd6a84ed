//! What the tests share: reference vectors as host arrays, padded batches as packed rows, a small model.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![allow(dead_code)] // every test binary uses its own part

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ilm_model::{
    Activation, Batch, Family, HeadKind, Model, ModelClass, ModelConfig, ModelShape, Precision, Recompute,
    SpecialIds,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A tensor of the reference; integers and booleans are converted to i64, floats to f32.
#[derive(Debug, Clone)]
pub struct Array {
    pub shape: Vec<usize>,
    pub ints: Vec<i64>,
    pub floats: Vec<f32>,
}

/// The tensors of a file, and which of them a test has looked at.
pub struct Golden {
    arrays: BTreeMap<String, Array>,
    used: RefCell<BTreeSet<String>>,
}

impl Golden {
    pub fn open(file: &str) -> Self {
        let bytes = std::fs::read(test_support::golden_dir().join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let arrays = tensors.tensors().into_iter().map(|(name, view)| {
            let data = view.data();
            let mut array = Array { shape: view.shape().to_vec(), ints: vec![], floats: vec![] };
            match view.dtype() {
                Dtype::F32 => {
                    array.floats =
                        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    array.ints = array.floats.iter().map(|&value| value as i64).collect();
                }
                Dtype::I64 => {
                    array.ints =
                        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
                }
                Dtype::BOOL => array.ints = data.iter().map(|&byte| i64::from(byte)).collect(),
                other => panic!("{name} is {other:?}"),
            }
            (name, array)
        });
        Self { arrays: arrays.collect(), used: RefCell::default() }
    }

    pub fn get(&self, name: &str) -> &Array {
        self.find(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn find(&self, name: &str) -> Option<&Array> {
        let (name, array) = self.arrays.get_key_value(name)?;
        self.used.borrow_mut().insert(name.clone());
        Some(array)
    }

    /// Fails unless every tensor was looked at, but for inputs whose names begin with one of these.
    pub fn assert_all_used(&self, inputs_without_effect: &[&str]) {
        let used = self.used.borrow();
        let left: Vec<&String> = (self.arrays.keys().filter(|name| !used.contains(*name)))
            .filter(|name| !inputs_without_effect.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        assert!(left.is_empty(), "not compared: {left:?}");
    }

    pub fn floats(&self, name: &str) -> &[f32] {
        &self.get(name).floats
    }

    pub fn ints(&self, name: &str) -> &[i64] {
        &self.get(name).ints
    }

    /// (name without the prefix, array) of every tensor under a prefix.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Array)> {
        self.arrays.iter().filter_map(move |(name, array)| {
            let rest = name.strip_prefix(prefix)?;
            self.used.borrow_mut().insert(name.clone());
            Some((rest, array))
        })
    }
}

pub fn manifest(file: &str) -> Value {
    let text = std::fs::read_to_string(test_support::golden_dir().join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["files"][file]["config"].take()
}

/// The special ids of the reference's tokenizer of numbers.
pub const SPECIAL: SpecialIds = SpecialIds { cls: 1, bos: 4, pad: 0, mask: 2 };

/// What that tokenizer makes of ids when told to keep special tokens.
pub fn decode(ids: &[i64]) -> String {
    const NAMES: [&str; 7] = ["[PAD]", "[CLS]", "[MASK]", "[EOS]", "[BOS]", "[SEP]", "[UNK]"];
    let token = |&id: &i64| NAMES.get(id as usize).map_or_else(|| (id - 7).to_string(), ToString::to_string);
    ids.iter().map(token).collect::<Vec<_>>().join(" ")
}

/// The shape that the reference's class and constructor arguments describe.
pub fn shape_of(class_name: &str, kwargs: &Value) -> ModelShape {
    let class = *ModelClass::ALL.iter().find(|class| class.reference_name() == class_name).unwrap();
    let int = |key: &str| kwargs[key].as_i64().unwrap_or_else(|| panic!("no {key}"));
    let activation = match (kwargs["activation"].as_str(), class.family()) {
        (Some("gelu"), _) | (None, Family::Gpt2) => Activation::Gelu,
        _ => Activation::Relu,
    };
    let config = ModelConfig {
        class,
        num_classes: kwargs["num_classes"].as_i64(),
        d_model: int("d_model"),
        num_layers: int("num_layers"),
        nhead: int("nhead"),
        dim_feedforward: kwargs["dim_feedforward"].as_i64(),
        dropout: kwargs["dropout"].as_f64().unwrap(),
        activation,
        layer_norm_eps: kwargs["layer_norm_eps"].as_f64().unwrap_or(1e-5),
        rotary_emb_dim: kwargs["rotary_emb_dim"].as_i64(),
        max_length: None,
        // Quirk 10: this constructor mixes its arguments up and always has the norm.
        final_layer_without_normalization: if class == ModelClass::RotaryLength {
            Some(false)
        } else {
            kwargs["final_layer_without_normalization"].as_bool()
        },
        identical_layers: false,
    };
    ModelShape {
        config,
        num_embeddings: int("num_embeddings"),
        padding_idx: int("padding_idx"),
        max_length: int("max_length"),
        precision: Precision::Fp32,
        recompute: Recompute::None,
    }
}

/// The model of a file of the reference's, with its parameters.
pub fn model_of(file: &str) -> Model {
    let config = manifest(file);
    let shape = shape_of(config["class_name"].as_str().unwrap(), &config["kwargs"]);
    load_model(shape, &Golden::open(file))
}

/// A model with the parameters under `param.`; the rotary buffers are not parameters.
pub fn load_model(shape: ModelShape, golden: &Golden) -> Model {
    let mut model = Model::new(shape, 0).unwrap();
    let mut loaded = 0;
    for (name, array) in golden.under("param.").filter(|(name, _)| !name.contains("rotary_emb")) {
        model.arena_mut().set(name, &array.floats).unwrap();
        loaded += 1;
    }
    assert_eq!(loaded, model.arena().layout().entries().len());
    model
}

/// The real positions of a padded batch, packed.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    pub row_ptr: Vec<i64>,
    pub tokens: Vec<i64>,
    pub positions: Vec<i64>,
    pub cls: Vec<i64>,
    pub tgt_ptr: Vec<i64>,
    pub tgt_ids: Vec<i64>,
    pub tgt_counts: Vec<i64>,
    /// Flat index into the padded arrays of every packed token.
    pub source: Vec<usize>,
}

impl Packed {
    /// `counts` [B, L, V] may be empty; without `positions` they count the real tokens.
    pub fn from_padded(
        width: usize,
        ids: &[i64],
        mask: &[i64],
        positions: Option<&[i64]>,
        cls: &[i64],
        counts: &[i64],
    ) -> Self {
        let mut packed = Self { row_ptr: vec![0], tgt_ptr: vec![0], ..Self::default() };
        let vocabulary = counts.len() / ids.len();
        for (row, &cls) in cls.iter().enumerate() {
            for at in row * width..(row + 1) * width {
                if mask[at] == 0 {
                    continue;
                }
                let place = packed.tokens.len() as i64 - packed.row_ptr[row];
                if at == row * width + cls as usize {
                    packed.cls.push(place);
                }
                packed.source.push(at);
                packed.tokens.push(ids[at]);
                packed.positions.push(positions.map_or(place, |positions| positions[at]));
                for (id, &count) in counts[at * vocabulary..(at + 1) * vocabulary].iter().enumerate() {
                    if count > 0 {
                        packed.tgt_ids.push(id as i64);
                        packed.tgt_counts.push(count);
                    }
                }
                packed.tgt_ptr.push(packed.tgt_ids.len() as i64);
            }
            packed.row_ptr.push(packed.tokens.len() as i64);
        }
        packed
    }

    /// The rows with these indices, in this order.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let mut packed = Self { row_ptr: vec![0], tgt_ptr: vec![0], ..Self::default() };
        for &row in rows {
            for token in self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize {
                packed.tokens.push(self.tokens[token]);
                packed.positions.push(self.positions[token]);
                let gap = self.tgt_ptr[token] as usize..self.tgt_ptr[token + 1] as usize;
                packed.tgt_ids.extend(&self.tgt_ids[gap.clone()]);
                packed.tgt_counts.extend(&self.tgt_counts[gap]);
                packed.tgt_ptr.push(packed.tgt_ids.len() as i64);
            }
            packed.cls.push(self.cls[row]);
            packed.row_ptr.push(packed.tokens.len() as i64);
        }
        packed
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            row_ptr: &self.row_ptr,
            tokens: &self.tokens,
            positions: &self.positions,
            cls: &self.cls,
            tgt_ptr: &self.tgt_ptr,
            tgt_ids: &self.tgt_ids,
            tgt_counts: &self.tgt_counts,
        }
    }

    /// Rows of the given lengths filled by a counter; every third gap behind CLS lost one or two tokens, every fourth row none.
    pub fn synthetic(lengths: &[i64], vocabulary: i64) -> Self {
        let mut packed = Self { row_ptr: vec![0], tgt_ptr: vec![0], ..Self::default() };
        for (row, &length) in lengths.iter().enumerate() {
            for place in 0..length {
                let mix = (row as i64 * 131 + place * 37 + length * 11) % (vocabulary - 3);
                packed.tokens.push(if place == 0 { 1 } else { 3 + mix });
                packed.positions.push(place);
                if place > 0 && place % 3 == 1 && row % 4 != 3 {
                    let second = (mix + 5) % (vocabulary - 3);
                    let (low, high) = (mix.min(second), mix.max(second));
                    packed.tgt_ids.push(3 + low);
                    packed.tgt_counts.push(1 + row as i64 % 2);
                    if low != high && place % 2 == 0 {
                        packed.tgt_ids.push(3 + high);
                        packed.tgt_counts.push(1);
                    }
                }
                packed.tgt_ptr.push(packed.tgt_ids.len() as i64);
            }
            packed.cls.push(0);
            packed.row_ptr.push(packed.tokens.len() as i64);
        }
        packed
    }
}

/// A small rotary stopping model with a final norm and every kind of parameter.
pub fn small_shape(dropout: f64) -> ModelShape {
    small_shape_of(ModelClass::RotaryStopping, dropout)
}

/// The same of any class; 30 classes where the class leaves the number open.
pub fn small_shape_of(class: ModelClass, dropout: f64) -> ModelShape {
    let config = ModelConfig {
        class,
        num_classes: matches!(class.head(), HeadKind::Classification | HeadKind::Length).then_some(30),
        d_model: 24,
        num_layers: 2,
        nhead: 3,
        dim_feedforward: Some(40),
        dropout,
        rotary_emb_dim: (class.family() == Family::Rotary).then_some(6),
        activation: Activation::Gelu,
        final_layer_without_normalization: Some(false),
        ..ModelConfig::default()
    };
    ModelShape {
        config,
        num_embeddings: 19,
        padding_idx: 0,
        max_length: 64,
        precision: Precision::Fp32,
        recompute: Recompute::None,
    }
}

pub fn assert_close(what: &str, found: &[f32], expected: &[f32], absolute: f32, relative: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= absolute + relative * b.abs(), "{what}[{i}]: {a} instead of {b}");
    }
}

/// Largest difference relative to the largest expected value.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let top = expected.iter().fold(1e-12f32, |top, value| top.max(value.abs()));
    found.iter().zip(expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / top
}

pub fn floats(tensor: &tch::Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.contiguous().copy_data(&mut values, tensor.numel());
    values
}
