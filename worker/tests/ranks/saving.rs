//! A save that one rank cannot write is given up by all of them together, and the next one is as good as any.

use std::fs;
use std::os::unix::fs::symlink;

use checkpoints::Store;
use ilm_model::Precision;
use worker::comm::Collectives;
use worker::config::Experiment;
use worker::exit;
use worker::train::{Saver, TrainState};

use crate::on_ranks_in;
use crate::state::{experiment, facts, state_with};

/// Whether the state was saved as that of `step`.
fn saves(
    saver: &mut Saver,
    comm: &mut dyn Collectives,
    config: &Experiment,
    state: &mut TrainState,
    step: u64,
) -> anyhow::Result<bool> {
    state.step = step;
    saver.begin(comm, config, state)?;
    // The end of writing, and that of the commit.
    saver.advance(comm, config)?;
    saver.advance(comm, config)?;
    Ok(saver.take_saved().is_some_and(|saved| saved.step == step))
}

#[test]
fn a_save_that_one_rank_cannot_write_is_given_up_by_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let test = "saving::a_save_that_one_rank_cannot_write_is_given_up_by_all";
    on_ranks_in(
        folder.path(),
        test,
        &[2],
        |comm, folder| {
            for asynchronous in [true, false] {
                let mut config = experiment(true);
                config.checkpoint.asynchronous = asynchronous;
                // Rank 1 finds the folder of a save only while the link is there.
                let [shared, link] =
                    ["shared", "link"].map(|name| folder.join(format!("{name}-{asynchronous}")));
                let is_apart = comm.rank() == 1;
                let store = Store::open(if is_apart { &link } else { &shared }).expect("a store");
                let mut state = state_with(comm, true, Precision::Fp32);
                let saver = Saver::new(store, facts(), comm, &config, &state);
                let mut saver = saver.expect("memory for a copy");
                let mut saves = |comm: &mut dyn Collectives, step: u64| {
                    saves(&mut saver, comm, &config, &mut state, step)
                };

                assert!(!saves(comm, 10).expect("training goes on"));
                if is_apart {
                    symlink(&shared, &link).expect("the name is free");
                }
                assert!(saves(comm, 20).expect("training goes on"), "the next one is whole");
                if is_apart {
                    fs::remove_file(&link).expect("the link is there");
                }
                for step in [30, 40] {
                    assert!(!saves(comm, step).expect("what has failed before 20 does not count"));
                }
                let error = saves(comm, 50).expect_err("the third in a row");
                let said = format!("{error:#}");
                assert!(said.starts_with("3 saves in a row have failed, the last one that of step 50: "));
                assert!(said.contains("rank 1: cannot write ") && said.contains("rank-00001"), "{said}");
                assert_eq!(exit::code_of(&error), exit::CHECKPOINT);
                let last = saver.save_now(comm, &config, &state).expect_err("it is the last one");
                assert_eq!(exit::code_of(&last), exit::CHECKPOINT);

                if !is_apart {
                    let entries = fs::read_dir(shared.join("checkpoints")).expect("a readable folder");
                    let mut names: Vec<_> = entries.map(|entry| entry.expect("a file").file_name()).collect();
                    names.sort();
                    assert_eq!(names, [".lock", "step-000000020"], "nothing is left of the others");
                    let found = Store::open(&shared).and_then(|store| store.newest_valid());
                    let newest = found.expect("a folder").checkpoint.expect("a valid checkpoint");
                    assert_eq!(newest.state().step, 20);
                }
            }
        },
        || {},
    );
}
