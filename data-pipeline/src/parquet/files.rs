//! The files of a location with their footers, read side by side or known from an earlier start.

use std::path::Path;

use rayon::prelude::*;

use super::{
    columns::Columns,
    footers::Footers,
    index::{FileIndex, read_footer},
    policy::usable_files,
};
use crate::{
    config::OnBad,
    error::{Error, Result},
    source::{Location, SourceFile, Sources},
};

/// Threads that read footers from local disks; stores are asked with as many as they allow requests.
const LOCAL_THREADS: usize = 8;

/// Finds and checks the files, in their order; bad ones are told all at once, or left out.
pub(super) fn open_files(
    sources: &Sources,
    location: &Location,
    index: Option<&Path>,
    columns: Columns,
    on_bad_file: OnBad,
) -> Result<Vec<FileIndex>> {
    let known = index.map_or_else(Footers::default, |path| Footers::load(path, location));
    let sources_of = match sources.list(location) {
        // The store may be away while all that is needed lies in the caches.
        Err(error @ Error::Remote { .. }) if !known.is_empty() => {
            tracing::warn!("{error}; going on with the {} files that were there before", known.len());
            known
                .files()
                .map(|(name, size, version)| sources.file(name, size, version))
                .collect::<Result<_>>()?
        }
        listed => listed?,
    };
    let open = |source: &SourceFile| {
        let footer = known.get(source).map_or_else(|| read_footer(source), Ok)?;
        Ok((FileIndex::new(source, &footer, columns)?, footer))
    };
    let opened: Vec<Result<_>> =
        threads(sources, &sources_of)?.install(|| sources_of.par_iter().map(open).collect());
    let mut footers = Footers::default();
    let mut without_footer = |(file, footer): (FileIndex, _)| {
        footers.add(&file.source, footer);
        file
    };
    let opened = opened.into_iter().map(|file| file.map(&mut without_footer)).collect();
    let files = usable_files(opened, on_bad_file)?;
    if let Some(path) = index.filter(|_| footers != known) {
        footers.save(path, location);
    }
    Ok(files)
}

fn threads(sources: &Sources, files: &[SourceFile]) -> Result<rayon::ThreadPool> {
    let remote = files.iter().any(SourceFile::is_remote);
    let count = if remote { sources.concurrency() } else { LOCAL_THREADS }.min(files.len());
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|number| format!("ilm-footer-{number}"))
        .build()
        .map_err(|error| Error::Thread(std::io::Error::other(error)))
}
