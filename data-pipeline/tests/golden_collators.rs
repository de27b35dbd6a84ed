//! The reference's batches: collators and the drop function.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{collections::BTreeMap, sync::Arc};

use data_pipeline::{Collator, Drops, Example, PackedBatch, PadSide, SampleKey, SpecialTokens, Tokenizer};
use safetensors::SafeTensors;
use serde::{Deserialize, de::DeserializeOwned};

fn json<T: DeserializeOwned>(name: &str) -> T {
    let bytes = std::fs::read(test_support::golden_dir().join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

struct Tensors(Vec<u8>);

impl Tensors {
    fn open(name: &str) -> Self {
        Self(std::fs::read(test_support::golden_dir().join(name)).unwrap())
    }

    /// A matrix of integers (or flags) by rows; a vector is one row.
    fn rows(&self, name: &str) -> Vec<Vec<i64>> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let values: Vec<i64> = match tensor.dtype() {
            safetensors::Dtype::I64 => tensor
                .data()
                .chunks_exact(8)
                .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
                .collect(),
            safetensors::Dtype::BOOL => tensor.data().iter().map(|&flag| i64::from(flag)).collect(),
            other => panic!("{name} is {other:?}"),
        };
        let width = tensor.shape().last().copied().unwrap();
        if width == 0 {
            vec![Vec::new(); tensor.shape()[0]]
        } else {
            values.chunks(width).map(<[i64]>::to_vec).collect()
        }
    }
}

/// The fixed drops of a golden case, by row; indices that were cut off are left out.
struct Fixed(Vec<Vec<usize>>);

impl Drops for Fixed {
    fn draw(&self, key: SampleKey, dropped: &mut [bool]) {
        for &index in &self.0[key.row as usize] {
            if let Some(flag) = dropped.get_mut(index) {
                *flag = true;
            }
        }
    }
}

fn special() -> SpecialTokens {
    *Tokenizer::numbers(16).special()
}

fn samples(prompts: &[Vec<u32>], tokens: &[Vec<u32>]) -> Vec<(SampleKey, Example)> {
    (0..tokens.len())
        .map(|row| {
            let key = SampleKey { position: row as u64, epoch: 0, row: row as u64 };
            let prompt = prompts.get(row).cloned().unwrap_or_default();
            (key, Example { prompt, tokens: tokens[row].clone() })
        })
        .collect()
}

#[derive(Deserialize)]
struct Collators {
    ilm_drop_fn: Vec<DropCase>,
    cases: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct DropCase {
    segment_input_ids: Vec<u32>,
    cls_token_id: Option<u32>,
    global_offset: i64,
    drop_indices: Vec<usize>,
    out: DropOutput,
}

#[derive(Deserialize)]
struct DropOutput {
    segment_input_ids_with_drops: Vec<i64>,
    segment_target_seq_indices: Vec<i64>,
    segment_target_vocab_indices: Vec<i64>,
}

#[derive(Deserialize)]
struct Case {
    args: Arguments,
    #[serde(default)]
    prompt_ids: Vec<Vec<u32>>,
    input_ids: Vec<Vec<u32>>,
    #[serde(default)]
    drop_indices: Vec<Vec<usize>>,
}

#[derive(Deserialize)]
struct Arguments {
    block_size: usize,
    input_block_size: Option<usize>,
    /// Absent: "block".
    #[serde(default, deserialize_with = "present")]
    truncate: Option<Option<String>>,
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// A row as (ids, types, targets by (place, id)), the form in which packed and dense batches are compared.
#[derive(Debug, PartialEq)]
struct PlainRow {
    ids: Vec<i64>,
    types: Vec<i64>,
    targets: BTreeMap<(i64, i64), i64>,
}

fn plain_rows(batch: &PackedBatch) -> BTreeMap<u64, PlainRow> {
    let mut rows = BTreeMap::new();
    for (row, sample) in batch.sample_ids().enumerate() {
        let range = batch.row(row);
        let mut targets = BTreeMap::new();
        for (place, at) in range.clone().enumerate() {
            assert_eq!(batch.positions()[at], place as i64);
            let gap = batch.gap(at);
            assert!(batch.tgt_ids()[gap.clone()].is_sorted_by(|a, b| a < b), "ids of a gap ascend");
            for entry in gap {
                targets.insert((place as i64, batch.tgt_ids()[entry]), batch.tgt_counts()[entry]);
            }
        }
        assert_eq!(batch.n_drops(row), targets.values().sum::<i64>());
        assert_eq!(batch.cls()[row], 0);
        let plain = PlainRow {
            ids: batch.tokens()[range.clone()].to_vec(),
            types: batch.token_types()[range].to_vec(),
            targets,
        };
        assert!(rows.insert(sample, plain).is_none());
    }
    let lengths: Vec<i64> = batch.row_ptr().windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(lengths.is_sorted(), "rows are sorted by length");
    for (pair, samples) in lengths.windows(2).zip(batch.samples().windows(2)) {
        assert!(pair[0] < pair[1] || samples[0].row < samples[1].row, "equal rows keep their order");
    }
    assert_eq!(batch.visible(), batch.tgt_ptr().len() - 1);
    assert_eq!(batch.rows(), batch.row_ptr().len() - 1);
    rows
}

/// The reference's dense batch without its pads.
fn golden_rows(tensors: &Tensors, case: &str) -> BTreeMap<u64, PlainRow> {
    let get = |field: &str| tensors.rows(&format!("{case}.{field}"));
    let (ids, mask, types) = (get("input_ids"), get("attention_mask"), get("token_type_ids"));
    let entries = get("target_ids.coo_indices");
    (0..ids.len())
        .map(|row| {
            let visible: Vec<usize> = (0..ids[row].len()).filter(|&at| mask[row][at] == 1).collect();
            let take = |from: &Vec<i64>| visible.iter().map(|&at| from[at]).collect::<Vec<i64>>();
            let mut targets = BTreeMap::new();
            for entry in (0..entries[0].len()).filter(|&entry| entries[0][entry] == row as i64) {
                let place = visible.iter().position(|&at| at as i64 == entries[1][entry]);
                if let Some(place) = place {
                    *targets.entry((place as i64, entries[2][entry])).or_insert(0) += 1;
                }
            }
            (row as u64, PlainRow { ids: take(&ids[row]), types: take(&types[row]), targets })
        })
        .collect()
}

fn collator(name: &str, case: &Case) -> Collator {
    let drops = Arc::new(Fixed(case.drop_indices.clone()));
    // "max" and null do not cut at the block but pad to the longest row.
    let block_size = if case.args.truncate.is_none() { case.args.block_size } else { 1000 };
    if name.starts_with("default") {
        Collator::language(block_size, &special(), drops).unwrap()
    } else {
        Collator::seq2seq(case.args.input_block_size, block_size, &special(), drops).unwrap()
    }
}

fn cases(prefix: &str) -> Vec<(String, Case)> {
    let golden: Collators = json("collators.json");
    let of_kind = golden.cases.into_iter().filter(|(name, _)| name.starts_with(prefix));
    of_kind.map(|(name, case)| (name, serde_json::from_value(case).unwrap())).collect()
}

#[test]
fn golden_collators() {
    let tensors = Tensors::open("collators.safetensors");
    let cases: Vec<_> = cases("default.").into_iter().chain(cases("seq2seq.")).collect();
    assert!(cases.len() >= 12);
    for (name, case) in cases {
        let ours = plain_rows(&collator(&name, &case).collate(&samples(&case.prompt_ids, &case.input_ids)));
        let dense = name == "default.block_dense";
        let mut wanted = golden_rows(&tensors, if dense { "default.block" } else { &name });
        for (row, wanted) in &mut wanted {
            // The reference gives a suffix's BOS the type 0.
            if let Some(bos) = wanted.ids.iter().position(|&id| id == 4) {
                wanted.types[bos] = 2;
            }
            let ours = &ours[row];
            let (prompt, tokens) = (case.prompt_ids.get(*row as usize), &case.input_ids[*row as usize]);
            let prompt_cut =
                prompt.zip(case.args.input_block_size).is_some_and(|(p, size)| p.len() + 1 > size);
            let reserved = if name.starts_with("default") { 2 } else { 1 };
            let tokens_cut = case.args.truncate.is_none() && tokens.len() + reserved > case.args.block_size;
            if prompt_cut {
                // The reference loses CLS; here the prompt gives up one id more.
                assert_eq!(ours.ids[0], 1, "{name}");
                assert_eq!(ours.ids[1..], wanted.ids[1..], "{name} row {row}");
                assert_eq!(ours.ids.len() as u64, wanted.ids.len() as u64, "{name} row {row}");
            } else if tokens_cut {
                // The reference cuts after dropping; here no target may point outside what is left.
                assert!(wanted.ids.starts_with(&ours.ids), "{name} row {row}");
                let room = case.args.block_size - reserved;
                let kept = case.drop_indices[*row as usize].iter().filter(|&&index| index < room).count();
                assert_eq!(ours.targets.values().sum::<i64>(), kept as i64, "{name} row {row}");
            } else {
                assert_eq!(ours, wanted, "{name} row {row}");
            }
        }
        assert_eq!(ours.len(), wanted.len());
    }
}

#[test]
fn golden_dense_views() {
    let tensors = Tensors::open("collators.safetensors");
    for (name, case) in cases("default.") {
        if name.contains("overlong") {
            continue;
        }
        let batch = collator(&name, &case).collate(&samples(&[], &case.input_ids));
        let wanted = tensors.rows(&format!("{name}.input_ids"));
        let dense = batch.dense_tokens(wanted[0].len(), 0, PadSide::Right);
        for (row, sample) in batch.sample_ids().enumerate() {
            assert_eq!(dense[row], wanted[sample as usize], "{name}");
        }
    }
}

#[test]
fn golden_prompts() {
    let tensors = Tensors::open("collators.safetensors");
    for (name, case) in cases("seq2seq_pred.") {
        let batch = collator(&name, &case).collate_prompts(&samples(&case.prompt_ids, &case.input_ids));
        let get = |field: &str| tensors.rows(&format!("{name}.{field}"));
        let (ids, mask, types) = (get("input_ids"), get("attention_mask"), get("token_type_ids"));
        let (targets, target_mask) = (get("target_ids"), get("target_attention_mask"));
        assert_eq!(batch.dense_tokens(ids[0].len(), 0, PadSide::Left), ids, "{name}");
        assert_eq!(batch.rows(), ids.len());
        let real = |values: &[i64], mask: &[i64]| {
            values
                .iter()
                .zip(mask)
                .filter(|(_, mask)| **mask == 1)
                .map(|(value, _)| *value)
                .collect::<Vec<_>>()
        };
        for row in 0..batch.rows() {
            assert_eq!(batch.token_types[batch.row(row)], real(&types[row], &mask[row]), "{name}");
            assert_eq!(batch.target(row), real(&targets[row], &target_mask[row]), "{name}");
        }
    }
}

#[test]
fn golden_unconditional() {
    let tensors = Tensors::open("collators.safetensors");
    let (name, case) = cases("default.unconditional").remove(0);
    let batch = collator(&name, &case).collate_unconditional(0..case.input_ids.len() as u64);
    let get = |field: &str| tensors.rows(&format!("{name}.{field}"));
    assert_eq!(batch.dense_tokens(2, 0, PadSide::Right), get("input_ids"));
    for (row, types) in get("token_type_ids").iter().enumerate() {
        assert_eq!(batch.token_types[batch.row(row)], types[..]);
        assert_eq!(batch.closed[batch.row(row)], [true, false]);
        assert!(batch.target(row).is_empty());
    }
}

#[test]
fn golden_drop_function() {
    let golden: Collators = json("collators.json");
    for case in golden.ilm_drop_fn {
        let drops = Arc::new(Fixed(vec![case.drop_indices]));
        let collator = Collator::language(100, &special(), drops).unwrap();
        let rows = plain_rows(&collator.collate(&samples(&[], &[case.segment_input_ids])));
        // Without CLS the reference's places start at BOS.
        let without_cls = usize::from(case.cls_token_id.is_none());
        assert_eq!(rows[&0].ids[without_cls..], case.out.segment_input_ids_with_drops);
        let mut targets = BTreeMap::new();
        for (place, id) in
            case.out.segment_target_seq_indices.iter().zip(&case.out.segment_target_vocab_indices)
        {
            *targets.entry((place - case.global_offset + without_cls as i64, *id)).or_insert(0) += 1;
        }
        assert_eq!(rows[&0].targets, targets);
    }
}
