//! Exponential moving average of the parameters, used for evaluation.

use rayon::prelude::*;

use super::CHUNK;

/// The average and how often it was updated.
#[derive(Debug, Clone)]
pub struct Ema {
    /// The averaged parameters.
    pub shadow: Vec<f32>,
    /// Updates so far.
    pub num_updates: u64,
    decay: f64,
}

impl Ema {
    /// Starts at the parameters themselves. `decay` is the largest weight of the past.
    pub fn new(params: &[f32], decay: f64) -> Self {
        Self { shadow: params.to_vec(), num_updates: 0, decay }
    }

    /// After an optimizer step: `n += 1`, `d = min(decay, (1+n)/(10+n))`, `shadow -= (1-d) (shadow - p)`.
    pub fn update(&mut self, params: &[f32]) {
        self.num_updates += 1;
        let n = self.num_updates as f64;
        let weight = (1.0 - self.decay.min((1.0 + n) / (10.0 + n))) as f32;
        self.shadow.par_chunks_mut(CHUNK).zip(params.par_chunks(CHUNK)).for_each(|(shadow, params)| {
            for (s, p) in shadow.iter_mut().zip(params) {
                *s -= weight * (*s - p);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Entry {
        update: u64,
        value: f32,
        shadow: f32,
    }

    #[test]
    fn golden_ema_ramp() {
        let file = std::fs::read_to_string(test_support::golden_dir().join("ema_ramp.json")).unwrap();
        let entries: Vec<Entry> = serde_json::from_str(&file).unwrap();
        assert!(!entries.is_empty());
        let mut ema = Ema::new(&[0.0], 0.9999);
        for entry in entries {
            ema.update(&[entry.value]);
            assert_eq!(ema.num_updates, entry.update);
            assert!((ema.shadow[0] - entry.shadow).abs() < 1e-5, "update {}", entry.update);
        }
    }
}
