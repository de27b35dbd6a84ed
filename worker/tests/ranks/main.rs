//! What several ranks do together: each test starts itself again under mpirun.

mod balance;
mod elastic;
mod exchange;
mod gather;
mod proof;
mod saving;
mod state;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use worker::comm::{Collectives, LaunchEnv, connect};

/// Where the ranks of a test find the folder that its jobs share.
const FOLDER: &str = "ILM_RANKS_FOLDER";

/// Runs `body` on every rank if this is one; otherwise starts `ranks` of them on the test of that name.
fn on_ranks(test: &str, ranks: &[usize], body: impl Fn(&mut dyn Collectives)) {
    on_ranks_with(&[], test, ranks, body);
}

/// The same with more variables in the ranks' environment.
fn on_ranks_with(
    variables: &[(&str, &str)],
    test: &str,
    ranks: &[usize],
    body: impl Fn(&mut dyn Collectives),
) {
    start(variables, Path::new(""), test, ranks, |comm, _| body(comm));
}

/// The same with a folder for all jobs of the test, and `after` for when all have ended.
fn on_ranks_in(
    folder: &Path,
    test: &str,
    ranks: &[usize],
    body: impl Fn(&mut dyn Collectives, &Path),
    after: impl FnOnce(),
) {
    if start(&[], folder, test, ranks, body) {
        after();
    }
}

/// Whether this is the process that has started the ranks.
fn start(
    variables: &[(&str, &str)],
    folder: &Path,
    test: &str,
    ranks: &[usize],
    body: impl Fn(&mut dyn Collectives, &Path),
) -> bool {
    let env = LaunchEnv::detect();
    if env.is_some() {
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap_or_default());
        let mut comm = connect(env.as_ref(), Duration::from_secs(60)).expect("ranks that connect");
        body(&mut *comm, &folder);
        return false;
    }
    for ranks in ranks {
        let program = std::env::current_exe().expect("the test knows its own path");
        let output = Command::new("mpirun")
            .args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()])
            .arg(program)
            .args(["--exact", test, "--test-threads=1", "--nocapture"])
            .env(FOLDER, folder)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
            .env("OMPI_MCA_oob_tcp_if_include", "lo")
            .env("OMPI_MCA_btl_tcp_if_include", "lo")
            .envs(variables.iter().copied())
            .output()
            .expect("mpirun starts");
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{ranks} ranks\n{}\n{}", told(&output.stdout), told(&output.stderr));
    }
    true
}
