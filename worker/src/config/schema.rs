//! Which keys exist, which values fit them, and which one an unknown key meant: all read off the default tree.

use std::collections::{BTreeMap, BTreeSet};

use ::config::{Value, ValueKind};
use serde::Deserialize;
use serde_json::Value as Json;

use super::compose::{GROUPS, Layer};
use super::error::ConfigError;
use super::tree::Experiment;

/// Origin of what nobody has set.
pub(super) const DEFAULT: &str = "default";

/// Names less alike than this (1 is equal) are not worth proposing.
const LEAST_SIMILARITY: f64 = 0.6;

/// The valid keys, with their defaults.
pub(super) struct Schema {
    defaults: Json,
    leaves: BTreeMap<String, Json>,
    sections: BTreeSet<String>,
}

impl Schema {
    /// The schema of [`Experiment`].
    pub fn new() -> Self {
        let defaults = to_json(&Experiment::default());
        let leaves = leaves(&defaults);
        let sections = leaves
            .keys()
            .flat_map(|key| key.match_indices('.').map(|(dot, _)| key[..dot].to_owned()))
            .collect();
        Self { defaults, leaves, sections }
    }

    /// The lowest layer.
    pub fn default_layer(&self) -> Layer {
        let mut layer = Layer::new(DEFAULT);
        for (key, json) in &self.leaves {
            let value = Value::deserialize(json).expect("a JSON value is a valid configuration value");
            layer.insert(key.clone(), value.kind);
        }
        layer
    }

    /// Says whether `key` can hold a value; `Ok(false)` is a section with nothing in it.
    pub fn check_key(&self, key: &str, value: &ValueKind, origin: &str) -> Result<bool, ConfigError> {
        if self.leaves.contains_key(key) {
            return Ok(true);
        }
        if !self.sections.contains(key) {
            return Err(ConfigError::UnknownKey {
                key: key.to_owned(),
                hint: self.hint(key),
                origin: origin.to_owned(),
            });
        }
        if matches!(value, ValueKind::Table(_)) {
            return Ok(false);
        }
        let hint = if GROUPS.contains(&key) {
            format!("choose a {key} file in [defaults] or with {key}=NAME on the command line")
        } else {
            format!("set its keys: {}", self.list(key))
        };
        Err(ConfigError::SectionAsValue { key: key.to_owned(), hint, origin: origin.to_owned() })
    }

    /// The value as `key` takes it, or why it does not. An empty string clears a key that may be unset.
    pub fn fit(&self, key: &str, value: ValueKind) -> Result<ValueKind, String> {
        if let ValueKind::Float(number) = value
            && !number.is_finite()
        {
            return Err("it is not a finite number".to_owned());
        }
        if matches!(&value, ValueKind::String(text) if text.is_empty())
            && self.accepts(key, Json::Null).is_ok()
        {
            return Ok(ValueKind::Nil);
        }
        let json = Json::deserialize(Value::new(None, value.clone())).map_err(|error| error.to_string())?;
        self.accepts(key, json)?;
        Ok(value)
    }

    /// Tries one value in the place of its default: only serde knows the types.
    fn accepts(&self, key: &str, json: Json) -> Result<(), String> {
        let mut tree = self.defaults.clone();
        let place = tree
            .pointer_mut(&format!("/{}", key.replace('.', "/")))
            .ok_or_else(|| "there is no such key".to_owned())?;
        *place = json;
        Experiment::deserialize(tree).map(|_| ()).map_err(|error| plain(&error.to_string()))
    }

    fn hint(&self, key: &str) -> String {
        if key == "experiment" {
            return "choose it with --experiment NAME".to_owned();
        }
        let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
        let names = || self.leaves.keys().chain(&self.sections).map(String::as_str);
        let same_end = || most_similar(key, names().filter(|name| name.rsplit('.').next() == Some(last)));
        let meant = if section.is_empty() || self.sections.contains(section) {
            let here = nearest(last, self.members(section).into_iter()).map(|name| join(section, name));
            here.or_else(|| same_end().map(|(_, name)| name.to_owned()))
        } else {
            same_end().map(|(_, name)| name).or_else(|| nearest(key, names())).map(str::to_owned)
        };
        match meant {
            Some(meant) => format!("did you mean '{meant}'?"),
            None if self.sections.contains(section) => format!("the keys there are {}", self.list(section)),
            None => format!("the top-level keys are {}", self.list("")),
        }
    }

