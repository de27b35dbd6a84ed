//! URLs of places: which store an object lies in, and the pattern of the objects within it.

use object_store::path::Path;

use crate::error::{Error, Result};

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Any HTTP server; it lists nothing.
    Http,
}

/// A place in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemotePlace {
    pub kind: Kind,
    /// Bucket, or `http(s)://HOST`.
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

/// Reads a place; `hub` is the server that stands for `hf://`.
pub(super) fn parse<'a>(text: &'a str, hub: &str) -> Result<Place<'a>> {
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
        "http" | "https" | "hf" if has_glob(path) || path.is_empty() || path.ends_with('/') => {
            Err(bad("an HTTP server lists no files; name each file, as a list of URLs"))
        }
        "http" | "https" => remote(Kind::Http, format!("{scheme}://{host}"), path),
        "hf" => {
            let file = hub_file(host, path)
                .ok_or_else(|| bad("write hf://datasets/ORGANISATION/NAME[@REVISION]/FILE.parquet"))?;
            // A mirror may lie below the root of its server.
            let (scheme, server) =
                hub.split_once("://").ok_or_else(|| bad("data.store.endpoint is no URL"))?;
            let (host, below) = server.split_once('/').unwrap_or((server, ""));
            remote(
                Kind::Http,
                format!("{scheme}://{host}"),
                &format!("{}/{file}", below.trim_end_matches('/')),
            )
        }
        _ => Err(bad("only file, s3, gs, http, https and hf URLs are known")),
    }
}

/// The path on the hub's server of `hf://datasets/ORGANISATION/NAME[@REVISION]/FILE`.
fn hub_file(host: &str, path: &str) -> Option<String> {
    let [organisation, name, file] = path.splitn(3, '/').collect::<Vec<_>>().try_into().ok()?;
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let filled = [organisation, name, revision, file].iter().all(|part| !part.is_empty());
    (host == "datasets" && filled)
        .then(|| format!("datasets/{organisation}/{name}/resolve/{revision}/{file}"))
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
        }
    }

    /// The path as the store has it: HTTP URLs are percent-encoded, keys of the others are literal.
    pub fn object(&self, path: &str) -> Result<Path> {
        let parsed = match self.kind {
            Kind::Http => Path::from_url_path(path),
            Kind::S3 | Kind::Gcs => Path::parse(path),
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

    const HUB: &str = "https://huggingface.co";

    fn remote(text: &str) -> (Kind, String, String) {
        match parse(text, HUB).unwrap() {
            Place::Remote(place) => (place.kind, place.root.clone(), place.path),
            local => panic!("{local:?}"),
        }
    }

    #[test]
    fn places_are_paths_or_urls() {
        for path in ["/a/b", "a*.parquet", "a b"] {
            assert_eq!(parse(path, HUB).unwrap(), Place::Local(path));
        }
        assert_eq!(parse("file:///a/b*", HUB).unwrap(), Place::Local("/a/b*"));
        let owned = |kind, root: &str, path: &str| (kind, root.to_owned(), path.to_owned());
        assert_eq!(remote("s3://bucket/a/b-*"), owned(Kind::S3, "bucket", "a/b-*"));
        assert_eq!(remote("gs://bucket"), owned(Kind::Gcs, "bucket", ""));
        assert_eq!(remote("http://h:80/a.parquet"), owned(Kind::Http, "http://h:80", "a.parquet"));
        assert_eq!(
            remote("hf://datasets/org/name/data/train.parquet"),
            owned(Kind::Http, HUB, "datasets/org/name/resolve/main/data/train.parquet")
        );
        let Place::Remote(mirror) = parse("hf://datasets/o/n@v1/x.parquet", "http://h:1/hub/").unwrap()
        else {
            panic!()
        };
        assert_eq!(mirror.url(&mirror.path), "http://h:1/hub/datasets/o/n/resolve/v1/x.parquet");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_place() {
        for text in [
            "ftp://h/a",
            "s3:///a",
            "file://host/a",
            "https://h/a-*.parquet",
            "https://h/",
            "hf://datasets/o/n",
            "hf://models/o/n/x",
        ] {
            let error = parse(text, HUB).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_glob_starts_after_a_fixed_folder() {
        for (url, prefix) in
            [("s3://b/lm1b/train-*.parquet", "lm1b"), ("s3://b/*/x", ""), ("s3://b/a/b/c?/d", "a/b")]
        {
            let Place::Remote(place) = parse(url, HUB).unwrap() else { panic!() };
            assert_eq!(place.fixed_prefix(), prefix, "{url}");
        }
    }
}
