//! What a rank asks of the kernel for its memory.

use std::fs;
use std::path::Path;

use crate::program::{Signal, kill, last_step, ranks, start, tiny_star, wait, wait_until};

/// The flags of the mappings that a process's heap consists of.
fn heap_flags(id: u32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
    let mut inside = false;
    let mut flags = Vec::new();
    for line in maps.lines() {
        if let Some(found) = line.strip_prefix("VmFlags:") {
            flags.extend(inside.then(|| found.to_owned()));
        } else if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            inside = line.ends_with("[heap]");
        }
    }
    flags
}

#[test]
fn the_heap_asks_for_huge_pages() {
    if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        eprintln!("skipped: this kernel has no transparent huge pages");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = ranks(1);
    let child = start(command.args(tiny_star(folder.path())).arg("trainer.max_steps=100000"));
    wait_until("some steps", || last_step(folder.path()) >= 2);
    let flags = heap_flags(child.id());
    kill(Signal::SIGTERM, child.id());
    wait(child).expect(75);
    let asks = |flags: &String| flags.split_whitespace().any(|flag| flag == "hg");
    assert!(flags.iter().any(asks), "{flags:?}");
}
