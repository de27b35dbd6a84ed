//! A run whose newest checkpoint is damaged says what is wrong, goes on from the one before, and ends as if nothing had been.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use crate::program::{
    Finished, checkpoint_bits, checkpoint_path, checkpoint_steps, figures, mpirun, program, run, tiny_star,
    worker,
};

const LAST: u64 = 6;

/// Checkpoints of steps 2, 4 and 6 by two ranks, all kept.
const SETTINGS: [&str; 3] = ["trainer.max_steps=6", "checkpoint.every_n_steps=2", "checkpoint.keep_last=3"];

fn train(run_dir: &Path) -> Command {
    let mut command = mpirun(2);
    command.args(tiny_star(run_dir)).args(SETTINGS);
    command
}

/// Takes the superuser's right to read everything away from a command.
fn without_privileges(command: Command) -> Command {
    if !Uid::effective().is_root() {
        return command;
    }
    let mut bounded = Command::new("setpriv");
    bounded
        .arg("--bounding-set=-dac_override,-dac_read_search")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    bounded
}

fn shard(run_dir: &Path, step: u64, rank: usize) -> PathBuf {
    checkpoint_path(run_dir, step).join(format!("rank-{rank:05}.safetensors"))
}

fn manifest(run_dir: &Path) -> PathBuf {
    checkpoint_path(run_dir, LAST).join("manifest.json")
}

fn flip(file: &Path, place: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(file).expect("the file is there");
    let at = place(bytes.len());
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("the file can be written");
}

fn truncate(file: &Path, bytes: u64) {
    let opened = fs::File::options().write(true).open(file);
    opened.and_then(|file| file.set_len(bytes)).expect("the file can be cut");
}

fn permit(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("the file is the test's own");
}

/// A kind of damage: its name, what it does to a run, what is said of the newest checkpoint, and the step that is used.
type Case = (&'static str, fn(&Path), &'static str, u64);

const CASES: [Case; 12] = [
    (
        "header",
        |run| flip(&shard(run, LAST, 1), |_| 20),
        "rank-00001.safetensors is damaged in its header",
        4,
    ),
    (
        "data",
        |run| flip(&shard(run, LAST, 0), |bytes| bytes / 2),
        "rank-00000.safetensors is damaged in section",
        4,
    ),
    (
        "last byte",
        |run| flip(&shard(run, LAST, 1), |bytes| bytes - 1),
        "rank-00001.safetensors is damaged in section",
        4,
    ),
    ("manifest", |run| flip(&manifest(run), |bytes| bytes / 2), "manifest.json is damaged", 4),
    ("half a manifest", |run| truncate(&manifest(run), 1000), "manifest.json is damaged", 4),
    (
        "no manifest",
        |run| fs::remove_file(manifest(run)).expect("it is there"),
        "manifest.json is missing",
        4,
    ),
    (
        "no shard",
        |run| fs::remove_file(shard(run, LAST, 1)).expect("it is there"),
        "rank-00001.safetensors is missing",
        4,
    ),
    ("truncated", |run| truncate(&shard(run, LAST, 0), 1000), "rank-00000.safetensors has 1000 bytes", 4),
    ("empty", |run| truncate(&shard(run, LAST, 1), 0), "rank-00001.safetensors has 0 bytes", 4),
    (
        "a folder",
        |run| {
            fs::remove_file(shard(run, LAST, 0)).expect("it is there");
            fs::create_dir(shard(run, LAST, 0)).expect("its place is free");
        },
        "rank-00000.safetensors",
        4,
    ),
    (
        "swapped shards of two steps",
        |run| {
            let aside = run.join("aside");
            fs::rename(shard(run, LAST, 0), &aside).expect("it is there");
            fs::rename(shard(run, 4, 0), shard(run, LAST, 0)).expect("it is there");
            fs::rename(aside, shard(run, 4, 0)).expect("it is there");
        },
        "rank-00000.safetensors is damaged in section",
        2,
    ),
    (
        "more files",
        |run| {
            fs::write(shard(run, LAST, 2).with_extension("part"), "of no rank").expect("a file can be added");
            fs::write(checkpoint_path(run, LAST).join("notes.txt"), "mine").expect("a file can be added");
        },
        "",
        LAST,
    ),
];

