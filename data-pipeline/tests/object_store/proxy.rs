//! A proxy before the server: it counts requests, holds answers back and makes them fail by a seeded choice.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use data_pipeline::{Purpose, keyed_rng, uniform_below};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 500, 503 or another status instead of the answer.
    Status(u16),
    /// No byte comes.
    Stalled,
    /// The answer stops in the middle of its body, and so does the connection.
    Truncated,
    /// The answer is whole but says and holds half of what was asked for.
    Short,
    /// The connection ends without an answer.
    Dropped,
    /// The answer comes later.
    Late,
}

/// Which requests fail.
#[derive(Debug, Clone, Copy)]
pub enum Faults {
    None,
    /// So many of a hundred, chosen by the seed and the request's number.
    Some {
        seed: u64,
        percent: u64,
    },
    All(Fault),
}

#[derive(Debug)]
struct State {
    faults: Faults,
    /// Answers wait.
    held: bool,
    in_flight: usize,
    /// Request lines and ranges in the order of arrival.
    requests: Vec<String>,
    injected: BTreeMap<Fault, usize>,
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running proxy; its threads end with the test's process.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Passes requests on to a port of this machine.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            faults: Faults::None,
            held: false,
            in_flight: 0,
            requests: Vec::new(),
            injected: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(state), changed: Condvar::new() });
        let proxy = Self { port, shared: shared.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = shared.clone();
                // An error is a client that went away.
                std::thread::spawn(move || shared.serve(client));
            }
        });
        proxy
    }

    pub fn set(&self, faults: Faults) {
        self.shared.state.lock().unwrap().faults = faults;
    }

    /// Holds all answers back, or lets them go.
    pub fn hold(&self, held: bool) {
        self.shared.state.lock().unwrap().held = held;
        self.shared.changed.notify_all();
    }

    /// Requests that have come and have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.shared.state.lock().unwrap().in_flight
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state.lock().unwrap().requests)
    }

    pub fn injected(&self) -> BTreeMap<Fault, usize> {
        self.shared.state.lock().unwrap().injected.clone()
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let head = read_head(&mut client)?;
        if head.is_empty() {
            return Ok(());
        }
        let fault = self.begin(&head);
        let answered = self.answer(&mut client, &head, fault);
        self.state.lock().unwrap().in_flight -= 1;
        answered
    }

    /// Notes a request, waits while answers are held, and says what shall happen to it.
    fn begin(&self, head: &str) -> Option<Fault> {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let range = head.lines().find(|line| line.to_ascii_lowercase().starts_with("range:"));
        let mut state = self.state.lock().unwrap();
        state.in_flight += 1;
        let number = state.requests.len() as u64;
        state.requests.push(format!("{line} {}", range.unwrap_or_default()));
        state = self.changed.wait_while(state, |state| state.held).unwrap();
        let fault = match state.faults {
            Faults::None => None,
            Faults::All(fault) => Some(fault),
            Faults::Some { seed, percent } => choose(seed, number, percent),
        }?;
        *state.injected.entry(fault).or_default() += 1;
        Some(fault)
    }

    fn answer(&self, client: &mut TcpStream, head: &str, fault: Option<Fault>) -> std::io::Result<()> {
        match fault {
            Some(Fault::Dropped) => return Ok(()),
            Some(Fault::Status(status)) => {
                let body = "<Error>\n  <Message>on purpose</Message>\n</Error>";
                let length = body.len();
                return write!(
                    client,
                    "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
            // Until the client goes away.
            Some(Fault::Stalled) => return client.read_to_end(&mut Vec::new()).map(|_| ()),
            Some(Fault::Late) => std::thread::sleep(Duration::from_millis(50)),
            Some(Fault::Truncated | Fault::Short) | None => {}
        }
        let (head, body) = self.ask(head)?;
        let half = body.len() / 2;
        match fault {
            Some(Fault::Truncated) => {
                client.write_all(head.as_bytes())?;
                client.write_all(&body[..half])
            }
            Some(Fault::Short) => {
                let length = |n: usize| format!("content-length: {n}\r\n");
                let head = head.to_ascii_lowercase().replace(&length(body.len()), &length(half));
                client.write_all(head.as_bytes())?;
                client.write_all(&body[..half])
            }
            _ => {
                client.write_all(head.as_bytes())?;
                client.write_all(&body)
            }
        }
    }

    /// The server's answer, split into head and body.
    fn ask(&self, head: &str) -> std::io::Result<(String, Vec<u8>)> {
        let mut server = TcpStream::connect(("127.0.0.1", self.upstream))?;
        let lines =
            head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        for line in lines {
            write!(server, "{line}\r\n")?;
        }
        write!(server, "Connection: close\r\n\r\n")?;
        let head = read_head(&mut server)?;
        let mut body = Vec::new();
        server.read_to_end(&mut body)?;
        Ok((head, body))
    }
}

/// Bytes up to the empty line, and with it; nothing if the other side says nothing.
pub fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(String::new());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn choose(seed: u64, number: u64, percent: u64) -> Option<Fault> {
    const KINDS: [Fault; 7] = [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Stalled,
        Fault::Truncated,
        Fault::Short,
        Fault::Dropped,
        Fault::Late,
    ];
    let mut rng = keyed_rng(seed, Purpose::Drop, 0, number);
    let strikes = uniform_below(&mut rng, 100) < percent;
    strikes.then(|| KINDS[uniform_below(&mut rng, KINDS.len() as u64) as usize])
}
