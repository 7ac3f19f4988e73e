//! Requests as a benchmark needs them: a server that costs next to nothing, and clients that ask over a new connection
//! each time. Both are threads of the benchmark that stand in the namespace of a task or a host, so that what is between
//! them is what is measured, and not what they do.
//!
//! A connection is closed by the server first. Its end of it lingers there, and the client's port can be used again.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Samples;
use crate::hosts::Client;

/// One request takes so long at the most.
const LIMIT: Duration = Duration::from_secs(5);
/// Connections that a server takes at once.
const SERVING: usize = 2;
/// Largest request or answer, in bytes.
const MAX: usize = 2048;

/// A server whose answers say who asked. It ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    place: Client,
    port: u16,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Listens at a port of all IPv4 addresses of a place.
    ///
    /// # Errors
    /// When the place cannot be entered, or the port is taken.
    pub fn start(place: &Client, port: u16) -> io::Result<Server> {
        let listener = place.visit(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Server { place: place.try_clone()?, port, stop, threads: Vec::new() };
        for _ in 0..SERVING {
            let (listener, stop) = (listener.try_clone()?, server.stop.clone());
            // A socket belongs to the namespace that it was made in.
            server.threads.push(std::thread::spawn(move || serve(&listener, &stop)));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let door = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        for _ in 0..self.threads.len() {
            // Each of them waits for somebody. Where nobody can come, they end with the process.
            if self.place.visit(|| TcpStream::connect_timeout(&door, LIMIT)).is_err() {
                return;
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // Who went away before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        // Clients see for themselves what did not come.
        let _ = answer(&stream, peer);
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut asked, mut length) = ([0; MAX], 0);
    while !asked[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut asked[length..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    let body = peer.ip().to_string();
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes())
}

/// What came of requests.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// From a request's first packet to the last byte of its answer.
    pub each: Samples,
    /// From the first to the last of all.
    pub took: Duration,
    /// Those who asked, as the server saw them.
    pub seen: BTreeSet<IpAddr>,
}

impl Round {
    /// Adds another one that came later.
    pub fn add(&mut self, other: Round) {
        self.each.extend(other.each);
        self.took += other.took;
        self.seen.extend(other.seen);
    }

    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.each.len() as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Asks for a path so many times, by so many clients at once that each wait for their answer. Blocks.
///
/// # Errors
/// The first request that fails: there is no reason that one should.
pub fn ask(place: &Client, door: SocketAddr, path: &str, clients: usize, requests: usize) -> io::Result<Round> {
    let left = AtomicUsize::new(requests);
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    place.visit(|| {
        let began = Instant::now();
        // Threads stand where the one stood that made them.
        let all = std::thread::scope(|scope| {
            let ask_until_done = || -> io::Result<Vec<(Duration, IpAddr)>> {
                let mut done = Vec::new();
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    done.push(once(door, request.as_bytes())?);
                }
                Ok(done)
            };
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(ask_until_done)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
            };
            threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
        })?;
        let mut round = Round { took: began.elapsed(), ..Round::default() };
        for (took, ip) in all.into_iter().flatten() {
            round.each.push(took);
            round.seen.insert(ip);
        }
        Ok(round)
    })
}

/// One request over a new connection.
fn once(door: SocketAddr, request: &[u8]) -> io::Result<(Duration, IpAddr)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&door, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request)?;
    let (mut answer, mut length) = ([0; MAX], 0);
    loop {
        match stream.read(&mut answer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    let took = began.elapsed();
    let told = asked_by(&answer[..length]);
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer does not say who asked");
    Ok((took, told.ok_or_else(bad)?))
}

/// Who asked, as an answer says: the body of a [`Server`]'s, the field of the service's JSON.
fn asked_by(answer: &[u8]) -> Option<IpAddr> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    match body.split_once("\"client\":\"") {
        Some((_, client)) => client.split('"').next()?.parse::<SocketAddr>().ok().map(|client| client.ip()),
        None => body.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_who_asked() {
        let of = |text: &str| asked_by(text.as_bytes()).map(|ip| ip.to_string());
        assert_eq!(of("HTTP/1.1 200 OK\r\nX: y\r\n\r\n10.0.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(of("HTTP/1.1 200 OK\r\n\r\n{\"client\":\"[fd00::1]:5\"}").as_deref(), Some("fd00::1"));
        for wrong in ["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 404 Not Found\r\n\r\n10.0.0.1"] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_request_is_counted_once_and_says_who_asked() {
        let Ok(place) = Client::beside(u64::from(std::process::id())) else { unreachable!("this process") };
        // Standing in a namespace needs root.
        if crate::hosts::unusable().is_some() {
            return;
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server::start(&place, free.port()).unwrap();
        let round = ask(&place, free, "/", 3, 40).unwrap();
        assert_eq!((round.each.len(), round.seen), (40, BTreeSet::from([IpAddr::from([127, 0, 0, 1])])));
        assert!(round.took > Duration::ZERO);
        drop(server);
        assert!(ask(&place, free, "/", 1, 1).is_err(), "it has ended");
    }
}
