//! Every way a configuration can be wrong, as one sentence that says what, where and what to do.

use std::io;
use std::path::PathBuf;

/// A wrong configuration. The user can mend all of these, so a program that meets one exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such setting.
    #[error("unknown key '{key}' ({hint}), from {origin}")]
    UnknownKey {
        /// The key as it was written, with its section.
        key: String,
        /// The nearest valid key, or the valid ones.
        hint: String,
        /// Where it was written.
        origin: String,
    },
    /// A value that its key cannot take.
    #[error("cannot set {key} to {value} ({reason}), from {origin}")]
    WrongType {
        /// The key.
        key: String,
        /// The value as it was written.
        value: String,
        /// Where it was written.
        origin: String,
        /// What was expected.
        reason: String,
    },
    /// A section that was given a value.
    #[error("'{key}' is a section and takes no value; {hint}, from {origin}")]
    SectionAsValue {
        /// The section.
        key: String,
        /// What can be written instead.
        hint: String,
        /// Where it was written.
        origin: String,
    },
    /// A command-line argument that is not `key.path=value`.
    #[error("'{text}' is not an override; write key.path=value, for example optimizer.lr=3e-4")]
    NotAnOverride {
        /// The argument.
        text: String,
    },
    /// The command line sets a key twice, so that the outcome would depend on the order.
    #[error("'{key}' is given twice on the command line; keep one of the two")]
    GivenTwice {
        /// The key.
        key: String,
    },
    /// No file of that name in a group.
    #[error("there is no {group} '{name}'{hint}; there are {available}")]
    UnknownName {
        /// `experiment`, `model` or `data`.
        group: String,
        /// The name that was asked for.
        name: String,
        /// The nearest name, or nothing.
        hint: String,
        /// All names.
        available: String,
    },
    /// A wrong `[defaults]` table.
    #[error(
        "[defaults] of {origin} is wrong: {reason}; it names one file per group: experiment, model, data"
    )]
    Defaults {
        /// The experiment file.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A description of hardware that describes none.
    #[error("{origin} describes no hardware: {reason}; see configs/hardware/h100.toml")]
    Hardware {
        /// The file.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// Experiments that are each other's base.
    #[error(
        "experiments build on each other in a circle: {chain}; remove one 'experiment' from their [defaults]"
    )]
    Circle {
        /// The names, in order.
        chain: String,
    },
    /// A file that is not TOML.
    #[error("{origin}, line {line}: {reason}")]
    Toml {
        /// The file.
        origin: String,
        /// Line of the fault, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A number outside its range.
    #[error("{key} = {value} is out of range: it must be {rule}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values it can take.
        rule: String,
    },
    /// A rule of a section's own crate is broken.
    #[error("{0}")]
    Section(String),
    /// Settings that contradict each other or the number of ranks.
    #[error("{0}")]
    Conflict(String),
    /// Files that only the user can name.
    #[error(
        "{keys} not set: this experiment names no data of its own, so add to the command line: {arguments}"
    )]
    Missing {
        /// The keys and their verb.
        keys: String,
        /// The arguments to add.
        arguments: String,
    },
}
