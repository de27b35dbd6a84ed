//! The command line's one grammar: `key.path=value` in any order, where the value is TOML or, failing that, text.

use std::collections::BTreeMap;

use ::config::ValueKind;

use super::compose::{GROUPS, Layer, flatten};
use super::error::ConfigError;
use super::schema::Schema;

/// What the command line asks for.
pub(super) struct CommandLine {
    /// Group -> file.
    pub choices: BTreeMap<String, String>,
    /// The topmost layer.
    pub values: Layer,
}

/// Sorts the arguments into choices of files and values.
pub(super) fn parse(arguments: &[String], schema: &Schema) -> Result<CommandLine, ConfigError> {
    let mut line = CommandLine { choices: BTreeMap::new(), values: Layer::new("command line") };
    for argument in arguments {
        let (key, text) = split(argument)?;
        let value = parse_value(text);
        if GROUPS.contains(&key)
            && let toml::Value::String(name) = value
        {
            if line.choices.insert(key.to_owned(), name).is_some() {
                return Err(ConfigError::GivenTwice { key: key.to_owned() });
            }
            continue;
        }
        let is_table = value.is_table();
        for (key, value) in flatten(key, value) {
            if line.values.contains(&key) {
                return Err(ConfigError::GivenTwice { key });
            }
            if is_table {
                line.values.set(schema, &key, value)?;
            } else {
                set(&mut line.values, schema, &key, value, text)?;
            }
        }
    }
    Ok(line)
}

fn split(argument: &str) -> Result<(&str, &str), ConfigError> {
    let not_an_override = || ConfigError::NotAnOverride { text: argument.to_owned() };
    let (key, text) = argument.split_once('=').ok_or_else(not_an_override)?;
    let key = key.trim();
    if key.is_empty() || key.starts_with(['-', '+']) {
        return Err(not_an_override());
    }
    Ok((key, text.trim()))
}

/// A TOML value, or the text itself if it is none (or a date, which no key takes).
fn parse_value(text: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    match parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value")) {
        Some(value) if !value.is_datetime() => value,
        _ => toml::Value::String(text.to_owned()),
    }
}

/// Sets a value as its type has it, or as the text that was typed: a folder may be called `2024`.
fn set(
    layer: &mut Layer,
    schema: &Schema,
    key: &str,
    value: ValueKind,
    text: &str,
) -> Result<(), ConfigError> {
    match layer.set(schema, key, value) {
        Err(wrong_type @ ConfigError::WrongType { .. }) => {
            layer.set(schema, key, text.into()).map_err(|_| wrong_type)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_toml_or_else_text() {
        let text = |text: &str| toml::Value::String(text.to_owned());
        let cases = [
            ("3", toml::Value::Integer(3)),
            ("80_000", toml::Value::Integer(80_000)),
            ("1e-4", toml::Value::Float(1e-4)),
            ("true", toml::Value::Boolean(true)),
            ("\"3\"", text("3")),
            ("'3'", text("3")),
            ("", text("")),
            ("constant", text("constant")),
            ("/data/a b/train-*.parquet", text("/data/a b/train-*.parquet")),
            ("a=b", text("a=b")),
            ("2024-01-01", text("2024-01-01")),
            ("1\nseed = 2", text("1\nseed = 2")),
            ("[0.9, 0.95]", toml::Value::Array(vec![0.9.into(), 0.95.into()])),
        ];
        for (typed, value) in cases {
            assert_eq!(parse_value(typed), value, "{typed}");
        }
    }

    #[test]
    fn what_is_not_key_and_value_is_refused() {
        for argument in ["optimizer.lr", "=3", "", "--seed=3", "+seed=3"] {
            assert!(matches!(split(argument), Err(ConfigError::NotAnOverride { .. })), "{argument}");
        }
        assert_eq!(split(" seed = 3 ").ok(), Some(("seed", "3")));
    }
}
