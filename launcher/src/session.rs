//! The folder of one launch, private to its user and gone when the launch is: it holds the named pipe on which the
//! ranks report, and the logs where there is no run directory.

use crate::error::{Error, Result};
use crate::event::Event;
use crate::remote::{self, Listener};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder and the pipe in it. Dropping it removes the folder unless [`Session::keep`] was called.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    kept: bool,
    door: Option<Door>,
}

/// What keeps the way of the events open while no rank does, so that the reader does not see its end too early.
#[derive(Debug)]
enum Door {
    /// The writing end of the pipe.
    Pipe(#[expect(dead_code, reason = "being open is all it is for")] File),
    /// For ranks on other machines.
    Network(Listener),
}

/// The events of all ranks in the order in which they came, waited for; the end comes when every rank is gone. What is
/// no event is passed over.
pub type Events = Box<dyn Iterator<Item = Event> + Send>;

impl Session {
    /// Creates a fresh folder under the system's temporary one, and the pipe with its reading end.
    ///
    /// # Errors
    /// [`Error::Io`] if the temporary folder cannot be written.
    pub fn create() -> Result<(Self, Events)> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let mut session = Self { folder, kept: false, door: None };
        let pipe = session.pipe();
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::io("create", &pipe))?;
        // Opening one end alone waits for the other, so one that is both comes first; it may not stay, because it
        // would hide from the ranks that the reader is gone.
        let both = OpenOptions::new().read(true).write(true).open(&pipe).map_err(Error::io("open", &pipe))?;
        let reader = File::open(&pipe).map_err(Error::io("open", &pipe))?;
        session.door = Some(Door::Pipe(open_pipe(&pipe)?));
        drop(both);
        Ok((session, Box::new(PipeReader(BufReader::new(reader)))))
    }

    /// Creates a fresh folder, and a listener on the network, or on one interface of it.
    ///
    /// # Errors
    /// [`Error::Io`] if the temporary folder cannot be written or the network refuses.
    pub fn create_for_hosts(interface: Option<&str>) -> Result<(Self, Events)> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let (listener, events) = Listener::open(interface).map_err(Error::io("listen for", &folder))?;
        Ok((Self { folder, kept: false, door: Some(Door::Network(listener)) }, Box::new(events)))
    }

    /// Where ranks report to, for [`open_for_events`].
    pub fn address(&self) -> OsString {
        match &self.door {
            Some(Door::Network(listener)) => listener.address().into(),
            _ => self.pipe().into(),
        }
    }

    /// The word that lets ranks of other machines in.
    pub fn token(&self) -> Option<&str> {
        match &self.door {
            Some(Door::Network(listener)) => Some(listener.token()),
            _ => None,
        }
    }

    fn pipe(&self) -> PathBuf {
        self.folder.join("events")
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends ranks on other machines, whatever became of what started them.
    pub fn hang_up(&self) {
        if let Some(Door::Network(listener)) = &self.door {
            listener.hang_up();
        }
    }

    /// Ends the events once the last rank is gone.
    pub fn close(&mut self) {
        match &self.door {
            Some(Door::Network(listener)) => listener.close(),
            _ => self.door = None,
        }
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

/// Opens the way to a launcher by its [`Session::address`].
///
/// # Errors
/// [`Error::Io`], for a pipe at once, if no launcher is there.
pub fn open_for_events(address: &OsStr) -> Result<File> {
    match address.to_str() {
        Some(network) if network.starts_with(remote::PREFIX) => remote::connect(network),
        _ => open_pipe(Path::new(address)),
    }
}

fn open_pipe(pipe: &Path) -> Result<File> {
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

struct PipeReader(BufReader<File>);

impl Iterator for PipeReader {
    type Item = Event;

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
        let pipe = open_for_events(&session.address()).unwrap();
        for rank in [2, 0] {
            started(rank).send(&pipe).unwrap();
        }
        drop(pipe);
        session.close();
        assert_eq!(reader.collect::<Vec<_>>(), [started(2), started(0)]);
        drop(session);
        assert!(!folder.exists());
    }

    #[test]
    fn a_pipe_nobody_reads_is_an_error_and_no_wait() {
        let (session, reader) = Session::create().unwrap();
        drop(reader);
        assert!(open_for_events(&session.address()).unwrap_err().to_string().starts_with("cannot open "));
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
