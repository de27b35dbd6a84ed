//! State dicts come with prefixes, leftovers, other element types, and in several files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoints::weights::{INDEX_FILE, WeightsError, WeightsFile};
use safetensors::Dtype;
use serde_json::json;

use super::common::{Golden, Raw, StateDict, bits, open_bytes, refused, save, to_bytes};

fn renamed(state: &StateDict, prefix: &str) -> StateDict {
    state.iter().map(|(key, raw)| (format!("{prefix}{key}"), raw.clone())).collect()
}

#[test]
fn prefixes_are_stripped_and_leftovers_dropped_and_reported() {
    let golden = Golden::open("rotary_stopping");
    let (layout, wanted) = golden.arena();
    for prefix in ["", "model.", "model._orig_mod.", "_orig_mod."] {
        let mut state = renamed(&golden.state, prefix);
        let table = Raw::f32(&[2, 4], &[0.5; 8]);
        let stale = [
            format!("{prefix}encoder.0.rotary_emb.cos"),
            format!("{prefix}encoder.0.rotary_emb.sin"),
            "predictor.model.embed_tokens.weight".to_string(),
        ];
        state.extend(stale.iter().map(|key| (key.clone(), table.clone())));
        let file = open_bytes(&to_bytes(&state)).unwrap();
        let mut dropped = file.dropped().to_vec();
        dropped.sort();
        let mut stale = stale.to_vec();
        stale.sort();
        assert_eq!(dropped, stale);
        assert_eq!(file.tensors()["embed_tokens.weight"].key, format!("{prefix}embed_tokens.weight"));
        let mut buffer = vec![f32::MAX; wanted.len()];
        file.read_into(&layout.tensors, &mut buffer).unwrap();
        assert_eq!(bits(&buffer), bits(&wanted));
        file.check_frequencies(8).unwrap();
    }
}

#[test]
fn two_keys_of_one_parameter_are_refused() {
    let mut state = Golden::open("rotary_stopping").state;
    let again = state["encoder.1.norm1.bias"].clone();
    state.insert("model.encoder.1.norm1.bias".into(), again);
    let error = refused(open_bytes(&to_bytes(&state)));
    assert!(
        matches!(&error, WeightsError::SameName { name, .. } if name == "encoder.1.norm1.bias"),
        "{error}"
    );
}

/// The bits of the nearest BF16; ties do not occur here.
fn nearest_bf16(value: f32) -> u16 {
    ((value.to_bits() + 0x8000) >> 16) as u16
}

