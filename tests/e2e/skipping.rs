//! Steps that are not finite, and spikes, change nothing; the run goes on, and goes on alike after a kill.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{
    Signal, checkpoint_bits, children, digest_entries, figures, json_lines, kill, last_step, ranks, run,
    start, tiny_star, wait, wait_until,
};

const STEPS: u64 = 120;

/// A run whose noise is taken for spikes.
fn with_spikes(world_size: usize, run_dir: &Path) -> Command {
    let mut command = ranks(world_size);
    command.args(tiny_star(run_dir)).arg(format!("trainer.max_steps={STEPS}"));
    command.args(["trainer.skip_spikes_above=1", "trainer.max_skipped_steps_in_row=2"]);
    command.args(["checkpoint.every_n_steps=10", "model.dropout=0.1"]);
    command
}

#[test]
fn spikes_are_skipped_alike_with_and_without_a_kill() {
    for world_size in [1, 2] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (reference, killed) = (folder.path().join("reference"), folder.path().join("killed"));
        run(&mut with_spikes(world_size, &reference)).expect(0);
        let skipped = json_lines(&reference.join("skipped.jsonl"));
        assert!(!skipped.is_empty(), "nothing was a spike");
        for line in &skipped {
            let step = line["step"].as_u64().expect("a step");
            assert!(step > 50, "nothing is known before");
            assert_eq!(line["position"], 8 * (step - 1));
            assert_eq!(line["samples"].as_array().map(Vec::len), Some(8));
        }
        let marked = digest_entries(&reference, "skipped").iter().filter(|reason| !reason.is_null()).count();
        assert_eq!(marked, skipped.len());
        // Every step has its place in the schedule and in the data.
        assert_eq!(figures(&reference, "step").len() as u64, STEPS);

        let child = start(&mut with_spikes(world_size, &killed));
        wait_until("the step to kill at", || last_step(&killed) >= 85);
        let victims = if world_size == 1 { vec![child.id()] } else { children(child.id()) };
        victims.into_iter().for_each(|id| kill(Signal::SIGKILL, id));
        assert_ne!(wait(child).code, 0, "the run was over before it could be killed");
        run(&mut with_spikes(world_size, &killed)).expect(0);
        for file in ["skipped.jsonl", "digest.jsonl"] {
            let text = |run_dir: &Path| fs::read_to_string(run_dir.join(file)).expect("a file of the run");
            assert!(text(&reference) == text(&killed), "{file} differs");
        }
        assert!(
            checkpoint_bits(&reference, STEPS) == checkpoint_bits(&killed, STEPS),
            "the final states differ"
        );
    }
}

/// The setting that the sentence advises, as a shell gives it to the program.
fn advised(sentence: &str) -> String {
    let value = sentence.split_once("data.skip_steps='").and_then(|(_, rest)| rest.split_once('\''));
    format!("data.skip_steps={}", value.expect("a value in quotes").0)
}

/// Positions of the batch that a run ended at.
fn ended_at(run_dir: &Path, step: u64, world_size: usize) -> BTreeSet<u64> {
    let rows = |rank| json_lines(&run_dir.join(format!("dumps/step-{step:09}/rank-{rank}.jsonl")));
    let positions = (0..world_size).flat_map(rows).map(|row| row["position"].as_u64());
    positions.map(|position| position.expect("a position")).collect()
}

/// Weights with one NaN make every loss one.
#[test]
fn steps_that_are_not_finite_leave_weights_moments_and_average_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    run(ranks(1).args(tiny_star(&path("good"))).arg("trainer.max_steps=2")).expect(0);
    run(ranks(1).arg("export").arg("--run-dir").arg(path("good")).arg("--to").arg(path("weights"))).expect(0);
    let file = path("weights").join("model.safetensors");
    let mut bytes = fs::read(&file).expect("weights");
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).expect("a writable file");
    for world_size in [1, 2] {
        let run_dir = path(&format!("on-{world_size}"));
        let go = |steps: u64, settings: &[&str]| {
            let mut command = ranks(world_size);
            command.args(tiny_star(&run_dir)).arg("--init-from").arg(path("weights"));
            command.args(["trainer.max_skipped_steps_in_row=9", "checkpoint.every_n_steps=1"]);
            run(command.arg(format!("trainer.max_steps={steps}")).args(settings))
        };
        let finished = go(2, &[]).expect(0);
        assert!(finished.stdout.contains("(update skipped)"), "{}", finished.stdout);
        let first = checkpoint_bits(&run_dir, 1);
        assert!(first["exp_avg"].iter().chain(&first["exp_avg_sq"]).all(|&byte| byte == 0), "moments moved");
        assert!(first["ema"] == first["master"], "the average moved");
        assert!(first == checkpoint_bits(&run_dir, 2), "a skipped step changed something");
        // The count goes on over a restart: nine may be skipped, the tenth ends the run.
        let sentence = go(20, &[]).expect(6).sentence();
        assert!(sentence.contains("step 10 gave loss NaN"), "{sentence}");
        assert_eq!(last_step(&run_dir), 9);
        assert_eq!(ended_at(&run_dir, 10, world_size), (72..80).collect());
        // With the advised setting the run is not given the data of these ten steps again, but the next.
        let advice = advised(&sentence);
        assert_eq!(advice, "data.skip_steps=[\"0..10\"]");
        let sentence = go(20, &[&advice]).expect(6).sentence();
        assert!(sentence.contains("step 10 gave loss NaN"), "{sentence}");
        assert_eq!(ended_at(&run_dir, 10, world_size), (80..88).collect());
        assert_eq!(advised(&sentence), "data.skip_steps=[\"0..11\"]");
    }
}
