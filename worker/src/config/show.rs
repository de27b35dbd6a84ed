//! Settings as text: valid TOML, so that what is printed can be saved as an experiment file.

use ::config::{Value, ValueKind};
use serde::Deserialize;
use serde_json::Value as Json;
use xxhash_rust::xxh3::xxh3_64;

use super::compose::Resolved;

impl Resolved {
    /// One line per setting, aligned: `key = value   # origin`.
    pub fn render(&self) -> String {
        let width =
            |length: fn(&super::ResolvedValue) -> usize| self.values.iter().map(length).max().unwrap_or(0);
        let key_width = width(|setting| setting.key.chars().count());
        let value_width = width(|setting| setting.value.chars().count());
        let lines = self.values.iter().map(|setting| {
            format!("{:key_width$} = {:value_width$}   # {}\n", setting.key, setting.value, setting.origin)
        });
        lines.collect()
    }

    /// A hash of all settings and their origins.
    pub fn hash(&self) -> String {
        format!("{:016x}", xxh3_64(self.render().as_bytes()))
    }
}

/// A value in TOML. Numbers, booleans and strings look the same in JSON; an unset one is an empty string.
pub(super) fn toml_text(value: &Json) -> String {
    let list = |items: Vec<String>| items.join(",");
    match value {
        Json::Null => "\"\"".to_owned(),
        Json::Array(items) => format!("[{}]", list(items.iter().map(toml_text).collect())),
        Json::Object(members) => {
            let member = |(name, value): (&String, &Json)| format!("{name}={}", toml_text(value));
            format!("{{{}}}", list(members.iter().map(member).collect()))
        }
        value => value.to_string(),
    }
}

/// A value as it was written, for a message.
pub(super) fn written(value: &ValueKind) -> String {
    match value {
        // JSON has no such number.
        ValueKind::Float(number) => number.to_string(),
        value => Json::deserialize(Value::new(None, value.clone()))
            .map_or_else(|_| value.to_string(), |json| json.to_string()),
    }
}
