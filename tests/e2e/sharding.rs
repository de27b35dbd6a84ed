//! How gradients travel and who keeps the moments changes neither losses nor parameters nor what a checkpoint is good for.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program::{
    Signal, checkpoint_path, children, figures, kill, last_step, mpirun, run, start, tiny_star, wait,
    wait_until,
};

const STEPS: usize = 8;
/// Wide enough for several buckets of 1 MiB. A norm that is never reached clips nothing, so that even bits can be compared.
const SETTINGS: [&str; 7] = [
    "model.d_model=160",
    "model.num_layers=3",
    "model.dropout=0.0",
    "trainer.reduce_bucket_mib=1",
    "trainer.gradient_clip_val=1e9",
    "data.star.validation_size=8",
    "trainer.val_check_interval=4",
];

fn train(world_size: usize, run_dir: &Path, sharded: bool, overlaps: bool, steps: usize) -> Command {
    let mut command = mpirun(world_size);
    command.args(tiny_star(run_dir)).args(SETTINGS).arg(format!("trainer.max_steps={steps}"));
    command.arg(format!("trainer.shard_optimizer={sharded}"));
    command.arg(format!("trainer.overlap_reduction={overlaps}"));
    command
}

/// Every section of a checkpoint by name, its slices in the places that the manifest tells.
fn arenas(run_dir: &Path, step: u64) -> Vec<(String, Vec<f32>)> {
    let folder = checkpoint_path(run_dir, step);
    let text = fs::read_to_string(folder.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let len = number(&manifest["arena_len"]);
    let mut arenas: Vec<(String, Vec<f32>)> = Vec::new();
    for shard in manifest["shards"].as_array().expect("a list") {
        let bytes = fs::read(folder.join(shard["file"].as_str().expect("a name"))).expect("a shard");
        for slice in shard["sections"].as_array().expect("a list") {
            let name = slice["name"].as_str().expect("a name");
            let index = arenas.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                arenas.push((name.to_owned(), vec![f32::NAN; len]));
                arenas.len() - 1
            });
            let (start, end) = (number(&slice["start"]), number(&slice["end"]));
            let offset = number(&slice["file_offset"]);
            let elements = bytes[offset..offset + 4 * (end - start)].as_chunks().0;
            let values = arenas[index].1[start..end].iter_mut().zip(elements);
            values.for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
        }
    }
    arenas
}

fn close(one: &[f64], other: &[f64], bound: f64) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() <= bound)
}

fn validation_losses(run_dir: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run_dir.join("validation.jsonl")).expect("validations were made");
    let loss =
        |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss");
    text.lines().map(loss).collect()
}

#[test]
fn overlap_and_sharding_change_neither_losses_nor_parameters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for world_size in [2, 3, 4] {
        let path = |name: &str| folder.path().join(format!("{name}-{world_size}"));
        let plain = path("plain");
        run(&mut train(world_size, &plain, false, false, STEPS)).expect(0);
        let expected = arenas(&plain, STEPS as u64);
        assert_eq!(figures(&plain, "loss").len(), STEPS);
        for (name, sharded, overlaps) in
            [("both", true, true), ("sharded", true, false), ("overlaps", false, true)]
        {
            let other = path(name);
            run(&mut train(world_size, &other, sharded, overlaps, STEPS)).expect(0);
            assert!(
                close(&figures(&plain, "loss"), &figures(&other, "loss"), 1e-6),
                "{name} on {world_size} ranks"
            );
            assert!(close(&figures(&plain, "grad_norm"), &figures(&other, "grad_norm"), 1e-6));
            assert!(close(&validation_losses(&plain), &validation_losses(&other), 1e-6));
            let (exposed, waited) = (figures(&other, "comm_exposed_s"), figures(&other, "rank_wait_s"));
            assert!(exposed.iter().zip(&waited).all(|(least, most)| 0.0 < *least && least <= most));
            assert!(exposed != waited, "ranks never wait alike");
            let found = arenas(&other, STEPS as u64);
            for ((section, expected), (other, found)) in expected.iter().zip(&found) {
                assert_eq!(section, other);
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
                assert!(expected.iter().zip(found).all(close), "{section} of {name} on {world_size} ranks");
                // Two summands have one sum, whoever adds them.
                assert!(world_size > 2 || expected == found, "the bits of {section} of {name}");
            }
        }
    }
}

/// One row a step: every rank but one has nothing to compute, but parameters to update and to receive, rounded.
#[test]
fn ranks_without_rows_get_the_parameters_of_the_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for world_size in [2, 3] {
        let [plain, sharded] = [false, true].map(|sharded| {
            let run_dir = folder.path().join(format!("{sharded}-{world_size}"));
            let mut command = mpirun(world_size);
            let one_row = |argument: String| argument.replace("global_batch_size=8", "global_batch_size=1");
            command.args(tiny_star(&run_dir).into_iter().map(one_row)).args(SETTINGS);
            command.arg(format!("trainer.shard_optimizer={sharded}"));
            command.args(["trainer.precision=bf16", "trainer.max_steps=12", "lr_scheduler.name=constant"]);
            run(&mut command).expect(0);
            (figures(&run_dir, "loss"), validation_losses(&run_dir))
        });
        assert!(close(&plain.0, &sharded.0, 1e-5), "{world_size} ranks: {:?}, {:?}", plain.0, sharded.0);
        assert!(close(&plain.1, &sharded.1, 1e-5), "{world_size} ranks, validation");
    }
}

#[test]
fn a_sharded_run_goes_on_unsharded_with_the_same_bits_and_on_other_ranks_with_the_same_losses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let whole = path("whole");
    run(&mut train(2, &whole, true, true, STEPS)).expect(0);
    for (name, ranks, sharded) in [("same", 2, true), ("unsharded", 2, false), ("three", 3, true)] {
        let resumed = path(name);
        run(&mut train(2, &resumed, true, true, STEPS / 2)).expect(0);
        run(&mut train(ranks, &resumed, sharded, true, STEPS)).expect(0);
        assert!(close(&figures(&whole, "loss"), &figures(&resumed, "loss"), 1e-5), "{name}");
        if ranks == 2 {
            assert!(arenas(&whole, STEPS as u64) == arenas(&resumed, STEPS as u64), "{name}");
        }
    }
}

#[test]
fn a_killed_rank_ends_the_job() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = start(&mut train(3, folder.path(), true, true, 1_000_000));
    wait_until("some steps", || last_step(folder.path()) >= 3);
    let ranks = children(child.id());
    kill(Signal::SIGKILL, ranks[1]);
    // mpirun's code for a rank that a signal has ended.
    wait(child).expect(137);
    wait_until("all ranks to end", || ranks.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists()));
}
