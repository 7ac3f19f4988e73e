//! Asking upstreams, on loopback.

use std::collections::BTreeSet;
use std::net::UdpSocket as StdUdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

use super::super::tests::{query, response};
use super::super::wire::HEADER;
use super::*;

const NAME: &str = "www.example";

fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 83, 72, last)
}

/// What an upstream does with each packet.
type Habit = fn(&[u8]) -> Option<Vec<u8>>;

fn answers(asked: &[u8]) -> Option<Vec<u8>> {
    Some(response(asked, 60))
}

fn fails(asked: &[u8]) -> Option<Vec<u8>> {
    let mut reply = asked.to_vec();
    (reply[2], reply[3]) = (0x81, 0x82);
    Some(reply)
}

fn is_silent(_: &[u8]) -> Option<Vec<u8>> {
    None
}

/// Everything that somebody would say who does not know the question, and only then the answer.
fn is_forged_first(asked: &[u8]) -> Option<Vec<u8>> {
    let mut reply = response(asked, 60);
    reply[0] ^= 1;
    Some(reply)
}

struct Upstreams {
    forwarder: Rc<Forwarder>,
    upstream: Upstream,
    /// Packets that each has got.
    counts: Vec<Arc<AtomicUsize>>,
    port: u16,
}

/// Upstreams at addresses of their own and one port, each with its habit over UDP.
fn upstreams(habits: &[Habit]) -> Upstreams {
    let first = StdUdpSocket::bind((loopback(1), 0)).unwrap();
    let port = first.local_addr().unwrap().port();
    let mut sockets = vec![first];
    for number in 2..=habits.len() {
        sockets.push(StdUdpSocket::bind((loopback(u8::try_from(number).unwrap()), port)).unwrap());
    }
    let mut counts = Vec::new();
    for (socket, habit) in sockets.into_iter().zip(habits.to_vec()) {
        socket.set_nonblocking(true).unwrap();
        let (socket, count) = (UdpSocket::from_std(socket).unwrap(), Arc::new(AtomicUsize::new(0)));
        counts.push(Arc::clone(&count));
        spawn_local(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::Relaxed);
                if let Some(reply) = habit(&buffer[..length]) {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
    }
    let servers = (1..=habits.len()).map(|number| loopback(u8::try_from(number).unwrap()).into()).collect();
    let forwarder = Rc::new(Forwarder { port, ..Forwarder::new(Resolvers::Fixed(vec![])) });
    Upstreams { forwarder, upstream: Upstream::Own(servers), counts, port }
}

impl Upstreams {
    async fn ask(&self, packet: &[u8]) -> Vec<u8> {
        Rc::clone(&self.forwarder).forward(packet, Transport::Udp, &self.upstream).await.unwrap()
    }

    fn counts(&self) -> Vec<usize> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn an_answer_is_asked_for_once_and_kept() {
    run(async {
        let world = upstreams(&[answers]);
        let packet = query(NAME, 1);
        assert_eq!(world.forwarder.kept(&packet, Transport::Udp, &world.upstream), None);
        let reply = world.ask(&packet).await;
        assert_eq!(reply, response(&packet, 60), "with the client's own id");
        // Another client, another id, another way to write it.
        let mut other = query("WWW.example", 1);
        other[0] ^= 0xff;
        let kept = world.forwarder.kept(&other, Transport::Udp, &world.upstream).unwrap();
        assert_eq!(kept[..2], other[..2]);
        assert_eq!(kept[HEADER..other.len()], other[HEADER..]);
        // Another type, and other servers, are other questions.
        assert_eq!(world.forwarder.kept(&query(NAME, 28), Transport::Udp, &world.upstream), None);
        let elsewhere = Upstream::Own(vec![loopback(9).into()]);
        assert_eq!(world.forwarder.kept(&packet, Transport::Udp, &elsewhere), None);
        assert_eq!(world.counts(), [1]);
    });
}

#[test]
fn who_fails_is_followed_by_the_next_at_once() {
    run(async {
        let world = upstreams(&[fails, answers]);
        let began = Instant::now();
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 0);
        assert!(began.elapsed() < STAGGER, "{:?}", began.elapsed());
        assert_eq!(world.counts(), [1, 1]);
        // If all of them fail, that is what the client is told.
        let world = upstreams(&[fails, fails]);
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 2);
        assert_eq!(world.counts(), [1, 1], "nobody is asked twice who has said something");
    });
}

#[test]
fn who_is_silent_is_asked_last_from_then_on() {
    run(async {
        let world = upstreams(&[is_silent, answers]);
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 0);
        assert_eq!(world.counts(), [1, 1]);
        let began = Instant::now();
        assert_eq!(world.ask(&query("other.example", 1)).await[3] & 15, 0);
        assert!(began.elapsed() < STAGGER, "{:?}", began.elapsed());
        assert_eq!(world.counts(), [1, 2]);
    });
}

