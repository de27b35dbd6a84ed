//! Every way in which a run can end gives the documented exit code, names the rank to blame, and leaves no process.

use crate::support::{Bench, LAUNCHER, send, text, wait_until};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn exit_codes_of_the_worker_come_back() {
    let bench = Bench::new("exit $1");
    for code in [0, 2, 3, 4, 5, 6, 75, 101] {
        assert_eq!(bench.run(1, &[], &[&code.to_string()]).status.code(), Some(code));
    }
}

#[test]
fn a_killed_rank_is_named_with_its_signal_and_last_lines() {
    let bench =
        Bench::new("if [ $RANK = 1 ]; then echo 'about to fail' >&2; kill -9 $$; fi\nexec sleep 1000");
    let output = bench.run(2, &[], &["train", "--run-dir", "runs/a"]);
    assert_eq!(output.status.code(), Some(137));
    let report = text(&output.stderr);
    let expected = "ilm-launch: rank 1 failed first: killed by signal 9 (SIGKILL)\n    [rank 1] about to fail\n\
                    ilm-launch: its whole output is in runs/a/logs/rank-1.log\n";
    assert!(report.ends_with(expected), "{report}");
    assert_eq!(bench.read("runs/a/logs/rank-1.log"), "about to fail\n");
}

#[test]
fn the_rank_that_failed_first_gives_the_code() {
    let bench =
        Bench::new("if [ $RANK = 2 ]; then exit 3; fi\ntrap 'exit 5' TERM\nwhile :; do sleep 0.1; done");
    let output = bench.run(3, &[], &[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("rank 2 failed first: exit code 3 (data)"));
}

#[test]
fn an_mpi_program_that_aborts_is_named_with_its_code() {
    let bench = Bench::new("");
    let source = r"#include <mpi.h>
        int main(int argc, char **argv) {
            int rank;
            MPI_Init(&argc, &argv);
            MPI_Comm_rank(MPI_COMM_WORLD, &rank);
            MPI_Barrier(MPI_COMM_WORLD);
            if (rank == 1) MPI_Abort(MPI_COMM_WORLD, 101);
            for (;;) MPI_Barrier(MPI_COMM_WORLD);
        }";
    let file = bench.path().join("abort.c");
    fs::write(&file, source).unwrap();
    assert!(Command::new("mpicc").arg(&file).arg("-o").arg(bench.worker()).status().unwrap().success());
    let output = bench.run(2, &[], &[]);
    assert_eq!(output.status.code(), Some(101));
    assert!(text(&output.stderr).contains("rank 1 failed first: exit code 101 (panic)"));
}

#[test]
fn a_slurm_allocation_of_one_task_has_room_for_as_many_ranks_as_cores() {
    let bench = Bench::new("echo >> ran");
    let mut command = bench.command(2, &[], &[]);
    // What mpirun knows of an allocation; the launcher has counted cores itself.
    let allocation = [
        ("SLURM_JOB_ID", "1"),
        ("SLURM_JOBID", "1"),
        ("SLURM_JOB_NUM_NODES", "1"),
        ("SLURM_NNODES", "1"),
        ("SLURM_NODELIST", "localhost"),
        ("SLURM_JOB_NODELIST", "localhost"),
        ("SLURM_TASKS_PER_NODE", "1"),
    ];
    let output = command.envs(allocation).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(bench.read("ran"), "\n\n");
}

#[test]
fn a_failure_of_mpirun_itself_is_shown_in_its_words() {
    let bench = Bench::new("");
    let mut command = bench.command(1, &[], &[]);
    let output = command.env("OMPI_MCA_oob_tcp_if_include", "no-such-interface").output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    let report = text(&output.stderr);
    assert!(report.contains("mpirun failed, though no rank did: exit code"), "{report}");
    assert!(report.contains("no-such-interface"), "{report}");
}

#[test]
fn nothing_survives_a_killed_launcher() {
    // The second sleep belongs to neither launcher nor mpirun but to the script.
    let bench = Bench::new("sleep 1000 &\necho >> ready\nsleep 1000");
    let mut launcher = bench.start(2);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("all processes are gone", || bench.processes().is_empty());
}

#[test]
fn nothing_survives_a_killed_mpirun() {
    let bench = Bench::new("setsid sleep 1000 &\necho >> ready\nexec sleep 1000");
    let launcher = bench.start(2);
    send("-KILL", bench.mpirun());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137));
    assert!(text(&output.stderr).contains("mpirun failed, though no rank did: killed by signal 9 (SIGKILL)"));
    assert_eq!(bench.processes(), Vec::<u32>::new());
}

