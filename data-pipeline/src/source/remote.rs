//! One object store, asked by blocking calls: every request is tried again until it succeeds or patience is at an end.

use std::{
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{TryStreamExt, future::try_join_all};
use object_store::{Error as StoreError, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use tokio::{runtime::Runtime, sync::Semaphore};

use super::{StoreConfig, hub::Hub, retry::pause, url::RemotePlace};
use crate::error::{Error, Result};

/// Characters of a server's answer that a message repeats.
const LONGEST_REASON: usize = 300;
/// How often a request is tried again if the settings do not say.
const RETRIES: usize = 8;
/// How long a read is tried again if the settings do not say: a run outlives a store that is started again. Looking
/// files up is given up sooner, since a mistyped address or missing keys fail there, but not where the store says that
/// it is asked too often: the hub counts requests over five minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A store and the rules for asking it.
#[derive(Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    /// What lists the files, if the store itself cannot.
    hub: Option<Hub>,
    permits: Semaphore,
    retries: usize,
    /// How long reads, and requests of which there are too many, are tried again at least.
    patience: Duration,
    /// Whether it was said that the store is waited for.
    waiting: AtomicBool,
}

/// An object as it was when its set was opened.
pub(super) struct Object<'a> {
    pub url: &'a str,
    pub path: &'a Path,
    pub size: u64,
    pub version: &'a str,
}

/// Why a try failed.
pub(super) struct Failure {
    pub reason: String,
    /// Another try may succeed.
    pub passing: bool,
}

impl Remote {
    pub fn new(store: Arc<dyn ObjectStore>, hub: Option<Hub>, config: &StoreConfig) -> Self {
        Self {
            store,
            hub,
            permits: Semaphore::new(config.concurrency),
            retries: config.retries.unwrap_or(RETRIES),
            patience: if config.retries.is_some() { Duration::ZERO } else { PATIENCE },
            waiting: AtomicBool::new(false),
        }
    }

    /// The bytes of ranges, which are fetched side by side.
    pub fn read(&self, object: &Object<'_>, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        runtime()?.block_on(try_join_all(ranges.iter().map(|range| self.read_range(object, range))))
    }

    /// What the store says of an object; none if there is no such object.
    pub fn head(&self, url: &str, path: &Path) -> Result<Option<ObjectMeta>> {
        runtime()?.block_on(self.look_up(url, path))
    }

    /// The objects of a place that lie below a folder, directly in it or at any depth, and are wanted.
    pub fn list(
        &self,
        place: &RemotePlace,
        folder: &Path,
        deep: bool,
        wanted: impl Fn(&Path) -> bool,
    ) -> Result<Vec<ObjectMeta>> {
        let what = format!("list '{}'", place.url(&place.path));
        if let Some(hub) = &self.hub {
            let found = async {
                let mut paths = self.list_hub(hub, &what, folder, deep).await?;
                paths.retain(&wanted);
                try_join_all(paths.iter().map(|path| self.look_up_listed(place, path))).await
            };
            return runtime()?.block_on(found);
        }
        let mut found = runtime()?.block_on(self.retrying(&what, Duration::ZERO, async || {
            let found = if deep {
                self.store.list(Some(folder)).try_collect().await
            } else {
                self.store.list_with_delimiter(Some(folder)).await.map(|found| found.objects)
            };
            found.map_err(Failure::of)
        }))?;
        found.retain(|meta| wanted(&meta.location));
        Ok(found)
    }

    async fn list_hub(&self, hub: &Hub, what: &str, folder: &Path, deep: bool) -> Result<Vec<Path>> {
        let mut paths = Vec::new();
        let first = hub.first_page(folder, deep);
        let mut next = Some(first.clone());
        while let Some(url) = next {
            let is_first = url == first;
            let page = self.retrying(what, Duration::ZERO, async || hub.page(&url, is_first).await).await?;
            paths.extend(page.files);
            next = page.next;
        }
        Ok(paths)
    }

