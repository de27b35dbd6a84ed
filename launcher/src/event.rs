//! What the wrapper of a rank tells the launcher: records of one line each, so short that the kernel writes them to
//! the shared pipe whole, whatever other ranks write at the same time.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Longest piece of output in one record: PIPE_BUF (4096, the longest write a pipe keeps whole) less room for the head.
pub const MAX_PIECE: u64 = 4000;

/// Which of its two outputs a rank wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a worker process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Signal(signal),
            None => Self::Exit(status.code().unwrap_or(1)),
        }
    }
}

impl Ending {
    /// The exit code a shell would give: the code, or 128 + signal.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code).unwrap_or(1)
    }
}

/// What happened to a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Its worker runs.
    Started {
        /// Open MPI's number for the job, where it says so; files that a rank shares with others are named after it.
        job: Option<u32>,
    },
    /// It wrote a piece of a line.
    Output {
        /// Where to.
        stream: Stream,
        /// At most [`MAX_PIECE`] bytes without a newline.
        piece: Vec<u8>,
        /// Whether a newline follows.
        ends_line: bool,
    },
    /// Its heartbeat has not changed for this many seconds.
    Hangs(u64),
    /// Its worker is gone.
    Ended(Ending),
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rank it is about.
    pub rank: usize,
    /// What happened.
    pub what: Happening,
}

impl Event {
    /// Writes the record with one `write` call.
    ///
    /// # Errors
    /// Those of the pipe; a broken one means that the launcher is gone.
    pub fn send(&self, mut pipe: impl Write) -> io::Result<()> {
        let mut record = self.rank.to_string().into_bytes();
        match &self.what {
            Happening::Started { job: None } => record.extend(b" s "),
            Happening::Started { job: Some(job) } => record.extend(format!(" s {job}").bytes()),
            Happening::Hangs(seconds) => record.extend(format!(" h {seconds}").bytes()),
            Happening::Output { stream, piece, ends_line } => {
                record.extend(match (stream, ends_line) {
                    (Stream::Out, true) => b" o ",
                    (Stream::Out, false) => b" O ",
                    (Stream::Err, true) => b" e ",
                    (Stream::Err, false) => b" E ",
                });
                record.extend(piece);
            }
            Happening::Ended(Ending::Exit(code)) => record.extend(format!(" x {code}").bytes()),
            Happening::Ended(Ending::Signal(signal)) => record.extend(format!(" k {signal}").bytes()),
        }
        record.push(b'\n');
        pipe.write_all(&record)
    }

    /// Reads a record without its newline; `None` if it is not one.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let mut fields = record.splitn(3, |&byte| byte == b' ');
        let rank = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let kind = fields.next()?;
        let payload = fields.next()?;
        let text = std::str::from_utf8(payload);
        let number = || text.ok()?.parse().ok();
        let output = |stream, ends_line| Happening::Output { stream, piece: payload.to_vec(), ends_line };
        let what = match kind {
            b"s" => Happening::Started { job: text.ok()?.parse().ok() },
            b"h" => Happening::Hangs(text.ok()?.parse().ok()?),
            b"o" => output(Stream::Out, true),
            b"O" => output(Stream::Out, false),
            b"e" => output(Stream::Err, true),
            b"E" => output(Stream::Err, false),
            b"x" => Happening::Ended(Ending::Exit(number()?)),
            b"k" => Happening::Ended(Ending::Signal(number()?)),
            _ => return None,
        };
        Some(Self { rank, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_comes_back_as_sent() {
        let output =
            |stream, piece: &[u8], ends_line| Happening::Output { stream, piece: piece.to_vec(), ends_line };
        let all = [
            Happening::Started { job: None },
            Happening::Started { job: Some(u32::MAX) },
            Happening::Hangs(600),
            output(Stream::Out, b"", true),
            output(Stream::Out, b" two  blanks \xff", false),
            output(Stream::Err, b"step 1", true),
            output(Stream::Err, &[b'x'; MAX_PIECE as usize], false),
            Happening::Ended(Ending::Exit(75)),
            Happening::Ended(Ending::Signal(9)),
        ];
        for what in all {
            let event = Event { rank: 1234, what };
            let mut sent = Vec::new();
            event.send(&mut sent).unwrap();
            assert!(sent.len() <= 4096, "{} bytes are not written whole", sent.len());
            assert_eq!(sent.pop(), Some(b'\n'));
            assert_eq!(Event::parse(&sent), Some(event));
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        for record in
            [&b""[..], b"1", b"1 o", b"x o text", b"1 ? text", b"1 x", b"1 x many", b"1 h ", b"-1 s "]
        {
            assert_eq!(Event::parse(record), None, "{record:?}");
        }
    }
}
