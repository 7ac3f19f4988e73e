//! Foreign names: asks upstreams, one answer for whoever asks the same, within the node's bounds.
//!
//! Everything here is of the whole node and lives on the resolver's one thread. A client has its answer, or is told of
//! the failure, before it would give up by itself; too much at a time is refused at once and not left to time out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::answer::{self, Answer};
use super::cache::Cache;
use super::resolver::{Transport, failure};
use super::resolvers::HostResolvers;
use super::wire::{Code, Query};
use super::zone::Upstream;
use crate::config::Resolvers;

/// Questions of all tasks that wait for upstreams; one more is answered with a failure. Each takes some 20 KiB.
const FORWARDS_PER_NODE: usize = 512;
/// Upstreams that are asked over TCP at the same time, for answers of up to 64 KiB.
const STREAMS_TO_UPSTREAMS: usize = 64;
/// Of both, tasks with upstreams of their own have this share together: theirs may be as slow as they like.
const SHARE_OF_OWN: usize = 4;
/// A client has its answer after this time; most give up after 5 s.
const BUDGET: Duration = Duration::from_secs(4);
/// An upstream that has not answered after this time is asked on, and the next one as well.
const STAGGER: Duration = Duration::from_millis(800);
/// The rest of a long answer, over TCP. Should there be none by then, the short one has to do.
const REST: Duration = Duration::from_millis(1500);
/// Packets to upstreams for one question.
const TRIES: usize = 4;
/// An upstream that did not answer is asked last for this time.
const LAME: Duration = Duration::from_secs(10);
/// Upstreams of which something is remembered; tasks may have their own.
const UPSTREAMS_MAX: usize = 256;
/// The longest datagram that is read; we ask for less than a third of it.
const DATAGRAM_MAX: usize = 4096;

/// The answer that somebody waits for; nothing if nobody gives one.
type Asking = Rc<OnceCell<Option<Answer>>>;

/// What the node knows of upstreams. Shared by the resolver's tasks, which all run on one thread.
#[derive(Debug)]
pub(crate) struct Forwarder {
    host: RefCell<HostResolvers>,
    cache: RefCell<Cache>,
    upstreams: RefCell<BTreeMap<IpAddr, Seen>>,
    /// Questions that are being asked: who asks the same meanwhile waits for the same answer. Were each asked by itself,
    /// somebody who forges answers would have as many guesses.
    asking: RefCell<BTreeMap<Vec<u8>, Asking>>,
    /// For the host's upstreams.
    shared: Bounds,
    /// For those of tasks that have their own.
    own: Bounds,
    /// Makes ids that cannot be guessed: keyed by the system's randomness, of a number that never repeats.
    ids: (RandomState, Cell<u64>),
    /// Where upstreams listen.
    port: u16,
}

/// How much may be under way.
#[derive(Debug)]
struct Bounds {
    forwards: Semaphore,
    streams: Semaphore,
}

/// What an upstream did last.
#[derive(Debug, Default)]
struct Seen {
    /// It did not answer, and is asked last until then.
    lame: Option<Instant>,
    /// It answered something.
    answered: Option<Instant>,
}

/// A question that goes to upstreams.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    query: &'a Query<'a>,
    transport: Transport,
    own: bool,
}

impl Bounds {
    fn one_of(parts: usize) -> Bounds {
        Bounds {
            forwards: Semaphore::new(FORWARDS_PER_NODE / parts),
            streams: Semaphore::new(STREAMS_TO_UPSTREAMS / parts),
        }
    }
}

impl Forwarder {
    pub(crate) fn new(resolvers: Resolvers) -> Forwarder {
        Forwarder {
            host: RefCell::new(HostResolvers::new(resolvers)),
            cache: RefCell::default(),
            upstreams: RefCell::default(),
            asking: RefCell::default(),
            shared: Bounds::one_of(1),
            own: Bounds::one_of(SHARE_OF_OWN),
            ids: (RandomState::new(), Cell::new(0)),
            port: 53,
        }
    }

    /// What is kept of the answer to a client's packet, if anything is.
    pub(crate) fn kept(&self, packet: &[u8], transport: Transport, upstream: &Upstream) -> Option<Vec<u8>> {
        let query = Query::parse(packet).ok()?;
        let key = key(&query, &self.servers(upstream));
        let answer = self.cache.borrow_mut().get(&key, Instant::now().into_std())?;
        Some(deliver(answer, &query, transport))
    }

