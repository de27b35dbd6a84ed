//! The exchange between GPUs: with a stand-in for NCCL between real ranks, and with the real library as far as it goes without GPUs.
//!
//! Every test starts this program again on two ranks, which run the test `one_rank` with the case that the environment names.

use half::bf16;
use std::ffi::c_void;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use test_support::stand_in::build_nccl_stand_in;
use worker::comm::{
    Collectives, Communicator, CudaRuntime, Exchange, ExchangeOp, FlatMemory, LaunchEnv, NcclExchange,
    NcclLibrary, UniqueId, connect,
};
use worker::exit;

const CASE: &str = "ILM_NCCL_CASE";
const RANKS: usize = 2;
/// More than a piece of the stand-in, and equal aligned parts for the ranks.
const LEN: usize = 16 * RANKS * 5000;

/// A rank's two buffers; they are used through their addresses alone.
struct Buffers(FlatMemory);

impl Buffers {
    fn new() -> Self {
        let buffer = || Box::leak(vec![0.0f32; LEN].into_boxed_slice()).as_mut_ptr();
        let rounded = Some(Box::leak(vec![bf16::ZERO; LEN].into_boxed_slice()).as_mut_ptr());
        Self(FlatMemory { params: buffer(), grads: buffer(), rounded, capacity: LEN })
    }

    fn grads(&mut self) -> &mut [f32] {
        // SAFETY: never freed, and no exchange is going on when the tests look.
        unsafe { std::slice::from_raw_parts_mut(self.0.grads, LEN) }
    }

    fn params(&mut self) -> &mut [f32] {
        // SAFETY: as in `grads`.
        unsafe { std::slice::from_raw_parts_mut(self.0.params, LEN) }
    }

    fn rounded(&mut self) -> &mut [bf16] {
        // SAFETY: as in `grads`.
        unsafe { std::slice::from_raw_parts_mut(self.0.rounded.expect("it is there"), LEN) }
    }
}

fn open(comm: &mut dyn Collectives, buffers: &Buffers, secs: u64) -> anyhow::Result<NcclExchange> {
    let (cuda, nccl) = (CudaRuntime::open()?, NcclLibrary::open()?);
    cuda.set_device(comm.rank())?;
    // SAFETY: the buffers are never freed, and left alone during an exchange.
    Ok(unsafe { NcclExchange::connect(comm, &cuda, &nccl, buffers.0, Duration::from_secs(secs)) }?)
}

#[test]
fn one_rank() {
    let Ok(case) = std::env::var(CASE) else { return };
    let env = LaunchEnv::detect().expect("mpirun says which rank this is");
    let mut comm = connect(Some(&env), Duration::from_secs(60)).expect("the ranks connect");
    let result = match case.as_str() {
        "sums" => sums(&mut *comm),
        "order" => order(&mut *comm),
        "gathered" => gathered(&mut *comm),
        "exposed" => exposed(&mut *comm),
        "stuck" => stuck(&mut *comm),
        "memory" => memory(&mut *comm),
        "abandoned" => abandoned(&mut *comm, 60),
        "abandoned for ever" => abandoned(&mut *comm, 1),
        "real" => real(&mut *comm),
        _ => steps(&mut *comm),
    };
    if let Err(error) = result {
        exit::fail(&error, comm.rank(), comm.world_size());
    }
}

