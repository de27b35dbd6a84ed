//! Replacing a file, so that a reader sees the old or the new one and never a part.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Whether there is something that no file may take the place of: a folder, a device, a pipe.
pub fn is_taken(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file())
}

/// Writes `content` to `path`, durably, by way of a file beside it. A link stays, and leads to the new file.
///
/// # Errors
/// If the disk refuses, or [something else than a file](is_taken) is there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if is_taken(path) {
        return Err(io::Error::other("it is a folder, a device or a pipe, not a file"));
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut temporary = target.clone().into_os_string();
    temporary.push(".tmp");
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        // What is said is why it could not be written; a part of it is of no use.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_is_replaced_and_only_by_way_of_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("texts.tmp"), "another's").unwrap();
        fs::write(at("texts.jsonl"), "old").unwrap();
        std::os::unix::fs::symlink(at("texts.jsonl"), at("link.jsonl")).unwrap();
        replace(&at("link.jsonl"), b"new").unwrap();
        assert!(at("link.jsonl").is_symlink());
        assert_eq!(fs::read_to_string(at("texts.jsonl")).unwrap(), "new");
        assert_eq!(fs::read_to_string(at("texts.tmp")).unwrap(), "another's");

        fs::create_dir(at("folder")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["folder", "pipe", "socket"] {
            let sentence = replace(&at(name), b"new").unwrap_err().to_string();
            assert!(sentence.contains("not a file"), "{sentence}");
            assert!(is_taken(&at(name)));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 6);
    }
}
