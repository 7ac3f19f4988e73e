//! `shoal __whoami [PORT]`: a tiny HTTP server that says who answers. It is what the demo's services run.
//!
//! `/` answers as text, `/json` as JSON, and `/fetch?url=http://NAME/PATH` asks another service by its name, through
//! the resolver of the task, and tells what it saw; `/slow?ms=N` takes its time. With `WHOAMI_BURN=N` in its environment, N threads take all the
//! processor time that they get, for tests of what a host does then. `shoal __whoami check FILE` only says by its exit code
//! whether there is such a file, for tests of health checks; `hang FILE` hangs where there is none. SIGTERM lets the requests that are under way finish;
//! then the process exits with 0. With `WHOAMI_GRACE=N` it is a server as it should be, and a strict one: from SIGTERM on it
//! takes no new connection, tells those that it has that it closes them with the next answer, and exits when they are
//! gone, or after N seconds. With `WHOAMI_READY=FILE` it makes that file when it listens.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::http;

/// Connections served at once; more are closed at once.
const MAX_CONNECTIONS: usize = 512;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Longest request line and headers together, in bytes.
const MAX_HEAD: u64 = 16 << 10;
/// How long requests under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
/// How long `/fetch` waits for the other side.
const FETCH: Duration = Duration::from_secs(3);
/// How long `/slow` takes at the most.
const SLOWEST: Duration = Duration::from_secs(10);

/// What all connections share.
#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    /// Requests that were read and not yet answered.
    under_way: AtomicUsize,
    stopping: AtomicBool,
}

/// Serves until SIGTERM. The first argument behind `__whoami`, if there is one, is the port; 80 otherwise.
pub fn main() -> ExitCode {
    if let (Some(verb), Some(file)) = (std::env::args().nth(2), std::env::args().nth(3)) {
        return look(&verb, &file);
    }
    let port = match std::env::args().nth(2).map(|port| port.parse::<u16>()) {
        None => 80,
        Some(Ok(port)) => port,
        Some(Err(error)) => {
            eprintln!("bad port: {error}");
            return ExitCode::from(2);
        }
    };
    // Blocked in this thread and so in all others: only `wait` below sees them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if let Err(error) = signals.thread_block() {
        eprintln!("cannot block SIGTERM: {error}");
        return ExitCode::FAILURE;
    }
    let listener = match listen(port) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen at port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println_flushed(&format!("{} listens at port {port}", hostname()));
    if let Some(Err(error)) = std::env::var_os("WHOAMI_READY").map(std::fs::File::create) {
        println_flushed(&format!("cannot say that it is ready: {error}"));
    }
    let burners = std::env::var("WHOAMI_BURN").ok().and_then(|count| count.parse::<u8>().ok()).unwrap_or(0);
    for _ in 0..burners {
        std::thread::spawn(burn);
    }
    let shared = Arc::new(Shared::default());
    let accepting = Arc::clone(&shared);
    let door = listener.try_clone();
    std::thread::spawn(move || accept(&listener, &accepting));
    let signal = signals.wait();
    shared.stopping.store(true, Ordering::SeqCst);
    let grace = std::env::var("WHOAMI_GRACE").ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    if let (Some(_), Ok(door)) = (grace, door) {
        shut(door, port);
    }
    let deadline = Instant::now() + grace.unwrap_or(DRAIN);
    // An idle connection may be asked for something once more: with a grace, it counts as well.
    let left = if grace.is_some() { &shared.connections } else { &shared.under_way };
    while left.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    println_flushed(&format!("{} stops on {}", hostname(), signal.map_or("a signal", Signal::as_str)));
    ExitCode::SUCCESS
}

/// What a health check asks.
fn look(verb: &str, file: &str) -> ExitCode {
    let there = std::path::Path::new(file).exists();
    println_flushed(&format!("{file} is {}there", if there { "" } else { "not " }));
    match verb {
        "check" if there => ExitCode::SUCCESS,
        "check" => ExitCode::FAILURE,
        "hang" if there => ExitCode::SUCCESS,
        "hang" => loop {
            std::thread::sleep(IDLE);
        },
        _ => ExitCode::from(2),
    }
}

