//! URLs of places: which store an object lies in, and the pattern of the objects within it.

use object_store::path::Path;

use crate::error::{Error, Result};

/// The revision of a data set on the hub that is meant where none is named.
pub(super) const MAIN: &str = "main";

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Any HTTP server; it lists nothing.
    Http,
    /// A data set on the Hugging Face hub.
    Hub,
}

impl Kind {
    /// Whether one endpoint cannot stand for both: the hub's token is not for other servers.
    pub fn excludes(self, other: Self) -> bool {
        let either = [self, other];
        either.contains(&Self::Hub) && (either.contains(&Self::S3) || either.contains(&Self::Gcs))
    }
}

/// A place in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemotePlace {
    pub kind: Kind,
    /// Bucket, `http(s)://HOST`, or `ORGANISATION/NAME[@REVISION]` on the hub.
    pub root: String,
    /// What follows the root in messages' URLs; may hold a glob.
    pub path: String,
}

/// What the text of a place names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Local(&'a str),
    Remote(RemotePlace),
}

/// Reads a place.
pub(super) fn parse(text: &str) -> Result<Place<'_>> {
    let bad = |reason: &str| Error::BadPattern { location: text.to_owned(), reason: reason.to_owned() };
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(Place::Local(text)) };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let remote = |kind, root: String, path: &str| {
        Ok(Place::Remote(RemotePlace { kind, root, path: path.trim_start_matches('/').to_owned() }))
    };
    match scheme {
        "file" if host.is_empty() => Ok(Place::Local(rest)),
        "file" => Err(bad("write file:///PATH for a local file")),
        _ if host.is_empty() => Err(bad("it names no bucket or server")),
        "s3" => remote(Kind::S3, host.to_owned(), path),
        "gs" => remote(Kind::Gcs, host.to_owned(), path),
        "http" | "https" if has_glob(path) || path.is_empty() || path.ends_with('/') => {
            Err(bad("an HTTP server lists no files; name each file, as a list of URLs"))
        }
        "http" | "https" => remote(Kind::Http, format!("{scheme}://{host}"), path),
        "hf" => {
            let (set, path) = data_set(host, path).ok_or_else(|| {
                bad("write hf://datasets/ORGANISATION/NAME[@REVISION]/PATH, a revision's slashes as %2F")
            })?;
            remote(Kind::Hub, set, path)
        }
        _ => Err(bad("only file, s3, gs, http, https and hf URLs are known")),
    }
}

/// `ORGANISATION/NAME[@REVISION]` and the path behind it of `hf://datasets/ORGANISATION/NAME[@REVISION]/PATH`.
fn data_set<'a>(host: &str, rest: &'a str) -> Option<(String, &'a str)> {
    let (organisation, rest) = rest.split_once('/')?;
    let (set, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, revision) = set.split_once('@').unwrap_or((set, MAIN));
    // They become parts of URLs as they are.
    let is_plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    let readable = [organisation, name, revision.replace('%', "").as_str()].into_iter().all(is_plain);
    // One way to say it, so that a file that is named twice is found.
    let set = if revision == MAIN { name } else { set };
    (host == "datasets" && readable).then(|| (format!("{organisation}/{set}"), path))
}

pub(super) fn has_glob(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

impl RemotePlace {
    /// The URL of an object of this place's store.
    pub fn url(&self, object: &str) -> String {
        match self.kind {
            Kind::S3 => format!("s3://{}/{object}", self.root),
            Kind::Gcs => format!("gs://{}/{object}", self.root),
            Kind::Http => format!("{}/{object}", self.root),
            Kind::Hub => format!("hf://datasets/{}/{object}", self.root),
        }
    }

    /// The path as the store has it: HTTP URLs are percent-encoded, keys of the others are literal.
    pub fn object(&self, path: &str) -> Result<Path> {
        let parsed = match self.kind {
            Kind::Http => Path::from_url_path(path),
            Kind::S3 | Kind::Gcs | Kind::Hub => Path::parse(path),
        };
        parsed.map_err(|error| Error::BadPattern { location: self.url(path), reason: error.to_string() })
    }

    /// The folder before the first wildcard.
    pub fn fixed_prefix(&self) -> &str {
        let literal = self.path.find(['*', '?', '[']).map_or(self.path.as_str(), |end| &self.path[..end]);
        literal.rfind('/').map_or("", |slash| &literal[..slash])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> (Kind, String, String) {
        match parse(text).unwrap() {
            Place::Remote(place) => (place.kind, place.root.clone(), place.path),
            local => panic!("{local:?}"),
        }
    }

    #[test]
    fn places_are_paths_or_urls() {
        for path in ["/a/b", "a*.parquet", "a b"] {
            assert_eq!(parse(path).unwrap(), Place::Local(path));
        }
        assert_eq!(parse("file:///a/b*").unwrap(), Place::Local("/a/b*"));
        let owned = |kind, root: &str, path: &str| (kind, root.to_owned(), path.to_owned());
        assert_eq!(remote("s3://bucket/a/b-*"), owned(Kind::S3, "bucket", "a/b-*"));
        assert_eq!(remote("gs://bucket"), owned(Kind::Gcs, "bucket", ""));
        assert_eq!(remote("http://h:80/a.parquet"), owned(Kind::Http, "http://h:80", "a.parquet"));
    }

    #[test]
    fn a_place_on_the_hub_is_a_data_set_and_a_path_in_it() {
        for (text, set, path) in [
            ("hf://datasets/org/name/data/train-*.parquet", "org/name", "data/train-*.parquet"),
            ("hf://datasets/org/name@main/data/", "org/name", "data/"),
            ("hf://datasets/o/n@refs%2Fconvert%2Fparquet/a@b", "o/n@refs%2Fconvert%2Fparquet", "a@b"),
            ("hf://datasets/o/n.m@~parquet", "o/n.m@~parquet", ""),
        ] {
            assert_eq!(remote(text), (Kind::Hub, set.to_owned(), path.to_owned()));
            let Place::Remote(place) = parse(text).unwrap() else { panic!() };
            assert_eq!(place.url(path), format!("hf://datasets/{set}/{path}"));
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_place() {
        for text in [
            "ftp://h/a",
            "s3:///a",
            "file://host/a",
            "https://h/a-*.parquet",
            "https://h/",
            "hf://datasets/o",
            "hf://datasets/o/n@/x",
            "hf://datasets/o/n@a#b/x",
            "hf://datasets/o/n*/x",
            "hf://models/o/n/x",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_glob_starts_after_a_fixed_folder() {
        for (url, prefix) in
            [("s3://b/lm1b/train-*.parquet", "lm1b"), ("s3://b/*/x", ""), ("s3://b/a/b/c?/d", "a/b")]
        {
            let Place::Remote(place) = parse(url).unwrap() else { panic!() };
            assert_eq!(place.fixed_prefix(), prefix, "{url}");
        }
    }
}
