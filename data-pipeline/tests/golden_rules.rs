//! The reference's smaller rules: padding, detokenizer, number tokenizer, star graphs and batch arithmetic.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod streams;

use std::{collections::BTreeMap, sync::Arc};

use data_pipeline::{
    DataConfig, Dataset, Example, PadSide, SpecialTokens, StarGraph, Tokenizer, detokenize_lm1b, pad_truncate,
};
use serde::{Deserialize, de::DeserializeOwned};
use streams::{Rows, Run, none_missing};

fn json<T: DeserializeOwned>(name: &str) -> T {
    let bytes = std::fs::read(test_support::golden_dir().join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn golden_pad_truncate() {
    #[derive(Deserialize)]
    struct Pad {
        ids: Vec<i64>,
        max_len: usize,
        pad: serde_json::Value,
        pad_left: bool,
        out: Vec<i64>,
    }
    let mut compared = 0;
    for case in json::<Vec<Pad>>("pad_truncate.json") {
        let side = if case.pad_left { PadSide::Left } else { PadSide::Right };
        // Padding with a cycle of several ids has no use here. At width 0 the reference's left cut keeps everything
        // (a slice from -0); a width is a width here.
        if let (Some(pad), true) = (case.pad.as_i64(), case.max_len > 0) {
            assert_eq!(pad_truncate(&case.ids, case.max_len, pad, side), case.out);
            compared += 1;
        }
    }
    assert!(compared >= 7);
    assert!(pad_truncate(&[1, 2], 0, 0, PadSide::Left).is_empty());
}

#[test]
fn golden_lm1b_detokenizer() {
    #[derive(Deserialize)]
    struct Pair {
        input: String,
        output: String,
    }
    for pair in json::<Vec<Pair>>("lm1b_detokenizer.json") {
        assert_eq!(detokenize_lm1b(&pair.input), pair.output, "{:?}", pair.input);
    }
}

#[test]
fn golden_simple_space_tokenizer() {
    #[derive(Deserialize)]
    struct Golden {
        full_vocab_size: usize,
        vocab: BTreeMap<String, u32>,
        special: BTreeMap<String, u32>,
        encode: Vec<Encoded>,
        decode: Vec<Decoded>,
        rejected: Vec<Rejected>,
    }
    #[derive(Deserialize)]
    struct Encoded {
        text: String,
        ids: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct Decoded {
        ids: Vec<u32>,
        keep_special_tokens: String,
    }
    #[derive(Deserialize)]
    struct Rejected {
        text: String,
    }
    for (name, count) in [("for_numbers_16", 16), ("for_numbers_56", 56)] {
        let mut all: BTreeMap<String, serde_json::Value> = json("simple_space_tokenizer.json");
        let golden: Golden = serde_json::from_value(all.remove(name).unwrap()).unwrap();
        let tokenizer = Tokenizer::numbers(count);
        assert_eq!(tokenizer.vocab_size(), golden.full_vocab_size);
        for (piece, id) in golden.vocab {
            assert_eq!(tokenizer.encode(&piece).unwrap(), [id]);
        }
        let SpecialTokens { pad, cls, mask, eos, bos, sep, unk } = *tokenizer.special();
        for (role, id) in [
            ("pad", pad),
            ("cls", cls),
            ("mask", mask),
            ("eos", eos),
            ("bos", bos),
            ("sep", sep),
            ("unk", unk),
        ] {
            assert_eq!(golden.special[role], id);
        }
        for case in golden.encode {
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids);
        }
        for case in golden.decode {
            assert_eq!(tokenizer.decode(&case.ids, false), case.keep_special_tokens);
            // The reference ignores the flag; here it is honoured.
            assert!(!tokenizer.decode(&case.ids, true).contains('['));
        }
        for case in golden.rejected {
            assert!(tokenizer.encode(&case.text).is_err(), "{:?}", case.text);
        }
    }
}

#[test]
fn golden_star_graphs() {
    #[derive(Deserialize)]
    struct Set {
        graphs: Vec<Graph>,
    }
    #[derive(Deserialize)]
    struct Graph {
        edge_list: Vec<(u32, u32)>,
        source: u32,
        goal: u32,
        path: Vec<u32>,
        example: Ids,
    }
    #[derive(Deserialize)]
    struct Ids {
        input_ids: Vec<u32>,
        prompt_ids: Vec<u32>,
    }
    let sets: BTreeMap<String, Set> = json("star_graphs.json");
    assert_eq!(sets.len(), 3);
    for graph in sets.into_values().flat_map(|set| set.graphs) {
        let ours =
            StarGraph { edges: graph.edge_list, source: graph.source, goal: graph.goal, path: graph.path };
        let wanted = Example { prompt: graph.example.prompt_ids, tokens: graph.example.input_ids };
        assert_eq!(ours.example(), wanted);
    }
}

#[test]
fn golden_grad_accum() {
    #[derive(Deserialize)]
    struct Arithmetic {
        global_batch: usize,
        per_device: usize,
        devices: usize,
        nodes: usize,
        accumulate: Option<usize>,
    }
    for case in json::<Vec<Arithmetic>>("grad_accum.json") {
        let world = case.devices.max(1) * case.nodes;
        let data = DataConfig { canonical_lanes: world, threads: 1, ..DataConfig::default() };
        let run = Run { data, per_device: case.per_device, world, ..Run::alone(case.global_batch) };
        let dataset: Arc<dyn Dataset> = Rows::new("rows", &[1000; 5], none_missing);
        let micro_batches = run.steps(&dataset, 1)[0].micro_batches.len();
        // Where the reference refuses the numbers, a step has a smaller micro-batch.
        let wanted = case.accumulate.unwrap_or(case.global_batch.div_ceil(world).div_ceil(case.per_device));
        assert_eq!(micro_batches, wanted, "{run:?}");
    }
}
