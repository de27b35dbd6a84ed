//! `--init-from`: a new run with the weights of another one.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{checkpoint_bits, checkpoint_path, figures, ranks, run, tiny_star, worker};

/// Settings of [`tiny_star`] but for the rate.
fn command(world_size: usize, run_dir: &Path, steps: u64, lr: &str) -> Command {
    let mut command = ranks(world_size);
    let settings = tiny_star(run_dir).into_iter().filter(|setting| !setting.starts_with("optimizer.lr"));
    command.args(settings).arg(format!("optimizer.lr={lr}")).arg(format!("trainer.max_steps={steps}"));
    command.args(["model.dropout=0.0", "checkpoint.every_n_steps=4"]);
    command
}

#[test]
fn a_new_run_starts_with_the_weights_of_a_run_a_checkpoint_or_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let source = path("source");
    run(command(1, &source, 8, "1e-3").arg("seed=3")).expect(0);
    let trained = checkpoint_bits(&source, 8);
    assert!(trained["ema"] != trained["master"]);
    let export = |to: &str, kind: &str| {
        let mut command = worker();
        command.arg("export").arg("--run-dir").arg(&source).arg(kind).arg("--to").arg(path(to));
        run(&mut command).expect(0);
        path(to)
    };
    let raw = path("without-average");
    run(command(1, &raw, 4, "1e-3").args(["seed=3", "trainer.ema_decay="])).expect(0);

    let cases = [
        ("run", source.clone(), "averaged weights", trained["ema"].clone()),
        (
            "checkpoint",
            checkpoint_path(&source, 4),
            "averaged weights",
            checkpoint_bits(&source, 4)["ema"].clone(),
        ),
        ("folder", export("weights", "--ema"), "weights of", trained["ema"].clone()),
        (
            "file",
            export("raw", "--raw-weights").join("model.safetensors"),
            "weights of",
            trained["master"].clone(),
        ),
        ("no-average", raw.clone(), "weights as trained", checkpoint_bits(&raw, 4)["master"].clone()),
    ];
    for (index, (name, from, said, weights)) in cases.into_iter().enumerate() {
        let new = path(&format!("new-{name}"));
        let begun = run(command(1 + index % 2, &new, 1, "0").arg("--init-from").arg(&from)).expect(0);
        assert!(begun.stdout.contains(&format!("starting from the {said}")), "{name}: {}", begun.stdout);
        assert_eq!(figures(&new, "step"), [1.0], "{name}: the steps are new");
        // The rate is 0, so the first checkpoint has the weights themselves, and the average of nothing else.
        let found = checkpoint_bits(&new, 1);
        assert!(found["master"] == weights && found["ema"] == weights, "{name}: other weights");
    }
}

#[test]
fn a_run_that_was_begun_goes_on_from_its_own_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    run(&mut command(1, &path("source"), 4, "1e-3")).expect(0);
    let begin = |steps: u64, from: &str| {
        let mut command = command(2, &path("run"), steps, "1e-3");
        command.args(["seed=2", "--init-from"]).arg(path(from));
        command
    };
    run(&mut begin(4, "source")).expect(0);
    let kept = checkpoint_bits(&path("run"), 4);
    // What it began with may be gone by then.
    let again = run(&mut begin(5, "gone")).expect(0);
    assert!(
        again.stdout.contains("resuming from") && again.stdout.contains("--init-from is for a new run"),
        "{}",
        again.stdout
    );
    assert_eq!(figures(&path("run"), "step"), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(kept == checkpoint_bits(&path("run"), 4));
    // A fresh start is a new run, and nothing is moved aside for a mistake.
    run(begin(5, "gone").arg("--fresh")).expect(4).sentence();
    assert!(!path("run").join("previous-1").exists());
    let fresh = run(begin(5, "source").arg("--fresh")).expect(0);
    assert!(fresh.stdout.contains("starting from the averaged weights"), "{}", fresh.stdout);
    let other = run(command(1, &path("other"), 1, "0")
        .arg("model.num_layers=1")
        .arg("--init-from")
        .arg(path("source")));
    other.expect(4).sentence();
}

/// A setting, and what is said of weights that were trained without it.
const OTHER_NETWORKS: [(&str, &str); 3] = [
    ("model.nhead=1", "model.nhead = 2, not 1"),
    ("model.activation=gelu", "model.activation = relu, not gelu"),
    ("model.layer_norm_eps=0.5", "model.layer_norm_eps = 0.00001, not 0.5"),
];

#[test]
fn weights_are_not_taken_for_those_of_another_network() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let (source, weights, imported) = (path("source"), path("weights"), path("imported"));
    run(&mut command(1, &source, 2, "1e-3")).expect(0);
    run(worker().arg("export").arg("--run-dir").arg(&source).arg("--to").arg(&weights)).expect(0);
    let mut import = worker();
    import.args(["import", "--experiment", "star_easy_ilm", "--from"]).arg(&weights);
    run(import.arg("--run-dir").arg(&imported)).expect(0);
    let start = |run_dir: &Path, steps: u64, setting: &str, from: Option<&Path>| {
        let mut command = command(1, run_dir, steps, "1e-3");
        command.args(["model.max_length=42", setting]);
        if let Some(from) = from {
            command.arg("--init-from").arg(from);
        }
        run(&mut command)
    };
    for (setting, expected) in OTHER_NETWORKS {
        let refused = [
            start(&path("new"), 1, setting, Some(&source)),
            start(&path("new"), 1, setting, Some(&weights)),
            start(&source, 3, setting, None),
            start(&imported, 1, setting, None),
        ];
        for finished in refused {
            let sentence = finished.expect(4).sentence();
            assert!(sentence.contains(expected), "{sentence}");
        }
        assert!(!path("new").exists(), "something was written");
        let mut generate = worker();
        generate.args(["generate", "--num", "1", setting, "--run-dir"]).arg(&source);
        let sentence = run(&mut generate).expect(4).sentence();
        assert!(sentence.contains(expected), "{sentence}");
    }
    // How a model begins is no part of the network, and weights that say nothing of theirs are taken as they are.
    for run_dir in [&source, &imported] {
        start(run_dir, 3, "model.identical_layers=true", None).expect(0);
    }
    fs::remove_file(weights.join("config.json")).expect("it is there");
    start(&path("new"), 1, "model.activation=gelu", Some(&weights)).expect(0);
}
