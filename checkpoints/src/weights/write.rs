//! A weights folder written whole or not at all: streamed from the arena, synced, renamed into place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::config::ReferenceConfig;
use super::describe::{Description, Shapes};
use super::keys::frequencies;
use super::matching::Differences;
use super::resolve::Architecture;
use super::rotary::inverse_frequencies;
use super::{CONFIG_FILE, WEIGHTS_FILE, header};
use crate::disk;
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Elements converted at a time: 4 MiB, which is all the memory that writing takes.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// Under which layers the frequencies are saved. The reference holds one tensor under all layers, and its loaders
/// disagree about what a complete file has. GPT-2 has none, whatever is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryBuffers {
    /// Under layer 0, with the other names as aliases in the metadata: what `save_pretrained` writes, and what
    /// `from_pretrained`, the harness and its commands load strictly (`safetensors.torch.load_model`).
    FirstLayer,
    /// Under every layer: what `load_state_dict(strict=True)` asks for. `from_pretrained` takes it too unless told
    /// to be strict.
    EveryLayer,
}

/// The bytes of one tensor.
struct Source<'a> {
    shape: Cow<'a, [u64]>,
    values: Cow<'a, [f32]>,
}

/// Writes `model.safetensors` and `config.json` into the folder `dir`, which is made if need be, and returns the
/// path of the former. Files of these names are replaced; whenever this ends, a folder that has both has a pair that
/// belongs together, provided that one process at a time writes there. Equal arguments give equal bytes.
///
/// `buffer` is the arena that `layout` describes; padding after its end is ignored.
///
/// # Errors
/// [`Error::Unsavable`] if layout, buffer and arguments are not those of one whole model of the reference, otherwise
/// the failure of the disk. Nothing is replaced before both files are on the disk.
pub fn write_weights(
    dir: &Path,
    layout: &Layout,
    buffer: &[f32],
    config: &ReferenceConfig,
    buffers: RotaryBuffers,
) -> Result<PathBuf> {
    let target = dir.join(WEIGHTS_FILE);
    let unsavable = |what| Error::Unsavable { path: target.clone(), what };
    let model = check(&target, layout, buffer, config).map_err(unsavable)?;
    let (sources, metadata) = sources(layout, buffer, &model, buffers);
    let shapes = sources.iter().map(|(name, source)| (name.as_str(), source.shape.as_ref()));
    let header = header::to_bytes(&metadata, shapes).map_err(|e| unsavable(e.to_string()))?;
    let mut json = serde_json::to_vec_pretty(config).map_err(|e| unsavable(e.to_string()))?;
    json.push(b'\n');

    disk::create_dir(dir)?;
    let weights = Temporary::write(dir, WEIGHTS_FILE, |file| {
        file.write_all(&header)?;
        sources.values().try_for_each(|source| write_values(file, &source.values))
    })?;
    let arguments = Temporary::write(dir, CONFIG_FILE, |file| file.write_all(&json))?;
    // Without its arguments the folder is incomplete, not wrong, if this ends between two of these lines.
    disk::remove(&dir.join(CONFIG_FILE))?;
    disk::sync_dir(dir)?;
    weights.rename(&target)?;
    disk::sync_dir(dir)?;
    arguments.rename(&dir.join(CONFIG_FILE))?;
    disk::sync_dir(dir)?;
    Ok(target)
}

/// The model, if layout, buffer and arguments agree that it is one.
fn check(
    target: &Path,
    layout: &Layout,
    buffer: &[f32],
    config: &ReferenceConfig,
) -> Result<Architecture, String> {
    layout.validate()?;
    if (buffer.len() as u64) < layout.len {
        return Err(format!("the buffer has {} of the arena's {} elements", buffer.len(), layout.len));
    }
    let given: Shapes<'_> =
        layout.tensors.iter().map(|entry| (entry.name.as_str(), entry.shape.as_slice())).collect();
    let description = Description::from_shapes(&given)?;
    let parameters = description.parameters();
    let wanted = parameters.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let differences = Differences::between(&given, &wanted);
    if !differences.is_empty() {
        return Err(format!("its parameters are not those of the reference: {differences}"));
    }
    let model = config.resolve(target, &description).map_err(|e| e.to_string())?;
    match model.rotary_emb_dim {
        Some(dim) if dim > model.d_model => {
            Err(format!("rotary_emb_dim = {dim} is above d_model = {}", model.d_model))
        }
        _ => Ok(model),
    }
}

/// All tensors by name, and the metadata.
fn sources<'a>(
    layout: &'a Layout,
    buffer: &'a [f32],
    model: &Architecture,
    buffers: RotaryBuffers,
) -> (BTreeMap<String, Source<'a>>, BTreeMap<String, String>) {
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut sources = BTreeMap::new();
    for entry in &layout.tensors {
        let values = &buffer[entry.offset as usize..(entry.offset + entry.len) as usize];
        let source = Source { shape: Cow::Borrowed(entry.shape.as_slice()), values: Cow::Borrowed(values) };
        sources.insert(entry.name.clone(), source);
    }
    if let Some(dim) = model.rotary_emb_dim {
        let values = inverse_frequencies(dim);
        for i in 0..model.num_layers {
            if i > 0 && buffers == RotaryBuffers::FirstLayer {
                metadata.insert(frequencies(i), frequencies(0));
                continue;
            }
            let shape = Cow::Owned(vec![values.len() as u64]);
            sources.insert(frequencies(i), Source { shape, values: Cow::Owned(values.clone()) });
        }
    }
    (sources, metadata)
}

fn write_values(file: &mut File, values: &[f32]) -> io::Result<()> {
    let mut block = Vec::new();
    for elements in values.chunks(BLOCK_ELEMENTS) {
        block.resize(size_of_val(elements), 0);
        for (bytes, element) in block.as_chunks_mut().0.iter_mut().zip(elements) {
            *bytes = element.to_le_bytes();
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// A file under a hidden name, removed unless it is renamed. What a crash leaves has the process's number in it.
struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    fn write(dir: &Path, name: &str, contents: impl FnOnce(&mut File) -> io::Result<()>) -> Result<Self> {
        let (path, mut file) = Self::create(dir, name)?;
        let temporary = Self { path: Some(path.clone()) };
        contents(&mut file).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &path, e))?;
        Ok(temporary)
    }

    /// Another process of the same number, on another host or before a crash, may have used the first names.
    fn create(dir: &Path, name: &str) -> Result<(PathBuf, File)> {
        let mut attempt = 0u32;
        loop {
            let path = dir.join(format!(".{name}.tmp-{}-{attempt}", std::process::id()));
            match File::create_new(&path) {
                Ok(file) => return Ok((path, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
                Err(e) => return Err(Error::io("write", &path, e)),
            }
        }
    }

    fn rename(mut self, target: &Path) -> Result<()> {
        if let Some(path) = &self.path {
            disk::rename(path, target)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(e) = disk::remove(path)
        {
            tracing::warn!("a file that was not finished could not be removed: {e}");
        }
    }
}
