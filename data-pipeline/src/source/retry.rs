//! Reads that failed and may succeed later: which ones, and how long to wait before the next try.

use std::{io::ErrorKind, time::Duration};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// The pause before the second try; it doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the read of a local file is tried again; the pauses between make about half a minute.
const LOCAL_RETRIES: usize = 10;
/// EIO and EHOSTDOWN, for which the library has no kind.
const PASSING_CODES: [i32; 2] = [5, 112];

/// What `read` of a local file gives. It is asked again after errors of a network file system that pass, each time after a
/// pause, for which `sleep` is called.
///
/// # Errors
/// That of the last try.
pub(super) fn patiently<T>(
    mut read: impl FnMut() -> Result<T>,
    mut sleep: impl FnMut(Duration),
) -> Result<T> {
    for tries in 1..=LOCAL_RETRIES {
        match read() {
            Err(error) if passes(&error) => {
                let what = error.to_string();
                if tries == 1 {
                    tracing::warn!("{what}; trying again for half a minute");
                }
                sleep(pause(&what, tries));
            }
            answer => return answer,
        }
    }
    read()
}

/// Whether another try may succeed.
fn passes(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    let has_passing_kind = matches!(
        source.kind(),
        ErrorKind::StaleNetworkFileHandle
            | ErrorKind::WouldBlock
            | ErrorKind::Interrupted
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    );
    has_passing_kind || source.raw_os_error().is_some_and(|code| PASSING_CODES.contains(&code))
}

/// Ranks that failed together must not come back together: the pause is spread by what was asked and by whom.
pub(super) fn pause(what: &str, tries: usize) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << (tries - 1).min(16)).min(LONGEST_PAUSE);
    let mark = xxh3_64(format!("{what} {tries} {}", std::process::id()).as_bytes());
    longest.mul_f64(0.5 + 0.5 * (mark as f64 / u64::MAX as f64))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Whether a read that fails so often comes to an answer, how often it was tried, and all pauses together.
    fn failing(times: usize, source: impl Fn() -> io::Error) -> (bool, usize, Duration) {
        let (mut tries, mut paused) = (0, Duration::ZERO);
        let read = || {
            tries += 1;
            if tries > times {
                return Ok(());
            }
            Err(Error::Io { action: "read", path: "a.parquet".into(), source: source() })
        };
        let answer = patiently(read, |pause| paused += pause);
        (answer.is_ok(), tries, paused)
    }

    #[test]
    fn errors_that_pass_are_waited_for() {
        // EINTR, EIO, EAGAIN, ENETDOWN, ENETUNREACH, ETIMEDOUT, EHOSTDOWN, EHOSTUNREACH, ESTALE
        for code in [4, 5, 11, 100, 101, 110, 112, 113, 116] {
            let (answers, tries, paused) = failing(3, || io::Error::from_raw_os_error(code));
            assert_eq!((answers, tries), (true, 4), "error {code}");
            assert!((350..=700).contains(&paused.as_millis()), "{paused:?}");
        }
    }

    #[test]
    fn the_wait_ends_after_about_half_a_minute() {
        let (answers, tries, paused) = failing(usize::MAX, || io::Error::from_raw_os_error(5));
        assert_eq!((answers, tries), (false, 1 + LOCAL_RETRIES));
        assert!((20..=45).contains(&paused.as_secs()), "{paused:?}");
    }

    #[test]
    fn other_errors_are_told_at_once() {
        // ENOENT, EACCES, EISDIR, EINVAL
        for code in [2, 13, 21, 22] {
            let told = failing(1, || io::Error::from_raw_os_error(code));
            assert_eq!(told, (false, 1, Duration::ZERO), "error {code}");
        }
        let short = failing(1, || ErrorKind::UnexpectedEof.into());
        assert_eq!(short, (false, 1, Duration::ZERO), "a file that is too short stays so");
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_differ() {
        for (tries, longest) in [(1, 100), (2, 200), (4, 800), (9, 10_000), (60, 10_000)] {
            let pause = pause("x", tries).as_millis();
            assert!(pause >= longest / 2 && pause <= longest, "{tries}: {pause}");
        }
        assert_ne!(pause("read 1", 3), pause("read 2", 3));
    }
}
