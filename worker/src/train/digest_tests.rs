//! Tests of the digest: what it depends on and what not.

use data_pipeline::{BatchArrays, SampleKey};

use super::*;

/// A batch of rows of two visible tokens, whose second gap lost one id.
fn batch(rows: &[(u64, i64, i64)]) -> PackedBatch {
    let count = rows.len() as i64;
    let keys = rows.iter().map(|&(row, ..)| SampleKey { position: 10 + row, epoch: 0, row }).collect();
    let row_ptr: Vec<i64> = (0..=count).map(|row| 2 * row).collect();
    let tokens: Vec<i64> = rows.iter().flat_map(|&(_, token, _)| [1, token]).collect();
    let tgt_ptr: Vec<i64> = (0..=2 * count).map(|token| token / 2).collect();
    let tgt_ids: Vec<i64> = rows.iter().map(|&(.., dropped)| dropped).collect();
    let (zeros, ones) = (vec![0; rows.len()], vec![1; rows.len()]);
    let places: Vec<i64> = (0..2 * count).map(|token| token % 2).collect();
    let arrays = BatchArrays {
        row_ptr: &row_ptr[..],
        cls: &zeros,
        tokens: &tokens,
        positions: &places,
        token_types: &places,
        tgt_ptr: &tgt_ptr,
        tgt_ids: &tgt_ids,
        tgt_counts: &ones,
    };
    PackedBatch::from_arrays(keys, arrays).unwrap()
}

#[test]
fn samples_are_the_same_however_they_are_cut_and_shared_out() {
    let rows = [(3, 7, 8), (4, 9, 9), (5, 7, 8)];
    let whole = samples_hash(&[batch(&rows)]);
    assert_eq!(samples_hash(&[batch(&rows[..1]), batch(&rows[1..])]), whole);
    assert_eq!(samples_hash(&[batch(&[rows[2], rows[0], rows[1]])]), whole);
    let shared = samples_hash(&[batch(&rows[1..])]).wrapping_add(samples_hash(&[batch(&rows[..1])]));
    assert_eq!(shared, whole);
    for other in [[(2, 7, 8), rows[1], rows[2]], [(3, 6, 8), rows[1], rows[2]], [(3, 7, 6), rows[1], rows[2]]]
    {
        assert_ne!(samples_hash(&[batch(&other)]), whole, "{other:?}");
    }
    assert_eq!(samples_hash(&[]), 0);
}

fn step(number: u64) -> StepDigest {
    StepDigest {
        step: number,
        position: 8 * number,
        ranks: 2,
        samples: Bits(77),
        loss: Bits::of(0.5),
        grad_norm: Bits::of(1.5),
        skipped: None,
        parameters: None,
        since: 0,
        digest: Bits(0),
    }
}

#[test]
fn the_chain_tells_of_every_figure_of_every_step() {
    let chain = |change: fn(&mut StepDigest)| {
        let mut digest = RunDigest::begin(0, 5);
        for number in 1..4 {
            let mut step = step(number);
            if number == 2 {
                change(&mut step);
            }
            digest.add(&mut step);
        }
        digest.value
    };
    let plain = chain(|_| {});
    assert_eq!(chain(|step| step.ranks = 3), plain, "how many ranks computed the same is no difference");
    let changes: [fn(&mut StepDigest); 6] = [
        |step| step.position += 1,
        |step| step.samples.0 += 1,
        |step| step.loss.0 += 1,
        |step| step.grad_norm.0 += 1,
        |step| step.skipped = Some(Skip::NotFinite),
        |step| step.parameters = Some(Bits(0)),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert_ne!(chain(change), plain, "change {index}");
    }
    assert_ne!(RunDigest::begin(0, 5), RunDigest::begin(0, 6));
}

#[test]
fn a_checkpoint_and_a_line_keep_every_bit() {
    let mut digest = RunDigest::begin(3, 9);
    let mut line = StepDigest { loss: Bits::of(-f64::NAN), skipped: Some(Skip::NotFinite), ..step(4) };
    digest.add(&mut line);
    assert_eq!(RunDigest::from_counters(&digest.counters().collect()), Some(digest));
    assert_eq!(RunDigest::from_counters(&BTreeMap::new()), None);
    let json = serde_json::to_string(&line).unwrap();
    assert!(json.contains("\"since\":3") && json.contains("\"skipped\":\"not_finite\""), "{json}");
    assert_eq!(serde_json::from_str::<StepDigest>(&json).unwrap(), line);
    assert_eq!(line.loss, Bits::of(f64::NAN));
}
