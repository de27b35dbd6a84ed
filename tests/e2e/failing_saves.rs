//! A save that finds no space is given up, and a later one makes up for it, as later lines for lines; failure after failure ends a run.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
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

/// The worker with a file system of its own of `kib` KiB as the folder `disk`. `before` and `after` are shell lines.
fn on_small_disk(
    kib: u64,
    disk: &Path,
    run_dir: &Path,
    before: &str,
    settings: &[String],
    after: &str,
) -> Command {
    fs::create_dir_all(disk).expect("a folder can be made");
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

/// Runs it, with all that it says going through a pipe so small that it waits for who reads it: `reads`, which is told the process
/// and line after line. The result is all lines, if it has succeeded.
fn read_along(mut command: Command, mut reads: impl FnMut(u32, &str)) -> Vec<String> {
    let (reader, writer) = io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).expect("a small pipe");
    command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a second end")).stderr(writer);
    let mut child = command.spawn().expect("unshare can be started");
    // The ends to write to are now the child's alone, so the lines have an end.
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::with_capacity(64, reader).lines() {
        let line = line.expect("lines of text");
        reads(child.id(), &line);
        said.push(line);
    }
    let status = child.wait().expect("the child is the test's own");
    assert_eq!(status.code(), Some(0), "{}", said.join("\n"));
    said
}

/// A file of another process's mount namespace.
fn seen_by(process: u32, file: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/root{}", file.display()))
}

/// The KiB of a checkpoint of the run.
fn checkpoint_kib(run_dir: &Path, step: u64) -> u64 {
    let shard = checkpoint_path(run_dir, step).join("rank-00000.safetensors");
    shard.metadata().expect("it is there").len() / 1024
}

#[test]
fn a_save_without_space_is_made_up_for_by_a_later_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, full, kept] = ["whole", "full", "kept"].map(|name| folder.path().join(name));
    let settings = settings(EVERY, LAST);
    run(worker().args(tiny_star(&whole)).args(&settings)).expect(0);
    let size = checkpoint_kib(&whole, LAST);

    // Beside a file as large as two checkpoints there is space for one and a half.
    let disk = full.join("checkpoints");
    let filler = disk.join("filler");
    let fill = format!("head -c {} /dev/zero > '{}'", 2 * size * 1024, filler.display());
    fs::create_dir(&kept).expect("a folder can be made");
    let keep = format!("cp -a '{}' '{}'", disk.display(), kept.display());
    let command = on_small_disk(size * 7 / 2, &disk, &full, &fill, &settings, &keep);
    let said = read_along(command, |process, line| {
        let filler = seen_by(process, &filler);
        if line.contains("could not be saved") && filler.exists() {
            fs::remove_file(&filler).expect("the file is the test's own");
        }
    });
    let text = said.join("\n");
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
fn lines_without_space_are_written_once_there_is_some() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, full, kept] = ["whole", "full", "kept"].map(|name| folder.path().join(name));
    let settings = settings(EVERY, LAST);
    run(worker().args(tiny_star(&whole)).args(&settings)).expect(0);

    // The disk has the whole run, and is full between the first save and the failure of the second one.
    let keep = format!("cp -a '{}' '{}'", full.display(), kept.display());
    let size = 8 * checkpoint_kib(&whole, LAST);
    let said = read_along(on_small_disk(size, &full, &full, "true", &settings, &keep), |process, line| {
        let filler = seen_by(process, &full.join("filler"));
        if line.contains("saved a checkpoint of step 50 ") {
            let mut filler = File::create(filler).expect("there is space for a file");
            io::copy(&mut io::repeat(0), &mut filler).expect_err("the disk has an end");
        } else if line.contains("could not be saved") {
            fs::remove_file(filler).expect("the file is the test's own");
        }
    });
    let text = said.join("\n");
    for name in ["metrics", "digest"] {
        let count = |end: &str| {
            let of_file = |line: &&String| line.contains(&format!("/{name}.jsonl")) && line.contains(end);
            said.iter().filter(of_file).count()
        };
        assert_eq!((count("; the run goes on"), count(" is written again")), (1, 1), "{text}");
        let lines = |run_dir: &Path| {
            let lines = fs::read_to_string(run_dir.join(format!("{name}.jsonl"))).expect("it is there");
            lines.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&kept).len() as u64, LAST, "{text}");
        assert!(name == "metrics" || lines(&whole) == lines(&kept), "the digests differ");
    }
    assert_eq!(figures(&whole, "loss"), figures(&kept, "loss"));
}

#[test]
fn three_saves_in_a_row_without_space_end_the_run() {
    for asynchronous in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let disk = folder.path().join("checkpoints");
        let more = [format!("checkpoint.asynchronous={asynchronous}")];
        let settings = [&settings(2, 1000)[..], &more].concat();
        let finished = run(&mut on_small_disk(64, &disk, folder.path(), "true", &settings, "true")).expect(4);
        let sentence = finished.sentence();
        let (three, step) = ("error: 3 saves in a row have failed", "the last one that of step 6: ");
        assert!(sentence.starts_with(three) && sentence.contains(step), "{sentence}");
        assert!(sentence.contains("no space left to write "), "{sentence}");
        assert_eq!(finished.stderr.matches("training goes on").count(), 2, "{}", finished.stderr);
        // In the background the third failure is known when the fourth save would begin, or before.
        assert!((6..=8).contains(&last_step(folder.path())));
    }
}
