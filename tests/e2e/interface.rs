//! Commands, help and mistakes on the command line.

use crate::program::{Finished, checkpoint_steps, mpirun, mpirun_through, run, tiny_star, worker};

fn worker_with(arguments: &[&str]) -> Finished {
    run(worker().args(arguments))
}

fn mistake(arguments: &[&str]) -> String {
    worker_with(arguments).expect(2).sentence()
}

#[test]
fn experiments_are_listed_with_one_line_each() {
    let finished = worker_with(&["experiments"]).expect(0);
    for name in ["star_easy_ilm", "star_medium_ilm", "star_hard_ilm", "text_ilm", "lm1b_ilm", "owt_ilm"] {
        let line = finished.stdout.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.len() > name.len() + 10), "{name}: {line:?}");
    }
}

#[test]
fn config_shows_values_with_their_origin() {
    let finished = worker_with(&["config", "--experiment", "star_easy_ilm", "optimizer.lr=0.5"]).expect(0);
    let line = |key: &str| {
        let found = finished.stdout.lines().find(|line| line.starts_with(&format!("{key} ")));
        found.unwrap_or_else(|| panic!("{key} is missing in\n{}", finished.stdout)).to_string()
    };
    assert!(line("optimizer.lr").contains("0.5") && line("optimizer.lr").contains("command line"));
    assert!(line("model.d_model").contains("768") && line("model.d_model").contains("rotary_small.toml"));
    assert!(line("model.layer_norm_eps").contains("default"));
}

#[test]
fn a_wrong_key_names_the_right_one() {
    let sentence = mistake(&["--experiment", "star_easy_ilm", "optimiser.lr=1"]);
    assert!(sentence.contains("unknown key 'optimiser.lr' (did you mean 'optimizer.lr'?)"), "{sentence}");
}

#[test]
fn an_unknown_experiment_names_the_nearest() {
    let sentence = mistake(&["--experiment", "star_esy_ilm"]);
    assert!(sentence.contains("star_easy_ilm"), "{sentence}");
}

#[test]
fn a_batch_of_nothing_is_refused() {
    let sentence = mistake(&["--experiment", "star_easy_ilm", "global_batch_size=0"]);
    assert!(sentence.contains("global_batch_size = 0"), "{sentence}");
}

#[test]
fn rotary_dimensions_above_the_head_width_are_refused() {
    let sentence = mistake(&["--experiment", "star_easy_ilm", "model.rotary_emb_dim=128"]);
    assert!(sentence.contains("rotary_emb_dim") && sentence.contains("64"), "{sentence}");
}

#[test]
fn missing_data_is_one_sentence_under_mpirun_too() {
    for arguments in
        [&["--experiment", "lm1b_ilm"][..], &["--experiment", "lm1b_ilm", "data.train=/does/not/exist"]]
    {
        let sentence = mistake(arguments);
        assert!(sentence.contains("data.t") || sentence.contains("/does/not/exist"), "{sentence}");
        run(mpirun(2).args(arguments)).expect(2).sentence();
    }
}

#[test]
fn more_ranks_than_lanes_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = mpirun(3);
    command.args(["--experiment", "star_easy_ilm", "data.canonical_lanes=2"]);
    let finished = run(command.arg("--run-dir").arg(folder.path())).expect(2);
    let sentence = finished.sentence();
    assert!(sentence.contains("3 ranks are more than data.canonical_lanes = 2"), "{sentence}");
}

#[test]
fn dry_run_shows_the_plan_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path().join("run");
    let finished = run(worker().args(tiny_star(&run_dir)).arg("--dry-run")).expect(0);
    for label in ["experiment", "model", "data", "ranks", "batch", "run dir"] {
        assert!(finished.stdout.lines().any(|line| line.starts_with(label)), "{label}\n{}", finished.stdout);
    }
    assert!(!run_dir.exists());
}

#[test]
fn prepared_graphs_train_like_generated_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let graphs = folder.path().join("graphs");
    let sizes = ["data.star.train_size=40", "data.star.validation_size=8", "data.star.test_size=8"];
    let mut prepare = worker();
    prepare.args(["prepare", "--experiment", "star_easy_ilm", "--output"]).arg(&graphs).args(sizes);
    run(&mut prepare).expect(0);
    let run_dir = folder.path().join("run");
    let train = format!("data.train={}/train-*.parquet", graphs.display());
    run(worker().args(tiny_star(&run_dir)).args(["trainer.max_steps=3", &train])).expect(0);
}

#[test]
fn ranks_that_see_other_rows_or_settings_do_not_begin() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (host, rows) in [("a", 40), ("b", 32)] {
        let mut prepare = worker();
        prepare.args(["prepare", "--experiment", "star_easy_ilm", "--output"]);
        prepare.arg(folder.path().join(host).join("graphs")).arg(format!("data.star.train_size={rows}"));
        prepare.args(["data.star.validation_size=8", "data.star.test_size=8"]);
        run(&mut prepare).expect(0);
    }
    // The second rank may be in another folder and have another seed.
    let start = |second_rank: &str| {
        let script =
            format!("test $OMPI_COMM_WORLD_RANK = 0 || {{ {second_rank}; }}; exec \"$0\" \"$@\" seed=$SEED");
        let mut command = mpirun_through(2, &script);
        command.args(tiny_star(&folder.path().join("run")));
        command.args(["trainer.max_steps=3", "data.train=graphs/train-*.parquet"]);
        run(command.env("SEED", "1").current_dir(folder.path().join("a")))
    };
    let sentence = start("cd ../b").expect(5).sentence();
    assert!(sentence.contains("training data differ between ranks: rank 0 has 40 rows"), "{sentence}");
    assert!(sentence.contains("rank 1 has 32 rows"), "{sentence}");
    let sentence = start("SEED=2").expect(5).sentence();
    assert!(sentence.contains("settings differ between ranks: "), "{sentence}");
    start("true").expect(0);
}

#[test]
fn an_output_that_nobody_reads_is_no_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = worker();
    command.args(tiny_star(folder.path())).arg("trainer.max_steps=2");
    command.stdout(writer.try_clone().expect("a pipe")).stderr(writer);
    assert_eq!(command.status().expect("the worker starts").code(), Some(0));
    assert_eq!(checkpoint_steps(folder.path()), [2]);
}

#[test]
fn a_folder_that_is_no_run_directory_is_said_to_be_none_and_the_reason_once() {
    let sentence = mistake(&["evaluate", "--run-dir", "/no/run"]);
    assert_eq!(sentence.matches("No such file or directory").count(), 1, "{sentence}");
    let cure = "; /no/run is no run directory, so name the folder of a run with --run-dir";
    assert!(sentence.ends_with(cure), "{sentence}");
}
