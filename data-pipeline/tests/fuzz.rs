//! Thousands of damaged files, from a seed: none brings the reader down. `examples/fuzz_parquet.rs` does it for longer.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

#[path = "support/fuzz.rs"]
mod fuzz;
#[path = "support/memory.rs"]
mod memory;

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted;

#[test]
fn no_damage_panics_or_takes_memory_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["null_texts", "corrupt_page_crc"]
        .map(|name| test_support::data_dir().join("bad").join(format!("{name}.parquet")));
    let mut fuzzer = fuzz::Fuzzer::new(dir.path(), 11, &files);
    for _ in 0..4000 {
        fuzzer.step().unwrap();
    }
    let tally = fuzzer.tally;
    assert!(tally.refused > 500 && tally.bad_rows > 500 && tally.sound > 100, "{tally:?}");
}
