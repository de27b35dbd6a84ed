//! Starting the programs under test and looking at what they leave behind.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

/// No step of a test may take longer; a hang then fails the test instead of blocking it.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a finished program said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// -1 if a signal ended it, which `status` names.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Fails the test unless the program ended with `code`.
    pub fn expect(self, code: i32) -> Self {
        let Self { status, stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// The single line that a mistake of the user is answered with.
    pub fn sentence(&self) -> String {
        assert!(
            !self.stderr.contains("panicked") && !self.stderr.contains("stack backtrace"),
            "{}",
            self.stderr
        );
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one sentence expected\n--- stderr\n{}", self.stderr);
        errors[0].to_string()
    }
}

/// A program built by the workspace.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let target = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
    let path = target.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --release --workspace --bins`", path.display());
    path
}

/// `ilm-worker` started plainly. One thread, so that tests side by side do not fight for cores.
pub fn worker() -> Command {
    clean(Command::new(program("ilm-worker")))
}

/// `ilm-worker` on `ranks` ranks.
pub fn mpirun(ranks: usize) -> Command {
    mpirun_with(ranks, &[])
}

/// The same; each rank's output goes to `FOLDER/1/rank.N/std{out,err}` as well, since mpirun mixes it even within lines.
pub fn mpirun_into(folder: &Path, ranks: usize) -> Command {
    mpirun_with(ranks, &["--output-filename", &folder.display().to_string()])
}

/// The same, started on each rank by a script of `sh`, which gets the program as its name and the program's arguments as its own.
pub fn mpirun_through(ranks: usize, script: &str) -> Command {
    mpirun_with(ranks, &["sh", "-c", script])
}

fn mpirun_with(ranks: usize, options: &[&str]) -> Command {
    let mut command = clean(Command::new("mpirun"));
    command.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]).args(options);
    command.arg(program("ilm-worker"));
    command
}

/// `ilm-worker` on `ranks` ranks, without mpirun for one.
pub fn ranks(ranks: usize) -> Command {
    if ranks == 1 { worker() } else { mpirun(ranks) }
}

fn clean(mut command: Command) -> Command {
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
    command.env("OMPI_MCA_oob_tcp_if_include", "lo").env("OMPI_MCA_btl_tcp_if_include", "lo");
    command
}

/// Settings of the smallest run that has everything: a tiny model on the easy star graphs.
pub fn tiny_star(run_dir: &Path) -> Vec<String> {
    let settings = [
        "--experiment",
        "star_easy_ilm",
        "model=rotary_tiny",
        "optimizer.lr=1e-3",
        "trainer.threads=1",
        "trainer.log_every_n_steps=1",
        "per_device_batch_size=4",
        "global_batch_size=8",
        "--run-dir",
    ];
    settings.iter().map(ToString::to_string).chain([run_dir.display().to_string()]).collect()
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Finished {
    wait(start(command))
}

/// Starts without waiting; the output is collected by [`wait`].
pub fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Waits for the end of a started program.
pub fn wait(child: Child) -> Finished {
    let id = child.id();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = receive.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill(Signal::SIGKILL, id);
        panic!("process {id} did not end within {PATIENCE:?}");
    });
    let output = output.expect("a child's output can be read");
    Finished {
        status: output.status,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal to a process that a test has started.
pub fn kill(signal: Signal, id: u32) {
    let id = Pid::from_raw(i32::try_from(id).expect("process ids are small"));
    nix::sys::signal::kill(id, signal)
        .unwrap_or_else(|error| panic!("cannot send {signal} to {id}: {error}"));
}

/// Lets a stopped process go on, if others have not already done so and it is through.
pub fn wake(id: u32) {
    let id = Pid::from_raw(i32::try_from(id).expect("process ids are small"));
    let _ = nix::sys::signal::kill(id, Signal::SIGCONT);
}

/// Process ids of the direct children of `parent`.
pub fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let parent_of = |id: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|&id| parent_of(id) == Some(parent)).collect()
}

/// The worker processes that descend from `ancestor`, by rank.
pub fn workers_below(ancestor: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for child in children(ancestor) {
        if name_of(child).as_deref() == Some("ilm-worker") {
            found.push(child);
        }
        found.extend(workers_below(child));
    }
    found.sort_by_key(|&id| variable(id, "OMPI_COMM_WORLD_RANK").and_then(|rank| rank.parse::<usize>().ok()));
    found
}

/// Process ids of the direct children of `parent` with one of these names.
pub fn children_called(parent: u32, names: &[&str]) -> Vec<u32> {
    let is_called = |id: &u32| name_of(*id).is_some_and(|name| names.contains(&name.as_str()));
    children(parent).into_iter().filter(is_called).collect()
}

/// Process ids of the programs called `name` that have `argument`, whoever started them.
pub fn processes_with(argument: &str, name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let has_argument = |id: &u32| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| name_of(*id).as_deref() == Some(name) && has_argument(id)).collect()
}

/// The name of a process, while there is one.
pub fn name_of(id: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{id}/comm")).ok()?.trim().to_string())
}

/// Whether this worker process is there.
pub fn is_alive(id: u32) -> bool {
    name_of(id).as_deref() == Some("ilm-worker")
}

/// A variable in the environment that a process was started with.
pub fn variable(id: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{id}/environ")).ok()?;
    let variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    variables.into_iter().find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// What a rank last wrote of itself; null if it wrote nothing.
pub fn heartbeat(run_dir: &Path, rank: usize) -> Value {
    let beat = fs::read(run_dir.join(format!("heartbeats/rank-{rank}.json"))).unwrap_or_default();
    serde_json::from_slice(&beat).unwrap_or_default()
}

/// Polls until `ready` holds; fails the test if it never does.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        sleep(Duration::from_millis(10));
    }
}

/// The lines of `metrics.jsonl`.
pub fn metrics(run_dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines of a run's `digest.jsonl`, and of other files of JSON lines.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// One entry of every line of `digest.jsonl`.
pub fn digest_entries(run_dir: &Path, name: &str) -> Vec<Value> {
    json_lines(&run_dir.join("digest.jsonl")).iter().map(|line| line[name].clone()).collect()
}

/// Finished steps according to `metrics.jsonl`.
pub fn last_step(run_dir: &Path) -> u64 {
    metrics(run_dir).last().map_or(0, |line| line["step"].as_u64().expect("every line has a step"))
}

/// One figure of every step.
pub fn figures(run_dir: &Path, name: &str) -> Vec<f64> {
    metrics(run_dir).iter().map(|line| line[name].as_f64().unwrap_or_else(|| panic!("no {name}"))).collect()
}

/// Steps of the committed checkpoints, ascending.
pub fn checkpoint_steps(run_dir: &Path) -> Vec<u64> {
    let mut steps: Vec<u64> = fs::read_dir(run_dir.join("checkpoints"))
        .map(|entries| {
            let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
            entries.filter_map(name).filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
        })
        .unwrap_or_default();
    steps.sort_unstable();
    steps
}

/// Folder of one checkpoint.
pub fn checkpoint_path(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoints/step-{step:09}"))
}

/// Every section of a checkpoint, its ranks' slices joined: equal maps mean equal bits.
pub fn checkpoint_bits(run_dir: &Path, step: u64) -> BTreeMap<String, Vec<u8>> {
    let folder = checkpoint_path(run_dir, step);
    let mut shards: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("readable folder").path())
        .filter(|path| path.extension() == Some(OsStr::new("safetensors")))
        .collect();
    shards.sort();
    let mut sections: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for shard in shards {
        let bytes = fs::read(shard).expect("readable shard");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("valid safetensors");
        for (name, tensor) in tensors.iter() {
            sections.entry(name.to_string()).or_default().extend(tensor.data());
        }
    }
    sections
}
