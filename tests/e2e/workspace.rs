//! Rules of the workspace itself: which crate may know which, and what may not be written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Normal dependencies of every package in the graph, by name.
fn dependency_graph() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(root())
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let names: BTreeMap<String, String> = array(&metadata["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let is_normal = |dep: &Value| array(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let nodes = array(&metadata["resolve"]["nodes"]);
    let dependencies = |node: &Value| {
        array(&node["deps"])
            .iter()
            .filter(|dep| is_normal(dep))
            .map(|dep| names[&text(&dep["pkg"])].clone())
            .collect()
    };
    nodes.iter().map(|node| (names[&text(&node["id"])].clone(), dependencies(node))).collect()
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_string()];
    while let Some(name) = open.pop() {
        for next in &graph[&name] {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn crates_know_only_whom_they_may() {
    let graph = dependency_graph();
    let libraries = ["data-pipeline", "ilm-model", "checkpoints"];
    let tensors = ["tch", "torch-sys"];
    for (package, allowed, without) in [
        ("files", &[][..], &["tch", "torch-sys", "mpi", "mpi-sys"][..]),
        ("data-pipeline", &[], &["tch", "torch-sys", "mpi", "mpi-sys"]),
        ("checkpoints", &[], &["tch", "torch-sys", "mpi", "mpi-sys"]),
        ("ilm-model", &[], &["mpi", "mpi-sys", "parquet"]),
        ("launcher", &[], &["tch", "torch-sys", "mpi", "mpi-sys"]),
        ("worker", &libraries, &[]),
    ] {
        let all = reachable(&graph, package);
        let others = libraries.iter().chain(&["worker", "launcher"]).filter(|name| all.contains(**name));
        for other in others {
            assert!(allowed.contains(other), "{package} must not depend on {other}");
        }
        for name in without {
            assert!(!all.contains(*name), "{package} must not link {name}");
        }
    }
    assert!(
        tensors.iter().all(|name| reachable(&graph, "worker").contains(*name)),
        "the graph is read rightly"
    );
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable folder").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    const MOST_LINES: usize = 500;
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    assert!(files.len() > 40);
    for file in files {
        let text = fs::read_to_string(&file).expect("readable file");
        assert!(text.starts_with("//! "), "{} begins without a sentence on its purpose", file.display());
        assert!(text.lines().count() <= MOST_LINES, "{} is longer than {MOST_LINES} lines", file.display());
    }
}
