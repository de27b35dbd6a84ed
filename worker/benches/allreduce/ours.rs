//! How fast ranks sum their gradients; `run.sh` beside this file builds and starts it.
//!
//! Alternates, in one process, between MPI's blocking all-reduce in pieces (the best that plain MPI calls reach, see
//! `raw.c`) and the exchange of the training step. Prints the best time of each in milliseconds.

use std::time::{Duration, Instant};

use ilm_model::Flat;
use worker::comm::{BucketPlan, Collectives, Exchange, ExchangeOp, FlatMemory, LaunchEnv, ReduceOp, connect};

const ELEMENTS: usize = 340 << 18;
const BUCKET: usize = 25 << 18;
const ROUNDS: usize = 9;

fn main() -> anyhow::Result<()> {
    let env = LaunchEnv::detect();
    let mut comm = connect(env.as_ref(), Duration::from_secs(60))?;
    let mut grads = Flat::<f32>::zeros(ELEMENTS, tch::Device::Cpu)?;
    let params = Flat::<f32>::zeros(ELEMENTS, tch::Device::Cpu)?;
    let plan = BucketPlan::new(grads.capacity(), &[], BUCKET, comm.world_size());
    // SAFETY: the buffers are dropped after the exchange, and nobody touches them between `begin` and `finish`.
    let mut exchange = unsafe { comm.exchange(FlatMemory::of(&params, &grads, None))? };

    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        let blocking = |comm: &mut dyn Collectives| -> anyhow::Result<()> {
            let values = grads.host_mut().expect("a buffer in host memory");
            Ok(comm.all_reduce("blocking", ReduceOp::Sum, values.into())?)
        };
        best[0] = best[0].min(timed(&mut *comm, blocking)?);
        for (index, ops) in [(1, &ALL_REDUCE[..]), (2, &SHARDED)] {
            best[index] = best[index].min(timed(&mut *comm, |_| run(&mut *exchange, &plan, ops))?);
        }
    }
    if comm.rank() == 0 {
        for (name, seconds) in
            ["blocking pieces", "all-reduce", "reduce-scatter and all-gather"].iter().zip(best)
        {
            println!("{name:32} {:8.1} ms", 1e3 * seconds);
        }
    }
    Ok(())
}

const ALL_REDUCE: [ExchangeOp; 1] = [ExchangeOp::AllReduce];
const SHARDED: [ExchangeOp; 2] = [ExchangeOp::ReduceScatter, ExchangeOp::AllGather];

/// Every bucket by each operation.
fn run(exchange: &mut dyn Exchange, plan: &BucketPlan, ops: &[ExchangeOp]) -> anyhow::Result<()> {
    for &op in ops {
        for bucket in plan.buckets() {
            exchange.begin("bucket", op, bucket.clone())?;
        }
        exchange.finish()?;
    }
    Ok(())
}

/// Seconds that the slowest rank takes.
fn timed(
    comm: &mut dyn Collectives,
    work: impl FnOnce(&mut dyn Collectives) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    comm.barrier("start")?;
    let started = Instant::now();
    work(comm)?;
    let mut seconds = [started.elapsed().as_secs_f64()];
    comm.all_reduce("time", ReduceOp::Max, seconds[..].as_mut().into())?;
    Ok(seconds[0])
}