    /// Asks the upstreams what a client has asked; the client is told of a failure rather than left waiting.
    pub(crate) async fn forward(
        self: Rc<Self>,
        packet: &[u8],
        transport: Transport,
        upstream: &Upstream,
    ) -> Option<Vec<u8>> {
        let query = Query::parse(packet).ok()?;
        if query.is_transfer() {
            return Some(query.empty(Code::Refused));
        }
        let servers = self.servers(upstream);
        let asked = Asked { query: &query, transport, own: matches!(upstream, Upstream::Own(_)) };
        let Ok(_permit) = self.bounds(asked.own).forwards.try_acquire() else { return failure(packet) };
        let key = key(&query, &servers);
        let mut number = key.clone();
        number.push(u8::from(transport == Transport::Tcp));
        let cell = Rc::clone(self.asking.borrow_mut().entry(number.clone()).or_default());
        // Who waits here goes on with the question should the one who asks it be given up.
        let answer = cell.get_or_init(|| Rc::clone(&self).ask_all(asked, &servers)).await.clone();
        let mut asking = self.asking.borrow_mut();
        if asking.get(&number).is_some_and(|current| Rc::ptr_eq(current, &cell)) {
            asking.remove(&number);
            if let Some(answer) = &answer {
                self.cache.borrow_mut().put(&key, answer, Instant::now().into_std());
            }
        }
        match answer {
            Some(answer) => Some(deliver(answer, &query, transport)),
            None => failure(packet),
        }
    }

    fn bounds(&self, own: bool) -> &Bounds {
        if own { &self.own } else { &self.shared }
    }

    fn servers(&self, upstream: &Upstream) -> Vec<IpAddr> {
        match upstream {
            Upstream::Nowhere => Vec::new(),
            Upstream::Host => self.host.borrow_mut().servers(Instant::now().into_std()).to_vec(),
            Upstream::Own(servers) => servers.clone(),
        }
    }

