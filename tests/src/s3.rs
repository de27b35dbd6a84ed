//! moto as an S3 server of its own process, with one bucket.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::python;

/// The bucket.
pub const BUCKET: &str = "bucket";

/// A running server, stopped when dropped.
pub struct Server {
    child: Child,
    /// Where it listens on loopback.
    pub port: u16,
}

impl Server {
    /// Starts a server whose bucket holds files as objects: (key, file) each.
    ///
    /// # Panics
    /// If moto is not installed or does not answer within two minutes.
    pub fn start<'a>(objects: impl IntoIterator<Item = (String, &'a Path)>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(python())
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(
            (0..12_000).any(|_| answers() || {
                sleep(Duration::from_millis(10));
                false
            }),
            "moto does not answer"
        );
        server.put("", b"");
        for (key, file) in objects {
            server.put(&key, &std::fs::read(file).unwrap());
        }
        server
    }

    /// Writes an object that all may read; the empty key makes the bucket.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-amz-acl: public-read\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            bytes.len()
        )
        .unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "PUT {key}: {answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
