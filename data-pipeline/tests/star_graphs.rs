//! Generated star graphs: their shape, their distribution, disjoint splits, and the same rows from files.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
};

use data_pipeline::{
    DataConfig, Dataset, Split, StarConfig, StarDataset, StarGraph, StarKind, Task, Tokenizer, materialise,
};

fn easy() -> StarConfig {
    StarConfig { train_size: 3000, validation_size: 300, test_size: 600, ..StarConfig::default() }
}

fn hard() -> StarConfig {
    StarConfig {
        kind: StarKind::Asymmetric,
        degree: 5,
        min_path_length: 6,
        max_path_length: 12,
        min_plan_length: 5,
        num_nodes: 56,
        ..easy()
    }
}

fn medium() -> StarConfig {
    StarConfig { kind: StarKind::Asymmetric, ..easy() }
}

fn graphs(config: &StarConfig, split: Split, seed: u64) -> Vec<StarGraph> {
    let dataset = StarDataset::new(config, split, seed).unwrap();
    (0..dataset.len()).map(|row| dataset.graph(row).unwrap()).collect()
}

/// What holds of every star: a tree but for arms that enter the centre, with the path along edges.
fn check_shape(graph: &StarGraph, config: &StarConfig) {
    let edges: BTreeSet<_> = graph.edges.iter().copied().collect();
    assert_eq!(edges.len(), graph.edges.len(), "no edge twice");
    assert!(graph.path.windows(2).all(|pair| edges.contains(&(pair[0], pair[1]))));
    assert_eq!((graph.path.first(), graph.path.last()), (Some(&graph.source), Some(&graph.goal)));
    let nodes: BTreeSet<u32> = graph.edges.iter().flat_map(|&(from, to)| [from, to]).collect();
    assert!(nodes.iter().all(|&node| (node as usize) < config.num_nodes));
    // Arms share the centre only: a forest with as many joints as nodes less one.
    assert_eq!(nodes.len(), graph.edges.len() + 1);
    let out = |node: u32| graph.edges.iter().filter(|edge| edge.0 == node).count();
    let centres: Vec<u32> = nodes.iter().copied().filter(|&node| out(node) == config.degree).collect();
    assert_eq!(centres.len(), 1);
    assert!(graph.path.contains(&centres[0]));
    assert_eq!(nodes.iter().filter(|&&node| out(node) == 0).count(), config.degree, "one end an arm");
    let example = graph.example();
    assert_eq!(example.prompt.len(), 2 * graph.edges.len() + 2);
    assert_eq!(example.tokens.len(), 2 * (graph.path.len() - 1));
    assert_eq!(example.prompt[..2], [graph.edges[0].0 + 7, graph.edges[0].1 + 7]);
    assert_eq!(example.tokens[0], graph.source + 7);
}

#[test]
fn symmetric_graphs_have_the_configured_shape() {
    let mut first_edges = BTreeMap::new();
    for graph in graphs(&easy(), Split::Train, 1) {
        check_shape(&graph, &easy());
        assert_eq!((graph.edges.len(), graph.path.len()), (12, 5));
        let answer = graph.path.windows(2).any(|pair| (pair[0], pair[1]) == graph.edges[0]);
        *first_edges.entry(answer).or_insert(0) += 1;
    }
    // Edges are shuffled: the first one belongs to the path in a third of the graphs.
    assert!((900..1100).contains(&first_edges[&true]), "{first_edges:?}");
}

#[test]
fn asymmetric_graphs_reach_all_lengths_and_junctions() {
    for (config, edges, tokens) in [(medium(), 6..=15, 4..=10), (hard(), 25..=55, 10..=22)] {
        let (mut path_lengths, mut junctions) = (BTreeSet::new(), BTreeSet::new());
        for graph in graphs(&config, Split::Train, 1) {
            check_shape(&graph, &config);
            assert!(edges.contains(&graph.edges.len()) && tokens.contains(&graph.example().tokens.len()));
            let out = |node: u32| graph.edges.iter().filter(|edge| edge.0 == node).count();
            let junction = graph.path.iter().position(|&node| out(node) == config.degree).unwrap();
            assert!(graph.path.len() - junction > config.min_plan_length, "a plan follows the centre");
            path_lengths.insert(graph.path.len());
            junctions.insert(junction);
        }
        assert!(path_lengths.into_iter().eq(config.min_path_length..=config.max_path_length));
        assert!(junctions.into_iter().eq(0..config.max_path_length - config.min_plan_length));
    }
}

#[test]
fn goals_are_uniform() {
    let mut counts = [0f64; 20];
    for graph in graphs(&easy(), Split::Train, 1) {
        counts[graph.goal as usize] += 1.0;
    }
    let chi_square: f64 = counts.iter().map(|c| (c - 150.0).powi(2) / 150.0).sum();
    assert!(chi_square < 43.8, "19 degrees of freedom, p = 0.001: {chi_square}");
}

#[test]
fn rows_are_a_function_of_seed_split_and_row() {
    let base = graphs(&easy(), Split::Test, 1);
    let dataset = StarDataset::new(&easy(), Split::Test, 1).unwrap();
    assert!((0..600).rev().all(|row| dataset.graph(row).unwrap() == base[row as usize]));
    assert_ne!(base[0], graphs(&easy(), Split::Test, 2)[0]);
    let of_seed = |seed| StarDataset::new(&easy(), Split::Test, seed).unwrap().fingerprint().to_owned();
    assert_eq!(of_seed(1), dataset.fingerprint());
    assert_ne!(of_seed(2), dataset.fingerprint());
    assert_ne!(StarDataset::new(&easy(), Split::Train, 1).unwrap().fingerprint(), dataset.fingerprint());
    assert!(dataset.graph(600).is_err() && dataset.example(u64::MAX).is_err());
}

