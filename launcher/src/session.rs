//! The folder of one launch, private to its user and gone when the launch is: it holds the named pipe on which the
//! ranks report, and the logs where there is no run directory.

use crate::error::{Error, Result};
use crate::event::Event;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder and the pipe in it. Dropping it removes the folder unless [`Session::keep`] was called.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    kept: bool,
    /// Holds the pipe open while no rank does, so that the reader does not see its end too early.
    writer: Option<File>,
}

impl Session {
    /// Creates a fresh folder under the system's temporary one, and the pipe with its reading end.
    ///
    /// # Errors
    /// [`Error::Io`] if the temporary folder cannot be written.
    pub fn create() -> Result<(Self, EventReader)> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let mut session = Self { folder, kept: false, writer: None };
        let pipe = session.pipe();
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::io("create", &pipe))?;
        // Opening one end alone waits for the other, so one that is both comes first; it may not stay, because it
        // would hide from the ranks that the reader is gone.
        let both = OpenOptions::new().read(true).write(true).open(&pipe).map_err(Error::io("open", &pipe))?;
        let reader = File::open(&pipe).map_err(Error::io("open", &pipe))?;
        session.writer = Some(open_for_events(&pipe)?);
        drop(both);
        Ok((session, EventReader(BufReader::new(reader))))
    }

    /// The named pipe.
    pub fn pipe(&self) -> PathBuf {
        self.folder.join("events")
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the reader once the last rank has closed the pipe.
    pub fn close_pipe(&mut self) {
        self.writer = None;
    }

    /// Leaves the folder where it is, for its logs.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing depends on the removal: names are never used twice.
        let _ = if self.kept { fs::remove_file(self.pipe()) } else { fs::remove_dir_all(&self.folder) };
    }
}

fn fresh_folder(parent: &Path) -> Result<PathBuf> {
    let mut attempt = 0;
    loop {
        let folder = parent.join(format!("ilm-launch-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(error) => return Err(Error::io("create", &folder)(error)),
        }
    }
}

/// Opens the writing end of a launcher's pipe.
///
/// # Errors
/// [`Error::Io`] at once, without waiting, if no launcher reads it.
pub fn open_for_events(pipe: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(pipe)
        .map_err(Error::io("open", pipe))?;
    // Only the opening must not wait; a full pipe must slow the rank down instead of losing its lines.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .map_err(Error::io("open", pipe))?;
    Ok(file)
}

/// The events of all ranks in the order in which they were written.
#[derive(Debug)]
pub struct EventReader(BufReader<File>);

impl Iterator for EventReader {
    type Item = Event;

    /// Waits for the next event; `None` once every writer is gone. What is no event is passed over.
    fn next(&mut self) -> Option<Event> {
        let mut record = Vec::new();
        loop {
            record.clear();
            if self.0.read_until(b'\n', &mut record).ok()? == 0 {
                return None;
            }
            if let Some(event) = Event::parse(record.strip_suffix(b"\n").unwrap_or(&record)) {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Happening;

    #[test]
    fn events_pass_and_the_folder_goes() {
        let (mut session, reader) = Session::create().unwrap();
        let folder = session.folder().to_path_buf();
        let started = |rank| Event { rank, what: Happening::Started { job: None } };
        let pipe = open_for_events(&session.pipe()).unwrap();
        for rank in [2, 0] {
            started(rank).send(&pipe).unwrap();
        }
        drop(pipe);
        session.close_pipe();
        assert_eq!(reader.collect::<Vec<_>>(), [started(2), started(0)]);
        drop(session);
        assert!(!folder.exists());
    }

    #[test]
    fn a_pipe_nobody_reads_is_an_error_and_no_wait() {
        let (session, reader) = Session::create().unwrap();
        drop(reader);
        assert!(open_for_events(&session.pipe()).unwrap_err().to_string().starts_with("cannot open "));
    }

    #[test]
    fn kept_logs_stay() {
        let (mut session, _reader) = Session::create().unwrap();
        let log = session.folder().join("rank-0.log");
        fs::write(&log, "line\n").unwrap();
        session.keep();
        let folder = session.folder().to_path_buf();
        drop(session);
        assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
        fs::remove_dir_all(folder).unwrap();
    }
}
