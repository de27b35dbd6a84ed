//! The exchange of buckets between real ranks.

use std::fs;
use std::io::IoSliceMut;
use std::path::Path;
use std::time::{Duration, Instant};

use half::bf16;
use ilm_model::Flat;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tch::Device;
use worker::comm::{BucketPlan, Collectives, CommError, Exchange, ExchangeOp, FlatMemory, ReduceOp};

use crate::{on_ranks, on_ranks_in, on_ranks_with};

/// Parameters and gradients of one rank, and the exchange that is dropped before them.
struct Buffers {
    exchange: Box<dyn Exchange>,
    params: Flat<f32>,
    grads: Flat<f32>,
    rounded: Flat<bf16>,
}

impl Buffers {
    fn new(comm: &mut dyn Collectives, len: usize) -> Self {
        let flat = || Flat::<f32>::zeros(len, Device::Cpu).expect("memory");
        let (mut params, mut grads) = (flat(), flat());
        let rank = comm.rank();
        let fill = |flat: &mut Flat<f32>, seed: usize| {
            let values = flat.host_mut().expect("host memory").iter_mut().enumerate();
            values.for_each(|(i, value)| *value = Self::value(i, rank, seed));
        };
        fill(&mut params, 7);
        fill(&mut grads, 3);
        let rounded = Flat::zeros(len, Device::Cpu).expect("memory");
        let memory = FlatMemory::of(&params, &grads, Some(&rounded));
        // SAFETY: fields are dropped in their order, and these tests touch nothing between `begin` and `finish`.
        let exchange = unsafe { comm.exchange(memory) }.expect("an exchange");
        Self { exchange, params, grads, rounded }
    }

    /// Whole numbers, so that sums are exact in any order.
    fn value(i: usize, rank: usize, seed: usize) -> f32 {
        ((i * seed + 31 * rank) % 1000) as f32
    }

    fn run(&mut self, op: ExchangeOp, plan: &BucketPlan) {
        for bucket in plan.buckets() {
            self.exchange.begin("bucket", op, bucket.clone()).expect("a bucket that begins");
        }
        self.exchange.finish().expect("buckets that end");
    }
}

/// Does not divide by three ranks, and its pieces differ in length.
const LEN: usize = 41 << 14;

#[test]
fn buckets_are_summed_scattered_and_gathered_in_place() {
    on_ranks("exchange::buckets_are_summed_scattered_and_gathered_in_place", &[2, 3, 4], |comm| {
        let way = if reads_memory() {
            "memory of the rank before, which is on this host"
        } else {
            "messages of MPI"
        };
        check_operations(comm, way);
    });
}

/// Whether this system lets processes read each other's memory; some containers do not.
fn reads_memory() -> bool {
    let (there, mut here) = ([17u8], [0u8]);
    let remote = RemoteIoVec { base: there.as_ptr() as usize, len: 1 };
    process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut here)], &[remote]) == Ok(1)
}

#[test]
fn they_are_so_where_ranks_may_not_read_each_others_memory() {
    let test = "exchange::they_are_so_where_ranks_may_not_read_each_others_memory";
    on_ranks_with(&[("OMPI_MCA_btl_vader_single_copy_mechanism", "none")], test, &[2, 3], |comm| {
        check_operations(comm, "messages of MPI");
    });
}

