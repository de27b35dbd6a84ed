//! The fused update against the formula, against tensor operations, and cut into parts.

use half::bf16;

use super::*;

/// All buffers of an update, with values that differ everywhere.
struct Buffers {
    params: Flat<f32>,
    grads: Flat<f32>,
    rounded: Flat<bf16>,
    average: Flat<f32>,
}

impl Buffers {
    fn new(len: usize, packed: usize) -> Self {
        let zeros = |len| Flat::zeros(len, Device::Cpu).unwrap();
        let rounded = Flat::zeros(len, Device::Cpu).unwrap();
        let mut buffers = Self { params: zeros(len), grads: zeros(len), rounded, average: zeros(packed) };
        let wave = |flat: &mut Flat<f32>, speed: f32| {
            let values = flat.host_mut().unwrap().iter_mut().enumerate();
            values.for_each(|(i, value)| *value = (i as f32 * speed).sin());
        };
        wave(&mut buffers.params, 0.7);
        wave(&mut buffers.grads, 1.3);
        buffers
    }

    fn parts(&mut self) -> UpdateParts<'_> {
        UpdateParts { params: &mut self.params, grads: &mut self.grads, rounded: Some(&mut self.rounded) }
    }
}

const UPDATE: Update = Update { lr: 0.1, step: 1, grad_scale: 0.5, average_weight: 0.25 };

fn config() -> OptimizerConfig {
    OptimizerConfig { lr: 0.1, weight_decay: 0.5, ..OptimizerConfig::default() }
}

fn close(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6)
}

#[test]
fn first_step_moves_by_the_learning_rate_and_decays_only_where_told() {
    let mut buffers = Buffers::new(4, 4);
    buffers.params.write(0..4, &[1.0; 4]).unwrap();
    buffers.grads.write(0..4, &[2.0, -2.0, 2.0, -2.0]).unwrap();
    let mut adamw = AdamW::new(Parts::whole(4), Some(0..2), Device::Cpu).unwrap();
    let Buffers { params, grads, rounded, average } = &mut buffers;
    let flat = UpdateParts { params, grads, rounded: Some(rounded) };
    adamw.step(&config(), UPDATE, 0..4, flat, Some(average)).unwrap();
    // After one step m/(1-b1) = g and v/(1-b2) = g^2, so every element moves by lr against the sign of g.
    let expected = [0.95 - 0.1, 0.95 + 0.1, 0.9, 1.1];
    for (i, expected) in expected.into_iter().enumerate() {
        let found = buffers.params.host().unwrap()[i];
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        assert_eq!(buffers.rounded.host().unwrap()[i], bf16::from_f32(found));
        assert!((buffers.average.host().unwrap()[i] - 0.25 * found).abs() < 1e-6);
    }
}

#[test]
fn tensor_operations_give_the_same() {
    const LEN: usize = 3000;
    let decaying = [100..1100, 2000..2500];
    let mut fused = Buffers::new(LEN, LEN);
    let mut tensors = Buffers::new(LEN, LEN);
    let mut adamw = AdamW::new(Parts::whole(LEN), decaying.clone(), Device::Cpu).unwrap();
    let mut other = AdamW::new(Parts::whole(LEN), decaying.clone(), Device::Cpu).unwrap();
    for step in 1..4 {
        let update = Update { step, ..UPDATE };
        let grads = fused.grads.host().unwrap().to_vec();
        let Buffers { params, grads: g, rounded, average } = &mut fused;
        let flat = UpdateParts { params, grads: g, rounded: Some(rounded) };
        adamw.step(&config(), update, 0..LEN, flat, Some(average)).unwrap();

        tensors.grads.write(0..LEN, &grads).unwrap();
        let Buffers { params, grads, rounded, average } = &mut tensors;
        let mut flat = UpdateParts { params, grads, rounded: Some(rounded) };
        let (exp_avg, exp_avg_sq) = (&mut other.exp_avg, &mut other.exp_avg_sq);
        let mut packed = Packed { exp_avg, exp_avg_sq, average: Some(average) };
        let c = Coefficients::new(&config(), update, 0.5);
        for part in other.parts.iter() {
            device::update(&c, &part, within(&decaying, part.arena.clone()), &mut flat, &mut packed).unwrap();
        }
    }
    assert!(close(fused.params.host().unwrap(), tensors.params.host().unwrap()));
    assert!(close(fused.average.host().unwrap(), tensors.average.host().unwrap()));
    assert!(close(adamw.exp_avg.host().unwrap(), other.exp_avg.host().unwrap()));
    assert!(close(adamw.exp_avg_sq.host().unwrap(), other.exp_avg_sq.host().unwrap()));
    let rounded = |buffers: &Buffers| -> Vec<f32> {
        buffers.rounded.host().unwrap().iter().map(|value| value.to_f32()).collect()
    };
    let off = rounded(&fused).iter().zip(rounded(&tensors)).filter(|(a, b)| (*a - b).abs() > 0.01).count();
    assert_eq!(off, 0);
}

#[test]
fn parts_and_windows_give_the_bits_of_the_whole() {
    const LEN: usize = 3 * CHUNK + 77;
    let decaying = [10..CHUNK + 5, 2 * CHUNK..2 * CHUNK + 9];
    let mut whole = Buffers::new(LEN, LEN);
    let mut reference = AdamW::new(Parts::whole(LEN), decaying.clone(), Device::Cpu).unwrap();
    let Buffers { params, grads, rounded, average } = &mut whole;
    let flat = UpdateParts { params, grads, rounded: Some(rounded) };
    reference.step(&config(), UPDATE, 0..LEN, flat, Some(average)).unwrap();

    let mut cut = Buffers::new(LEN, 0);
    for ranges in [vec![0..1000, CHUNK..2 * CHUNK + 16], vec![1000..CHUNK, 2 * CHUNK + 16..LEN]] {
        let parts = Parts::new(LEN, ranges);
        let mut average = Flat::zeros(parts.len(), Device::Cpu).unwrap();
        let mut adamw = AdamW::new(parts.clone(), decaying.clone(), Device::Cpu).unwrap();
        for window in [2 * CHUNK..LEN, 500..2 * CHUNK, 0..500] {
            adamw.step(&config(), UPDATE, window, cut.parts(), Some(&mut average)).unwrap();
        }
        for part in parts.iter() {
            let same = |found: &Flat<f32>, expected: &Flat<f32>| {
                found.host().unwrap()[part.packed.clone()] == expected.host().unwrap()[part.arena.clone()]
            };
            assert!(same(&average, &whole.average) && same(&adamw.exp_avg_sq, &reference.exp_avg_sq));
        }
    }
    assert!(cut.params.host() == whole.params.host() && cut.rounded.host() == whole.rounded.host());
}
