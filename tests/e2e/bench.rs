//! `ilm-worker bench`: every measurement runs, and prints lines whose fields keep their names.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::program::{Finished, mpirun, run, worker};

const COMMON: [&str; 5] = ["bench", "case", "precision", "threads", "ranks"];

/// The lines of a finished measurement; every one has the common fields, times above 0, and exactly `fields` beside.
fn lines(finished: &Finished, bench: &str, fields: &[&str]) -> Vec<Value> {
    let names: BTreeSet<&str> = [&COMMON, &["median_s", "min_s"][..], fields].concat().into_iter().collect();
    let parse = |line: &str| serde_json::from_str::<Value>(line).expect("a line is JSON");
    let lines: Vec<Value> = finished.stdout.lines().map(parse).collect();
    assert!(!lines.is_empty());
    for line in &lines {
        let found: BTreeSet<&str> =
            line.as_object().expect("a line is an object").keys().map(String::as_str).collect();
        assert_eq!(found, names);
        assert_eq!(line["bench"], bench);
        assert!(line["median_s"].as_f64() >= line["min_s"].as_f64());
        assert!(line["min_s"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}");
    }
    lines
}

fn quick(bench: &str, arguments: &[&str]) -> Finished {
    run(worker().args(["bench", bench, "--quick", "trainer.threads=1"]).args(arguments)).expect(0)
}

const STEP: [&str; 9] = [
    "exposed_s",
    "rank_wait_s",
    "examples_per_s",
    "tokens_per_s",
    "useful_flops",
    "flops_per_s",
    "gemm_ceiling_flops_per_s",
    "share_of_ceiling",
    "peak_rss_mib",
];

#[test]
fn steps_of_every_kind_of_data_in_both_precisions() {
    let finished = quick("step", &[]);
    let lines = lines(&finished, "step", &STEP);
    let cases: Vec<(&str, &str)> =
        lines.iter().filter_map(|line| Some((line["case"].as_str()?, line["precision"].as_str()?))).collect();
    for case in ["star_easy_tiny_2", "lm1b_tiny_2", "owt_tiny_2"] {
        assert!(cases.contains(&(case, "bf16")) && cases.contains(&(case, "fp32")), "{cases:?}");
    }
    let directory = tempfile::tempdir().expect("a temporary folder");
    let file = directory.path().join("found.jsonl");
    fs::write(&file, &finished.stdout).expect("a file can be written");
    let table = run(worker().args(["bench", "--table"]).arg(&file)).expect(0).stdout;
    assert!(table.contains("| owt_tiny_2 | fp32 | 1 x 1 |"), "{table}");
}

#[test]
fn an_experiment_is_measured_on_its_own_data() {
    let arguments = ["--experiment", "star_easy_ilm", "model=rotary_tiny", "trainer.precision=fp32"];
    let found = lines(&quick("step", &arguments), "step", &STEP);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["case"], "star_easy_ilm");
}

#[test]
fn ranks_share_a_step_and_their_reduction_is_measured() {
    let measure = |bench: &str| {
        let arguments = ["bench", bench, "--quick", "--case", "star_easy_tiny_8", "--precision", "fp32"];
        run(mpirun(2).args(arguments)).expect(0)
    };
    let alone = quick("step", &["--case", "star_easy_tiny_8", "--precision", "fp32"]);
    let shared = lines(&measure("step"), "step", &STEP);
    assert_eq!(shared[0]["ranks"], 2);
    assert_eq!(shared[0]["useful_flops"], lines(&alone, "step", &STEP)[0]["useful_flops"]);
    lines(&measure("reduce"), "reduce", &["bytes", "bytes_per_s", "sent_bytes_per_s"]);
}

#[test]
fn the_parts_of_a_step_are_measured_by_themselves() {
    let parts: [(&str, &[&str]); 6] = [
        ("gemm", &["product", "rows", "inputs", "outputs", "flops_per_s", "torch_flops_per_s"]),
        (
            "head",
            &["dense_median_s", "scored_rows", "dense_rows", "flops_per_s", "peak_mib", "dense_peak_mib"],
        ),
        ("attention", &["length", "rows", "tokens_per_s", "flops_per_s"]),
        ("optimizer", &["parameters", "bytes_per_s", "copy_bytes_per_s"]),
        ("collate", &["examples_per_s", "tokens_per_s"]),
        ("predict", &["rows", "tokens", "tokens_per_s"]),
    ];
    for (bench, fields) in parts {
        let found = lines(&quick(bench, &["--case", "lm1b_tiny_2", "--precision", "bf16"]), bench, fields);
        assert!(found.iter().all(|line| line["case"] == "lm1b_tiny_2" && line["precision"] == "bf16"));
    }
}

#[test]
fn mistakes_are_one_sentence() {
    for (arguments, part) in [
        (&["bench", "step", "--case", "lm1b_huge_8"][..], "lm1b_full_64"),
        (&["bench", "reduce"], "mpirun -n 2"),
        (&["bench", "--table", "not-there.jsonl"], "not-there.jsonl"),
        (&["bench", "step", "optimiser.lr=1"], "optimizer.lr"),
        (&["bench", "step", "--experiment", "text_ilm"], "data.train"),
    ] {
        let sentence = run(worker().args(arguments)).expect(2).sentence();
        assert!(sentence.contains(part), "{sentence}");
    }
}