/// All three operations on parts of the buffers, twice, so that events are used again.
fn sums(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let (rank, half) = (comm.rank(), LEN / 2);
    let mut buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 60)?;
    ensure!(exchange.describe() == "NCCL 2.29.7", "the stand-in's version");
    for round in 1..3 {
        let value = |rank: usize, index: usize| (round * 1000 + rank * 100 + index % 7) as f32;
        let sum = |index: usize| (0..RANKS).map(|rank| value(rank, index)).sum::<f32>();
        for (index, grad) in buffers.grads().iter_mut().enumerate() {
            *grad = value(rank, index);
        }
        exchange.begin("gradients", ExchangeOp::AllReduce, half..LEN)?;
        exchange.begin("gradients", ExchangeOp::ReduceScatter, 0..half)?;
        exchange.finish()?;
        let part = rank * half / RANKS..(rank + 1) * half / RANKS;
        for index in part.clone().chain(half..LEN) {
            ensure!(
                buffers.grads()[index] == sum(index),
                "round {round}, {index}: {}",
                buffers.grads()[index]
            );
        }
        for index in part {
            buffers.params()[index] = value(rank, index);
            buffers.rounded()[index + half] = bf16::from_f32(value(rank, index));
        }
        exchange.begin("parameters", ExchangeOp::AllGather, 0..half)?;
        exchange.begin("parameters", ExchangeOp::AllGatherRounded, half..LEN)?;
        exchange.finish()?;
        for index in 0..half {
            let expected = value(index / (half / RANKS), index);
            ensure!(buffers.params()[index] == expected, "round {round}, parameter {index}");
            let rounded = [index, index + half].map(|index| buffers.rounded()[index]);
            ensure!(rounded == [bf16::ZERO, bf16::from_f32(expected)], "round {round}, rounded {index}");
        }
    }
    exchange.begin("nothing", ExchangeOp::AllReduce, 0..0)?;
    ensure!(exchange.begin("too long", ExchangeOp::AllReduce, 0..LEN + 16).is_err());
    ensure!(exchange.begin("unequal parts", ExchangeOp::AllGather, 0..16 * RANKS + 1).is_err());
    Ok(())
}

/// What the GPU has not computed yet at `begin` is part of the sum.
fn order(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let mut buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 60)?;
    // SAFETY: the buffer is never freed.
    unsafe { fill(buffers.0.grads, (comm.rank() + 1) as f32, 300)? };
    exchange.begin("gradients", ExchangeOp::AllReduce, 0..LEN)?;
    exchange.finish()?;
    ensure!(buffers.grads().iter().all(|&sum| sum == 3.0), "the sum began too early");
    ensure!(last_cuda_error()? == 0, "libtorch would take a look at an event for a failed kernel");
    ensure!(CudaRuntime::open()?.set_device(99).is_err(), "there is no such GPU");
    ensure!(last_cuda_error()? == 0, "libtorch would see an error that was told of");
    Ok(())
}

/// What the next look of libtorch at this thread's last error would find.
fn last_cuda_error() -> anyhow::Result<i32> {
    // SAFETY: the stand-in's function has this type.
    Ok(unsafe { stand_in()?.get::<unsafe extern "C" fn() -> i32>(c"cudaPeekAtLastError")?() })
}

/// A forward pass that waits inside libtorch for parameters that may never come.
fn stuck(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 1)?;
    exchange.begin("parameters", ExchangeOp::AllGather, 0..LEN)?;
    exchange.wait_for(0..LEN)?;
    // SAFETY: the stand-in's function has this type, and null is the stream that is computed on.
    unsafe {
        let synchronize = c"cudaStreamSynchronize";
        stand_in()?.get::<unsafe extern "C" fn(*mut c_void) -> i32>(synchronize)?(std::ptr::null_mut());
    }
    Ok(exchange.finish().map(drop)?)
}

/// The GPU with the least memory decides for all.
fn memory(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let cuda = CudaRuntime::open()?;
    cuda.set_device(comm.rank())?;
    ensure!(
        cuda.memory()?.0 == 1 << (30 - comm.rank()),
        "every GPU of the stand-in has half as much as the last"
    );
    let least = worker::memory::free_on_gpus(comm, &cuda)?;
    ensure!(least == 1 << 29, "{least}");
    Ok(())
}

