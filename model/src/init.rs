//! Initial values, drawn per parameter name so that neither rank nor thread nor order changes them.

use rand_chacha::ChaCha8Rng;

use crate::arena::Arena;
use crate::config::ModelShape;
use crate::error::Result;
use crate::layout::Init;
use crate::random::{Purpose, keyed_rng, name_key, uniform};

/// Fills the arena as its layout says.
pub(crate) fn initialise(arena: &mut Arena, shape: &ModelShape, seed: u64) -> Result<()> {
    let layout = arena.layout().clone();
    for entry in layout.entries() {
        let mut values = vec![0.0; entry.len];
        let key = if shape.config.identical_layers { first_layer(&entry.name) } else { entry.name.clone() };
        let mut rng = keyed_rng(seed, Purpose::Init, name_key(&key), 0);
        match entry.init {
            Init::Constant(value) => values.fill(value),
            Init::Uniform { bound } => fill_uniform(&mut values, bound, &mut rng),
            Init::Normal { std, zero_row } => {
                fill_normal(&mut values, std, &mut rng);
                let width = values.len() / entry.shape[0] as usize;
                if let Some(row) = zero_row {
                    values[row as usize * width..][..width].fill(0.0);
                }
            }
        }
        arena.flat_params_mut().write(entry.range(), &values)?;
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
fn fill_normal(values: &mut [f32], std: f64, rng: &mut ChaCha8Rng) {
    for pair in values.chunks_mut(2) {
        let radius = std * (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(rng)).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}
