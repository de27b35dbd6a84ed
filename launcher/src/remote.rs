//! How ranks on other machines reach the launcher: a TCP connection each, on which they send the same records as on the
//! named pipe.

use crate::error::{Error, Result};
use crate::event::Event;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{SockaddrStorage, setsockopt, sockopt};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Begins the address of a listener, which no path of a pipe does.
pub const PREFIX: &str = "tcp:";

/// Where ranks find the word that lets them in; mpirun passes it on without showing it in a command line.
pub const TOKEN_VARIABLE: &str = "ILM_LAUNCH_TOKEN";

/// Seconds of silence after which a connection is tried, seconds between tries, and tries.
///
/// A host that is gone is noticed after 11 seconds; without this it would be minutes. mpirun gets the same.
pub const KEEPALIVE: [u32; 3] = [5, 2, 3];

/// How long one address is tried, and how long a connection may take to say its word.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nobody is let in after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest record, with room to spare; what sends more without a line feed is no rank.
const LONGEST: u64 = 1 << 13;

/// The launcher's side.
#[derive(Debug)]
pub struct Listener {
    port: u16,
    interface: Option<String>,
    token: String,
    closed: Arc<AtomicBool>,
    /// Every connection that was accepted.
    connections: Arc<Mutex<Vec<Arc<TcpStream>>>>,
}

impl Listener {
    /// Listens on a free port.
    ///
    /// # Errors
    /// Those of the network, or if no random word can be read.
    pub fn open(interface: Option<&str>) -> io::Result<(Self, impl Iterator<Item = Event> + Send + use<>)> {
        allow_files();
        // Where there is no IPv6 the first fails; where there is, it takes both.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        // Bounded, so that a launcher that cannot write makes the ranks wait as a pipe would.
        let (events, received) = sync_channel(1024);
        let opened = Self {
            port: listener.local_addr()?.port(),
            interface: interface.map(str::to_owned),
            token: random_word()?,
            closed: Arc::new(AtomicBool::new(false)),
            connections: Arc::default(),
        };
        let (token, closed) = (opened.token.clone(), Arc::clone(&opened.closed));
        let connections = Arc::clone(&opened.connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // Those that came before the end are still heard; then nobody is waited for.
                if closed.load(Ordering::Acquire) && listener.set_nonblocking(true).is_err() {
                    return;
                }
                match stream {
                    Ok(stream) => {
                        let (token, events) = (token.clone(), events.clone());
                        let stream = Arc::new(stream);
                        connections.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&stream));
                        // A rank that sends much must not keep the others waiting.
                        thread::spawn(move || receive(&stream, &token, &events));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    // There may be no file descriptors for the moment.
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        });
        Ok((opened, received.into_iter()))
    }

    /// Every address of this machine that another may know it by, for [`connect`].
    pub fn address(&self) -> String {
        let mut addresses = own_addresses(self.interface.as_deref());
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::LOCALHOST.into());
        }
        let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, self.port).to_string());
        format!("{PREFIX}{}", sockets.collect::<Vec<_>>().join(","))
    }

    /// Ends every rank that is still there: wrappers take the end of their connection for that of the launcher.
    pub fn hang_up(&self) {
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// The word that lets a rank in.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Listener {
    /// Lets nobody in any more; the events end once the last rank is gone.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Ends the wait for the next connection.
        let _ = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, self.port).into(), PATIENCE);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
        self.hang_up();
    }
}

fn receive(stream: &TcpStream, token: &str, events: &SyncSender<Event>) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        let read = lines.by_ref().take(LONGEST).read_until(b'\n', line);
        read.is_ok_and(|_| line.pop_if(|last| *last == b'\n').is_some())
    };
    if keep_alive(stream).is_err() || stream.set_read_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    if !next(&mut line) || line != token.as_bytes() || stream.set_read_timeout(None).is_err() {
        return;
    }
    while next(&mut line) {
        let Some(event) = Event::parse(&line) else { continue };
        if events.send(event).is_err() {
            return;
        }
    }
}

/// The rank's side: the connection to the launcher, as a file to write records to.
///
/// # Errors
/// No word was passed on, or none of the addresses answers.
pub fn connect(address: &str) -> Result<File> {
    let refused = |source| Error::io("reach the launcher at", Path::new(address))(source);
    let token = std::env::var(TOKEN_VARIABLE).map_err(|error| refused(io::Error::other(error)))?;
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for socket in address.trim_start_matches(PREFIX).split(',').filter_map(|text| text.parse().ok()) {
        match TcpStream::connect_timeout(&socket, PATIENCE) {
            Ok(mut stream) => {
                keep_alive(&stream).map_err(refused)?;
                // Lines of output are wanted when they are written.
                stream.set_nodelay(true).map_err(refused)?;
                stream.write_all(format!("{token}\n").as_bytes()).map_err(refused)?;
                return Ok(OwnedFd::from(stream).into());
            }
            Err(error) => last = error,
        }
    }
    Err(refused(last))
}

/// Lets this process have a connection for each of many ranks, where the system's usual 1024 files would not do.
fn allow_files() {
    const WANTED: u64 = 1 << 16;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it may not be, a run of fewer ranks goes well all the same.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(WANTED.min(hard)), hard);
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let [idle, interval, count] = KEEPALIVE;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

fn own_addresses(interface: Option<&str>) -> Vec<IpAddr> {
    let Ok(found) = getifaddrs() else { return Vec::new() };
    let up = found.filter(|found| match interface {
        Some(name) => found.interface_name == name,
        None => {
            found.flags.contains(InterfaceFlags::IFF_UP)
                && !found.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        }
    });
    let mut addresses: Vec<IpAddr> = up.filter_map(|found| ip(&found.address?)).collect();
    // One that another machine cannot use without naming an interface is of no use.
    addresses.retain(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    addresses.sort();
    addresses
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// 128 bits in hexadecimal digits.
fn random_word() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Happening;

    #[test]
    fn only_who_knows_the_word_is_heard_and_the_events_end() {
        let (listener, events) = Listener::open(None).unwrap();
        let address = listener.address();
        let sockets: Vec<SocketAddr> =
            address.strip_prefix(PREFIX).unwrap().split(',').map(|text| text.parse().unwrap()).collect();
        assert!(sockets.iter().all(|socket| socket.port() == listener.port));
        let started = |rank| Event { rank, what: Happening::Started { job: None } };

        let say = |word: &str, rank| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.port)).unwrap();
            stream.write_all(format!("{word}\n").as_bytes()).unwrap();
            // Refused ones may be closed by now.
            let _ = started(rank).send(&mut stream);
            stream
        };
        say("guess", 1);
        let right = say(&listener.token, 2);
        drop(right);
        let mut stays = say(&listener.token, 3);
        listener.close();
        let mut events = events;
        let heard = [events.next(), events.next()].map(|event| event.map(|event| event.rank));
        assert!([2, 3].iter().all(|rank| heard.contains(&Some(*rank))), "{heard:?}");
        listener.hang_up();
        assert_eq!(stays.read(&mut [0]).unwrap(), 0, "the rank hears the end");
        assert_eq!(events.next(), None);
    }

    #[test]
    fn an_interface_that_is_not_there_leaves_this_machine() {
        let (listener, _events) = Listener::open(Some("no-such-interface")).unwrap();
        assert_eq!(listener.address(), format!("tcp:127.0.0.1:{}", listener.port));
        let (listener, _events) = Listener::open(Some("lo")).unwrap();
        assert!(listener.address().contains("127.0.0.1"));
    }
}
