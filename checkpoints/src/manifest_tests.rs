//! The manifest survives every change of its bytes: noticed, or the same contents.

use serde_json::Value;

use super::*;
use crate::testing::{self, SECTIONS};

fn manifest() -> Manifest {
    let dir = tempfile::tempdir().unwrap();
    let shards = testing::write_shards(dir.path(), 7, &testing::slices(50, 3));
    Manifest { state: testing::state(7, 3), layout: testing::layout(50), shards }
}

#[test]
fn what_was_written_is_read_and_equal_manifests_are_equal_bytes() {
    let written = manifest();
    let text = written.to_text().unwrap();
    assert_eq!(Manifest::parse(text.as_bytes()), Ok(written));
    assert_eq!(text, manifest().to_text().unwrap());
}

#[test]
fn a_person_reads_one_line_per_parameter_and_shard() {
    let text = manifest().to_text().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        &lines[..5],
        [
            "{",
            r#"  "format": "ilm-checkpoint","#,
            r#"  "version": 2,"#,
            r#"  "state": {"#,
            r#"    "step": 7,"#
        ]
    );
    assert!(lines.contains(&r#"    {"name":"embed","shape":[24],"offset":0,"len":24},"#));
    assert_eq!(lines.iter().filter(|line| line.contains("rank-0000")).count(), 3);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["shards"][2]["sections"][1]["end"], 50);
}

#[test]
fn any_flipped_bit_and_any_cut_is_noticed() {
    let text = manifest().to_text().unwrap().into_bytes();
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut flipped = text.clone();
            flipped[at] ^= 1 << bit;
            assert!(Manifest::parse(&flipped).is_err(), "byte {at} bit {bit}");
        }
        assert!(Manifest::parse(&text[..at]).is_err(), "cut at {at}");
    }
    assert!(Manifest::parse(&[&text[..], b" "].concat()).is_err());
}

#[test]
fn another_version_is_told_from_damage() {
    let text = manifest().to_text().unwrap();
    let newer = reseal(text.replace("\"version\": 2,", "\"version\": 3,\n  \"unheard_of\": [],"));
    assert_eq!(Manifest::parse(newer.as_bytes()), Err(Fault::Version(3)));
    let older = reseal(text.replace("\"version\": 2,", "\"version\": 1,"));
    assert_eq!(Manifest::parse(older.as_bytes()), Ok(manifest()));
    let foreign = reseal(text.replace("ilm-checkpoint", "other"));
    assert!(
        matches!(Manifest::parse(foreign.as_bytes()), Err(Fault::Damaged(what)) if what.contains("'other'"))
    );
    let unknown = reseal(text.replace("\"arena_len\"", "\"extra\": 1,\n  \"arena_len\""));
    assert!(
        matches!(Manifest::parse(unknown.as_bytes()), Err(Fault::Damaged(what)) if what.contains("extra"))
    );
}

/// Numbers with a right checksum are still not believed: no sum overflows, no size is allocated.
#[test]
fn hostile_numbers_are_refused_without_a_panic() {
    let written = manifest();
    let text = written.to_text().unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    let mut places = Vec::new();
    numbers(&body, String::new(), &mut places);
    assert!(places.len() > 50);
    for place in &places {
        for number in [0, 1, 3, 4, 51, 1 << 31, 1 << 53, u64::MAX / 4, u64::MAX - 3, u64::MAX] {
            let mut changed = body.clone();
            *changed.pointer_mut(place).unwrap() = number.into();
            changed.as_object_mut().unwrap().remove("checksum");
            let json = serde_json::to_string(&changed).unwrap();
            let sealed = seal(json.strip_suffix('}').unwrap().to_string());
            if let Ok(read) = Manifest::parse(sealed.as_bytes()) {
                let same = changed.pointer(place) == body.pointer(place);
                let free = place.starts_with("/state/")
                    || place.starts_with("/tensors/")
                    || place.ends_with("block_bytes");
                let older = place == "/version" && number == 1;
                assert!((same || older) && read == written || free, "{place} = {number}");
            }
        }
    }
}

fn numbers(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Number(_) => places.push(place),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| numbers(item, format!("{place}/{i}"), places));
        }
        Value::Object(items) => {
            items.iter().for_each(|(key, item)| numbers(item, format!("{place}/{key}"), places))
        }
        _ => {}
    }
}

fn reseal(text: String) -> String {
    let (body, _) = text.rsplit_once(CHECKSUM_BEGINS).unwrap();
    seal(body.to_string())
}

#[test]
fn shards_that_do_not_make_up_the_arenas_are_refused() {
    type Change = fn(&mut Manifest);
    let cases: [(&str, Change); 10] = [
        ("2 shards of 3 ranks", |m| drop(m.shards.pop())),
        ("0 shards of 0 ranks", |m| {
            m.shards.clear();
            m.state.world_size = 0;
        }),
        ("in the place of rank 0", |m| m.shards.swap(0, 1)),
        ("no sections", |m| m.shards.iter_mut().for_each(|s| (s.bytes, s.sections) = (64, vec![]))),
        ("section 'ema' leaves a gap at element 17", |m| {
            m.shards[1].sections.pop();
            m.shards[1].bytes -= 17 * 4;
        }),
        ("section 'master' overlaps itself at element 16", |m| {
            let slice = &mut m.shards[1].sections[0];
            (slice.start, slice.end) = (16, 33);
        }),
        ("section 'ema' has 50 of 60 elements", |m| m.layout.len = 60),
        ("its file is called \"../rank-00001.safetensors\"", |m| m.shards[1].file.insert_str(0, "../")),
        ("does not begin where", |m| m.shards[2].sections[1].file_offset += 4),
        ("is there twice", |m| m.shards[2].sections[1].name = SECTIONS[0].into()),
    ];
    for (part, change) in cases {
        let mut changed = manifest();
        change(&mut changed);
        let what = changed.validate().unwrap_err();
        assert!(what.contains(part), "{what}");
    }
}
