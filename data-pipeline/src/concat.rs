//! Several data sets as one: the rows of the sources one after another, each source a part that is ordered by itself.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::{
    dataset::{DataFile, Dataset, Example, Part},
    error::{Error, Result},
    manifest::DatasetManifest,
};

/// The sources of a mixture.
pub struct Concat {
    sources: Vec<Arc<dyn Dataset>>,
    parts: Vec<Part>,
    /// First row of every source, and the number of rows at the end.
    starts: Vec<u64>,
    groups: Vec<u64>,
    fingerprint: String,
}

impl Concat {
    /// Sources with their names and weights.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no source, two have the same name or the rows are too many.
    pub fn new(sources: Vec<(String, f64, Arc<dyn Dataset>)>) -> Result<Self> {
        if sources.is_empty() {
            return Err(Error::Setting("data.mixture has no entries; give at least one source".into()));
        }
        let mut hash = Xxh3::new();
        let (mut parts, mut starts, mut groups) = (Vec::<Part>::new(), vec![0u64], Vec::new());
        let mut end = 0u64;
        for (name, weight, source) in &sources {
            if parts.iter().any(|part| part.name == *name) {
                return Err(Error::Setting(format!(
                    "data.mixture has two sources named '{name}'; rename one"
                )));
            }
            // The weights decide which rows a position stands for, as the rows themselves do.
            hash.update(format!("{name:?} {weight} {}\n", source.fingerprint()).as_bytes());
            let first = groups.len();
            groups.extend_from_slice(source.groups());
            parts.push(Part { name: name.clone(), groups: first..groups.len(), weight: *weight });
            end = end
                .checked_add(source.len())
                .ok_or_else(|| Error::Setting("data.mixture has more than 2^64 rows".into()))?;
            starts.push(end);
        }
        let sources = sources.into_iter().map(|(_, _, source)| source).collect();
        Ok(Self { sources, parts, starts, groups, fingerprint: format!("{:032x}", hash.digest128()) })
    }

    /// The source of a row, and its row there.
    fn locate(&self, row: u64) -> Option<(usize, u64)> {
        let source = self.starts.partition_point(|&start| start <= row) - 1;
        (source < self.sources.len()).then(|| (source, row - self.starts[source]))
    }
}

impl Dataset for Concat {
    fn len(&self) -> u64 {
        self.starts[self.sources.len()]
    }

    fn groups(&self) -> &[u64] {
        &self.groups
    }

    fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }

    fn example(&self, row: u64) -> Result<Option<Example>> {
        let (source, row) = self.locate(row).ok_or_else(|| Error::RowOutOfRange { row, len: self.len() })?;
        self.sources[source].example(row)
    }

    fn each_example(
        &self,
        rows: &mut dyn Iterator<Item = u64>,
        take: &mut dyn FnMut(u64, Result<Option<Example>>) -> bool,
    ) {
        let mut rows = rows.peekable();
        let mut goes_on = true;
        while goes_on && let Some(&row) = rows.peek() {
            let Some((source, _)) = self.locate(row) else {
                goes_on = take(row, Err(Error::RowOutOfRange { row, len: self.len() }));
                rows.next();
                continue;
            };
            let own = self.starts[source]..self.starts[source + 1];
            let mut of_source =
                std::iter::from_fn(|| rows.next_if(|row| own.contains(row)).map(|row| row - own.start));
            self.sources[source].each_example(&mut of_source, &mut |row, example| {
                goes_on = take(row + own.start, example);
                goes_on
            });
        }
    }

    fn group_bytes(&self, group: usize) -> usize {
        let source = self.parts.partition_point(|part| part.groups.end <= group);
        let of = |part: &Part| self.sources[source].group_bytes(group - part.groups.start);
        self.parts.get(source).map_or(0, of)
    }

    fn read_ahead(&self, rows: &[u64]) {
        let mut of_source = vec![Vec::new(); self.sources.len()];
        for (source, row) in rows.iter().filter_map(|&row| self.locate(row)) {
            of_source[source].push(row);
        }
        for (source, rows) in self.sources.iter().zip(&of_source).filter(|(_, rows)| !rows.is_empty()) {
            source.read_ahead(rows);
        }
    }

    fn files(&self) -> Vec<DataFile> {
        let shifted = |(source, start): (&Arc<dyn Dataset>, &u64)| {
            let start = *start;
            let shift = move |file: DataFile| DataFile {
                rows: file.rows.start + start..file.rows.end + start,
                ..file
            };
            source.files().into_iter().map(shift).collect::<Vec<_>>()
        };
        self.sources.iter().zip(&self.starts).flat_map(shifted).collect()
    }

    fn manifest(&self) -> DatasetManifest {
        let mut all = DatasetManifest::default();
        for (part, source) in self.parts.iter().zip(&self.sources) {
            let manifest = source.manifest();
            all.files.extend(manifest.files);
            all.rules.insert(format!("weight of '{}'", part.name), part.weight.to_string());
            let rules = manifest.rules.into_iter();
            all.rules.extend(rules.map(|(name, rule)| (format!("{name} of '{}'", part.name), rule)));
        }
        all
    }

    fn skipped(&self) -> u64 {
        self.sources.iter().map(|source| source.skipped()).sum()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
