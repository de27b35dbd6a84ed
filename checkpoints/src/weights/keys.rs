//! What a state dict calls a tensor, and what the model calls it.

/// What a key stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// A parameter or buffer under the model's own name.
    Tensor(&'a str),
    /// Left over from older versions of the reference, which drops it as well.
    Stale,
}

/// A harness saves its model as the member `model`, and a compiled module as the member `_orig_mod`.
const PREFIXES: [&str; 3] = ["_orig_mod.", "model.", "_orig_mod."];
/// The predictor once owned a second reference to the same model.
const DUPLICATES: &str = "predictor.model.";
/// Rotation tables that once were persistent.
const TABLES: [&str; 2] = ["rotary_emb.sin", "rotary_emb.cos"];
/// Inverse frequencies under every layer: a constant, not a parameter.
const FREQUENCIES: &str = ".rotary_emb.inv_freq";

/// Sees through prefixes and stale entries.
pub(crate) fn meaning(key: &str) -> Meaning<'_> {
    if key.starts_with(DUPLICATES) || TABLES.iter().any(|table| key.contains(table)) {
        return Meaning::Stale;
    }
    Meaning::Tensor(PREFIXES.iter().fold(key, |key, prefix| key.strip_prefix(prefix).unwrap_or(key)))
}

/// Whether a name is that of the buffer `encoder.{i}.rotary_emb.inv_freq`.
pub(crate) fn is_frequencies(name: &str) -> bool {
    name.strip_prefix("encoder.").and_then(|rest| rest.strip_suffix(FREQUENCIES)).is_some_and(is_number)
}

/// The name of that buffer of one layer.
pub(crate) fn frequencies(layer: u64) -> String {
    format!("encoder.{layer}{FREQUENCIES}")
}

/// The layer of a name that begins with `prefix`, a number and a dot.
pub(crate) fn layer(name: &str, prefix: &str) -> Option<u64> {
    let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
    if is_number(number) { number.parse().ok() } else { None }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_stripped_and_stale_keys_known() {
        for key in
            ["encoder.0.norm1.bias", "model.encoder.0.norm1.bias", "model._orig_mod.encoder.0.norm1.bias"]
        {
            assert_eq!(meaning(key), Meaning::Tensor("encoder.0.norm1.bias"));
        }
        for key in [
            "predictor.model.encoder.0.norm1.bias",
            "encoder.0.rotary_emb.sin",
            "model.encoder.11.rotary_emb.cos",
        ] {
            assert_eq!(meaning(key), Meaning::Stale);
        }
        assert_eq!(meaning("modelling.x"), Meaning::Tensor("modelling.x"));
        assert_eq!(meaning(""), Meaning::Tensor(""));
    }

    #[test]
    fn layers_are_numbered_in_digits() {
        assert_eq!(layer("encoder.12.norm1.bias", "encoder."), Some(12));
        for name in
            ["encoder.+1.norm1", "encoder..norm1", "encoder.1", "encoder.99999999999999999999.x", "x.1.y"]
        {
            assert_eq!(layer(name, "encoder."), None, "{name}");
        }
        assert!(is_frequencies(&frequencies(3)));
        assert!(!is_frequencies("encoder.rotary_emb.inv_freq"));
    }
}