    /// The names directly in `section` (empty: the root).
    fn members(&self, section: &str) -> BTreeSet<&str> {
        let prefix = join(section, "");
        let below = self.leaves.keys().filter_map(|key| key.strip_prefix(&prefix));
        below.map(|rest| rest.split('.').next().unwrap_or(rest)).collect()
    }

    fn list(&self, section: &str) -> String {
        self.members(section).into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// Serde's message with the number types of Rust in words.
fn plain(message: &str) -> String {
    let words = [
        ("expected f64", "expected a number"),
        ("expected i64", "expected a whole number"),
        ("expected u64", "expected a whole number from 0 up"),
        ("expected usize", "expected a whole number from 0 up"),
    ];
    let found = words.iter().find_map(|(rust, word)| Some(format!("{}{word}", message.strip_suffix(rust)?)));
    found.unwrap_or_else(|| message.to_owned())
}

/// The tree of an experiment, where an unset key is null.
pub(super) fn to_json(experiment: &Experiment) -> Json {
    serde_json::to_value(experiment).expect("structs of numbers and strings always serialise")
}

/// The values of a tree by dotted key.
pub(super) fn leaves(tree: &Json) -> BTreeMap<String, Json> {
    fn visit(prefix: &str, tree: &Json, out: &mut BTreeMap<String, Json>) {
        match tree {
            Json::Object(members) => {
                for (name, member) in members {
                    visit(&join(prefix, name), member, out);
                }
            }
            leaf => {
                out.insert(prefix.to_owned(), leaf.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    visit("", tree, &mut out);
    out
}

/// `section.name`, or `name` at the root.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The candidate that `name` was probably meant to be.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    most_similar(name, candidates)
        .filter(|(score, _)| *score >= LEAST_SIMILARITY)
        .map(|(_, candidate)| candidate)
}

fn most_similar<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<(f64, &'a str)> {
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_fits_its_own_key_and_null_only_an_optional_one() {
        let schema = Schema::new();
        for (key, json) in &schema.leaves {
            assert_eq!(schema.accepts(key, json.clone()), Ok(()), "{key}");
        }
        assert_eq!(schema.fit("trainer.ema_decay", "".into()), Ok(ValueKind::Nil));
        assert_eq!(schema.fit("description", "".into()), Ok("".into()));
        assert!(schema.fit("optimizer.lr", "".into()).is_err());
    }

    #[test]
    fn only_exact_types_fit() {
        let schema = Schema::new();
        let misfits: [(&str, ValueKind); 7] = [
            ("seed", "1".into()),
            ("seed", 1.5.into()),
            ("seed", true.into()),
            ("seed", (-1_i64).into()),
            ("optimizer.lr", f64::NAN.into()),
            ("trainer.ema_decay", f64::INFINITY.into()),
            ("data.shuffle", 1_i64.into()),
        ];
        for (key, value) in misfits {
            assert!(schema.fit(key, value.clone()).is_err(), "{key} = {value}");
        }
        assert_eq!(schema.fit("optimizer.lr", 1_i64.into()), Ok(1_i64.into()));
    }

    #[test]
    fn proposes_the_key_that_was_probably_meant() {
        let schema = Schema::new();
        let cases = [
            ("optimiser.lr", "did you mean 'optimizer.lr'?"),
            ("optimiser", "did you mean 'optimizer'?"),
            ("lr", "did you mean 'optimizer.lr'?"),
            ("predicter.max_steps", "did you mean 'predictor.max_steps'?"),
            ("global_batchsize", "did you mean 'global_batch_size'?"),
            ("data.star.degre", "did you mean 'data.star.degree'?"),
            ("optimizer.quux", "the keys there are betas, eps, lr, weight_decay"),
            ("optimizer.max_step", "the keys there are betas, eps, lr, weight_decay"),
            ("optimizer.block_size", "did you mean 'block_size'?"),
            ("experiment", "choose it with --experiment NAME"),
        ];
        for (key, hint) in cases {
            assert_eq!(schema.hint(key), hint, "{key}");
        }
    }
}
