//! A location (file, directory or glob) names its Parquet files in one order: by path.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The files of a location, sorted by path. A directory stands for the `*.parquet` files directly in it.
pub(super) fn locate(location: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(location);
    let mut files = if path.is_dir() {
        files_of(path)?
    } else if path.is_file() {
        vec![path.to_owned()]
    } else {
        matches(location)?
    };
    files.sort();
    if files.is_empty() {
        return Err(Error::NoFiles { location: location.to_owned() });
    }
    Ok(files)
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |source| Error::Io { action: "read", path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "parquet") && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern)
        .map_err(|error| Error::BadPattern { location: pattern.to_owned(), reason: error.to_string() })?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| Error::Io {
            action: "read",
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_globs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.parquet", "a.parquet", "c.txt", "a-test.parquet"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::create_dir(at("d.parquet")).unwrap();
        let found = |location: PathBuf| locate(location.to_str().unwrap());
        let all = [at("a-test.parquet"), at("a.parquet"), at("b.parquet")];
        assert_eq!(found(dir.path().into()).unwrap(), all);
        assert_eq!(found(at("a*.parquet")).unwrap(), all[..2]);
        assert_eq!(found(at("c.txt")).unwrap(), [at("c.txt")]);
        for nothing in ["x*.parquet", "none", "d.parquet"] {
            let error = found(at(nothing)).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(nothing), "{error}");
        }
        assert!(found(at("[")).unwrap_err().is_config());
    }
}
