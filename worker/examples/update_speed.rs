//! How fast a step's update is beside the memory: `cargo run --release -p worker --example update_speed`.
//!
//! Alternates between a copy on all threads, which shows what the memory gives, the norm of the gradient, and the fused update
//! with average and rounding. Prints the best time of each and the bytes it reads and writes per second.

use std::time::Instant;

use half::bf16;
use ilm_model::{Flat, UpdateParts, parallel};
use tch::Device;
use worker::config::OptimizerConfig;
use worker::optim::{AdamW, Parts, Update, squared_norm};
use worker::threads::{processors, set_threads};

const ELEMENTS: usize = 85_000_000;
const ROUNDS: u64 = 15;

fn main() -> anyhow::Result<()> {
    set_threads(processors());
    let zeros = || Flat::<f32>::zeros(ELEMENTS, Device::Cpu);
    let (mut params, mut grads, mut average) = (zeros()?, zeros()?, zeros()?);
    let mut rounded = Flat::<bf16>::zeros(ELEMENTS, Device::Cpu)?;
    let mut adamw = AdamW::new(Parts::whole(ELEMENTS), Some(0..ELEMENTS / 2), Device::Cpu)?;
    let whole = Parts::whole(ELEMENTS);
    grads.host_mut().expect("host memory").fill(1e-3);

    let mut best = [f64::INFINITY; 3];
    for step in 1..=ROUNDS {
        best[0] = best[0].min(seconds(|| copy(&grads, &mut average))?);
        let mut norm = 0.0;
        best[1] = best[1].min(seconds(|| {
            norm = squared_norm(&grads, &whole)?;
            Ok(())
        })?);
        anyhow::ensure!(norm > 0.0, "the gradient is not 0");
        let update = Update { lr: 1e-3, step, grad_scale: 1.0, average_weight: 0.1 };
        best[2] = best[2].min(seconds(|| {
            let flat = UpdateParts { params: &mut params, grads: &mut grads, rounded: Some(&mut rounded) };
            Ok(adamw.step(&OptimizerConfig::default(), update, 0..ELEMENTS, flat, Some(&mut average))?)
        })?);
    }
    // Read and written per element: a copy 4 + 4; the update p, m, v, average 4 + 4 each, the gradient 4, the rounding 2.
    for ((name, bytes), seconds) in [("copy", 8), ("norm", 4), ("update", 38)].into_iter().zip(best) {
        let rate = (bytes * ELEMENTS) as f64 / seconds / 1e9;
        println!("{name:8} {:8.1} ms {rate:8.1} GB/s", 1e3 * seconds);
    }
    Ok(())
}

fn copy(from: &Flat<f32>, to: &mut Flat<f32>) -> anyhow::Result<()> {
    const CHUNK: usize = 1 << 16;
    let (from, to) = (from.host().expect("host memory"), to.host_mut().expect("host memory"));
    let chunks = from.chunks(CHUNK).zip(to.chunks_mut(CHUNK)).collect();
    parallel::for_each_item(chunks, |(from, to): (&[f32], &mut [f32])| to.copy_from_slice(from));
    Ok(())
}

fn seconds(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}
