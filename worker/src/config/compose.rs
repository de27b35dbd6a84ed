//! Layers are merged lowest first; a later layer replaces single values, and every value keeps its origin.

use std::collections::BTreeMap;
use std::path::Path;

use ::config::{Config, Map, Source, Value, ValueKind};
use serde::Deserialize;

use super::error::ConfigError;
use super::library::{self, File, Library};
use super::schema::{DEFAULT, Schema, join, leaves, to_json};
use super::tree::Experiment;
use super::{overrides, show};
use crate::scale::Hardware;

/// The sections whose values can be chosen as a file: `configs/GROUP/NAME.toml`.
pub(super) const GROUPS: [&str; 2] = ["model", "data"];

/// An experiment and where each of its values is from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings.
    pub experiment: Experiment,
    /// All of them by key, ascending.
    pub values: Vec<ResolvedValue>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedValue {
    /// `section.name`.
    pub key: String,
    /// Its value in TOML; `""` where an optional one is not set.
    pub value: String,
    /// `default`, the path of a file or `command line`.
    pub origin: String,
}

/// Composes the experiment of that name.
///
/// `overrides` are `key.path=value`, or `model=NAME` and `data=NAME` to choose another file of that group; their
/// order does not matter. `config_dir` holds files of the user's, as `GROUP/NAME.toml`, that win over the embedded
/// ones. A value of the experiment files wins over one of the chosen `model` and `data` files.
///
/// # Errors
///
/// Names or keys that do not exist, values of the wrong type, files that cannot be read, bases in a circle. Ranges
/// and contradictions are the business of [`validate`](super::validate).
pub fn load(
    experiment: &str,
    overrides: &[String],
    config_dir: Option<&Path>,
) -> Result<Resolved, ConfigError> {
    let library = Library::open(config_dir)?;
    let chain = bases_first(&library, experiment)?;
    compose(&library, chain, overrides, Groups::BelowExperiment)
}

/// Composes the values that a run wrote down (see [`Resolved::render`]) with changes to them; a file that `model=NAME` or `data=NAME`
/// chooses wins over the run's values here.
///
/// # Errors
///
/// As [`load`].
pub fn load_run(config: &Path, overrides: &[String]) -> Result<Resolved, ConfigError> {
    let file = split_defaults(library::read_file(config)?)?;
    compose(&Library::open(None)?, vec![file], overrides, Groups::AboveRun)
}

/// The settings of a job that belongs to no experiment: the defaults with changes to those keys that it knows.
///
/// # Errors
///
/// As [`load`], and for other keys.
pub fn load_alone(overrides: &[String], known: &[&str]) -> Result<Experiment, ConfigError> {
    let resolved = compose(&Library::open(None)?, Vec::new(), overrides, Groups::AboveRun)?;
    let is_strange = |value: &&ResolvedValue| value.origin != DEFAULT && !known.contains(&value.key.as_str());
    match resolved.values.iter().find(is_strange) {
        Some(value) => Err(ConfigError::UnknownKey {
            key: value.key.clone(),
            hint: format!("this job knows {}", known.join(", ")),
            origin: value.origin.clone(),
        }),
        None => Ok(resolved.experiment),
    }
}

/// The description of hardware of that name (`hardware/NAME.toml`), or in a file if `name` ends in `.toml`.
///
/// # Errors
///
/// Names that do not exist, files that cannot be read or describe no hardware.
pub fn load_hardware(name: &str, config_dir: Option<&Path>) -> Result<Hardware, ConfigError> {
    let File { origin, table } = if name.ends_with(".toml") {
        library::read_file(Path::new(name))?
    } else {
        Library::open(config_dir)?.read("hardware", name)?
    };
    Hardware::from_table(table, &origin)
}

/// The name and the description of every experiment, by name.
///
/// # Errors
///
/// As [`load`].
pub fn list_experiments(config_dir: Option<&Path>) -> Result<Vec<(String, String)>, ConfigError> {
    let names = Library::open(config_dir)?.names("experiment");
    let described = |name: String| {
        let description = load(&name, &[], config_dir)?.experiment.description;
        Ok((name, description))
    };
    names.into_iter().map(described).collect()
}

/// Which values those of a group's file win over.
#[derive(PartialEq, Eq)]
enum Groups {
    /// The defaults only: an experiment sets what it is about.
    BelowExperiment,
    /// Those of a run too, which wrote down every value.
    AboveRun,
}

fn compose(
    library: &Library,
    chain: Vec<ExperimentFile>,
    overrides: &[String],
    groups: Groups,
) -> Result<Resolved, ConfigError> {
    let schema = Schema::new();
    let command_line = overrides::parse(overrides, &schema)?;
    let mut chosen = Vec::new();
    for group in GROUPS {
        let by_experiment = || chain.iter().rev().find_map(|file| file.defaults.get(group));
        if let Some(name) = command_line.choices.get(group).or_else(by_experiment) {
            let File { origin, table } = library.read(group, name)?;
            chosen.push(Layer::from_table(&schema, &origin, group, table)?);
        }
    }
    let mut files = Vec::new();
    for file in chain {
        files.push(Layer::from_table(&schema, &file.origin, "", file.values)?);
    }
    let ordered = if groups == Groups::AboveRun { [files, chosen] } else { [chosen, files] };
    let mut layers = Config::builder().add_source(schema.default_layer());
    for layer in ordered.into_iter().flatten() {
        layers = layers.add_source(layer);
    }
    let merged =
        layers.add_source(command_line.values).build().expect("layers in memory are always readable");
    Ok(resolve(&merged.cache))
}

