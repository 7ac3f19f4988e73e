//! A blocking HTTP/1.1 GET: what a client of a service does, for threads that stand in some network namespace.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body; bytes that are no UTF-8 are replaced.
    pub body: String,
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no complete answer in time")
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed answer: {what}"))
}

/// Asks for a path over a new connection; the whole exchange takes `limit` at the most.
///
/// # Errors
/// What connecting, sending and receiving say; `TimedOut`; `InvalidData` for what is no HTTP or above 1 MiB.
pub fn get(address: SocketAddr, host: &str, path: &str, limit: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + limit;
    let left = || deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()).ok_or_else(late);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_ANSWER {
            return Err(malformed("too long"));
        }
    }
    parse(&bytes)
}

/// Reads a whole answer whose end is the end of the connection.
fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| malformed("no end of headers"))?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| malformed("no status line"))?;
    let mut body = &bytes[end + 4..];
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse().map_err(|_| malformed("bad length"))?;
            body = body.get(..length).ok_or_else(|| malformed("cut off"))?;
        }
    }
    Ok(Answer { status, body: String::from_utf8_lossy(body).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<(u16, &str)>) {
        let parsed = parse(bytes).ok().map(|answer| (answer.status, answer.body));
        assert_eq!(parsed, expected.map(|(status, body)| (status, body.to_owned())));
    }

    #[test]
    fn answers() {
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, "hi")));
        check(b"HTTP/1.0 404 Not Found\r\n\r\nno", Some((404, "no")));
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", None);
        check(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nhi", None);
        check(b"HTTP/1.1 200 OK\r\n", None);
        check(b"SSH-2.0\r\n\r\n", None);
        check(b"", None);
    }
}