#[test]
fn a_damaged_checkpoint_costs_its_steps_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = folder.path().join("whole");
    run(&mut train(&whole)).expect(0);
    assert_eq!(checkpoint_steps(&whole), [2, 4, 6]);
    for (name, damage, reason, used) in CASES {
        let damaged = folder.path().join(name);
        run(Command::new("cp").arg("-a").arg(&whole).arg(&damaged)).expect(0);
        damage(&damaged);
        let finished = run(&mut without_privileges(train(&damaged))).expect(0);
        let said = format!("{name}\n{}\n{}", finished.stdout, finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{said}");
        let passed_over = finished
            .stderr
            .lines()
            .find(|line| line.contains("passing over") && line.contains("step-000000006"));
        assert_eq!(passed_over.is_some_and(|line| line.contains(reason)), used < LAST, "{said}");
        let resumed = format!("resuming from {}", checkpoint_path(&damaged, used).display());
        assert!(finished.stdout.contains(&resumed), "{said}");
        assert!(checkpoint_bits(&whole, LAST) == checkpoint_bits(&damaged, LAST), "{said}");
        assert_eq!(figures(&whole, "loss"), figures(&damaged, "loss"), "{said}");
    }
}

/// It may be good, so none takes its place, and nothing of the run is cut to an older one.
#[test]
fn a_checkpoint_that_may_not_be_read_ends_the_start_and_costs_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path().join("run");
    run(&mut train(&run_dir)).expect(0);
    let losses = figures(&run_dir, "loss");
    let files = [
        (shard(&run_dir, LAST, 1), "no permission to open "),
        (manifest(&run_dir), "no permission to read "),
    ];
    for (file, reason) in files {
        permit(&file, 0o000);
        let sentence = run(&mut without_privileges(train(&run_dir))).expect(4).sentence();
        let said = format!("{reason}{}; change its owner or mode", file.display());
        assert!(sentence.contains(&said), "{sentence}");
        permit(&file, 0o644);
    }
    let resumed = run(&mut train(&run_dir)).expect(0).stdout;
    let from = format!("resuming from {}", checkpoint_path(&run_dir, LAST).display());
    assert!(resumed.contains(&from), "{resumed}");
    assert_eq!(figures(&run_dir, "loss"), losses);
}

/// Runs the worker on a file system of its own in memory, of `kib` KiB, and again when that has grown; what is there then is
/// copied to `kept`.
fn on_a_disk_that_fills(kib: u64, run_dir: &Path, kept: &Path) -> Finished {
    let worker = std::iter::once(program("ilm-worker").display().to_string());
    let words: Vec<String> = worker
        .chain(tiny_star(run_dir))
        .chain(SETTINGS.map(String::from))
        .map(|word| format!("'{word}'"))
        .collect();
    let (train, disk) = (words.join(" "), run_dir.display());
    let script = format!(
        "set -e; mount -t tmpfs -o size={kib}k none '{disk}'; code=0; {train} || code=$?; echo first $code
         ls -A '{disk}/checkpoints'; mount -o remount,size=1g '{disk}'; {train}; cp -a '{disk}' '{}'",
        kept.display()
    );
    // A mount namespace of its own: the mount goes away with the process.
    run(Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c", &script]))
}

#[test]
fn a_disk_that_fills_costs_the_save_and_not_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, filled, kept] = ["whole", "filled", "kept"].map(|name| folder.path().join(name));
    run(worker().args(tiny_star(&whole)).args(SETTINGS)).expect(0);
    let size = shard(&whole, LAST, 0).metadata().expect("it is there").len() / 1024;
    fs::create_dir(&filled).expect("a folder can be made");

    // Two checkpoints fit, and two thirds of the third.
    let finished = on_a_disk_that_fills(size * 8 / 3, &filled, &kept).expect(0);
    let sentence = finished.sentence();
    assert!(sentence.contains("no space left to write") && sentence.contains("rank-00000"), "{sentence}");
    let after = finished.stdout.split_once("first 4\n").map(|(_, after)| after).expect("exit code 4");
    assert!(after.starts_with(".lock\nstep-000000002\nstep-000000004\n"), "{}", finished.stdout);
    assert!(checkpoint_bits(&whole, LAST) == checkpoint_bits(&kept, LAST), "the final states differ");
}
