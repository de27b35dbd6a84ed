//! What the tests share: golden state dicts, files put together from them, arenas to read them into.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::weights::{
    CONFIG_FILE, ReferenceClass, ReferenceConfig, WEIGHTS_FILE, WeightsError, WeightsFile,
};
use checkpoints::{Error, Layout, TensorEntry};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A tensor as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type StateDict = BTreeMap<String, Raw>;

impl Raw {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.into(), bytes }
    }

    pub fn values(&self) -> Vec<f32> {
        self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// A model of the reference with the arguments that constructed it.
pub struct Golden {
    pub class: ReferenceClass,
    pub kwargs: Value,
    pub state: StateDict,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let dir = test_support::golden_dir();
        let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        let file = format!("model_{name}.safetensors");
        let config = &manifest["files"][&file]["config"];
        let bytes = fs::read(dir.join(&file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let state = tensors.iter().filter_map(|(key, view)| {
            let raw = Raw { dtype: view.dtype(), shape: view.shape().into(), bytes: view.data().into() };
            Some((key.strip_prefix("param.")?.to_string(), raw))
        });
        Self {
            class: ReferenceClass::from_target(config["class_name"].as_str().unwrap()).unwrap(),
            kwargs: config["kwargs"].clone(),
            state: state.collect(),
        }
    }

    /// The names of all golden models.
    pub fn names() -> Vec<String> {
        let entries = fs::read_dir(test_support::golden_dir()).unwrap();
        let files = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name =
            |file: String| Some(file.strip_prefix("model_")?.strip_suffix(".safetensors")?.to_string());
        let mut names: Vec<_> = files.filter_map(name).filter(|name| name != "inputs").collect();
        names.sort();
        assert_eq!(names.len(), 13, "{names:?}");
        names
    }

    /// The arguments, with the class named as a harness does or not, as `save_pretrained` does.
    pub fn config(&self, named: bool) -> ReferenceConfig {
        let mut kwargs = self.kwargs.clone();
        if named {
            kwargs["_target_"] = json!(self.class.target());
        }
        serde_json::from_value(kwargs).unwrap()
    }

    /// The parameters in an arena with gaps: every one begins at a multiple of 16 elements.
    pub fn arena(&self) -> (Layout, Vec<f32>) {
        let mut buffer = Vec::new();
        let mut tensors = Vec::new();
        for (name, raw) in self.state.iter().filter(|(name, _)| !name.ends_with("inv_freq")) {
            let shape = raw.shape.iter().map(|&size| size as u64).collect();
            let (offset, values) = (buffer.len() as u64, raw.values());
            tensors.push(TensorEntry { name: name.clone(), shape, offset, len: values.len() as u64 });
            buffer.extend(values);
            buffer.resize(buffer.len().next_multiple_of(16), f32::MAX);
        }
        (Layout { len: buffer.len() as u64, tensors }, buffer)
    }

    /// Its weights folder as the reference would publish it.
    pub fn folder(&self, named: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        save(&dir.path().join(WEIGHTS_FILE), &self.state);
        let config = serde_json::to_vec(&self.config(named)).unwrap();
        fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
        dir
    }
}

/// A safetensors file with every detail chosen by the test.
pub fn file_of(header: &Value, data: &[u8]) -> Vec<u8> {
    file_of_text(&header.to_string(), data)
}

pub fn file_of_text(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

pub fn to_bytes(state: &StateDict) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for (key, raw) in state {
        let begin = data.len();
        data.extend(&raw.bytes);
        let offsets = json!([begin, data.len()]);
        header.insert(key.clone(), json!({"dtype": raw.dtype, "shape": raw.shape, "data_offsets": offsets}));
    }
    file_of(&Value::Object(header), &data)
}

pub fn save(path: &Path, state: &StateDict) {
    fs::write(path, to_bytes(state)).unwrap();
}

/// A file with these bytes, in a folder of its own.
pub fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

pub fn open_bytes(bytes: &[u8]) -> Result<WeightsFile, Error> {
    let (_dir, path) = written(bytes);
    WeightsFile::open(path)
}

/// The inner error, or a failed test.
#[track_caller]
pub fn refused<T>(result: Result<T, Error>) -> WeightsError {
    match result {
        Err(Error::Weights(e)) => e,
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("not refused"),
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
