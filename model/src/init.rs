//! Initial values, drawn per parameter name so that neither rank nor thread nor order changes them.

use rand_chacha::ChaCha8Rng;

use crate::arena::Arena;
use crate::config::ModelShape;
use crate::error::Result;
use crate::random::{Purpose, keyed_rng, name_key, uniform};

/// Fills the arena: embedding N(0, 1) with a zero padding row, layer norms 1 and 0, everything else
/// U(-1/sqrt(fan in), 1/sqrt(fan in)), fan in being the input width of the linear map the value belongs to.
pub(crate) fn initialise(arena: &mut Arena, shape: &ModelShape, seed: u64) -> Result<()> {
    let layout = arena.layout().clone();
    let params = arena.params_mut();
    for entry in layout.entries() {
        let values = &mut params[entry.range()];
        let key = if shape.config.identical_layers { first_layer(&entry.name) } else { entry.name.clone() };
        let mut rng = keyed_rng(seed, Purpose::Init, name_key(&key), 0);
        if entry.name == "embed_tokens.weight" {
            fill_normal(values, &mut rng);
            let width = shape.config.d_model as usize;
            let padding = shape.padding_idx as usize * width;
            values[padding..padding + width].fill(0.0);
        } else if entry.name.contains("norm") {
            values.fill(if entry.name.ends_with("weight") { 1.0 } else { 0.0 });
        } else {
            // a bias belongs to the weight of the same linear map, which lies right before it
            let weight = entry.name.replace(".bias", ".weight");
            let fan_in = layout.entry(&weight)?.shape[1] as f64;
            fill_uniform(values, fan_in.sqrt().recip(), &mut rng);
        }
    }
    Ok(())
}

/// `encoder.7.x` becomes `encoder.0.x`; other names stay.
fn first_layer(name: &str) -> String {
    match name.strip_prefix("encoder.").and_then(|rest| rest.split_once('.')) {
        Some((_, part)) => format!("encoder.0.{part}"),
        None => name.to_owned(),
    }
}

fn fill_uniform(values: &mut [f32], bound: f64, rng: &mut ChaCha8Rng) {
    for value in values {
        *value = (bound * (2.0 * uniform(rng) - 1.0)) as f32;
    }
}

/// Box-Muller, two values from two uniforms.
fn fill_normal(values: &mut [f32], rng: &mut ChaCha8Rng) {
    for pair in values.chunks_mut(2) {
        let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(rng)).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}
