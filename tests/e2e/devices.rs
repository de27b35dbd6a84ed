//! Where ranks compute: GPUs that are asked for and not there, and what is said of those that are there and not used.

use std::path::Path;
use std::process::Command;

use test_support::stand_in::build_nccl_stand_in;

use crate::program::{figures, mpirun, run, tiny_star, worker};

/// Shows a program `gpus` GPUs that have no driver behind them, whatever this machine has.
fn with_gpus<'a>(command: &'a mut Command, folder: &Path, gpus: &str) -> &'a mut Command {
    command.env("ILM_CUDART_LIBRARY", build_nccl_stand_in(folder)).env("ILM_STAND_IN_GPUS", gpus)
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_ends_the_run_with_one_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for mut command in [worker(), mpirun(2)] {
        command
            .args(tiny_star(&folder.path().join("run")))
            .args(["trainer.max_steps=1", "trainer.device=cuda"]);
        let finished = run(with_gpus(&mut command, folder.path(), "0")).expect(2);
        let sentence = finished.sentence();
        assert!(sentence.contains("trainer.device = \"cuda\", but rank 0 on host"), "{sentence}");
        assert!(sentence.contains("no CUDA-capable device is detected"), "{sentence}");
    }
}

#[test]
fn without_gpus_training_is_on_processors_and_nothing_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path().join("run");
    let mut command = worker();
    command.args(tiny_star(&run_dir)).arg("trainer.max_steps=1");
    let finished = run(with_gpus(&mut command, folder.path(), "0")).expect(0);
    assert!(!finished.stderr.contains("GPU"), "{}", finished.stderr);
    let device = finished.stdout.lines().find(|line| line.trim_start().starts_with("device "));
    assert!(device.is_some_and(|line| line.ends_with("processor")), "{}", finished.stdout);
    assert_eq!(figures(&run_dir, "loss").len(), 1);
}

#[test]
fn gpus_that_libtorch_cannot_use_are_warned_of_unless_processors_are_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (device, is_warned) in [("auto", true), ("cpu", false)] {
        let mut command = mpirun(2);
        command.args(tiny_star(&folder.path().join(device))).arg("trainer.max_steps=1");
        command.arg(format!("trainer.device={device}"));
        let finished = run(with_gpus(&mut command, folder.path(), "2")).expect(0);
        let warnings = finished.stderr.lines().filter(|line| line.contains("are not used")).count();
        assert_eq!(warnings, usize::from(is_warned), "{}", finished.stderr);
    }
}

#[test]
fn the_acceptance_run_says_that_there_is_no_gpu() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu-acceptance.sh");
    let accept = || {
        let mut command = Command::new(&script);
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    };
    let finished = run(&mut accept()).expect(77);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("no GPU can be seen here"), "{}", finished.stderr);
    let finished = run(accept().args(["--steps", "few"])).expect(2);
    assert!(finished.stderr.contains("--steps few is not a number"), "{}", finished.stderr);
    if Command::new("shellcheck").arg("--version").output().is_ok() {
        run(Command::new("shellcheck").arg(&script)).expect(0);
    }
}
