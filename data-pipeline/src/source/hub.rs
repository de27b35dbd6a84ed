//! Lists of the Hugging Face hub, which come in pages. The files themselves lie in a plain HTTP store.

use http::{
    HeaderMap, StatusCode, Uri,
    header::LINK,
    uri::{Authority, Scheme},
};
use object_store::{
    client::{HttpClient, HttpRequest, HttpRequestBody},
    path::Path,
};
use serde::Deserialize;

use super::{remote::Failure, url::MAIN};

/// What lists the files of a data set at one revision.
#[derive(Debug)]
pub(super) struct Hub {
    client: HttpClient,
    /// The URL of the list of its root.
    root: String,
    /// Whether requests bring a token.
    pub has_token: bool,
}

/// A part of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub files: Vec<Path>,
    /// The URL of the part that follows.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// Where the files of `ORGANISATION/NAME[@REVISION]` begin.
pub(super) fn files_url(server: &str, set: &str) -> String {
    url(server, "datasets", set, "resolve")
}

/// The revision is written as the place has it, percent-encoded.
fn url(server: &str, folder: &str, set: &str, what: &str) -> String {
    let (name, revision) = set.split_once('@').unwrap_or((set, MAIN));
    // A mirror may lie below the root of its server.
    format!("{}/{folder}/{name}/{what}/{revision}", server.trim_end_matches('/'))
}

impl Hub {
    /// Asks a server for the files of `ORGANISATION/NAME[@REVISION]`.
    pub fn new(client: HttpClient, server: &str, set: &str, has_token: bool) -> Self {
        Self { client, root: url(server, "api/datasets", set, "tree"), has_token }
    }

    /// The URL of the first page of a list: what is directly in a folder, or what is below it at any depth.
    pub fn first_page(&self, folder: &Path, deep: bool) -> String {
        let mut url = self.root.clone();
        for part in folder.parts() {
            url.push('/');
            url.extend(part.as_ref().bytes().map(encoded));
        }
        format!("{url}?recursive={deep}&expand=false")
    }

    /// A page of a list. The first one is empty if there is no such folder or revision.
    pub async fn page(&self, url: &str, is_first: bool) -> Result<Page, Failure> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url
            .parse::<Uri>()
            .map_err(|error| Failure { reason: format!("'{url}' is no URL: {error}"), passing: false })?;
        let response = self.client.execute(request).await.map_err(|error| Failure::of_request(&error))?;
        let (head, body) = response.into_parts();
        let body = body.bytes().await.map_err(|error| Failure::of_request(&error))?;
        let is_missing = head.status == StatusCode::NOT_FOUND;
        if is_missing && is_first {
            return Ok(Page::default());
        }
        if !head.status.is_success() {
            let failure = Failure::of_answer(head.status, &body);
            // A page that another one names is there: without it the set would be another one.
            return Err(Failure { passing: failure.passing || is_missing, ..failure });
        }
        let entries: Vec<Entry> = serde_json::from_slice(&body).map_err(|error| Failure {
            reason: format!("the answer is no list of files: {error}"),
            passing: true,
        })?;
        let files = entries.iter().filter(|entry| entry.kind == "file");
        // What no store can name is no shard either.
        let files = files.filter_map(|entry| Path::parse(&entry.path).ok()).collect();
        Ok(Page { files, next: self.next_page(&head.headers)? })
    }

    /// The token goes to the hub alone, so a list is not followed to another server.
    fn next_page(&self, headers: &HeaderMap) -> Result<Option<String>, Failure> {
        let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok());
        match links.flat_map(|links| links.split('<')).find_map(next_url) {
            Some(url) if origin(url) != origin(&self.root) => Err(Failure {
                reason: format!(
                    "the list goes on at another server, '{url}'; set data.store.endpoint to that server"
                ),
                passing: false,
            }),
            url => Ok(url.map(str::to_owned)),
        }
    }
}

/// The URL of `URL>; rel="next"`, but not of other relations.
fn next_url(link: &str) -> Option<&str> {
    let (url, relation) = link.split_once('>')?;
    relation.replace('"', "").contains("rel=next").then_some(url)
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(Scheme, Authority)> {
    let parts = url.parse::<Uri>().ok()?.into_parts();
    Some((parts.scheme?, parts.authority?))
}

/// A byte of a path's part as URLs have it.
fn encoded(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use object_store::{
        ClientOptions,
        client::{HttpConnector, ReqwestConnector},
    };

    use super::*;

    fn hub(server: &str, set: &str) -> Hub {
        Hub::new(ReqwestConnector::default().connect(&ClientOptions::new()).unwrap(), server, set, false)
    }

    #[test]
    fn urls_of_lists_and_files() {
        let revision = "o/n@refs%2Fconvert%2Fparquet";
        assert_eq!(files_url("https://h", "o/n"), "https://h/datasets/o/n/resolve/main");
        assert_eq!(
            files_url("http://h:1/hub/", revision),
            "http://h:1/hub/datasets/o/n/resolve/refs%2Fconvert%2Fparquet"
        );
        let list = |set: &str, folder: &str, deep| {
            hub("https://h/", set).first_page(&Path::parse(folder).unwrap(), deep)
        };
        let trees = "https://h/api/datasets/o/n/tree";
        assert_eq!(list("o/n", "", false), format!("{trees}/main?recursive=false&expand=false"));
        assert_eq!(
            list(revision, "a b/50%é/", true),
            format!("{trees}/refs%2Fconvert%2Fparquet/a%20b/50%25%C3%A9?recursive=true&expand=false")
        );
    }

    #[test]
    fn the_next_page_is_on_the_same_server() {
        let hub = hub("https://h:1", "o/n");
        let next = |links: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for &link in links {
                headers.append(LINK, HeaderValue::from_static(link));
            }
            hub.next_page(&headers).map_err(|failure| failure.reason)
        };
        let there = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(next(&[]), Ok(None));
        assert_eq!(next(&["<https://h:1/a>; rel=\"last\""]), Ok(None));
        let both = "<https://h:1/a>; rel=\"first\", <https://H:1/b?cursor=c,d>; rel=\"next\"";
        assert_eq!(next(&[both]), there("https://H:1/b?cursor=c,d"));
        let two = ["<https://h:1/a>; rel=first", "<https://h:1/b>; rel=next"];
        assert_eq!(next(&two), there("https://h:1/b"));
        for elsewhere in ["https://h/b", "http://h:1/b", "https://i:1/b", "/b"] {
            let link: &'static str = format!("<{elsewhere}>; rel=\"next\"").leak();
            assert!(next(&[link]).unwrap_err().contains("another server"), "{elsewhere}");
        }
    }
}