    async fn look_up(&self, url: &str, path: &Path) -> Result<Option<ObjectMeta>> {
        let what = format!("look up '{url}'");
        let answer = self.retrying(&what, Duration::ZERO, async || match self.store.head(path).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            answer => answer.map(Some).map_err(Failure::of),
        });
        answer.await
    }

    /// A list of the hub has no marks of versions as its files have them, so each file is asked for its own.
    async fn look_up_listed(&self, place: &RemotePlace, path: &Path) -> Result<ObjectMeta> {
        let url = place.url(path.as_ref());
        let gone = || Error::Remote {
            what: format!("look up '{url}'"),
            tries: 1,
            reason: "the list of files has it, but it is not there".to_owned(),
        };
        self.look_up(&url, path).await?.ok_or_else(gone)
    }

    async fn read_range(&self, object: &Object<'_>, range: &Range<u64>) -> Result<Bytes> {
        let what = format!("read bytes {}..{} of '{}'", range.start, range.end, object.url);
        let answer = self.retrying(&what, self.patience, async || {
            let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
            let answer = self.store.get_opts(object.path, options).await.map_err(Failure::of)?;
            if answer.meta.size != object.size || other_version(&version(&answer.meta), object.version) {
                return Ok(None);
            }
            let bytes = answer.bytes().await.map_err(Failure::of)?;
            let wanted = range.end - range.start;
            if bytes.len() as u64 == wanted {
                Ok(Some(bytes))
            } else {
                let reason = format!("the answer has {} of {wanted} bytes", bytes.len());
                Err(Failure { reason, passing: true })
            }
        });
        answer.await?.ok_or_else(|| Error::Changed { url: object.url.to_owned() })
    }

    /// Tries until there is an answer: as often as retries allow, and on for as long as patience lasts.
    async fn retrying<T>(
        &self,
        what: &str,
        mut patience: Duration,
        attempt: impl AsyncFn() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut tries = 0;
        let mut failing_since: Option<Instant> = None;
        loop {
            // Closed never happens: the semaphore lives as long as the store.
            let permit = self.permits.acquire().await;
            let answer = attempt().await;
            drop(permit);
            tries += 1;
            match answer {
                Ok(answer) => {
                    if self.waiting.swap(false, Ordering::Relaxed) {
                        tracing::warn!("the store answers again: it was possible to {what}");
                    }
                    return Ok(answer);
                }
                Err(Failure { reason, passing }) => {
                    if status(&reason) == Some(429) {
                        patience = patience.max(self.patience);
                    }
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    let left = patience.saturating_sub(since.elapsed());
                    if !passing || (tries > self.retries && left.is_zero()) {
                        let reason = self.with_advice(reason);
                        return Err(Error::Remote { what: what.to_owned(), tries, reason });
                    }
                    self.tell(what, &reason, (tries > self.retries).then_some(left));
                    tokio::time::sleep(pause(what, tries)).await;
                }
            }
        }
    }

    /// The hub does not tell a data set that is not there from one that it may not show.
    fn with_advice(&self, reason: String) -> String {
        let Some(hub) = &self.hub else { return reason };
        match status(&reason) {
            Some(401) if hub.has_token => {
                reason + "; the token in HF_TOKEN was refused: set a valid one, or unset it"
            }
            Some(401 | 403) => {
                reason + "; check the name, and set HF_TOKEN if the data set is private or gated"
            }
            _ => reason,
        }
    }

    /// Of a failed try; aloud, and once for all requests, when it takes patience to go on.
    fn tell(&self, what: &str, reason: &str, patience: Option<Duration>) {
        match patience {
            Some(left) if !self.waiting.swap(true, Ordering::Relaxed) => {
                tracing::warn!("cannot {what}: {reason}; trying again for up to {} s", left.as_secs());
            }
            _ => tracing::debug!("cannot {what}: {reason}; trying again"),
        }
    }
}

impl Failure {
    fn of(error: StoreError) -> Self {
        let text = with_causes(&error);
        let passing = match error {
            StoreError::Generic { .. } => !refused(&text),
            StoreError::JoinError { .. } => true,
            _ => false,
        };
        Self { reason: reason(&text), passing }
    }

    /// Of a request that had no whole answer.
    pub fn of_request(error: &dyn std::error::Error) -> Self {
        Self { reason: one_line(&with_causes(error)), passing: true }
    }

    /// Of an answer that says so.
    pub fn of_answer(status: impl std::fmt::Display, body: &[u8]) -> Self {
        let text = format!("the answer has status code: {status}: {}", String::from_utf8_lossy(body));
        Self { reason: one_line(&text), passing: !refused(&text) }
    }
}

/// The message and those of its causes that it does not repeat itself ("operation timed out" is deep down).
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text = format!("{text}: {deeper}");
        }
        cause = error.source();
    }
    text
}

/// A store's mark of an object's content, or when it was written.
pub(super) fn version(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.timestamp_micros().to_string())
}

/// Weak marks and times may differ between servers that hold the same object.
fn other_version(now: &str, before: &str) -> bool {
    let strong = |mark: &str| mark.starts_with('"');
    strong(now) && strong(before) && now != before
}

/// Whether the status says that the same request is refused again (all of 4xx but "too slow" and "too many").
fn refused(text: &str) -> bool {
    status(text).is_some_and(|status| (400..500).contains(&status) && status != 408 && status != 429)
}

/// The status that an answer had. The library keeps that of an unclassified error in its text only.
fn status(text: &str) -> Option<u16> {
    text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse().ok())
}

