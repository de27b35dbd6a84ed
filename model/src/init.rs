//! Initial values, drawn per parameter name so that neither rank nor thread nor order changes them.

use std::cmp::Reverse;

use rand_chacha::ChaCha8Rng;

use crate::arena::Arena;
use crate::config::ModelShape;
use crate::error::Result;
use crate::layout::{Init, ParamEntry};
use crate::parallel;
use crate::random::{Purpose, keyed_rng, name_key, uniform};

/// Fills the arena as its layout says.
pub(crate) fn initialise(arena: &mut Arena, shape: &ModelShape, seed: u64) -> Result<()> {
    let layout = arena.layout().clone();
    if let Some(mut rest) = arena.flat_params_mut().host_mut() {
        let mut end = 0;
        let mut parts = Vec::with_capacity(layout.entries().len());
        for entry in layout.entries() {
            let (part, after) = rest.split_at_mut(entry.range().end - end);
            parts.push((entry, &mut part[entry.range().start - end..]));
            (rest, end) = (after, entry.range().end);
        }
        parts.sort_by_key(|(entry, _)| Reverse(entry.len));
        parallel::for_each_item(parts, |(entry, values): (&ParamEntry, &mut [f32])| {
            draw(entry, shape, seed, values);
        });
        return Ok(());
    }
    for entry in layout.entries() {
        let mut values = vec![0.0; entry.len];
        draw(entry, shape, seed, &mut values);
        arena.flat_params_mut().write(entry.range(), &values)?;
    }
    Ok(())
}

/// The values of one parameter.
fn draw(entry: &ParamEntry, shape: &ModelShape, seed: u64, values: &mut [f32]) {
    let key = if shape.config.identical_layers { first_layer(&entry.name) } else { entry.name.clone() };
    let mut rng = keyed_rng(seed, Purpose::Init, name_key(&key), 0);
    match entry.init {
        Init::Constant(value) => values.fill(value),
        Init::Uniform { bound } => fill_uniform(values, bound, &mut rng),
        Init::Normal { std, zero_row } => {
            fill_normal(values, std, &mut rng);
            let width = values.len() / entry.shape[0] as usize;
            if let Some(row) = zero_row {
                values[row as usize * width..][..width].fill(0.0);
            }
        }
    }
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
