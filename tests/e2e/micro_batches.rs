//! Micro-batches limited by visible tokens: the same losses, and a limit that resumed runs keep.

use std::path::Path;

use crate::program::{Finished, checkpoint_bits, figures, ranks, run, tiny_star};

const TOKENS: &str = "trainer.max_tokens_per_micro_batch=40";

fn train(world_size: usize, run_dir: &Path, changes: &[&str]) -> Finished {
    let mut command = ranks(world_size);
    let mut settings = tiny_star(run_dir);
    settings.push("trainer.max_steps=12".into());
    // A key may be given once, so a change takes the place of what is set here.
    settings.retain(|setting| !changes.iter().any(|change| same_key(setting, change)));
    command.args(settings).args(changes);
    run(&mut command).expect(0)
}

fn same_key(one: &str, other: &str) -> bool {
    matches!((one.split_once('='), other.split_once('=')), (Some((a, _)), Some((b, _))) if a == b)
}

#[test]
fn losses_do_not_depend_on_the_cut() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let losses = |name: &str, changes: &[&str]| {
        let run_dir = folder.path().join(name);
        train(2, &run_dir, changes);
        figures(&run_dir, "loss")
    };
    let by_rows = losses("rows", &["model.dropout=0.0"]);
    let by_tokens = losses("tokens", &["model.dropout=0.0", TOKENS]);
    assert_eq!(by_rows.len(), 12);
    for (step, (a, b)) in by_rows.iter().zip(&by_tokens).enumerate() {
        assert!((a - b).abs() < 1e-5, "step {}: {a} {b}", step + 1);
    }
    // Every micro-batch draws its own masks, so dropout shows that the cut is another one.
    assert_ne!(losses("rows with dropout", &[]), losses("tokens with dropout", &[TOKENS]));
}

#[test]
fn a_resumed_run_keeps_its_limit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let limit = |finished: &Finished| {
        let line =
            finished.stdout.lines().find(|line| line.starts_with("batch ")).expect("a line on the batch");
        line.to_owned()
    };
    let told = train(1, &whole, &[TOKENS, "per_device_batch_size="]);
    assert!(limit(&told).ends_with("of at most 40 visible tokens (as set)"), "{}", limit(&told));
    train(1, &parts, &[TOKENS, "per_device_batch_size=", "trainer.max_steps=5"]);
    let resumed = train(1, &parts, &["per_device_batch_size="]);
    assert!(
        limit(&resumed).ends_with("of at most 40 visible tokens (as in the checkpoint)"),
        "{}",
        limit(&resumed)
    );
    assert!(
        checkpoint_bits(&whole, 12) == checkpoint_bits(&parts, 12),
        "the cuts are the same, so are the bits"
    );

    let found = train(1, &folder.path().join("found"), &["trainer.max_steps=1"]);
    assert!(limit(&found).contains("4 rows and ") && limit(&found).ends_with("(by available memory)"));
}