/// The part of the library's message that is news, on one line.
fn reason(text: &str) -> String {
    let mut line = one_line(text.split_once(" - ").map_or(text, |(_, news)| news));
    if text.contains("169.254.169.254") {
        line.push_str("; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or data.store.anonymous = true");
    }
    line
}

fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(LONGEST_REASON) {
        line.truncate(cut);
        line.push_str("...");
    }
    line.trim_end_matches([':', ' ']).to_owned()
}

/// The threads that wait for the network, shared by all stores of the process.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ilm-network")
            .enable_all()
            .build()
    });
    RUNTIME.as_ref().map_err(|error| Error::Thread(std::io::Error::new(error.kind(), error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use object_store::memory::InMemory;

    use super::*;

    fn remote(retries: Option<usize>) -> Remote {
        Remote::new(Arc::new(InMemory::new()), None, &StoreConfig { retries, ..StoreConfig::default() })
    }

    const LONG: Duration = Duration::from_secs(600);

    /// How many tries a store with two retries takes that fails so often, and whether it was waited for.
    fn tries(failing: usize, passing: bool, patience: Duration) -> (Result<usize>, bool) {
        tries_because("connection refused", failing, passing, patience)
    }

    /// The same of a store that names a reason and whose reads have much patience.
    fn tries_because(
        reason: &str,
        failing: usize,
        passing: bool,
        patience: Duration,
    ) -> (Result<usize>, bool) {
        let remote = Remote { patience: LONG, ..remote(Some(2)) };
        let (count, waited) = (AtomicUsize::new(0), AtomicBool::new(false));
        let attempt = async || {
            let tries = count.fetch_add(1, Ordering::Relaxed) + 1;
            waited.fetch_or(remote.waiting.load(Ordering::Relaxed), Ordering::Relaxed);
            if tries > failing {
                return Ok(tries);
            }
            Err(Failure { reason: reason.into(), passing })
        };
        let answer = runtime().unwrap().block_on(remote.retrying("read", patience, attempt));
        assert!(answer.is_err() || !remote.waiting.load(Ordering::Relaxed), "the end of the wait is told");
        (answer, waited.into_inner())
    }

    #[test]
    fn a_store_that_is_away_is_waited_for_when_retries_are_used_up() {
        assert!(matches!(tries(4, true, LONG), (Ok(5), true)));
        assert!(matches!(tries(2, true, LONG), (Ok(3), false)), "nothing is said of what passes soon");
        assert!(matches!(tries(4, true, Duration::ZERO), (Err(Error::Remote { tries: 3, .. }), false)));
        assert!(matches!(tries(4, false, LONG), (Err(Error::Remote { tries: 1, .. }), false)));
        let ended = tries(usize::MAX, true, Duration::from_millis(500)).0;
        assert!(matches!(ended, Err(Error::Remote { tries: 3.., .. })));
    }

    #[test]
    fn a_look_up_waits_when_the_store_is_asked_too_often() {
        let look_up = |status: &str| {
            let reason = format!("the answer has status code: {status}: later, please");
            tries_because(&reason, 4, true, Duration::ZERO)
        };
        assert!(matches!(look_up("429 Too Many Requests"), (Ok(5), true)));
        assert!(matches!(look_up("503 Service Unavailable"), (Err(Error::Remote { tries: 3, .. }), false)));
    }

    #[test]
    fn retries_that_are_set_are_all_the_patience_there_is() {
        let of = |retries| {
            let remote = remote(retries);
            (remote.retries, remote.patience)
        };
        assert_eq!(of(None), (8, Duration::from_secs(300)));
        assert_eq!(of(Some(0)), (0, Duration::ZERO));
        assert_eq!(of(Some(20)), (20, Duration::ZERO));
    }

    #[test]
    fn what_a_server_refuses_is_not_asked_again() {
        for (status, refused_now) in
            [(400, true), (403, true), (408, false), (429, false), (500, false), (503, false)]
        {
            let text = format!("x - Server returned non-2xx status code: {status} Y: <a>\n b</a>");
            assert_eq!(refused(&text), refused_now, "{status}");
            assert_eq!(reason(&text), format!("Server returned non-2xx status code: {status} Y: <a> b</a>"));
        }
        assert!(!refused("connection refused"));
        assert!(reason(&"ä".repeat(1000)).chars().count() < 400);
    }

    #[test]
    fn only_strong_marks_tell_versions_apart() {
        assert!(other_version("\"a\"", "\"b\"") && !other_version("\"a\"", "\"a\""));
        assert!(!other_version("W/\"a\"", "W/\"b\"") && !other_version("170", "\"a\""));
    }
}
