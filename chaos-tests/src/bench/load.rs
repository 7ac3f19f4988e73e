//! Requests as a benchmark needs them: a server that costs next to nothing, and clients that ask over a new connection
//! each time. Both are threads of the benchmark that stand in the namespace of a task or a host, so that what is between
//! them is what is measured, and not what they do.
//!
//! A connection is closed by the server first. Its end of it lingers there, and the client's port can be used again.

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
/// What is asked.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

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
    let mut asked = [0; REQUEST.len()];
    stream.read_exact(&mut asked)?;
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
    /// Who asked, as the server saw it; where answers differ, one of those that are not like the first.
    pub seen_as: Option<IpAddr>,
}

impl Round {
    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.each.len() as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Asks so many times, by so many clients at once that each wait for their answer. Blocks.
///
/// # Errors
/// The first request that fails: there is no reason that one should.
pub fn ask(place: &Client, door: SocketAddr, clients: usize, requests: usize) -> io::Result<Round> {
    let left = AtomicUsize::new(requests);
    place.visit(|| {
        let began = Instant::now();
        // Threads stand where the one stood that made them.
        let all = std::thread::scope(|scope| {
            let ask_until_done = || -> io::Result<Vec<(Duration, IpAddr)>> {
                let mut done = Vec::new();
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    done.push(once(door)?);
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
        let first = all.iter().flatten().next().map(|(_, ip)| *ip);
        round.seen_as = all.iter().flatten().map(|(_, ip)| *ip).find(|ip| Some(*ip) != first).or(first);
        all.into_iter().flatten().for_each(|(took, _)| round.each.push(took));
        Ok(round)
    })
}

/// One request over a new connection.
///
/// # Errors
/// What failed; `InvalidData` for another answer than that of a [`Server`].
fn once(door: SocketAddr) -> io::Result<(Duration, IpAddr)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&door, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(REQUEST)?;
    let (mut answer, mut length) = ([0; 256], 0);
    loop {
        match stream.read(&mut answer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    let took = began.elapsed();
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "no answer of the benchmark's server");
    let text = std::str::from_utf8(&answer[..length]).map_err(|_| bad())?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    Ok((took, body.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_once_and_says_who_asked() {
        let Ok(place) = Client::beside(u64::from(std::process::id())) else { unreachable!("this process") };
        // Standing in a namespace needs root.
        if crate::hosts::unusable().is_some() {
            return;
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server::start(&place, free.port()).unwrap();
        let round = ask(&place, free, 3, 40).unwrap();
        assert_eq!((round.each.len(), round.seen_as), (40, Some(IpAddr::from([127, 0, 0, 1]))));
        assert!(round.rate() > 0.0);
        drop(server);
        assert!(ask(&place, free, 1, 1).is_err(), "it has ended");
    }
}
