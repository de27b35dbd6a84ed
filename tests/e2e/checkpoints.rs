//! Saving while training goes on, what is kept of it, and the command that shows it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{
    Finished, checkpoint_bits, checkpoint_path, checkpoint_steps, figures, ranks, run, tiny_star, worker,
};

fn train(world_size: usize, run_dir: &Path, settings: &[&str]) -> Command {
    let mut command = ranks(world_size);
    command
        .args(tiny_star(run_dir))
        .args(["trainer.max_steps=12", "checkpoint.every_n_steps=3"])
        .args(settings);
    command
}

fn checkpoints(run_dir: &Path, arguments: &[&str]) -> Finished {
    run(worker().arg("checkpoints").args(arguments).arg("--run-dir").arg(run_dir))
}

#[test]
fn a_save_in_the_background_is_the_save_for_which_training_stands_still() {
    for world_size in [1, 2] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [there, here] = ["background", "foreground"].map(|name| folder.path().join(name));
        let keep = "checkpoint.keep_last=9";
        run(&mut train(world_size, &there, &[keep])).expect(0);
        run(&mut train(world_size, &here, &[keep, "checkpoint.asynchronous=false"])).expect(0);
        for step in [3, 6, 9, 12] {
            assert!(checkpoint_bits(&there, step) == checkpoint_bits(&here, step), "step {step} differs");
        }
        // In the background at the step itself; otherwise after it, which the next record tells.
        let stalled = |run_dir| -> Vec<bool> {
            figures(run_dir, "checkpoint_stall_s").iter().map(|s| *s > 0.0).collect()
        };
        assert!(stalled(&there)[2]);
        assert!(stalled(&here)[3]);
    }
}

#[test]
fn checkpoints_are_listed_verified_and_pruned_and_the_best_one_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path().join("run");
    let validated = ["trainer.val_check_interval=3", "data.star.validation_size=8", "checkpoint.keep_last=9"];
    let best = ["checkpoint.monitor=loss", "checkpoint.keep_best=1", "checkpoint.mode=max"];
    run(&mut train(1, &run_dir, &[&validated[..], &best].concat())).expect(0);

    let listed = checkpoints(&run_dir, &["list"]).expect(0).stdout;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 4, "{listed}");
    assert!(
        lines.iter().all(|line| line.contains("1 ranks") && line.contains("all files there  loss ")),
        "{listed}"
    );
    assert!(checkpoints(&run_dir, &["verify"]).expect(0).stdout.contains("valid  loss "));

    // The worst loss of an untrained model is the first: it is what mode=max keeps.
    let prune = ["prune", "checkpoint.keep_last=2"];
    let told = checkpoints(&run_dir, &[&prune[..], &["--dry-run"]].concat()).expect(0).stdout;
    assert!(told.contains("1 of 4 checkpoints would go"), "{told}");
    assert_eq!(checkpoint_steps(&run_dir).len(), 4);
    checkpoints(&run_dir, &prune).expect(0);
    let left = checkpoint_steps(&run_dir);
    assert_eq!((left.len(), &left[1..]), (3, &[9, 12][..]), "two newest and the best");

    let shard = checkpoint_path(&run_dir, 9).join("rank-00000.safetensors");
    let mut bytes = fs::read(&shard).expect("readable shard");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).expect("writable shard");
    checkpoints(&run_dir, &["list"]).expect(0);
    let verified = checkpoints(&run_dir, &["verify"]).expect(4).stdout;
    assert!(verified.contains("rank-00000.safetensors is damaged"), "{verified}");
}

/// Validations and checkpoints have intervals of their own.
#[test]
fn a_validated_step_is_saved_if_the_best_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let validated = ["trainer.val_check_interval=5", "data.star.validation_size=8", "checkpoint.keep_last=9"];
    for (extra, expected) in [("seed=1", &[3, 5, 6, 9, 10, 12][..]), ("checkpoint.monitor=", &[3, 6, 9, 12])]
    {
        let run_dir = folder.path().join(extra);
        let none_best = if extra == "seed=1" { "checkpoint.keep_best=1" } else { "checkpoint.keep_best=0" };
        run(&mut train(1, &run_dir, &[&validated[..], &[extra, none_best]].concat())).expect(0);
        assert_eq!(checkpoint_steps(&run_dir), expected);
    }
    let listed = checkpoints(&folder.path().join("seed=1"), &["list"]).expect(0).stdout;
    let judged: Vec<bool> = listed.lines().map(|line| line.contains("loss ")).collect();
    assert_eq!(judged, [false, true, false, false, true, true], "{listed}");
}

#[test]
fn a_folder_that_is_not_there_and_one_without_checkpoints_are_no_good_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let typo = folder.path().join("typo");
    for command in ["list", "verify"] {
        let sentence = checkpoints(&typo, &[command]).expect(2).sentence();
        assert!(sentence.ends_with("typo is not a directory; name the folder of a run"), "{sentence}");
    }
    checkpoints(folder.path(), &["list"]).expect(0);
    let said = checkpoints(folder.path(), &["verify"]).expect(4).stdout;
    assert!(said.contains("holds no checkpoint"), "{said}");
}

#[test]
fn jobs_that_need_a_checkpoint_say_that_there_is_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [run_dir, weights, new] = ["run", "weights", "new"].map(|name| folder.path().join(name));
    run(ranks(1).args(tiny_star(&run_dir)).arg("trainer.max_steps=1")).expect(0);
    fs::remove_dir_all(checkpoint_path(&run_dir, 1)).expect("it is there");
    let mut jobs = [worker(), worker(), worker(), worker(), worker()];
    for (job, name) in jobs.iter_mut().zip(["evaluate", "generate", "export", "verify-resume"]) {
        job.arg(name).arg("--run-dir").arg(&run_dir);
    }
    jobs[2].arg("--to").arg(weights);
    jobs[4].args(tiny_star(&new)).arg("--init-from").arg(&run_dir);
    for job in &mut jobs {
        let sentence = run(job).expect(4).sentence();
        let expected = format!("{} holds no valid checkpoint", run_dir.display());
        assert!(sentence.contains(&expected), "{sentence}");
    }
}