    /// Asks one after the other, without waiting for the end of each, until one knows. Nothing if none has said anything.
    async fn ask_all(self: Rc<Self>, asked: Asked<'_>, servers: &[IpAddr]) -> Option<Answer> {
        // Who is silent has another turn after the others: a packet may have been lost. Who said anything has not.
        let (mut turns, mut left) = (self.order(servers), TRIES);
        // Those that are silent, in the order in which they were first asked, with when they were asked last.
        let mut tries: JoinSet<(IpAddr, io::Result<Answer>)> = JoinSet::new();
        let mut silent: Vec<(IpAddr, Instant)> = Vec::new();
        let (deadline, mut next) = (Instant::now() + BUDGET, Instant::now());
        // What is said if nobody says more, and until when it is waited for that somebody does.
        let (mut last, mut patience): (Option<Answer>, Option<Instant>) = (None, None);
        loop {
            let more = left > 0 && !turns.is_empty();
            if !more && tries.is_empty() {
                return last;
            }
            tokio::select! {
                biased;
                Some(done) = tries.join_next() => {
                    let Ok((server, answer)) = done else { continue };
                    let earlier = silent.first().is_some_and(|(first, _)| *first != server);
                    silent.retain(|(other, _)| *other != server);
                    turns.retain(|turn| *turn != server);
                    // Somebody else may know better, now.
                    next = Instant::now();
                    match answer {
                        Ok(answer) => {
                            self.note(server, true);
                            // That there is nothing is only believed of who was asked first, while that one may still
                            // answer: names of one's own network are often known to the first alone.
                            if answer.is_definite() && (answer.has_records() || !earlier) {
                                return Some(answer);
                            }
                            if answer.is_definite() {
                                patience.get_or_insert(next + STAGGER);
                                last = Some(answer);
                            } else if patience.is_none() {
                                last = Some(answer);
                            }
                        }
                        Err(error) if is_ours(&error) => {
                            tracing::debug!(upstream = %server, %error, "an upstream resolver could not be asked");
                        }
                        Err(error) => {
                            tracing::debug!(upstream = %server, %error, "an upstream resolver does not answer");
                            self.note(server, false);
                        }
                    }
                    if silent.is_empty() && patience.is_some() {
                        return last;
                    }
                }
                () = sleep_until(patience.unwrap_or(deadline)), if patience.is_some() => return last,
                () = sleep_until(next), if more => {
                    let Some(server) = turns.pop_front() else { continue };
                    turns.push_back(server);
                    left -= 1;
                    next = Instant::now() + STAGGER;
                    // They have had that much time.
                    silent.iter().for_each(|(server, since)| self.note_silent(*server, *since));
                    if !silent.iter().any(|(other, _)| *other == server) {
                        silent.push((server, Instant::now()));
                    }
                    let packet = answer::ask(asked.query, self.id());
                    let this = Rc::clone(&self);
                    let (transport, own) = (asked.transport, asked.own);
                    tries.spawn_local(async move {
                        let answer = timeout_at(deadline, this.ask(&packet, transport, own, server)).await;
                        (server, answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
                    });
                }
            }
        }
    }

    /// Whom to ask, in order: those first that answer.
    fn order(&self, servers: &[IpAddr]) -> VecDeque<IpAddr> {
        let (now, upstreams) = (Instant::now(), self.upstreams.borrow());
        let is_lame =
            |server: &IpAddr| upstreams.get(server).and_then(|seen| seen.lame).is_some_and(|until| until > now);
        let (late, prompt): (Vec<IpAddr>, Vec<IpAddr>) = servers.iter().copied().partition(is_lame);
        prompt.into_iter().chain(late).take(TRIES).collect()
    }

    fn note(&self, server: IpAddr, answers: bool) {
        let mut upstreams = self.upstreams.borrow_mut();
        if upstreams.len() >= UPSTREAMS_MAX && !upstreams.contains_key(&server) {
            upstreams.clear();
        }
        let (seen, now) = (upstreams.entry(server).or_default(), Instant::now());
        if answers {
            *seen = Seen { lame: None, answered: Some(now) };
        } else {
            seen.lame = Some(now + LAME);
        }
    }

    /// It has said nothing to a question since then. If it has answered others meanwhile, that is about the question.
    fn note_silent(&self, server: IpAddr, since: Instant) {
        let answered = self.upstreams.borrow().get(&server).and_then(|seen| seen.answered);
        if answered.is_none_or(|answered| answered < since) {
            self.note(server, false);
        }
    }

    fn id(&self) -> u16 {
        let (hasher, number) = &self.ids;
        number.set(number.get().wrapping_add(1));
        hasher.hash_one(number.get()) as u16
    }

    async fn ask(&self, asked: &[u8], transport: Transport, own: bool, server: IpAddr) -> io::Result<Answer> {
        let server = SocketAddr::new(server, self.port);
        if transport == Transport::Tcp {
            return self.ask_tcp(asked, own, server).await;
        }
        let answer = ask_udp(asked, server).await?;
        if !answer.is_cut_short() {
            return Ok(answer);
        }
        // Should there be no more to be had, then that there is more is what the client is told.
        let rest = timeout(REST, self.ask_tcp(asked, own, server)).await;
        Ok(rest.ok().and_then(Result::ok).unwrap_or(answer))
    }

    async fn ask_tcp(&self, asked: &[u8], own: bool, server: SocketAddr) -> io::Result<Answer> {
        let _permit = self.bounds(own).streams.try_acquire().map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let mut stream = TcpStream::connect(server).await?;
        write_framed(&mut stream, asked).await?;
        let reply = read_framed(&mut stream, usize::from(u16::MAX)).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Answer::read(asked, &reply).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Whether a failure is this host's own, and says nothing about the upstream.
fn is_ours(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let codes = [EADDRNOTAVAIL, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM];
    error.kind() == io::ErrorKind::QuotaExceeded || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// What is kept is kept for a question to certain servers: tasks may have their own, which say what they like.
fn key(query: &Query<'_>, servers: &[IpAddr]) -> Vec<u8> {
    let mut key = answer::key(query);
    for server in servers {
        match server {
            IpAddr::V4(ip) => key.extend(ip.octets()),
            IpAddr::V6(ip) => key.extend(ip.octets()),
        }
    }
    key.push(servers.len() as u8);
    key
}

fn deliver(answer: Answer, query: &Query<'_>, transport: Transport) -> Vec<u8> {
    let limit = match transport {
        Transport::Udp => query.client_limit,
        Transport::Tcp => usize::from(u16::MAX),
    };
    answer.deliver(query, limit)
}

async fn ask_udp(asked: &[u8], server: SocketAddr) -> io::Result<Answer> {
    // A socket per query: its random port, beside the id, is what makes forging an answer hard. It is connected, so
    // that the kernel lets in only what comes from the server's address and port.
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(asked).await?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = Answer::read(asked, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

/// Reads a packet of at most `limit` bytes from a stream; nothing at its end.
pub(crate) async fn read_framed(stream: &mut TcpStream, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

/// Writes a packet into a stream.
pub(crate) async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests;
