//! A server that stands in for the Hugging Face hub: it lists the files of a data set in pages and sends their bytes.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::{Value, json};

use super::proxy::read_head;

/// Entries of a page.
const PAGE: usize = 2;
/// Its revisions, as URLs have them.
const REVISIONS: [&str; 2] = ["main", "refs%2Fconvert%2Fparquet"];

/// What it does besides answering.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// So many lists to come fail.
    pub failing: usize,
    /// So many pages to come, but no first ones, are said not to be there.
    pub missing_pages: usize,
    /// The server that later pages are said to be on.
    pub pages_at: Option<String>,
    /// The port that requests for files are sent on to.
    pub files_at: Option<u16>,
    /// Without this no request is answered.
    pub token: Option<String>,
    /// Heads of the requests so far.
    pub requests: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    behaviour: Mutex<Behaviour>,
}

/// A running server with the data set `org/set`; its threads end with the test's process.
#[derive(Debug)]
pub struct StandIn {
    pub port: u16,
    shared: Arc<Shared>,
}

/// Status, further headers and body.
struct Answer(&'static str, String, Vec<u8>);

impl StandIn {
    /// Serves files: (path in the data set, content) each.
    pub fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { files: files.into_iter().collect(), behaviour: Mutex::default() });
        let server = Self { port, shared: shared.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = shared.clone();
                // An error is a client that went away.
                std::thread::spawn(move || shared.serve(client));
            }
        });
        server
    }

    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.behaviour.lock().unwrap()
    }

    /// The heads of requests since the last call.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.behaviour().requests)
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let head = read_head(&mut client)?;
        if head.is_empty() {
            return Ok(());
        }
        let Answer(status, headers, body) = self.answer(&head);
        self.behaviour.lock().unwrap().requests.push(head.clone());
        let length = format!("Content-Length: {}\r\n", body.len());
        let headers = format!("HTTP/1.1 {status}\r\n{headers}{length}Connection: close\r\n\r\n");
        client.write_all(headers.as_bytes())?;
        if head.starts_with("HEAD ") { Ok(()) } else { client.write_all(&body) }
    }

    fn answer(&self, head: &str) -> Answer {
        let token = self.behaviour.lock().unwrap().token.clone();
        if token.is_some_and(|token| !head.contains(&format!("Bearer {token}\r\n"))) {
            return Answer("401 Unauthorized", String::new(), b"who are you?".to_vec());
        }
        let url = head.split_whitespace().nth(1).unwrap_or_default();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        for revision in REVISIONS {
            if path.starts_with(&format!("/api/datasets/org/set/tree/{revision}")) {
                return self.list(path, revision, query, head);
            }
            if let Some(file) = path.strip_prefix(&format!("/datasets/org/set/resolve/{revision}/")) {
                return self.file(file, url, head);
            }
        }
        missing()
    }

    fn list(&self, path: &str, revision: &str, query: &str, head: &str) -> Answer {
        let mut behaviour = self.behaviour.lock().unwrap();
        if behaviour.failing > 0 {
            behaviour.failing -= 1;
            return Answer("500 Internal Server Error", String::new(), b"on purpose".to_vec());
        }
        let (options, start) = query.split_once("&cursor=").unwrap_or((query, "0"));
        let folder = path.split_once(revision).unwrap().1.trim_matches('/').replace("%20", " ");
        let entries = self.entries(&folder, options == "recursive=true&expand=false");
        let start: usize = start.parse().unwrap();
        if start > 0 && behaviour.missing_pages > 0 {
            behaviour.missing_pages -= 1;
            return missing();
        }
        let end = entries.len().min(start + PAGE);
        if entries.is_empty() {
            return missing();
        }
        let head = head.to_ascii_lowercase();
        let here = format!("http://{}", head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap());
        let server = behaviour.pages_at.as_ref().unwrap_or(&here);
        let next = format!("Link: <{server}{path}?{options}&cursor={end}>; rel=\"next\"\r\n");
        let headers = if end < entries.len() { next } else { String::new() };
        Answer("200 OK", headers, Value::from(entries[start..end].to_vec()).to_string().into_bytes())
    }

    /// The files and folders in a folder, or also all that is below.
    fn entries(&self, folder: &str, deep: bool) -> Vec<Value> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut entries = BTreeMap::new();
        for (path, content) in &self.files {
            let Some(below) = path.strip_prefix(&prefix) else { continue };
            if let Some((folder, _)) = below.split_once('/') {
                let path = format!("{prefix}{folder}");
                let entry = json!({"type": "directory", "oid": "0", "size": 0, "path": path});
                entries.insert(path, entry);
            }
            if deep || !below.contains('/') {
                let entry = json!({"type": "file", "oid": "1", "size": content.len(), "path": path});
                entries.insert(path.clone(), entry);
            }
        }
        entries.into_values().collect()
    }

    fn file(&self, path: &str, url: &str, head: &str) -> Answer {
        if let Some(port) = self.behaviour.lock().unwrap().files_at {
            return Answer("302 Found", format!("Location: http://127.0.0.1:{port}{url}\r\n"), Vec::new());
        }
        let Some(content) = self.files.get(&path.replace("%20", " ")) else { return missing() };
        let mark = format!("ETag: \"{}-{path}\"\r\n", content.len());
        let head = head.to_ascii_lowercase();
        let Some(range) = head.lines().find_map(|line| line.strip_prefix("range: bytes=")) else {
            return Answer("200 OK", mark, content.clone());
        };
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let headers = format!("{mark}Content-Range: bytes {first}-{last}/{}\r\n", content.len());
        Answer("206 Partial Content", headers, content[first..=last].to_vec())
    }
}

fn missing() -> Answer {
    Answer("404 Not Found", String::new(), b"{\"error\": \"Entry not found\"}".to_vec())
}