#[test]
fn a_client_is_told_before_it_gives_up() {
    run(async {
        let world = upstreams(&[is_silent, is_silent, is_silent, is_silent]);
        let began = Instant::now();
        let reply = world.ask(&query(NAME, 1)).await;
        assert_eq!(reply[3] & 15, 2);
        assert!(began.elapsed() >= BUDGET && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(world.counts(), [1, 1, 1, 1]);
        // No servers at all are a failure too, and at once.
        let none = Rc::clone(&world.forwarder).forward(&query(NAME, 1), Transport::Udp, &Upstream::Host).await;
        assert_eq!(none.unwrap()[3] & 15, 2);
    });
}

#[test]
fn who_asks_the_same_meanwhile_waits_for_the_same_answer() {
    run(async {
        let world = Rc::new(upstreams(&[answers]));
        let packet = query(NAME, 1);
        let mut clients = JoinSet::new();
        for _ in 0..20 {
            let (world, packet) = (Rc::clone(&world), packet.clone());
            clients.spawn_local(async move { world.ask(&packet).await });
        }
        while let Some(reply) = clients.join_next().await {
            assert_eq!(reply.unwrap(), response(&packet, 60));
        }
        assert_eq!(world.counts(), [1]);
        assert!(world.forwarder.asking.borrow().is_empty());
        // One that is given up leaves the question to the others.
        let world = Rc::new(upstreams(&[answers]));
        let other = world.clone();
        let first = spawn_local(async move { other.ask(&query(NAME, 1)).await });
        tokio::task::yield_now().await;
        first.abort();
        assert_eq!(world.ask(&packet).await, response(&packet, 60));
        assert!(world.forwarder.asking.borrow().is_empty());
    });
}

#[test]
fn that_there_is_no_such_name_is_believed_of_the_second_only_after_a_while() {
    run(async {
        fn knows_nothing(asked: &[u8]) -> Option<Vec<u8>> {
            let mut reply = asked.to_vec();
            (reply[2], reply[3]) = (0x81, 0x83);
            Some(reply)
        }
        let world = upstreams(&[is_silent, knows_nothing]);
        let began = Instant::now();
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 3);
        let took = began.elapsed();
        assert!(took >= STAGGER * 2 && took < BUDGET, "{took:?}");
        // The first says nothing to anybody: it is believed at once, then.
        let began = Instant::now();
        assert_eq!(world.ask(&query("other.example", 1)).await[3] & 15, 3);
        assert!(began.elapsed() < STAGGER);
    });
}

#[test]
fn who_only_does_not_know_one_name_is_not_lame() {
    run(async {
        fn is_silent_about_some(asked: &[u8]) -> Option<Vec<u8>> {
            if asked[HEADER + 1] == b'x' { None } else { Some(response(asked, 60)) }
        }
        fn knows_nothing(asked: &[u8]) -> Option<Vec<u8>> {
            let mut reply = asked.to_vec();
            (reply[2], reply[3]) = (0x81, 0x83);
            Some(reply)
        }
        let world = Rc::new(upstreams(&[is_silent_about_some, knows_nothing]));
        let other = world.clone();
        let stuck = spawn_local(async move { other.ask(&query("xyz.example", 1)).await });
        tokio::time::sleep(STAGGER / 2).await;
        assert_eq!(world.ask(&query("a.example", 1)).await[3] & 15, 0);
        tokio::time::sleep(STAGGER).await;
        // The second has been asked by now, and the first is still the one that is believed.
        assert_eq!(world.ask(&query("b.example", 1)).await[3] & 15, 0);
        assert_eq!(stuck.await.unwrap()[3] & 15, 3);
    });
}

#[test]
fn an_answer_with_another_id_is_none() {
    run(async {
        let world = upstreams(&[is_forged_first, answers]);
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 0);
        assert_eq!(world.counts(), [1, 1]);
    });
}

#[test]
fn what_is_cut_short_is_asked_for_over_a_stream() {
    run(async {
        fn cuts_short(asked: &[u8]) -> Option<Vec<u8>> {
            let mut reply = asked.to_vec();
            (reply[2], reply[3]) = (0x83, 0x80);
            Some(reply)
        }
        let world = upstreams(&[cuts_short]);
        let listener = TcpListener::bind((loopback(1), world.port)).await.unwrap();
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = read_framed(&mut stream, 4096).await.unwrap().unwrap();
            // Sixty addresses: more than 512 bytes, which is all that the first client takes.
            let mut reply = response(&asked, 60);
            let record = reply[asked.len()..].to_vec();
            (1..60).for_each(|_| reply.extend_from_slice(&record));
            reply[7] = 60;
            write_framed(&mut stream, &reply).await.unwrap();
        });
        let packet = query(NAME, 1);
        let reply = world.ask(&packet).await;
        assert_eq!((reply.len(), reply[2] & 2, reply[7]), (packet.len(), 2, 0), "the client is to ask again");
        // Which it does over a stream, and has all of it.
        let kept = world.forwarder.kept(&packet, Transport::Tcp, &world.upstream).unwrap();
        assert_eq!((kept.len(), kept[2] & 2, kept[7]), (packet.len() + 60 * 16, 0, 60));
    });
}

#[test]
fn too_much_at_a_time_fails_at_once() {
    run(async {
        let world = upstreams(&[is_silent]);
        let all = world
            .forwarder
            .own
            .forwards
            .try_acquire_many(u32::try_from(FORWARDS_PER_NODE / SHARE_OF_OWN).unwrap())
            .unwrap();
        let began = Instant::now();
        assert_eq!(world.ask(&query(NAME, 1)).await[3] & 15, 2);
        assert!(began.elapsed() < STAGGER);
        assert_eq!(world.counts(), [0]);
        drop(all);
        // A whole zone is nobody's business.
        assert_eq!(world.ask(&query(NAME, 252)).await[3] & 15, 5);
        assert_eq!(world.counts(), [0]);
    });
}

#[test]
fn ids_do_not_follow_from_each_other() {
    let forwarder = Forwarder::new(Resolvers::Fixed(vec![]));
    let ids: Vec<u16> = (0..1000).map(|_| forwarder.id()).collect();
    let steps: BTreeSet<u16> = ids.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 900, "{} different steps", steps.len());
}
