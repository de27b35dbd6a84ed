//! Exponential moving average of the parameters, used for evaluation.

use ilm_model::{Error, Flat};

use super::parts::Parts;

/// The average and how often it was updated.
#[derive(Debug)]
pub struct Ema {
    /// The averaged parameters of the parts that a rank updates, packed as they are.
    pub shadow: Flat<f32>,
    /// Updates so far.
    pub num_updates: u64,
    decay: f64,
}

impl Ema {
    /// Starts at the parameters themselves. `decay` is the largest weight of the past.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(params: &Flat<f32>, parts: &Parts, decay: f64) -> Result<Self, Error> {
        let mut ema = Self { shadow: Flat::zeros(parts.len(), params.device())?, num_updates: 0, decay };
        ema.restart(params, parts)?;
        Ok(ema)
    }

    /// Sets the average to the parameters.
    ///
    /// # Errors
    /// A device fails.
    pub fn restart(&mut self, params: &Flat<f32>, parts: &Parts) -> Result<(), Error> {
        parts.iter().try_for_each(|part| {
            self.shadow.view(part.packed)?.f_copy_(&params.view(part.arena)?)?;
            Ok(())
        })
    }

    /// Counts an update: `n += 1`; the weight of the new parameters is `1 - min(decay, (1+n)/(10+n))`.
    pub fn next_weight(&mut self) -> f64 {
        self.num_updates += 1;
        let n = self.num_updates as f64;
        1.0 - self.decay.min((1.0 + n) / (10.0 + n))
    }

    /// Exchanges the average and the parameters.
    ///
    /// # Errors
    /// A device fails.
    pub fn swap(&mut self, params: &mut Flat<f32>, parts: &Parts) -> Result<(), Error> {
        if let (Some(shadow), Some(params)) = (self.shadow.host_mut(), params.host_mut()) {
            parts.iter().for_each(|part| shadow[part.packed].swap_with_slice(&mut params[part.arena]));
            return Ok(());
        }
        parts.iter().try_for_each(|part| {
            let (mut shadow, mut params) = (self.shadow.view(part.packed)?, params.view(part.arena)?);
            let held = shadow.f_detach_copy()?;
            shadow.f_copy_(&params)?;
            params.f_copy_(&held)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OptimizerConfig;
    use crate::optim::{AdamW, Update};
    use ilm_model::UpdateParts;
    use tch::Device;

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
        let zeros = || Flat::<f32>::zeros(1, Device::Cpu).unwrap();
        let (mut params, mut grads) = (zeros(), zeros());
        let mut ema = Ema::new(&params, &Parts::whole(1), 0.9999).unwrap();
        let mut adamw = AdamW::new(Parts::whole(1), [], Device::Cpu).unwrap();
        for entry in entries {
            params.write(0..1, &[entry.value]).unwrap();
            // A step without a learning rate moves the average only.
            let average_weight = ema.next_weight();
            let update = Update { lr: 0.0, step: entry.update, grad_scale: 1.0, average_weight };
            let flat = UpdateParts { params: &mut params, grads: &mut grads, rounded: None };
            adamw.step(&OptimizerConfig::default(), update, 0..1, flat, Some(&mut ema.shadow)).unwrap();
            assert_eq!(ema.num_updates, entry.update);
            let shadow = ema.shadow.host().unwrap()[0];
            assert!((shadow - entry.shadow).abs() < 1e-5, "update {}", entry.update);
        }
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let mut params = Flat::<f32>::zeros(6, Device::Cpu).unwrap();
        params.write(0..6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let parts = Parts::new(6, [1..2, 4..6]);
        let mut ema = Ema::new(&params, &parts, 0.5).unwrap();
        ema.shadow.write(0..3, &[-1.0, -2.0, -3.0]).unwrap();
        ema.swap(&mut params, &parts).unwrap();
        assert_eq!(params.host().unwrap(), [1.0, -1.0, 3.0, 4.0, -2.0, -3.0]);
        ema.swap(&mut params, &parts).unwrap();
        assert_eq!(params.host().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(ema.shadow.host().unwrap(), [-1.0, -2.0, -3.0]);
    }
}