fn check_operations(comm: &mut dyn Collectives, way: &str) {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let sum = |i: usize| (0..world_size).map(|rank| Buffers::value(i, rank, 3)).sum::<f32>();
    for bucket in [5000, 200_000, usize::MAX >> 8] {
        let plan = BucketPlan::new(LEN, &[], bucket, world_size);

        let mut all = Buffers::new(comm, LEN);
        assert_eq!(all.exchange.describe(), way);
        all.run(ExchangeOp::AllReduce, &plan);
        let rest = plan.shared()[0].clone();
        all.exchange.begin("rest", ExchangeOp::AllReduce, rest.clone()).expect("the rest begins");
        all.exchange.finish().expect("the rest ends");
        let found = all.grads.host().expect("host memory");
        assert!((0..LEN).all(|i| found[i] == sum(i)), "all-reduce of buckets of {bucket}");

        let mut parts = Buffers::new(comm, LEN);
        parts.run(ExchangeOp::ReduceScatter, &plan);
        let found = parts.grads.host().expect("host memory");
        assert!(plan.parts(rank).flatten().all(|i| found[i] == sum(i)), "reduce-scatter of {bucket}");

        parts.run(ExchangeOp::AllGather, &plan);
        let found = parts.params.host().expect("host memory");
        for owner in 0..world_size {
            let expected = |i| found[i] == Buffers::value(i, owner, 7);
            assert!(plan.parts(owner).flatten().all(expected), "all-gather of {bucket} from {owner}");
        }
        let untouched = |i| found[i] == Buffers::value(i, rank, 7);
        assert!(rest.clone().all(untouched), "what is in no bucket is nobody's business");

        let own = plan.parts(rank).flatten();
        let rounded = parts.rounded.host_mut().expect("host memory");
        own.for_each(|i| rounded[i] = bf16::from_f32(Buffers::value(i, rank, 5)));
        parts.run(ExchangeOp::AllGatherRounded, &plan);
        let rounded = parts.rounded.host().expect("host memory");
        for owner in 0..world_size {
            let expected = |i| rounded[i] == bf16::from_f32(Buffers::value(i, owner, 5));
            assert!(plan.parts(owner).flatten().all(expected), "gathering rounded {bucket} from {owner}");
        }
        assert!(rest.clone().all(|i| rounded[i] == bf16::ZERO));
    }
}

#[test]
fn gradients_of_few_rows_are_summed() {
    on_ranks("exchange::gradients_of_few_rows_are_summed", &[2, 3, 4], check_few_rows);
}

#[test]
fn gradients_of_few_rows_are_summed_by_messages() {
    let test = "exchange::gradients_of_few_rows_are_summed_by_messages";
    let messages = [("OMPI_MCA_btl_vader_single_copy_mechanism", "none")];
    on_ranks_with(&messages, test, &[2, 3, 4], check_few_rows);
}

/// Of every twenty rows each rank has one that is not zero, and all have one together: as in an embedding. Here and there many rows
/// have no zeros, so that messages of all sizes are under way.
fn check_few_rows(comm: &mut dyn Collectives) {
    const WIDTH: usize = 768;
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let value = |i: usize, rank: usize| match i / WIDTH % 20 {
        row if row == rank || row == 19 || i / 60_000 % 3 == 1 => Buffers::value(i, rank, 3),
        _ => 0.0,
    };
    let sum = |i: usize| (0..world_size).map(|rank| value(i, rank)).sum::<f32>();
    let plan = BucketPlan::new(LEN, &[], 200_000, world_size);
    for op in [ExchangeOp::ReduceScatter, ExchangeOp::AllReduce] {
        let mut buffers = Buffers::new(comm, LEN);
        let grads = buffers.grads.host_mut().expect("host memory");
        grads.iter_mut().enumerate().for_each(|(i, grad)| *grad = value(i, rank));
        buffers.run(op, &plan);
        let found = buffers.grads.host().expect("host memory");
        assert!(plan.parts(rank).flatten().all(|i| found[i] == sum(i)), "{op:?}");
    }
}

