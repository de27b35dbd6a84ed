//! What a data set was made of, to be kept beside a checkpoint: a later run can say what has changed since.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Files that a sentence names.
const SHOWN: usize = 3;

/// The files of a data set and the rules that make examples of their rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetManifest {
    /// The files in their order; none for generated rows.
    pub files: Vec<FileSummary>,
    /// Rule -> value: tokenizer, columns, detokenizer, `max_tokens`.
    pub rules: BTreeMap<String, String>,
}

/// A file without the folder or store it lies in, so that a copy elsewhere is the same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    /// Last part of its path.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Hash of its footer, in hexadecimal digits.
    pub footer: String,
}

impl DatasetManifest {
    /// A set that is made by rules alone.
    pub fn of_rules<const N: usize>(rules: [(&str, String); N]) -> Self {
        Self { files: Vec::new(), rules: rules.map(|(name, rule)| (name.to_owned(), rule)).into() }
    }

    /// One sentence that names what is different in `new`; none if the examples are the same.
    pub fn difference(old: &Self, new: &Self) -> Option<String> {
        let mut parts = Vec::new();
        for name in old.rules.keys().chain(new.rules.keys().filter(|name| !old.rules.contains_key(*name))) {
            let of = |set: &Self| set.rules.get(name).cloned().unwrap_or_else(|| "none".to_owned());
            if of(old) != of(new) {
                parts.push(format!("{name} was {} and is {}", of(old), of(new)));
            }
        }
        parts.extend(files_differ(&old.files, &new.files));
        (!parts.is_empty()).then(|| format!("the data set has changed: {}", parts.join("; ")))
    }
}

fn files_differ(old: &[FileSummary], new: &[FileSummary]) -> Vec<String> {
    let mut parts = Vec::new();
    let (before, now) = (by_name(old), by_name(new));
    let missing = |from: &[FileSummary], of: &HashMap<Key<'_>, &FileSummary>| -> Vec<String> {
        let mut keys = keys(from);
        keys.retain(|key| !of.contains_key(key));
        keys.into_iter().map(|(name, _)| format!("'{name}'")).collect()
    };
    for (what, names) in [("added", missing(new, &before)), ("removed", missing(old, &now))] {
        parts.extend(listed(what, &names));
    }
    let changed: Vec<String> =
        keys(old).iter().filter_map(|key| file_differs(before.get(key)?, now.get(key)?)).collect();
    parts.extend(listed("changed", &changed));
    if parts.is_empty() && old != new {
        parts.push("the order of its files".to_owned());
    }
    parts
}

/// A name and how often it came before: sets of several folders may have files of the same name.
type Key<'a> = (&'a str, usize);

fn keys(files: &[FileSummary]) -> Vec<Key<'_>> {
    let mut seen = HashMap::new();
    let key = |name| {
        let count = seen.entry(name).or_insert(0);
        *count += 1;
        (name, *count - 1)
    };
    files.iter().map(|file| file.name.as_str()).map(key).collect()
}

fn by_name(files: &[FileSummary]) -> HashMap<Key<'_>, &FileSummary> {
    keys(files).into_iter().zip(files).collect()
}

fn file_differs(old: &FileSummary, new: &FileSummary) -> Option<String> {
    let how = if old.rows != new.rows {
        format!("{} rows instead of {}", new.rows, old.rows)
    } else if old.bytes != new.bytes {
        format!("{} bytes instead of {}", new.bytes, old.bytes)
    } else if old.footer != new.footer {
        "other content of the same size".to_owned()
    } else {
        return None;
    };
    Some(format!("'{}' ({how})", new.name))
}

/// `3 files added ('a', 'b', ...)`, or nothing for no files.
fn listed(what: &str, names: &[String]) -> Option<String> {
    let count = match names.len() {
        0 => return None,
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    Some(format!("{count} {what}: {}{more}", names[..names.len().min(SHOWN)].join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, rows: u64, footer: &str) -> FileSummary {
        FileSummary { name: name.into(), bytes, rows, footer: footer.into() }
    }

    fn set() -> DatasetManifest {
        let rules = [("tokenizer", "t1".to_owned()), ("max_tokens", "None".to_owned())];
        let files = ["a", "b", "c", "d", "a"].map(|name| file(name, 10, 5, "f"));
        DatasetManifest { files: files.into(), ..DatasetManifest::of_rules(rules) }
    }

    fn changed(change: impl FnOnce(&mut DatasetManifest)) -> String {
        let mut new = set();
        change(&mut new);
        let sentence = DatasetManifest::difference(&set(), &new).unwrap();
        sentence.strip_prefix("the data set has changed: ").unwrap().to_owned()
    }

    #[test]
    fn equal_sets_have_no_difference_also_after_a_round_trip() {
        let json = serde_json::to_string(&set()).unwrap();
        let read: DatasetManifest = serde_json::from_str(&json).unwrap();
        assert_eq!(DatasetManifest::difference(&set(), &read), None);
    }

    #[test]
    fn the_sentence_names_what_changed() {
        assert_eq!(
            changed(|set| set.files.extend(["e", "f", "g", "h"].map(|name| file(name, 1, 1, "")))),
            "4 files added: 'e', 'f', 'g', ..."
        );
        assert_eq!(changed(|set| drop(set.files.drain(1..3))), "2 files removed: 'b', 'c'");
        assert_eq!(changed(|set| set.files[1].rows = 4), "1 file changed: 'b' (4 rows instead of 5)");
        assert_eq!(changed(|set| set.files[4].bytes = 9), "1 file changed: 'a' (9 bytes instead of 10)");
        assert_eq!(
            changed(|set| set.files[3].footer = "g".into()),
            "1 file changed: 'd' (other content of the same size)"
        );
        assert_eq!(changed(|set| set.files.swap(0, 1)), "the order of its files");
        assert_eq!(
            changed(|set| {
                set.rules.insert("tokenizer".into(), "t2".into());
                set.files.pop();
            }),
            "tokenizer was t1 and is t2; 1 file removed: 'a'"
        );
    }
}