fn burn() {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

fn println_flushed(line: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads it: nothing to be done.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn listen(port: u16) -> io::Result<TcpListener> {
    // Both families at once where there is IPv6.
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// Has no new connection taken any more, but for those that are there already.
fn shut(door: TcpListener, port: u16) {
    // The same socket as the one that is being accepted from, which waits: it does not after one more.
    let woken = door.set_nonblocking(true).and_then(|()| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    if let Err(error) = woken {
        println_flushed(&format!("cannot close the port: {error}"));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            // Closed by `shut`, and nobody waits any more.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                // Out of descriptors, most likely: waiting is all that helps.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let for_thread = Arc::clone(shared);
        let started = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            // A client that goes away in the middle is its own affair.
            let _ = serve(&stream, &for_thread);
            for_thread.connections.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// One request, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    target: String,
    json: bool,
    close: bool,
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        shared.under_way.fetch_add(1, Ordering::SeqCst);
        let (status, kind, body) = answer(&request, peer, local);
        let closing = request.close || shared.stopping.load(Ordering::SeqCst);
        let connection = if closing { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        let body = if request.method == "HEAD" { "" } else { body.as_str() };
        let sent = (&*stream).write_all(format!("{head}{body}").as_bytes());
        shared.under_way.fetch_sub(1, Ordering::SeqCst);
        sent?;
        if closing {
            break;
        }
    }
    Ok(())
}

/// The next request; nothing at the end of the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = reader.take(MAX_HEAD);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a request");
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(bad());
    };
    let mut request =
        Request { method: method.into(), target: target.into(), json: false, close: version == "HTTP/1.0" };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = line.split_once(':') else { return Err(bad()) };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "accept" => request.json = value.contains("application/json"),
            "connection" => request.close = value.eq_ignore_ascii_case("close"),
            // Bodies are not read, so nothing may come behind one.
            "content-length" if value != "0" => request.close = true,
            "transfer-encoding" => request.close = true,
            _ => {}
        }
    }
}

fn answer(request: &Request, peer: SocketAddr, local: SocketAddr) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    const JSON: &str = "application/json";
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return ("405 Method Not Allowed", TEXT, "only GET and HEAD\n".into());
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match path {
        "/" if request.json => ("200 OK", JSON, who_json(peer, local)),
        "/json" => ("200 OK", JSON, who_json(peer, local)),
        "/" => ("200 OK", TEXT, who_text(peer, local)),
        "/slow" => {
            let ms = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(ms).min(SLOWEST));
            ("200 OK", JSON, who_json(peer, local))
        }
        "/fetch" => match fetch(query) {
            Ok(seen) => ("200 OK", JSON, seen),
            Err(Refused::Request(why)) => ("400 Bad Request", TEXT, why),
            Err(Refused::Other(why)) => ("502 Bad Gateway", TEXT, why),
        },
        _ => ("404 Not Found", TEXT, "there are /, /json, /slow?ms= and /fetch?url=\n".into()),
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

/// IPv4 addresses of this task but loopback.
fn addresses() -> Vec<String> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    all.filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
        .filter(|ip| !ip.is_loopback())
        .map(|ip| ip.to_string())
        .collect()
}

fn who_text(peer: SocketAddr, local: SocketAddr) -> String {
    format!(
        "I am {}\naddresses: {}\nasked at:  {}\nasked by:  {}\n",
        hostname(),
        addresses().join(" "),
        plain(local),
        plain(peer)
    )
}

fn who_json(peer: SocketAddr, local: SocketAddr) -> String {
    let addresses: Vec<String> = addresses().iter().map(|a| quote(a)).collect();
    format!(
        "{{\"hostname\":{},\"addresses\":[{}],\"local\":{},\"client\":{}}}\n",
        quote(&hostname()),
        addresses.join(","),
        quote(&plain(local)),
        quote(&plain(peer))
    )
}

