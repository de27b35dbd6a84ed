//! Losses and gradients against a plain dense implementation: padded rows, masks, libtorch's autograd, no sparsity.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::ops::Range;

use std::collections::BTreeMap;

use common::{Packed, floats, relative_error, small_shape};
use ilm_model::{Activation, LossConfig, Model, ModelShape};
use tch::{Device, Kind, Tensor};

struct Dense<'a> {
    shape: &'a ModelShape,
    params: BTreeMap<String, Tensor>,
}

impl Dense<'_> {
    fn p(&self, name: &str) -> &Tensor {
        &self.params[name]
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let (weight, bias) = (self.p(&format!("{name}.weight")), self.p(&format!("{name}.bias")));
        let mean = x.mean_dim(-1, true, Kind::Float);
        let centred = x - mean;
        let variance = (&centred * &centred).mean_dim(-1, true, Kind::Float);
        centred / (variance + self.shape.config.layer_norm_eps).sqrt() * weight + bias
    }

    fn linear(&self, x: &Tensor, name: &str) -> Tensor {
        let out = x.matmul(&self.p(&format!("{name}.weight")).tr());
        match self.params.get(&format!("{name}.bias")) {
            Some(bias) => out + bias,
            None => out,
        }
    }

    fn rotate(&self, x: &Tensor, positions: &Tensor) -> Tensor {
        let dim = self.shape.config.rotated();
        let half = dim / 2;
        let exponent = Tensor::arange(half, (Kind::Float, Device::Cpu)) * (-2.0 / dim as f64);
        let frequency = (exponent * 10_000f64.ln()).exp();
        let angle = positions.to_kind(Kind::Float).unsqueeze(-1) * frequency;
        let (cos, sin) = (angle.cos().unsqueeze(1), angle.sin().unsqueeze(1));
        let (a, b) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
        let rest = x.narrow(-1, dim, x.size()[3] - dim);
        Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin, rest], -1)
    }

    fn block(&self, x: &Tensor, i: i64, mask: &Tensor, positions: &Tensor) -> Tensor {
        let name = |part: &str| format!("encoder.{i}.{part}");
        let (b, l, d) = x.size3().unwrap();
        let heads = self.shape.config.nhead;
        let qkv = self.linear(&self.norm(x, &name("norm1")), &name("attn_qkv"));
        let part =
            |which: i64| qkv.narrow(-1, which * d, d).reshape([b, l, heads, d / heads]).transpose(1, 2);
        let (q, k, v) = (self.rotate(&part(0), positions), self.rotate(&part(1), positions), part(2));
        let scores = q.matmul(&k.transpose(2, 3)) / ((d / heads) as f64).sqrt();
        let hidden = mask.logical_not().view([b, 1, 1, l]);
        let context = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float).matmul(&v);
        let x = x + self.linear(&context.transpose(1, 2).reshape([b, l, d]), &name("o_proj"));
        let wide = self.linear(&self.norm(&x, &name("norm2")), &name("mlp.0"));
        let wide = match self.shape.config.activation {
            Activation::Relu => wide.relu(),
            Activation::Gelu => wide.gelu("tanh"),
        };
        &x + self.linear(&wide, &name("mlp.2"))
    }

    /// Mean over the rows of token and stopping loss.
    fn loss(&self, packed: &Packed, config: &LossConfig) -> Tensor {
        let rows = packed.cls.len();
        let width = packed.row_ptr.windows(2).map(|row| row[1] - row[0]).max().unwrap();
        let v = self.shape.num_embeddings;
        let options = (Kind::Int64, Device::Cpu);
        let (ids, positions) =
            (Tensor::zeros([rows as i64, width], options), Tensor::zeros([rows as i64, width], options));
        let (mask, counts) =
            (Tensor::zeros([rows as i64, width], options), Tensor::zeros([rows as i64, width, v], options));
        for row in 0..rows {
            for (place, token) in (packed.row_ptr[row]..packed.row_ptr[row + 1]).enumerate() {
                let (token, at) = (token as usize, [row as i64, place as i64]);
                let set = |tensor: &Tensor, value: i64| {
                    let _ = tensor.get(at[0]).get(at[1]).fill_(value);
                };
                set(&ids, packed.tokens[token]);
                set(&positions, packed.positions[token]);
                set(&mask, 1);
                for entry in packed.tgt_ptr[token] as usize..packed.tgt_ptr[token + 1] as usize {
                    let _ = counts
                        .get(at[0])
                        .get(at[1])
                        .get(packed.tgt_ids[entry])
                        .fill_(packed.tgt_counts[entry]);
                }
            }
        }
        let mask = mask.to_kind(Kind::Bool);
        let mut x =
            self.p("embed_tokens.weight").index_select(0, &ids.view([-1])).view([rows as i64, width, -1]);
        for i in 0..self.shape.config.num_layers {
            x = self.block(&x, i, &mask, &positions);
        }
        let states = if self.params.contains_key("output_layer.norm_final.weight") {
            self.norm(&x, "output_layer.norm_final")
        } else {
            x.shallow_clone()
        };
        let logits = self.linear(&states, "output_layer.linear");
        let mut total = Tensor::zeros([], (Kind::Float, Device::Cpu));
        for row in 0..rows {
            let (z, count) = (logits.get(row as i64), counts.get(row as i64));
            let drops = count.sum(Kind::Int64).int64_value(&[]);
            let allowed: Vec<i64> = (0..packed.row_ptr[row + 1] - packed.row_ptr[row])
                .filter(|&place| place != packed.cls[row])
                .collect();
            let allowed = Tensor::from_slice(&allowed);
            if drops > 0 {
                let z = z.index_select(0, &allowed).view([-1]);
                let p = count.index_select(0, &allowed).view([-1]).to_kind(Kind::Float) / drops as f64;
                total -= (z.log_softmax(-1, Kind::Float) * p).sum(Kind::Float);
            }
            let cls = x.get(row as i64).get(packed.cls[row]).unsqueeze(0);
            let wide =
                self.linear(&self.norm(&cls, "length_output_layer.norm_final"), "length_output_layer.mlp.0");
            let features = &cls + self.linear(&wide.tanh(), "length_output_layer.mlp.2");
            let class = self.linear(&features, "length_output_layer.linear").log_softmax(-1, Kind::Float);
            let missing = i64::from(drops > 0);
            let weight = match config.stopping_class_weight {
                Some(weight) if missing == 0 => weight,
                Some(weight) => 1.0 - weight,
                None => 1.0,
            };
            total -= class.get(0).get(missing) * (weight * config.length_loss_weight);
        }
        total / rows as f64
    }
}

