//! moto as an S3 server of its own process, with one bucket.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::{FILES, FOLDER, local, wait_until};

/// The bucket.
pub const BUCKET: &str = "bucket";

/// A running server, stopped when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Starts a server that holds the test's files.
    pub fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(python())
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        wait_until("moto answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server.put("", b"");
        for file in FILES {
            let name = file.rsplit('/').next().unwrap();
            server.put(&format!("{FOLDER}/{name}"), &std::fs::read(local(file)).unwrap());
        }
        server
    }

    /// Writes an object that all may read; the empty key makes the bucket.
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

fn python() -> PathBuf {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../.python-tests/bin/python");
    let python = std::env::var_os("ILM_TEST_PYTHON").map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        python.exists(),
        "the Python packages of the tests are missing: run scripts/setup.sh --test (no {})",
        python.display()
    );
    python
}