/// An address without the disguise that IPv4 wears on a socket for both families.
fn plain(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Why `/fetch` has nothing to tell.
#[derive(Debug)]
enum Refused {
    /// The request makes no sense.
    Request(String),
    /// The other side could not be found or asked.
    Other(String),
}

/// Asks another service by its name.
fn fetch(query: &str) -> Result<String, Refused> {
    let url = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("url="))
        .map(decode)
        .ok_or_else(|| Refused::Request("url=http://NAME/PATH is missing\n".into()))?;
    let (host, port, path) =
        split_url(&url).ok_or_else(|| Refused::Request(format!("{url:?} is not like http://NAME[:PORT]/PATH\n")))?;
    let found: Vec<SocketAddr> = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| Refused::Other(format!("cannot resolve {host}: {error}\n")))?
        .collect();
    let address = *found.first().ok_or_else(|| Refused::Other(format!("{host} has no address\n")))?;
    let answer = http::get(address, &host, &path, FETCH)
        .map_err(|error| Refused::Other(format!("{host} at {address}: {error}\n")))?;
    Ok(format!(
        "{{\"by\":{},\"url\":{},\"resolved\":{},\"status\":{},\"body\":{}}}\n",
        quote(&hostname()),
        quote(&url),
        quote(&address.ip().to_string()),
        answer.status,
        quote(&answer.body)
    ))
}

/// Name, port and path of an `http://` URL.
fn split_url(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    // An IPv6 address stands in brackets.
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':')?)),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(80), |port| port.parse().ok())?;
    // What goes into the request line must not begin another line.
    let clean = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    (clean(host) && clean(path)).then(|| (host.to_owned(), port, path.to_owned()))
}

/// Undoes percent encoding; what is not encoded well stays as it is.
fn decode(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        let byte = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let split = |url| split_url(url).map(|(h, p, path)| format!("{h} {p} {path}"));
        assert_eq!(split("http://web/").as_deref(), Some("web 80 /"));
        assert_eq!(split("http://web:81/a?b").as_deref(), Some("web 81 /a?b"));
        assert_eq!(split("http://web").as_deref(), Some("web 80 /"));
        for wrong in ["web", "https://web/", "http://", "http://web:x/", "http://web/a b", "http://web/\r\nX: y"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
        assert_eq!(decode("http%3A%2F%2Fweb%2f%"), "http://web/%");
    }

    #[test]
    fn requests() {
        let read = |text: &str| read_request(&mut text.as_bytes());
        let request = read("GET /json HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\nrest").unwrap().unwrap();
        assert_eq!((request.target.as_str(), request.json, request.close), ("/json", true, false));
        assert!(read("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().close);
        assert!(read("").unwrap().is_none());
        for wrong in ["GET\r\n\r\n", "GET / HTTP/1.1\r\nnothing\r\n\r\n", "GET / HTTP/1.1\r\n"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        assert!(read(&long).is_err());
    }

    #[test]
    fn a_port_that_was_shut_lets_nobody_in_and_keeps_who_is_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, door) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let accepts = std::thread::spawn(move || accept(&listener, &accepting));
        let mut known = TcpStream::connect(address).unwrap();
        known.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut ask = || -> String {
            known.write_all(b"GET /json HTTP/1.1\r\n\r\n").unwrap();
            let mut piece = [0; 4096];
            let length = known.read(&mut piece).unwrap();
            String::from_utf8_lossy(&piece[..length]).into_owned()
        };
        assert!(ask().contains("Connection: keep-alive"));
        shared.stopping.store(true, Ordering::SeqCst);
        shut(door, address.port());
        accepts.join().unwrap();
        assert!(TcpStream::connect(address).is_err());
        assert!(ask().contains("Connection: close"));
    }

    #[test]
    fn serves_over_a_real_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        std::thread::spawn(move || accept(&listener, &shared));
        let limit = Duration::from_secs(5);
        let who = http::get(address, "x", "/json", limit).unwrap();
        assert_eq!(who.status, 200);
        let who: serde_json::Value = serde_json::from_str(&who.body).unwrap();
        assert_eq!(who["hostname"], hostname());
        assert_eq!(who["local"], address.to_string());
        let seen = http::get(address, "x", &format!("/fetch?url=http://localhost:{}/json", address.port()), limit);
        let seen: serde_json::Value = serde_json::from_str(&seen.unwrap().body).unwrap();
        assert_eq!(seen["status"], 200, "{seen}");
        let began = Instant::now();
        assert_eq!(http::get(address, "x", "/slow?ms=30", limit).unwrap().status, 200);
        assert!(began.elapsed() >= Duration::from_millis(30));
        assert_eq!(http::get(address, "x", "/nowhere", limit).unwrap().status, 404);
        assert_eq!(http::get(address, "x", "/fetch?url=ftp", limit).unwrap().status, 400);
    }
}
