//! Sets in numbered files, `NAME-NNNNN-of-MMMMM.parquet`: whether all of them are where some were found.

use std::collections::{BTreeMap, BTreeSet};

use glob::Pattern;

use super::url::has_glob;
use crate::WARNINGS_OF_A_SET;

/// A set that lacks files.
#[derive(Debug)]
struct Gap {
    there: usize,
    of: usize,
    first_missing: String,
}

/// Warns of sets that an interrupted job or copy may have left incomplete; `names` are the files of a place.
pub(super) fn warn_of_gaps<'a>(place: &str, names: impl Iterator<Item = &'a str> + Clone) {
    for Gap { there, of, first_missing } in gaps(place, names) {
        tracing::warn!(
            target: WARNINGS_OF_A_SET,
            "'{place}' has {there} of the {of} files of a set, '{first_missing}' is the first that is missing; going \
             on without them"
        );
    }
}

/// The sets that lack files which the place names as well: who asks for single files, or by a glob for a part of a set,
/// has what he asked for.
fn gaps<'a>(place: &str, names: impl Iterator<Item = &'a str> + Clone) -> Vec<Gap> {
    let asked = last_part(place);
    let pattern = if has_glob(asked) {
        Pattern::new(asked).ok()
    } else if names.clone().any(|name| last_part(name) == asked) {
        None
    } else {
        Pattern::new("*").ok()
    };
    let Some(pattern) = pattern else { return Vec::new() };
    let mut sets: BTreeMap<(&str, usize), BTreeSet<usize>> = BTreeMap::new();
    for (set, number, of) in names.filter_map(numbered) {
        sets.entry((set, of)).or_default().insert(number);
    }
    let gap = |((set, of), numbers): ((&str, usize), BTreeSet<usize>)| {
        let mut missing = (0..of)
            .filter(|number| !numbers.contains(number))
            .map(|number| format!("{}-{number:05}-of-{of:05}.parquet", last_part(set)));
        let first_missing = missing.find(|name| pattern.matches(name))?;
        // Those that count from 1 are whole as well.
        (numbers.len() < of).then_some(Gap { there: numbers.len(), of, first_missing })
    };
    sets.into_iter().filter_map(gap).collect()
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Folder and name, number, and how many there are.
fn numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, of) = name.strip_suffix(".parquet")?.rsplit_once("-of-")?;
    let (set, number) = rest.rsplit_once('-')?;
    Some((set, five_digits(number)?, five_digits(of)?))
}

fn five_digits(text: &str) -> Option<usize> {
    let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing of files in folder `d`, as (files there, files in all, first one that is missing).
    fn found(place: &str, names: &[&str]) -> Vec<(usize, usize, String)> {
        let paths: Vec<String> = names.iter().map(|name| format!("d/{name}.parquet")).collect();
        let gaps = gaps(place, paths.iter().map(String::as_str));
        gaps.into_iter().map(|gap| (gap.there, gap.of, gap.first_missing)).collect()
    }

    const TRAIN: [&str; 3] = ["train-00000-of-00004", "train-00001-of-00004", "train-00003-of-00004"];

    #[test]
    fn a_folder_or_a_glob_tells_which_files_of_a_set_are_missing() {
        let missing: Vec<(usize, usize, String)> = vec![(3, 4, "train-00002-of-00004.parquet".into())];
        for place in ["d", "d/", "s3://b/d", "d/*.parquet", "d/train-*", "*/train-0*-of-00004.parquet"] {
            assert_eq!(found(place, &TRAIN), missing, "{place}");
        }
        let names = [&TRAIN[..], &["test-00000-of-00001", "more", "validation-00001-of-00002"]].concat();
        let both = [missing[0].clone(), (1, 2, "validation-00000-of-00002.parquet".to_owned())];
        assert_eq!(found("d", &names), both);
    }

    #[test]
    fn whole_sets_and_parts_that_are_asked_for_are_quiet() {
        let parts = ["train-00000-of-00004.parquet", "train-0000[013]-*", "train-00001*", "*-00003-of-*"];
        for place in parts.map(|asked| format!("d/{asked}")) {
            let asked = last_part(&place).trim_end_matches(".parquet");
            let pattern = Pattern::new(asked).unwrap();
            let names: Vec<&str> = TRAIN.into_iter().filter(|name| pattern.matches(name)).collect();
            assert!(!names.is_empty(), "{place}");
            assert!(found(&place, &names).is_empty(), "{place}");
        }
        assert!(found("d", &["a-00000-of-00002", "a-00001-of-00002"]).is_empty());
        assert!(found("d", &["a-00001-of-00002", "a-00002-of-00002"]).is_empty(), "some count from 1");
        let others = ["a", "b-1-of-2", "c-00000-of-2", "d-0000x-of-00002", "e-00000-00002"];
        assert!(found("d", &others).is_empty());
    }
}