/// The values as another type.
fn as_type(raw: &Raw, dtype: Dtype) -> Raw {
    let values = raw.values();
    let bytes = match dtype {
        Dtype::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&value| nearest_bf16(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect(),
    };
    Raw { dtype, shape: raw.shape.clone(), bytes }
}

#[test]
fn other_floating_point_types_are_converted_and_integers_refused_by_name() {
    let golden = Golden::open("rotary_stopping");
    let (layout, wanted) = golden.arena();
    let mut buffer = vec![f32::MAX; wanted.len()];
    let with = |dtype| golden.state.iter().map(|(key, raw)| (key.clone(), as_type(raw, dtype))).collect();

    let file = open_bytes(&to_bytes(&with(Dtype::F64))).unwrap();
    file.read_into(&layout.tensors, &mut buffer).unwrap();
    assert_eq!(bits(&buffer), bits(&wanted));
    file.check_frequencies(8).unwrap();

    let file = open_bytes(&to_bytes(&with(Dtype::BF16))).unwrap();
    file.read_into(&layout.tensors, &mut buffer).unwrap();
    let rounded = |&value: &f32| match value {
        f32::MAX => value,
        _ => f32::from_bits(u32::from(nearest_bf16(value)) << 16),
    };
    assert_eq!(bits(&buffer), bits(&wanted.iter().map(rounded).collect::<Vec<_>>()));
    file.check_frequencies(8).unwrap();

    let mut state = golden.state.clone();
    state.insert("encoder.0.o_proj.weight".into(), as_type(&state["encoder.0.o_proj.weight"], Dtype::I32));
    let file = open_bytes(&to_bytes(&state)).unwrap();
    buffer.fill(7.0);
    let error = refused(file.read_into(&layout.tensors, &mut buffer));
    assert!(error.to_string().contains("'encoder.0.o_proj.weight' as I32"), "{error}");
    assert!(buffer.iter().all(|value| *value == 7.0), "nothing is read before all is known to fit");
    assert!(matches!(refused(file.read("encoder.0.o_proj.weight")), WeightsError::Dtype { .. }));
}

#[test]
fn a_value_that_does_not_fit_is_named_by_its_place() {
    let mut values = vec![1.0f64; 150_000];
    values[140_001] = 1e300;
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let state = [("w".to_string(), Raw { dtype: Dtype::F64, shape: vec![values.len()], bytes })].into();
    let error = refused(open_bytes(&to_bytes(&state)).unwrap().read("w"));
    assert!(error.to_string().contains("1e300 as element 140001 of 'w'"), "{error}");
}

#[test]
fn all_that_does_not_match_a_model_is_listed_at_once() {
    let golden = Golden::open("rotary_stopping");
    let (mut layout, wanted) = golden.arena();
    let mut state = golden.state.clone();
    for gone in
        ["encoder.0.norm1.bias", "encoder.1.norm1.bias", "encoder.0.norm2.bias", "encoder.1.norm2.bias"]
    {
        state.remove(gone);
    }
    state.insert("ema.decay".into(), Raw { dtype: Dtype::I64, shape: vec![1], bytes: vec![0; 8] });
    let entry = layout.tensors.iter_mut().find(|entry| entry.name == "embed_tokens.weight").unwrap();
    entry.shape = vec![32, 23];
    let file = open_bytes(&to_bytes(&state)).unwrap();
    let mut buffer = vec![0.0; wanted.len()];
    let error = refused(file.read_into(&layout.tensors, &mut buffer)).to_string();
    let listed = "4 missing ('encoder.0.norm1.bias', 'encoder.0.norm2.bias', 'encoder.1.norm1.bias', ...), 1 surplus \
                  ('ema.decay'), 1 of another shape ('embed_tokens.weight' [23, 32] instead of [32, 23])";
    assert!(error.contains(listed), "{error}");
}

#[test]
fn buffers_that_are_too_small_are_refused() {
    let golden = Golden::open("gpt2_stopping");
    let (mut layout, wanted) = golden.arena();
    let file = open_bytes(&to_bytes(&golden.state)).unwrap();
    let mut buffer = vec![0.0; wanted.len() - 100];
    let error = refused(file.read_into(&layout.tensors, &mut buffer));
    assert!(matches!(error, WeightsError::BufferSize { .. }), "{error}");
    assert!(matches!(
        refused(file.read_tensor("lm_head.weight", &mut [0.0; 3])),
        WeightsError::BufferSize { .. }
    ));
    assert!(matches!(refused(file.read("lm_head.bias")), WeightsError::UnknownTensor { .. }));
    layout.tensors[0].offset = u64::MAX;
    assert!(matches!(refused(file.read_into(&layout.tensors, &mut buffer)), WeightsError::BufferSize { .. }));
    layout.tensors[0].offset = 0;
    layout.tensors[0].len -= 1;
    let mut buffer = vec![0.0; wanted.len()];
    assert!(matches!(refused(file.read_into(&layout.tensors, &mut buffer)), WeightsError::BufferSize { .. }));
}

/// The state dict in two files with an index.
fn shards(dir: &Path, state: &StateDict, index: impl FnOnce(&mut BTreeMap<String, String>)) {
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut parts = [StateDict::new(), StateDict::new()];
    let mut map = BTreeMap::new();
    for (i, (key, raw)) in state.iter().enumerate() {
        parts[i % 2].insert(key.clone(), raw.clone());
        map.insert(key.clone(), names[i % 2].to_string());
    }
    for (name, part) in names.iter().zip(&parts) {
        save(&dir.join(name), part);
    }
    index(&mut map);
    let text = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(dir.join(INDEX_FILE), text).unwrap();
}

#[test]
fn a_state_dict_in_several_files_is_one() {
    let golden = Golden::open("gpt2_length");
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &golden.state, |_| {});
    let (layout, wanted) = golden.arena();
    for path in [dir.path().to_path_buf(), dir.path().join(INDEX_FILE)] {
        let file = WeightsFile::open(path).unwrap();
        let mut buffer = vec![f32::MAX; wanted.len()];
        file.read_into(&layout.tensors, &mut buffer).unwrap();
        assert_eq!(bits(&buffer), bits(&wanted));
        assert_eq!(file.describe().unwrap().num_classes, Some(24));
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let state = Golden::open("gpt2_length").state;
    let last = "transformer.wte.weight";
    let check = |change: fn(&mut BTreeMap<String, String>), part: &str| {
        let dir = tempfile::tempdir().unwrap();
        shards(dir.path(), &state, change);
        let error = refused(WeightsFile::open(dir.path())).to_string();
        assert!(error.contains(part), "{error}");
    };
    check(|map| drop(map.remove("lm_head.weight")), "does not place 'lm_head.weight'");
    check(|map| drop(map.insert("more".into(), "model-00001-of-00002.safetensors".into())), "places 'more'");
    check(
        |map| drop(map.insert("more".into(), "other.safetensors".into())),
        "other.safetensors holds neither",
    );
    check(
        |map| drop(map.insert("more".into(), "../other.safetensors".into())),
        "not the name of a file beside it",
    );
    check(|map| drop(map.insert("more".into(), "/dev/zero".into())), "not the name of a file beside it");
    check(BTreeMap::clear, "weight_map is empty");

    let dir = tempfile::tempdir().unwrap();
    shards(dir.path(), &state, |_| {});
    let twice = [(format!("model.{last}"), state[last].clone())].into();
    save(&dir.path().join("model-00003.safetensors"), &twice);
    shards(dir.path(), &state, |map| {
        map.insert("model.transformer.wte.weight".into(), "model-00003.safetensors".into());
    });
    assert!(matches!(refused(WeightsFile::open(dir.path())), WeightsError::SameName { .. }));
    fs::write(dir.path().join(INDEX_FILE), "{").unwrap();
    assert!(matches!(refused(WeightsFile::open(dir.path())), WeightsError::BadIndex { .. }));
}