#[test]
fn a_gathered_range_is_waited_for_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let test = "exchange::a_gathered_range_is_waited_for_alone";
    let body = |comm: &mut dyn Collectives, folder: &Path| {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let half = LEN / 2 / 48 * 48;
        let mut buffers = Buffers::new(comm, LEN);
        let begin_others = |buffers: &mut Buffers| {
            for (op, range) in [(ExchangeOp::AllGather, half..2 * half), (ExchangeOp::ReduceScatter, 0..half)]
            {
                buffers.exchange.begin("another", op, range).expect("it begins");
            }
        };
        buffers.exchange.begin("first", ExchangeOp::AllGather, 0..half).expect("it begins");
        // Rank 0 begins them when the others have what they wait for: waiting for everything would be for ever.
        if rank > 0 {
            begin_others(&mut buffers);
        }
        buffers.exchange.wait_for(half - 10..half).expect("the first half arrives");
        let found = buffers.params.host().expect("host memory");
        let owner = |i: usize| i / (half / world_size);
        assert!((0..half).all(|i| found[i] == Buffers::value(i, owner(i), 7)), "the first half is here");
        let note = |rank: usize| folder.join(format!("{rank} of {world_size}"));
        if rank > 0 {
            fs::write(note(rank), "").expect("a writable folder");
        } else {
            let deadline = Instant::now() + Duration::from_secs(50);
            while !(1..world_size).all(|rank| note(rank).exists()) {
                assert!(Instant::now() < deadline, "the others wait for more than they asked for");
                std::thread::sleep(Duration::from_millis(5));
            }
            begin_others(&mut buffers);
        }
        buffers.exchange.finish().expect("the rest ends");
        buffers.exchange.wait_for(0..LEN).expect("nothing is under way");
    };
    on_ranks_in(folder.path(), test, &[2, 3], body, || ());
}

#[test]
fn collectives_go_on_beside_an_exchange() {
    on_ranks("exchange::collectives_go_on_beside_an_exchange", &[3], |comm| {
        let plan = BucketPlan::new(LEN, &[], 100_000, comm.world_size());
        let mut buffers = Buffers::new(comm, LEN);
        for round in 0..5 {
            for bucket in plan.buckets() {
                buffers
                    .exchange
                    .begin("bucket", ExchangeOp::ReduceScatter, bucket.clone())
                    .expect("it begins");
                let mut ones = [1.0, f64::from(round)];
                comm.all_reduce("beside", ReduceOp::Sum, ones[..].as_mut().into()).expect("a sum");
                assert_eq!(ones, [3.0, 3.0 * f64::from(round)]);
            }
            buffers.exchange.finish().expect("buckets that end");
        }
        buffers.exchange.finish().expect("nothing was begun");
    });
}

#[test]
fn a_rank_that_begins_another_bucket_is_noticed_by_all() {
    on_ranks("exchange::a_rank_that_begins_another_bucket_is_noticed_by_all", &[2, 3], |comm| {
        let last = comm.rank() + 1 == comm.world_size();
        let grain = 16 * comm.world_size();
        for (op, range) in [
            (ExchangeOp::AllReduce, 0..grain),
            (ExchangeOp::ReduceScatter, grain..3 * grain),
            (ExchangeOp::ReduceScatter, 0..2 * grain),
        ] {
            let mut buffers = Buffers::new(comm, LEN);
            buffers
                .exchange
                .begin("bucket", ExchangeOp::ReduceScatter, 4 * grain..6 * grain)
                .expect("it begins");
            buffers.exchange.finish().expect("all agree so far");
            let (op, range) = if last { (op, range) } else { (ExchangeOp::ReduceScatter, 0..grain) };
            buffers.exchange.begin("bucket", op, range).expect("it begins");
            let error = buffers.exchange.finish().expect_err("ranks that went different ways");
            assert!(matches!(error, CommError::Disagreement { name: "bucket", .. }), "{error}");
            let after = buffers.exchange.begin("bucket", ExchangeOp::AllReduce, 0..grain);
            assert!(matches!(after, Err(CommError::Closed)));
        }
    });
}

#[test]
fn ranges_that_cannot_be_exchanged_are_refused() {
    on_ranks("exchange::ranges_that_cannot_be_exchanged_are_refused", &[2], |comm| {
        let mut buffers = Buffers::new(comm, LEN);
        for range in [0..LEN + 32, LEN..LEN + 32, 0..17] {
            let refused = buffers.exchange.begin("bucket", ExchangeOp::AllGather, range);
            assert!(matches!(refused, Err(CommError::Range { .. })));
        }
        buffers.exchange.finish().expect("nothing was begun");
    });
}
