//! Weights folders written here: read back bit for bit, always the same bytes, never half of one.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::Error;
use checkpoints::weights::{
    CONFIG_FILE, ReferenceConfig, RotaryBuffers, WEIGHTS_FILE, WeightsFile, inverse_frequencies,
    write_weights,
};

use super::common::{Golden, bits};

/// Set it to keep the folders, for a look at them with the Python reference.
const KEEP: &str = "CHECKPOINTS_TEST_WEIGHTS_DIR";

/// The model's folder and how it was made.
fn export(dir: &Path, golden: &Golden, buffers: RotaryBuffers) -> PathBuf {
    let published = golden.folder(true);
    let file = WeightsFile::open(published.path()).unwrap();
    let model = file.architecture(&golden.config(true)).unwrap();
    let (layout, buffer) = golden.arena();
    write_weights(dir, &layout, &buffer, &ReferenceConfig::of(&model), buffers).unwrap()
}

#[test]
fn every_golden_model_is_written_and_read_back_bit_for_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let root = std::env::var_os(KEEP).map_or(temporary.path().into(), PathBuf::from);
    for name in Golden::names() {
        let golden = Golden::open(&name);
        for (buffers, suffix) in [(RotaryBuffers::FirstLayer, "first"), (RotaryBuffers::EveryLayer, "every")]
        {
            let dir = root.join(format!("{name}-{suffix}"));
            assert_eq!(export(&dir, &golden, buffers), dir.join(WEIGHTS_FILE));
            let file = WeightsFile::open(&dir).unwrap();
            let (layout, wanted) = golden.arena();
            let mut buffer = vec![f32::MAX; wanted.len()];
            file.read_into(&layout.tensors, &mut buffer).unwrap();
            assert_eq!(bits(&buffer), bits(&wanted), "{name}");

            let keys: Vec<_> = file.tensors().keys().collect();
            let expected: Vec<_> = golden.state.keys().collect();
            assert_eq!(keys == expected, suffix == "every" || name.starts_with("gpt2"), "{name}");
            for (key, raw) in golden.state.iter().filter(|(key, _)| file.tensors().contains_key(*key)) {
                assert_eq!(bits(&file.read(key).unwrap()), bits(&raw.values()), "{name} {key}");
            }
            let config = file.config().unwrap().unwrap();
            let model = file.architecture(&config).unwrap();
            assert_eq!(config, ReferenceConfig::of(&model));
            assert_eq!(model.class, golden.class);
            let mut named = golden.config(true);
            named.other = config.other.clone();
            assert_eq!(
                file.architecture(&named).unwrap(),
                model,
                "the same model as the reference's arguments say"
            );
        }
    }
}

#[test]
fn the_bytes_are_those_of_other_writers_and_always_the_same() {
    let golden = Golden::open("rotary_stopping");
    let dir = tempfile::tempdir().unwrap();
    let path = export(dir.path(), &golden, RotaryBuffers::EveryLayer);
    let bytes = fs::read(&path).unwrap();
    let state = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let about = [("format".to_string(), "pt".to_string())].into();
    assert_eq!(bytes, safetensors::serialize(state.tensors(), Some(about)).unwrap());
    export(dir.path(), &golden, RotaryBuffers::EveryLayer);
    assert_eq!(bytes, fs::read(&path).unwrap());

    export(dir.path(), &golden, RotaryBuffers::FirstLayer);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&fs::read(&path).unwrap()).unwrap();
    let about = metadata.metadata().clone().unwrap();
    assert_eq!(about["encoder.1.rotary_emb.inv_freq"], "encoder.0.rotary_emb.inv_freq");
    assert_eq!(about["format"], "pt");
}

#[test]
fn frequencies_are_the_references_to_the_bit() {
    for name in ["rotary_stopping", "rotary_base_norm_gelu_smallrot"] {
        let state = Golden::open(name).state;
        let stored = state["encoder.1.rotary_emb.inv_freq"].values();
        assert_eq!(bits(&stored), bits(&inverse_frequencies(2 * stored.len() as u64)), "{name}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_no_whole_model_is_refused_and_nothing_is_touched() {
    let golden = Golden::open("rotary_stopping");
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), &golden, RotaryBuffers::FirstLayer);
    let before = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let (layout, buffer) = golden.arena();
    let config = golden.config(true);
    let refuse = |layout: &checkpoints::Layout, buffer: &[f32], config: &ReferenceConfig, part: &str| {
        let error = write_weights(dir.path(), layout, buffer, config, RotaryBuffers::FirstLayer).unwrap_err();
        assert!(matches!(&error, Error::Unsavable { what, .. } if what.contains(part)), "{error}");
    };
    refuse(&layout, &buffer[1..], &config, "elements");
    let mut fewer = layout.clone();
    fewer.tensors.retain(|entry| entry.name != "encoder.1.o_proj.weight");
    refuse(&fewer, &buffer, &config, "1 missing ('encoder.1.o_proj.weight')");
    let mut overlapping = layout.clone();
    overlapping.tensors[1].offset = 0;
    refuse(&overlapping, &buffer, &config, "overlaps");
    let mut other = layout.clone();
    other.tensors.retain(|entry| !entry.name.starts_with("embed"));
    refuse(&other, &buffer, &config, "neither 'embed_tokens.weight'");
    refuse(&layout, &buffer, &ReferenceConfig { d_model: Some(64), ..config.clone() }, "d_model = 64");
    refuse(&layout, &buffer, &ReferenceConfig { nhead: None, ..config.clone() }, "nhead");
    let huge = ReferenceConfig { rotary_emb_dim: Some(u64::MAX), ..config };
    refuse(&layout, &buffer, &huge, "above d_model = 32");
    assert_eq!(before, fs::read(dir.path().join(WEIGHTS_FILE)).unwrap());
    assert_eq!(names(dir.path()), [CONFIG_FILE, WEIGHTS_FILE]);
}

#[test]
fn a_failed_export_leaves_no_files_behind() {
    let golden = Golden::open("gpt2_stopping");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(WEIGHTS_FILE)).unwrap();
    let (layout, buffer) = golden.arena();
    let config = golden.config(true);
    let error = write_weights(dir.path(), &layout, &buffer, &config, RotaryBuffers::EveryLayer).unwrap_err();
    assert!(matches!(error, Error::Io { action: "rename", .. }), "{error}");
    assert_eq!(names(dir.path()), [WEIGHTS_FILE]);
    let error = write_weights(Path::new("/proc/w"), &layout, &buffer, &config, RotaryBuffers::EveryLayer)
        .unwrap_err();
    assert!(error.to_string().contains("/proc/w"), "{error}");
}

#[test]
fn padding_after_the_arena_is_ignored() {
    let golden = Golden::open("gpt2_stopping");
    let dir = tempfile::tempdir().unwrap();
    let (layout, mut buffer) = golden.arena();
    buffer.resize(buffer.len() + 64, 1.0);
    let path =
        write_weights(dir.path(), &layout, &buffer, &golden.config(true), RotaryBuffers::EveryLayer).unwrap();
    assert!(WeightsFile::open(path).is_ok());
}