/// Open MPI's files of the run whose ranks wrote their job's number to the file `job`.
fn shared_files(bench: &Bench) -> Vec<String> {
    let job: u32 = bench.read("job").lines().next().unwrap().parse().unwrap();
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let mut files = names(Path::new("/dev/shm"));
    files.retain(|name| name.contains(&format!(".{job:x}.")));
    files.extend(names(bench.path()).into_iter().filter(|name| name.starts_with("ompi.")));
    files
}

#[test]
fn no_shared_memory_survives_a_killed_mpirun() {
    let bench = Bench::new("echo $OMPI_MCA_ess_base_jobid >> job\nexec ./meet");
    bench.compile_meeting("meet");
    let launcher = bench.start(2);
    assert_eq!(shared_files(&bench).len(), 2);
    send("-KILL", bench.mpirun());
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(137));
    assert_eq!(shared_files(&bench), Vec::<String>::new());
}

#[test]
fn no_shared_memory_survives_launcher_and_mpirun_killed_together() {
    let bench = Bench::new("echo $OMPI_MCA_ess_base_jobid >> job\nexec ./meet");
    bench.compile_meeting("meet");
    let mut launcher = bench.start(2);
    let mpirun = bench.mpirun();
    // Stopped first, so that neither can do anything about the end of the other.
    for (signal, pid) in
        [("-STOP", launcher.id()), ("-STOP", mpirun), ("-KILL", mpirun), ("-KILL", launcher.id())]
    {
        send(signal, pid);
    }
    launcher.wait().unwrap();
    wait_until("all processes are gone", || bench.processes().is_empty());
    assert_eq!(shared_files(&bench), Vec::<String>::new());
}

#[test]
fn what_a_worker_leaves_behind_is_ended() {
    let bench = Bench::new("setsid sleep 1000 >/dev/null 2>&1 &\nsetsid sleep 1000 &\nexit 0");
    assert_eq!(bench.run(2, &[], &[]).status.code(), Some(0));
}

#[test]
fn errors_of_the_command_line_are_one_sentence_and_code_2() {
    let bench = Bench::new("");
    let check = |command: &mut Command, message: &str| {
        let output = command.output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(2), format!("ilm-launch: {message}\n"))
        );
    };
    check(&mut bench.command(0, &[], &[]), "-n 0 starts no rank; ask for 1 or more");
    check(
        Command::new(LAUNCHER).args(["run", "--", "train"]),
        "how many ranks? say -n N, or --hosts a:8,b:8 for several machines",
    );
    check(
        &mut bench.command(3, &["--hosts", "a:1,b:1"], &["--run-dir", "run"]),
        "-n 3 is more than the 2 ranks that --hosts has room for",
    );
    let run = |option: &str, value: &str| {
        let output = Command::new(LAUNCHER).args(["run", option, value, "--", "train"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        text(&output.stderr).lines().next().unwrap().to_owned()
    };
    let message = run("-n", "99999999999");
    assert!(message.ends_with("99999999999 is not in 0..=1000000"), "{message}");
    let message = run("--restart-delay", "1e19");
    assert!(message.ends_with("more than a year (31536000 seconds)"), "{message}");
    let message = run("--hosts", "a:18446744073709551615,b:1");
    assert!(message.contains("'a:18446744073709551615' has more ranks than a machine can have"), "{message}");
    check(
        &mut bench.command(1, &["--hosts", "a:1"], &[]),
        "several machines need --run-dir DIR among the worker's arguments, on a file system that they share",
    );
    check(
        bench.command(1, &[], &[]).env("PATH", bench.path()),
        "mpirun is not in PATH; install it with: apt install openmpi-bin",
    );
    check(
        Command::new(LAUNCHER).args(["run", "-n", "1", "--worker", "no/worker"]),
        "--worker no/worker is not an executable file",
    );
    // A copy, so that no ilm-worker built beside it is found.
    let copy = bench.path().join("ilm-launch");
    fs::copy(LAUNCHER, &copy).unwrap();
    let missing = format!(
        "ilm-worker is neither in {} nor in PATH; build it with cargo build --release or name it with --worker",
        bench.path().display()
    );
    check(Command::new(&copy).args(["run", "-n", "1"]), &missing);
}
