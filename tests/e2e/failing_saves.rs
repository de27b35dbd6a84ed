//! A save that finds no space is given up, and a later one makes up for it; failure after failure ends a run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};

use crate::program::{
    checkpoint_bits, checkpoint_path, checkpoint_steps, figures, last_step, program, run, tiny_star, worker,
};

/// Steps between two saves. A line of a step has more than a hundred bytes, so the worker is never so many steps ahead of who reads
/// its lines from [`PIPE_BYTES`].
const EVERY: u64 = 50;
const LAST: u64 = 5 * EVERY;
const PIPE_BYTES: i32 = 4096;

fn settings(every: u64, last: u64) -> [String; 2] {
    [format!("checkpoint.every_n_steps={every}"), format!("trainer.max_steps={last}")]
}

/// The worker with a file system of its own of `kib` KiB as the folder of the checkpoints. `before` and `after` are shell lines.
fn on_small_disk(kib: u64, run_dir: &Path, before: &str, settings: &[String], after: &str) -> Command {
    let disk = run_dir.join("checkpoints");
    fs::create_dir_all(&disk).expect("a folder can be made");
    let worker = std::iter::once(program("ilm-worker").display().to_string());
    let words = worker.chain(tiny_star(run_dir)).chain(settings.iter().cloned());
    let train = words.map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mount = format!("mount -t tmpfs -o size={kib}k none '{}'", disk.display());
    // A mount namespace of its own: the mount goes away with the process.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c"]);
    command.arg(format!("set -e; {mount}; {before}; {train}; {after}"));
    command
}

#[test]
fn a_save_without_space_is_made_up_for_by_a_later_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, full, kept] = ["whole", "full", "kept"].map(|name| folder.path().join(name));
    let settings = settings(EVERY, LAST);
    run(worker().args(tiny_star(&whole)).args(&settings)).expect(0);
    let shard = checkpoint_path(&whole, LAST).join("rank-00000.safetensors");
    let size = shard.metadata().expect("it is there").len() / 1024;

    // Beside a file as large as two checkpoints there is space for one and a half.
    let filler = full.join("checkpoints/filler");
    let fill = format!("head -c {} /dev/zero > '{}'", 2 * size * 1024, filler.display());
    fs::create_dir(&kept).expect("a folder can be made");
    let keep = format!("cp -a '{}' '{}'", full.join("checkpoints").display(), kept.display());
    let mut command = on_small_disk(size * 7 / 2, &full, &fill, &settings, &keep);
    // All that it says goes through a pipe so small that the run waits for who reads it.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).expect("a small pipe");
    command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a second end")).stderr(writer);
    let mut child = command.spawn().expect("unshare can be started");
    // The ends to write to are now the child's alone, so the lines have an end.
    drop(command);
    let filler = PathBuf::from(format!("/proc/{}/root{}", child.id(), filler.display()));
    let mut said = Vec::new();
    for line in BufReader::with_capacity(64, reader).lines() {
        said.push(line.expect("lines of text"));
        if said.last().is_some_and(|line| line.contains("could not be saved")) && filler.exists() {
            fs::remove_file(&filler).expect("the file is the test's own");
        }
    }
    let status = child.wait().expect("the child is the test's own");
    let text = said.join("\n");
    assert_eq!(status.code(), Some(0), "{text}");
    let warning = said.iter().find(|line| line.starts_with("warning: the checkpoint of step 100 could"));
    let warning = warning.unwrap_or_else(|| panic!("{text}"));
    for part in [
        "no space left to write ",
        "/rank-00000.safetensors (",
        "training goes on and saves again by step 150",
    ] {
        assert!(warning.contains(part), "{text}");
    }

    assert_eq!(checkpoint_steps(&kept), [LAST - EVERY, LAST], "{text}");
    run(worker().args(["checkpoints", "verify", "--run-dir"]).arg(&kept)).expect(0);
    assert!(checkpoint_bits(&whole, LAST) == checkpoint_bits(&kept, LAST), "the final states differ");
    assert_eq!(figures(&whole, "loss"), figures(&full, "loss"));
}

#[test]
fn three_saves_in_a_row_without_space_end_the_run() {
    for asynchronous in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let more = [format!("checkpoint.asynchronous={asynchronous}")];
        let settings = [&settings(2, 1000)[..], &more].concat();
        let finished = run(&mut on_small_disk(64, folder.path(), "true", &settings, "true")).expect(4);
        let sentence = finished.sentence();
        let (three, step) = ("error: 3 saves in a row have failed", "the last one that of step 6: ");
        assert!(sentence.starts_with(three) && sentence.contains(step), "{sentence}");
        assert!(sentence.contains("no space left to write "), "{sentence}");
        assert_eq!(finished.stderr.matches("training goes on").count(), 2, "{}", finished.stderr);
        // In the background the third failure is known when the fourth save would begin, or before.
        assert!((6..=8).contains(&last_step(folder.path())));
    }
}