fn resolve(merged: &Value) -> Resolved {
    let json = serde_json::Value::deserialize(merged.clone()).expect("a configuration value is a JSON value");
    let experiment = Experiment::deserialize(json).expect("every value was tried when its layer was made");
    let values = leaves(&to_json(&experiment))
        .into_iter()
        .map(|(key, value)| {
            let origin = origin_of(merged, &key).to_owned();
            ResolvedValue { value: show::toml_text(&value), key, origin }
        })
        .collect();
    Resolved { experiment, values }
}

fn origin_of<'a>(merged: &'a Value, key: &str) -> &'a str {
    let mut value = Some(merged);
    for name in key.split('.') {
        value = value.and_then(|value| match &value.kind {
            ValueKind::Table(members) => members.get(name),
            _ => None,
        });
    }
    value.and_then(Value::origin).expect("the lowest layer gives every key an origin")
}

/// An experiment file: what it builds on and what it sets itself.
struct ExperimentFile {
    origin: String,
    defaults: BTreeMap<String, String>,
    values: toml::Table,
}

/// The experiment and all it builds on, the deepest base first.
fn bases_first(library: &Library, experiment: &str) -> Result<Vec<ExperimentFile>, ConfigError> {
    let mut names: Vec<String> = Vec::new();
    let mut files = Vec::new();
    let mut next = Some(experiment.to_owned());
    while let Some(name) = next {
        let seen = names.contains(&name);
        names.push(name.clone());
        if seen {
            return Err(ConfigError::Circle { chain: names.join(" -> ") });
        }
        let file = split_defaults(library.read("experiment", &name)?)?;
        next = file.defaults.get("experiment").cloned();
        files.push(file);
    }
    files.reverse();
    Ok(files)
}

fn split_defaults(File { origin, mut table }: File) -> Result<ExperimentFile, ConfigError> {
    let wrong = |reason: String| ConfigError::Defaults { origin: origin.clone(), reason };
    let defaults: BTreeMap<String, String> = match table.remove("defaults") {
        Some(defaults) => {
            defaults.try_into().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?
        }
        None => BTreeMap::new(),
    };
    let is_group = |name: &str| name == "experiment" || GROUPS.contains(&name);
    if let Some(name) = defaults.keys().find(|name| !is_group(name)) {
        return Err(wrong(format!("there is no group '{name}'")));
    }
    Ok(ExperimentFile { origin, defaults, values: table })
}

/// The values of one origin by dotted key, each known to fit.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    origin: String,
    values: BTreeMap<String, Value>,
}

impl Layer {
    /// A layer without values.
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), values: BTreeMap::new() }
    }

    /// The layer of a file whose keys are in `section` (empty: the root).
    fn from_table(
        schema: &Schema,
        origin: &str,
        section: &str,
        table: toml::Table,
    ) -> Result<Self, ConfigError> {
        let mut layer = Self::new(origin);
        for (key, value) in flatten(section, toml::Value::Table(table)) {
            layer.set(schema, &key, value)?;
        }
        Ok(layer)
    }

    /// Sets a value after checking that the key exists and takes it.
    pub fn set(&mut self, schema: &Schema, key: &str, value: ValueKind) -> Result<(), ConfigError> {
        if !schema.check_key(key, &value, &self.origin)? {
            return Ok(());
        }
        let written = show::written(&value);
        let value = schema.fit(key, value).map_err(|reason| ConfigError::WrongType {
            key: key.to_owned(),
            value: written,
            origin: self.origin.clone(),
            reason,
        })?;
        self.insert(key.to_owned(), value);
        Ok(())
    }

    /// Sets a value that is known to fit.
    pub fn insert(&mut self, key: String, value: ValueKind) {
        self.values.insert(key, Value::new(Some(&self.origin), value));
    }

    /// True if the layer sets that key.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.values.clone().into_iter().collect())
    }
}

/// The values of a TOML tree by dotted key; an empty table stays, so that an unknown section is noticed.
pub(super) fn flatten(section: &str, value: toml::Value) -> Vec<(String, ValueKind)> {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            table.into_iter().flat_map(|(name, value)| flatten(&join(section, &name), value)).collect()
        }
        leaf => vec![(section.to_owned(), kind(leaf))],
    }
}

fn kind(value: toml::Value) -> ValueKind {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(kind).collect::<Vec<_>>().into(),
        toml::Value::Table(members) => {
            members.into_iter().map(|(name, value)| (name, kind(value))).collect::<Map<_, _>>().into()
        }
    }
}
