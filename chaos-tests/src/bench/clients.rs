//! Clients that ask for as long as they are wanted, over kept connections and over new ones, and count what fails. They are
//! for services that are updated meanwhile: nobody may notice.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hosts::Client;

/// One request takes so long at the most, on a machine that is busy with debug builds.
const LIMIT: Duration = Duration::from_secs(10);
/// A client needs little.
const STACK: usize = 256 << 10;

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Over one connection until the server says that it closes it, then over the next. An end that was not announced is a
    /// failure. Answers take up to 150 ms, so that some are under way when their server is told to stop.
    Kept,
    /// Over a new connection each time. Answers take up to 40 ms.
    New,
}

/// What all clients came to. They end with [`Clients::stop`].
#[derive(Debug)]
pub struct Clients {
    began: Instant,
    stop: AtomicBool,
    kept: AtomicU64,
    new: AtomicU64,
    failures: Mutex<Vec<(io::ErrorKind, String)>>,
}

impl Clients {
    /// None yet.
    #[must_use]
    pub fn none() -> Arc<Clients> {
        Arc::new(Clients {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            kept: AtomicU64::new(0),
            new: AtomicU64::new(0),
            failures: Mutex::default(),
        })
    }

    /// Starts so many at a place, each of which begins a request every `pace`, or as soon as it has an answer where that
    /// is later.
    ///
    /// # Errors
    /// When the place cannot be entered, or there are no threads.
    pub fn start(
        self: &Arc<Clients>,
        place: &Client,
        door: SocketAddr,
        kind: Kind,
        count: u32,
        pace: Duration,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        // Threads stand where the one stood that made them.
        place.visit(|| {
            let client = |number: u32| {
                let clients = self.clone();
                // They do not begin all at once.
                let later = pace * number / count;
                let run = move || {
                    std::thread::sleep(later);
                    clients.go_on(door, kind, pace);
                };
                std::thread::Builder::new().stack_size(STACK).spawn(run)
            };
            (0..count).map(client).collect()
        })
    }

    /// Tells them to end; each finishes what it has asked.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Requests that were answered, over kept connections and over new ones.
    #[must_use]
    pub fn answered(&self) -> (u64, u64) {
        (self.kept.load(Ordering::SeqCst), self.new.load(Ordering::SeqCst))
    }

    /// Since the first of them.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What failed, but for what failed in one of these ways.
    #[must_use]
    pub fn failures(&self, allowed: &[io::ErrorKind]) -> Vec<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().filter(|(kind, _)| !allowed.contains(kind)).map(|(_, text)| text.clone()).collect()
    }

    fn fails(&self, kind: Kind, door: SocketAddr, error: &io::Error) {
        let at = self.began.elapsed().as_secs_f64();
        let text = format!("{at:.3} s: {kind:?} connection to {door}: {error}");
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push((error.kind(), text));
    }

    fn go_on(&self, door: SocketAddr, kind: Kind, pace: Duration) {
        let mut connection: Option<BufReader<TcpStream>> = None;
        let (mut number, mut next) = (0_u64, Instant::now());
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let takes_ms = match kind {
                Kind::Kept => number * 37 % 150,
                Kind::New => number * 11 % 40,
            };
            let asked = (|| {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => connect(door)?,
                };
                let closes = ask(&mut open, takes_ms)?;
                Ok(Some(open).filter(|_| !closes && kind == Kind::Kept))
            })();
            match asked {
                Ok(open) => {
                    connection = open;
                    let answered = if kind == Kind::Kept { &self.kept } else { &self.new };
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => self.fails(kind, door, &error),
            }
            let now = Instant::now();
            next = now.max(next + pace);
            std::thread::sleep(next - now);
        }
    }
}

fn connect(door: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&door, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request, and its whole answer. Whether the server closes the connection behind it.
fn ask(open: &mut BufReader<TcpStream>, ms: u64) -> io::Result<bool> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    write!(open.get_mut(), "GET /slow?ms={ms} HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut status, mut length, mut closes) = (String::new(), 0, false);
    if open.read_line(&mut status)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"));
    }
    loop {
        let mut line = String::new();
        if open.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half an answer"));
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some(("content-length", value)) => length = value.parse().map_err(|_| bad(line.clone()))?,
            Some(("connection", value)) => closes = value == "close",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    open.read_exact(&mut body)?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(bad(status));
    }
    Ok(closes)
}