/// What is computed behind `wait_for` finds the gathered parameters.
fn gathered(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let mut buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 60)?;
    exchange.begin("parameters", ExchangeOp::AllGather, 0..LEN)?;
    ensure!(exchange.wait_for(LEN / 2..LEN)? == Duration::ZERO, "the GPU waits, not the host");
    // SAFETY: the buffer is never freed, and it is used behind what was waited for.
    unsafe { fill(buffers.0.params, 9.0, 0)? };
    // Waits for all that is computed before it.
    exchange.begin("gradients", ExchangeOp::AllReduce, 0..LEN)?;
    exchange.finish()?;
    ensure!(buffers.params().iter().all(|&value| value == 9.0), "computed before the parameters were there");
    exchange.wait_for(0..LEN)?;
    Ok(())
}

/// Has the stand-in's GPU write a buffer for some time.
///
/// # Safety
/// The buffer has [`LEN`] elements and lives on.
unsafe fn fill(buffer: *mut f32, value: f32, ms: i64) -> anyhow::Result<()> {
    // SAFETY: the stand-in's function has this type; the rest is the caller's promise.
    unsafe {
        stand_in()?.get::<unsafe extern "C" fn(*mut f32, usize, f32, i64)>(c"standInFill")?(
            buffer, LEN, value, ms,
        );
    }
    Ok(())
}

fn stand_in() -> anyhow::Result<libloading::Library> {
    let library = std::env::var_os("ILM_CUDART_LIBRARY").expect("the stand-in is named");
    // SAFETY: loaded already, without initialisers.
    Ok(unsafe { libloading::Library::new(library)? })
}

fn exposed(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 60)?;
    ensure!(exchange.finish()? == Duration::ZERO, "nothing was begun");
    exchange.begin("gradients", ExchangeOp::AllReduce, 0..LEN)?;
    ensure!(exchange.finish()? > Duration::ZERO, "half a second of exchange was not seen");
    // What waits is behind the wait, so nothing is left to wait for in the end.
    exchange.begin("parameters", ExchangeOp::AllGather, 0..LEN)?;
    exchange.wait_for(0..LEN)?;
    exchange.wait_for(0..LEN)?;
    ensure!(exchange.finish()? > Duration::ZERO, "the wait for parameters was not seen");
    ensure!(exchange.finish()? == Duration::ZERO, "what was told is told again");
    Ok(())
}

/// A step that fails between `begin` and `finish`.
fn abandoned(comm: &mut dyn Collectives, secs: u64) -> anyhow::Result<()> {
    let buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, secs)?;
    exchange.begin("gradients", ExchangeOp::AllReduce, 0..LEN)?;
    drop(exchange);
    Ok(())
}

/// Three steps, in which the faults of the stand-in happen.
fn steps(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let buffers = Buffers::new();
    let mut exchange = open(comm, &buffers, 1)?;
    for _ in 0..3 {
        exchange.begin("gradients", ExchangeOp::AllReduce, 0..LEN)?;
        exchange.finish()?;
    }
    Ok(())
}

/// The real library on a machine without a GPU.
fn real(comm: &mut dyn Collectives) -> anyhow::Result<()> {
    let library: Arc<NcclLibrary> = NcclLibrary::open()?;
    ensure!(library.version()? > 22_000, "version {}", library.version()?);
    let mine = if comm.rank() == 0 { library.unique_id()?.as_bytes().to_vec() } else { Vec::new() };
    let all = comm.all_gather("id", &mine)?;
    let id = UniqueId::from_bytes(&all[0]);
    ensure!(UniqueId::from_bytes(b"short").is_none());
    let id = id.ok_or_else(|| anyhow::anyhow!("no id came"))?;
    ensure!(id.as_bytes().iter().any(|&byte| byte != 0), "the id is empty");
    let Err(error) = Communicator::connect(&library, id, comm.rank(), comm.world_size()) else {
        anyhow::bail!("connected without a GPU");
    };
    let sentence = error.to_string();
    ensure!(sentence.starts_with("ncclCommInitRank failed: ") && sentence.contains("CUDA"), "{sentence}");
    Ok(())
}

