//! Every way in which published weights can be unusable, as one sentence with the path and what to do.

use std::path::PathBuf;

use super::matching::Differences;

/// What is wrong with a weights folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// Nothing to read.
    #[error(
        "{path} holds neither model.safetensors nor model.safetensors.index.json; give the file or the folder of published weights"
    )]
    NotFound {
        /// The path given.
        path: PathBuf,
    },
    /// A pipe, a device or a directory where a file belongs.
    #[error("{path} is not a regular file; give a safetensors file or its folder")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file of `torch.save`.
    #[error("{path} is a pickle of torch.save; save its state dict with safetensors.torch.save_file first")]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The file ends within its header.
    #[error("{path} has {found} bytes, but its header alone takes {needed}; copy it again, it was cut")]
    HeaderCut {
        /// The file.
        path: PathBuf,
        /// Bytes of length field and header.
        needed: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A header length that no writer produces.
    #[error(
        "{path} announces a header of {bytes} bytes (at most {most} are read), so it is no safetensors file"
    )]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// Bytes announced.
        bytes: u64,
        /// Bytes allowed.
        most: u64,
    },
    /// The header is not what safetensors prescribes.
    #[error("{path} has a damaged header: {what}; copy it again")]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        what: String,
    },
    /// The header names a tensor twice.
    #[error("{path} names the tensor '{key}' twice; save it again")]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
    },
    /// A tensor's offsets do not fit its shape and type.
    #[error(
        "{path} has bytes {begin}..{end} for the tensor '{key}' of shape {shape:?} and type {dtype}; copy it again"
    )]
    BadOffsets {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// First byte within the data.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Its shape.
        shape: Vec<u64>,
        /// Its element type.
        dtype: String,
    },
    /// Two tensors share bytes.
    #[error("{path} has the tensors '{first}' and '{second}' on the same bytes; save it again")]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The one that begins first.
        first: String,
        /// The one that begins within it.
        second: String,
    },
    /// Bytes that belong to no tensor.
    #[error("{path} has {bytes} bytes before the tensor '{key}' that belong to none; save it again")]
    Hole {
        /// The file.
        path: PathBuf,
        /// The tensor after the hole.
        key: String,
        /// Size of the hole.
        bytes: u64,
    },
    /// The file does not end where its last tensor does.
    #[error(
        "{path} has {found} bytes where its header describes {expected}; copy it again, it was cut or appended to"
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Bytes according to the header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The index of a state dict in several files does not hold.
    #[error("{path} is not a usable index: {what}; copy the whole folder again")]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// Two keys are the same parameter once their prefixes are gone.
    #[error("{path} has '{first}' and '{second}', which are both the parameter '{name}'; save one of them")]
    SameName {
        /// The file or index.
        path: PathBuf,
        /// One key.
        first: String,
        /// The other key.
        second: String,
        /// What both come down to.
        name: String,
    },
    /// Not a floating point tensor.
    #[error(
        "{path} has the tensor '{key}' as {dtype}, but parameters are F32, F16, BF16 or F64; convert it first"
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// Its element type.
        dtype: String,
    },
    /// A finite F64 value that would become infinite.
    #[error(
        "{path} has {value:e} as element {element} of '{key}', which 32 bits cannot hold; check the weights"
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// Its element, counted from 0.
        element: u64,
        /// The value.
        value: f64,
    },
    /// There is no tensor of that name.
    #[error("{path} has no tensor '{name}'; check that these are the weights of this model")]
    UnknownTensor {
        /// The file or index.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A tensor has another shape than it must have.
    #[error(
        "{path} has '{key}' of shape {found:?} where {needed:?} is needed; check that its config.json is of these weights"
    )]
    Shape {
        /// The file or index.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// The shape it has.
        found: Vec<u64>,
        /// The shape needed.
        needed: Vec<u64>,
    },
    /// The caller's buffer does not have room for what is to be read.
    #[error("cannot read '{name}' of {path}: the buffer has {buffer} elements where {needed} are needed")]
    BufferSize {
        /// The file or index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Elements of the buffer.
        buffer: usize,
        /// Elements needed.
        needed: u64,
    },
    /// The tensors are not those of the model to be filled.
    #[error("{path} does not fit this model: {differences}; use the model settings of these weights")]
    Mismatch {
        /// The file or index.
        path: PathBuf,
        /// All differences.
        differences: Box<Differences>,
    },
    /// The tensors are not those of any known model.
    #[error("{path} is not a model that this program knows: {what}")]
    UnknownModel {
        /// The file or index.
        path: PathBuf,
        /// What is missing or odd.
        what: String,
    },
    /// `config.json` cannot be parsed.
    #[error("{path} cannot be used: {what}; restore the config.json that was published with the weights")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        what: String,
    },
    /// `config.json` names a class that is none of the reference's.
    #[error("the config.json beside {path} has _target_ = '{class}', which is none of {known}")]
    UnknownClass {
        /// The weights.
        path: PathBuf,
        /// The class named.
        class: String,
        /// The class names there are.
        known: String,
    },
    /// An argument that neither `config.json` nor the tensors give.
    #[error(
        "{key} of {path} is not in a config.json beside it and cannot be told from the tensors; add it there, or give model.{key} with the import"
    )]
    MissingArgument {
        /// The weights.
        path: PathBuf,
        /// The argument.
        key: &'static str,
    },
    /// `config.json` and the tensors say different things.
    #[error(
        "the config.json beside {path} has {key} = {config} but the tensors have {tensors}; use the config.json that was published with these weights"
    )]
    Contradiction {
        /// The weights.
        path: PathBuf,
        /// The argument.
        key: &'static str,
        /// What `config.json` says.
        config: String,
        /// What the tensors say.
        tensors: String,
    },
    /// The stored frequencies are not those that the rotary dimension gives.
    #[error(
        "{path} has {found} as element {element} of '{key}' where rotary_emb_dim = {rotary_emb_dim} gives {expected}; another base or dimension was used"
    )]
    Frequencies {
        /// The file or index.
        path: PathBuf,
        /// The buffer's key.
        key: String,
        /// The element that differs; the first one missing or surplus if the lengths differ.
        element: usize,
        /// The stored value; NaN if there is none.
        found: f32,
        /// The value expected; NaN if there should be none.
        expected: f32,
        /// The rotary dimension asked for.
        rotary_emb_dim: u64,
    },
}
