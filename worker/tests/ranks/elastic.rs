//! A checkpoint that goes through other numbers of ranks, and through products in bf16, keeps every bit.

use std::collections::BTreeMap;
use std::fs;

use checkpoints::{Checkpoint, Store};
use ilm_model::Precision;
use safetensors::{Dtype, SafeTensors};
use worker::train::save;

use crate::on_ranks_in;
use crate::state::{experiment, facts, mark, state_with};

/// Every element of every section as bits.
fn bits(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u32>> {
    let len = usize::try_from(checkpoint.layout().len).expect("a small model");
    let section = |name: &str| {
        let mut values = vec![0.0; len];
        checkpoint.read(name, 0..len, &mut values).expect("a valid checkpoint");
        (name.to_owned(), values.iter().map(|value| value.to_bits()).collect())
    };
    checkpoint.sections().into_iter().map(section).collect()
}

fn all_are_f32(checkpoint: &Checkpoint) -> bool {
    let shards =
        fs::read_dir(checkpoint.dir()).expect("readable folder").map(|entry| entry.expect("a file").path());
    let mut shards =
        shards.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    shards.all(|shard| {
        let bytes = fs::read(shard).expect("a shard");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        tensors.iter().all(|(_, tensor)| tensor.dtype() == Dtype::F32)
    })
}

#[test]
fn every_bit_survives_other_numbers_of_ranks_and_bf16() {
    const JOBS: [usize; 7] = [4, 1, 2, 3, 8, 2, 4];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let test = "elastic::every_bit_survives_other_numbers_of_ranks_and_bf16";
    on_ranks_in(
        folder.path(),
        test,
        &JOBS,
        |comm, folder| {
            let mut store = Store::open(folder).expect("a store");
            let newest = store.newest_valid().expect("a folder").checkpoint;
            // Some jobs multiply in bf16, and one does not shard.
            let precision = if comm.world_size() == 2 { Precision::Bf16 } else { Precision::Fp32 };
            let mut state = state_with(comm, comm.world_size() != 3, precision);
            match &newest {
                Some(checkpoint) => state.restore(checkpoint).expect("it fits"),
                None => mark(&mut state),
            }
            state.step += 1;
            state.guard.updated(0.1 * state.step as f64, 0.3);
            // All have looked before one writes.
            comm.barrier("read").expect("ranks that meet");
            let facts = facts();
            let mut settings = experiment(true);
            settings.checkpoint.keep_last = JOBS.len();
            save(&mut store, comm, &settings, &facts, &state).expect("a checkpoint");
        },
        || {
            let store = Store::open(folder.path()).expect("a store");
            let checkpoints: Vec<Checkpoint> =
                (1..=JOBS.len()).map(|step| store.get(step as u64).expect("a checkpoint")).collect();
            let first = bits(&checkpoints[0]);
            assert_eq!(first.keys().collect::<Vec<_>>(), ["ema", "exp_avg", "exp_avg_sq", "master"]);
            assert!(first.values().all(|values| values.iter().any(|&bits| bits != 0)));
            for (checkpoint, ranks) in checkpoints.iter().zip(JOBS) {
                assert_eq!(checkpoint.state().world_size, ranks as u64);
                assert!(bits(checkpoint) == first, "{ranks} ranks changed something");
                assert!(all_are_f32(checkpoint), "{ranks} ranks stored another type");
            }
        },
    );
}