/// Runs a case on two ranks; its output and every rank's calls.
fn run(case: &str, settings: &[(&str, &str)]) -> (Output, Vec<Vec<String>>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = build_nccl_stand_in(folder.path());
    let log = folder.path().join("calls");
    let mut command = ranks(case, &library);
    command.env("ILM_CUDART_LIBRARY", &library).env("ILM_STAND_IN_LOG", &log).envs(settings.iter().copied());
    let output = command.output().expect("mpirun can be started");
    let calls = |rank: usize| {
        let text = fs::read_to_string(log.with_extension(rank.to_string())).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    (output, (0..RANKS).map(calls).collect())
}

fn ranks(case: &str, nccl: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none", "-n", &RANKS.to_string()]);
    command.arg(std::env::current_exe().expect("the test knows its own path"));
    command.args(["--exact", "one_rank", "--nocapture", "--test-threads=1"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env(CASE, case).env("ILM_NCCL_LIBRARY", nccl).env_remove("RUST_BACKTRACE");
    command
}

fn expect_ok(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The sentence of a run that failed.
fn expect_failure(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr.lines().find(|line| line.starts_with("error: ")).expect("one sentence").to_owned()
}

#[test]
fn sums_and_parts_are_right_on_every_rank() {
    let (output, calls) = run("sums", &[]);
    expect_ok(&output);
    for calls in &calls {
        // Operations on nothing and on what does not exist were never queued.
        assert_eq!(calls.iter().filter(|call| call.starts_with("all_reduce")).count(), 2, "{calls:?}");
        assert_eq!(calls.last().map(String::as_str), Some("destroy"), "{calls:?}");
    }
}

#[test]
fn every_operation_waits_for_what_is_computed_before_it() {
    let (output, calls) = run("order", &[]);
    expect_ok(&output);
    let expected = [
        "connect",
        "record compute",
        "wait exchange",
        "all_reduce exchange",
        "record exchange",
        "record compute",
        "wait compute",
        "destroy",
    ];
    for calls in &calls {
        assert_eq!(calls, &expected);
    }
}

#[test]
fn what_is_computed_behind_a_wait_finds_the_gathered_parameters() {
    let (output, calls) = run("gathered", &[("ILM_STAND_IN_SLOW_MS", "500")]);
    expect_ok(&output);
    let gathered = |calls: &Vec<String>| calls.iter().filter(|call| *call == "wait compute").count();
    assert!(calls.iter().all(|calls| gathered(calls) == 2), "one wait, one finish: {calls:?}");
}

#[test]
fn the_time_that_no_computation_hides_is_measured() {
    let (output, _) = run("exposed", &[("ILM_STAND_IN_SLOW_MS", "500")]);
    expect_ok(&output);
}

#[test]
fn an_exchange_that_is_given_up_is_aborted_and_not_waited_for() {
    let (output, calls) = run("abandoned", &[("ILM_STAND_IN_FAULT", "hang:0")]);
    expect_ok(&output);
    for calls in &calls {
        assert_eq!(calls.last().map(String::as_str), Some("abort"), "{calls:?}");
    }
}

#[test]
fn a_failed_collective_is_named_and_ends_the_run() {
    let cases = [
        ("async:1", "a GPU collective failed: remote process exited or there was a network error"),
        ("call:1", "ncclAllReduce failed: unhandled cuda error (the GPU has fallen off the bus)"),
    ];
    for (fault, text) in cases {
        let (output, calls) = run("steps", &[("ILM_STAND_IN_FAULT", fault)]);
        let sentence = expect_failure(&output, exit::COMMUNICATION);
        assert!(sentence.contains("NCCL failed in collective 'gradients' (number "), "{sentence}");
        assert!(sentence.contains(text), "{sentence}");
        assert_eq!(calls[0].last().map(String::as_str), Some("abort"), "{:?}", calls[0]);
    }
}

#[test]
fn a_collective_that_never_ends_meets_the_deadline() {
    let (output, calls) = run("steps", &[("ILM_STAND_IN_FAULT", "hang:2"), ("ILM_STAND_IN_FAULT_RANK", "1")]);
    let sentence = expect_failure(&output, exit::COMMUNICATION);
    assert!(sentence.contains("has waited more than 1 s in collective 'gradients' (number "), "{sentence}");
    assert_eq!(calls[0].last().map(String::as_str), Some("abort"), "{:?}", calls[0]);
}

#[test]
fn parameters_that_never_come_meet_the_deadline_while_libtorch_waits_for_them() {
    let cases = [
        ("hang:0", "has waited more than 1 s in collective 'parameters' (number "),
        ("async:0", "a GPU collective failed: remote process exited or there was a network error"),
    ];
    for (fault, text) in cases {
        let (output, calls) = run("stuck", &[("ILM_STAND_IN_FAULT", fault)]);
        let sentence = expect_failure(&output, exit::COMMUNICATION);
        assert!(sentence.contains(text), "{sentence}");
        assert_eq!(calls[0].last().map(String::as_str), Some("wait compute"), "{:?}", calls[0]);
    }
}

#[test]
fn an_end_that_never_ends_meets_the_deadline_and_the_first_error_is_told() {
    let cases = [
        ("abandoned for ever", "none", "in collective 'disconnection of GPUs' (number "),
        ("steps", "async:1", "or there was a network error (and ncclCommAbort has not ended the exchange"),
    ];
    for (case, fault, text) in cases {
        let (output, calls) = run(case, &[("ILM_STAND_IN_FAULT", fault), ("ILM_STAND_IN_ABORT", "hang")]);
        let sentence = expect_failure(&output, exit::COMMUNICATION);
        assert!(sentence.contains(text), "{sentence}");
        assert_eq!(calls[0].last().map(String::as_str), Some("abort"), "{:?}", calls[0]);
    }
}

#[test]
fn the_gpu_with_the_least_memory_decides() {
    expect_ok(&run("memory", &[]).0);
}

#[test]
fn gpus_that_cannot_be_connected_end_the_run_with_nccls_own_words() {
    let cases = [
        ("id", "ncclGetUniqueId failed: unhandled system error (no socket interface found)"),
        ("init", "ncclCommInitRank failed: unhandled cuda error (peer access is not supported"),
        ("init-hang", "in collective 'connection of GPUs'"),
    ];
    for (fault, text) in cases {
        let (output, _) = run("steps", &[("ILM_STAND_IN_FAULT", fault)]);
        let sentence = expect_failure(&output, exit::COMMUNICATION);
        assert!(sentence.contains(text), "{sentence}");
    }
}

#[test]
fn a_missing_library_is_an_error_that_names_it() {
    let (output, _) = run("steps", &[("ILM_NCCL_LIBRARY", "/nowhere/libnccl.so.2")]);
    let sentence = expect_failure(&output, exit::USAGE);
    assert!(sentence.contains("NCCL cannot be loaded: ") && sentence.contains("/nowhere"), "{sentence}");
}

/// The library that `scripts/setup.sh --test` puts beside the tests.
fn real_nccl() -> Option<PathBuf> {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.python-tests/lib");
    let pythons = fs::read_dir(packages).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let library = |python: PathBuf| python.join("site-packages/nvidia/nccl/lib/libnccl.so.2");
    pythons.map(library).find(|path| path.exists())
}

#[test]
fn the_real_library_loads_and_says_that_there_is_no_gpu() {
    let Some(library) = real_nccl() else {
        eprintln!("skipped: no NCCL in .python-tests, which scripts/setup.sh --test makes");
        return;
    };
    if CudaRuntime::open().and_then(|cuda| cuda.gpus()).is_ok() {
        eprintln!("skipped: this machine has a GPU; scripts/gpu-acceptance.sh is for it");
        return;
    }
    let output = ranks("real", &library).output().expect("mpirun can be started");
    expect_ok(&output);
}