/// Runs are resumed by later versions: the graphs must never change.
#[test]
fn values_are_pinned() {
    let paths: Vec<Vec<u32>> =
        [easy(), medium()].iter().map(|config| graphs(config, Split::Train, 1)[0].path.clone()).collect();
    assert_eq!(paths, [[3, 12, 6, 11, 9], [13, 2, 15, 1, 7]]);
}

#[test]
fn no_graph_is_in_two_splits_whatever_the_seeds_and_the_order_of_edges() {
    // Few possible graphs, so that splits would collide if they could: 5 * 4 * 3 * 2 * 1 / 1 arms of 2 nodes.
    let config = StarConfig { degree: 2, path_length: 2, num_nodes: 8, ..easy() };
    let mut owner = BTreeMap::new();
    for split in Split::ALL {
        for seed in [1, 2] {
            for mut graph in graphs(&config, split, seed) {
                graph.edges.sort_unstable();
                let known = *owner.entry((graph.edges, graph.source, graph.goal)).or_insert(split);
                assert_eq!(known, split);
            }
        }
    }
    // Of 8 * 7 * 6 graphs nearly all have been drawn, in the shares of their classes.
    assert!(owner.len() > 300);
    for split in Split::ALL {
        assert!(owner.values().filter(|found| **found == split).count() > 5, "{split:?}");
    }
}

#[test]
fn settings_that_allow_no_graph_are_refused_in_a_sentence() {
    for (config, part) in [
        (StarConfig { degree: 0, ..easy() }, "degree = 0"),
        (StarConfig { path_length: 1, ..easy() }, "path_length = 1"),
        (StarConfig { num_nodes: 12, ..easy() }, "need 13"),
        (StarConfig { min_path_length: 7, ..medium() }, "above max_path_length = 6"),
        (StarConfig { min_plan_length: 3, ..medium() }, "min_plan_length = 3"),
        (StarConfig { min_plan_length: 0, ..medium() }, "min_plan_length = 0"),
        (StarConfig { test_size: 0, ..easy() }, "test_size = 0"),
        (StarConfig { num_nodes: usize::MAX, ..easy() }, "too many"),
        (StarConfig { degree: usize::MAX, ..easy() }, "num_nodes = 20 is too few"),
        // Two graphs in all: some split gets none.
        (StarConfig { degree: 1, path_length: 2, num_nodes: 2, ..easy() }, "too few different graphs"),
    ] {
        let errors = Split::ALL.map(|split| StarDataset::new(&config, split, 1).err());
        let error = errors.into_iter().flatten().next().unwrap();
        assert!(error.is_config() && error.to_string().contains(part), "{error}");
    }
    assert!(StarDataset::new(&StarConfig { num_nodes: 13, ..easy() }, Split::Train, 1).is_ok());
}

#[test]
fn files_hold_the_same_rows() {
    let config = StarConfig { train_size: 12_345, validation_size: 10, test_size: 20, ..medium() };
    let dir = tempfile::tempdir().unwrap();
    let files = materialise(&config, 3, dir.path()).unwrap();
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
            "validation-00000-of-00001.parquet",
            "test-00000-of-00001.parquet"
        ]
    );
    let location = |split: Split| Some(format!("{}/{}-*.parquet", dir.path().display(), split.name()).into());
    let from_files = DataConfig {
        task: Task::Star,
        star: config.clone(),
        train: location(Split::Train),
        validation: location(Split::Validation),
        test: location(Split::Test),
        ..DataConfig::default()
    };
    let generated = DataConfig { task: Task::Star, star: config.clone(), ..DataConfig::default() };
    let tokenizer = Arc::new(Tokenizer::numbers(20));
    for split in Split::ALL {
        let read = from_files.open_split(split, &tokenizer, 3).unwrap();
        let made = generated.open_split(split, &tokenizer, 3).unwrap();
        assert_eq!(read.len(), made.len());
        for row in (0..read.len()).step_by(7) {
            assert_eq!(read.example(row).unwrap().unwrap(), made.example(row).unwrap().unwrap());
        }
    }
}

#[test]
fn writing_goes_on_with_the_files_that_are_missing() {
    let config = StarConfig { train_size: 10_010, validation_size: 10, test_size: 20, ..easy() };
    let dir = tempfile::tempdir().unwrap();
    let write = |config: &StarConfig, seed| materialise(config, seed, dir.path());
    let files = write(&config, 3).unwrap();
    // A file that is written anew is another one, whatever the clock says.
    let kept = |path: &PathBuf| (fs::read(path).unwrap(), fs::metadata(path).unwrap().ino());
    let before: Vec<_> = files.iter().map(kept).collect();
    // What a kill leaves: half a file under another name.
    fs::remove_file(&files[1]).unwrap();
    fs::write(files[1].with_extension("partial"), "half a file").unwrap();
    assert_eq!(write(&config, 3).unwrap(), files);
    for (index, (path, (content, inode))) in files.iter().zip(before).enumerate() {
        let now = kept(path);
        assert!(now.0 == content, "other bytes in {}", path.display());
        assert!(index == 1 || now.1 == inode, "{} was written again", path.display());
    }

    let refusal = |config: &StarConfig, seed| {
        let error = write(config, seed).unwrap_err();
        assert!(error.is_config(), "{error}");
        error.to_string()
    };
    assert!(refusal(&config, 4).contains("seed = 3, and now it is 4"));
    let larger = StarConfig { num_nodes: 21, ..config.clone() };
    assert!(refusal(&larger, 3).contains("data.star.num_nodes = 20, and now it is 21"));
    fs::remove_file(dir.path().join("prepare.json")).unwrap();
    assert!(refusal(&config, 3).contains("was not made by this job"));
}