fn check(shape: ModelShape, packed: &Packed, config: &LossConfig) {
    let mut model = Model::new(shape.clone(), 11).unwrap();
    // layer norms away from their starting point, so that their gradients are exercised
    for (index, value) in model.arena_mut().params_mut().iter_mut().enumerate() {
        *value += 0.05 * ((index % 17) as f32 - 8.0) / 8.0;
    }
    let entries = model.arena().layout().entries().to_vec();
    let params = entries.iter().map(|entry| {
        let values = &model.arena().params()[entry.range()];
        let tensor = Tensor::from_slice(values).view(entry.shape.as_slice()).set_requires_grad(true);
        (entry.name.clone(), tensor)
    });
    let dense = Dense { shape: &shape, params: params.collect() };
    let expected = dense.loss(packed, config);
    expected.backward();

    let scale = 1.0 / packed.cls.len() as f64;
    let parts =
        model.forward_backward(&packed.batch(), config, scale, None, &mut |_: Range<usize>| {}).unwrap();
    let found = parts.loss_sum() * scale;
    assert!((found - expected.double_value(&[])).abs() < 1e-5, "{found} instead of {expected:?}");
    for entry in &entries {
        let grad = floats(&dense.params[&entry.name].grad());
        let error = relative_error(&model.arena().grads()[entry.range()], &grad);
        assert!(error < 2e-5, "{}: relative error {error}", entry.name);
    }
}

#[test]
fn small_model_with_every_kind_of_parameter() {
    let packed = Packed::synthetic(&[9, 2, 5, 14, 5, 1, 9, 23], 19);
    let config =
        LossConfig { length_loss_weight: 0.6, stopping_class_weight: Some(0.3), ..LossConfig::default() };
    check(small_shape(0.1), &packed, &config);
}

#[test]
fn products_large_enough_for_onednn_and_a_head_in_several_groups() {
    let mut shape = small_shape(0.0);
    shape.config.activation = Activation::Relu;
    shape.config.d_model = 64;
    shape.config.nhead = 2;
    shape.config.dim_feedforward = Some(256);
    shape.num_embeddings = 3000;
    let lengths: Vec<i64> = (0..24).map(|row| 20 + row % 5).collect();
    let packed = Packed::synthetic(&lengths, 3000);
    check(shape, &packed, &LossConfig { head_budget_mib: Some(1), ..LossConfig::default() });
}
