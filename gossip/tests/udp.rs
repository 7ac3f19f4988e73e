//! Real sockets on loopback.

#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gossip::{Config, Event, Gossip, Identity, Key, Keyring, Sealer, StartError, Timing};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn key(id: u32) -> Key {
    Key::new(id, [id as u8; 32])
}

fn ring(primary: u32, others: &[u32]) -> Keyring {
    Keyring::new(key(primary), others.iter().map(|id| key(*id)).collect()).unwrap()
}

async fn start(name: &str, keys: Keyring) -> (Gossip, mpsc::Receiver<Event>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    start_at(Identity { node_id: name.to_owned(), addr, generation: 1 }, socket, keys).await
}

async fn start_at(identity: Identity, socket: UdpSocket, keys: Keyring) -> (Gossip, mpsc::Receiver<Event>) {
    let config = Config { identity, socket, keys, timing: Timing::lan(), cluster_id: "cluster".to_owned() };
    Gossip::start(config).await.unwrap()
}

fn addr(gossip: &Gossip) -> SocketAddr {
    gossip.identity().addr
}

async fn wait_for(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    timeout(PATIENCE, async {
        loop {
            let event = events.recv().await.expect("gossip runs");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
    .expect("the event comes in time")
}

async fn wait_members(gossip: &Gossip, alive: usize) {
    let mut watch = gossip.watch();
    let whole = watch.wait_for(|members| members.values().filter(|member| member.alive).count() == alive);
    timeout(PATIENCE, whole).await.expect("in time").expect("gossip runs");
}

/// The counters are published after the packet that changed them: wait for them, not for time.
async fn wait_stats(gossip: &Gossip, wanted: impl Fn(&gossip::Stats) -> bool) {
    timeout(PATIENCE, async {
        while !wanted(&gossip.stats()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("the counters are {:?}", gossip.stats()));
}

#[tokio::test]
async fn two_nodes_meet_and_one_dies() {
    let (a, mut a_events) = start("a", ring(1, &[])).await;
    let (b, mut b_events) = start("b", ring(1, &[])).await;
    b.join(vec![addr(&a)]);
    assert_eq!(wait_for(&mut a_events, |_| true).await, Event::Up(b.identity().clone()));
    assert_eq!(wait_for(&mut b_events, |_| true).await, Event::Up(a.identity().clone()));
    assert!(a.members()["b"].alive);

    let dead = b.identity().clone();
    b.stop().await;
    assert!(b_events.recv().await.is_none(), "the end is seen");
    wait_for(&mut a_events, |event| *event == Event::ProbeFailed(dead.clone())).await;
    wait_for(&mut a_events, |event| *event == Event::Down(dead.clone())).await;
    assert!(!a.members()["b"].alive);
    let stats = a.stats();
    assert!(stats.probes_failed >= 1 && stats.deaths == 1, "{stats:?}");
    assert!(stats.sent_bytes > stats.sent * 47 && stats.received_bytes > stats.received * 47, "{stats:?}");

    // The next boot, elsewhere.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let identity = Identity { addr: socket.local_addr().unwrap(), generation: 2, ..dead };
    let (b, _b_events) = start_at(identity.clone(), socket, ring(1, &[])).await;
    b.join(vec![addr(&a)]);
    wait_for(&mut a_events, |event| *event == Event::Up(identity.clone())).await;
    // Who knows nobody yet has nobody to say goodbye to.
    wait_members(&b, 1).await;

    b.leave().await;
    wait_for(&mut a_events, |event| *event == Event::Left(identity.clone())).await;
    assert!(a.members().is_empty());
}

#[tokio::test]
async fn a_wrong_key_never_joins() {
    let (a, _a_events) = start("a", ring(1, &[])).await;
    let (other_id, _e1) = start("b", ring(2, &[])).await;
    let same_id = Keyring::single(Key::new(1, [9; 32]));
    let (other_bytes, _e2) = start("c", same_id).await;
    other_id.join(vec![addr(&a)]);
    other_bytes.join(vec![addr(&a)]);
    // Each has tried more than once.
    wait_stats(&a, |stats| stats.rejected.unknown_key >= 3 && stats.rejected.forged >= 3).await;
    assert!(a.members().is_empty() && other_id.members().is_empty() && other_bytes.members().is_empty());
    assert_eq!(a.stats().sent, 0, "strangers get no answer");
}

#[tokio::test]
async fn garbage_and_replays_are_counted() {
    let (a, _a_events) = start("a", ring(1, &[])).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |bytes: &[u8]| stranger.send_to(bytes, addr(&a)).unwrap();
    send(b"");
    send(b"hello");
    send(&[0x16; 1300]);
    send(&[0; gossip::MAX_DATAGRAM + 1]);
    send(&[0; 9000]);
    wait_stats(&a, |stats| stats.rejected.unsealed == 3 && stats.rejected.too_large == 2).await;

    // Somebody with the key, but without manners.
    let mut sealer = Sealer::new(ring(1, &[]), "cluster".to_owned(), [7; 16], 1);
    send(&sealer.seal(&[1, 2, 3]).unwrap());
    wait_stats(&a, |stats| stats.rejected.malformed == 1).await;

    // What a real node said is caught on the way and said again.
    let tap = UdpSocket::bind("127.0.0.1:0").unwrap();
    tap.set_read_timeout(Some(PATIENCE)).unwrap();
    let (b, _b_events) = start("b", ring(1, &[])).await;
    b.join(vec![tap.local_addr().unwrap()]);
    let caught = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2000];
        let len = tap.recv(&mut buffer).unwrap();
        buffer[..len].to_vec()
    })
    .await
    .unwrap();
    b.stop().await;
    send(&caught);
    wait_members(&a, 1).await;
    send(&caught);
    send(&caught);
    wait_stats(&a, |stats| stats.rejected.replayed == 2).await;
    assert_eq!(a.stats().rejected.total(), 8);
}

#[tokio::test]
async fn a_silenced_node_is_not_there_until_it_may_speak_again() {
    let (a, _a_events) = start("a", ring(1, &[])).await;
    let (b, _b_events) = start("b", ring(1, &[])).await;
    b.join(vec![addr(&a)]);
    wait_members(&a, 1).await;
    b.silence(true);
    wait_members(&a, 0).await;
    b.silence(false);
    b.join(vec![addr(&a)]);
    wait_members(&a, 1).await;
}

#[tokio::test]
async fn of_two_with_one_identity_the_silenced_one_is_not_heard() {
    let (a, _a_events) = start("a", ring(1, &[])).await;
    let (one, _e1) = start("b", ring(1, &[])).await;
    let (two, _e2) = start("b", ring(1, &[])).await;
    // That of the higher address wins where both are as old: the one that will be silent.
    let (original, clone) = if addr(&one) < addr(&two) { (one, two) } else { (two, one) };
    original.join(vec![addr(&a)]);
    wait_members(&original, 1).await;
    clone.join(vec![addr(&a)]);
    let mut watch = a.watch();
    let b_is = async |watch: &mut tokio::sync::watch::Receiver<Arc<gossip::Members>>, addr: SocketAddr| {
        let there = watch.wait_for(|members| members["b"].alive && members["b"].identity.addr == addr);
        timeout(PATIENCE, there).await.expect("in time").expect("gossip runs");
    };
    b_is(&mut watch, addr(&clone)).await;

    clone.silence(true);
    b_is(&mut watch, addr(&original)).await;
    wait_members(&original, 1).await;
    // Its death is seen: nobody speaks for it.
    original.stop().await;
    wait_members(&a, 0).await;
}

#[tokio::test]
async fn keys_rotate_without_a_gap() {
    let (a, mut a_events) = start("a", ring(1, &[])).await;
    let (b, mut b_events) = start("b", ring(1, &[])).await;
    b.join(vec![addr(&a)]);
    wait_members(&a, 1).await;
    wait_members(&b, 1).await;
    for step in [ring(1, &[2]), ring(2, &[1]), ring(2, &[])] {
        for node in [&a, &b] {
            node.set_keys(step.clone());
            // Long enough that each side has probed the other in every mix of steps.
            let (from_a, from_b) = (a.stats().received, b.stats().received);
            wait_stats(&a, |stats| stats.received >= from_a + 4).await;
            wait_stats(&b, |stats| stats.received >= from_b + 4).await;
        }
    }
    let (c, _c_events) = start("c", ring(2, &[])).await;
    c.join(vec![addr(&a), addr(&b)]);
    wait_members(&c, 2).await;
    for (node, events) in [(&a, &mut a_events), (&b, &mut b_events)] {
        assert_eq!(node.stats().rejected.total(), 0);
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, Event::Down(_)), "{event:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_reader_stops_nobody() {
    let (a, a_events) = start("a", ring(1, &[])).await;
    drop(a_events);
    let (b, _unread) = start("b", ring(1, &[])).await;
    b.join(vec![addr(&a)]);
    wait_members(&a, 1).await;
    wait_members(&b, 1).await;
    a.forget("b");
    wait_members(&a, 0).await;
    wait_stats(&a, |stats| stats.rejected.forgotten >= 1).await;
}

#[tokio::test]
async fn dropping_the_handle_ends_it() {
    let (a, mut events) = start("a", ring(1, &[])).await;
    let clone = a.clone();
    drop(a);
    let at = addr(&clone);
    drop(clone);
    assert!(timeout(PATIENCE, events.recv()).await.unwrap().is_none());
    UdpSocket::bind(at).expect("the port is free again");
}

#[tokio::test]
async fn bad_settings_are_refused() {
    let config = |node_id: &str, cluster_id: String| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let identity = Identity { node_id: node_id.to_owned(), addr: socket.local_addr().unwrap(), generation: 1 };
        Config { identity, socket, keys: ring(1, &[]), timing: Timing::lan(), cluster_id }
    };
    assert!(matches!(Gossip::start(config("", "c".to_owned())).await, Err(StartError::Settings(_))));
    assert!(matches!(Gossip::start(config("n", "c".repeat(257))).await, Err(StartError::ClusterId(257))));
    let slow = Config { timing: Timing { probe_rtt: PATIENCE, ..Timing::lan() }, ..config("n", "c".to_owned()) };
    assert!(matches!(Gossip::start(slow).await, Err(StartError::Settings(_))));
}

#[tokio::test]
async fn a_flood_stops_neither_timers_nor_commands() {
    let (a, _a_events) = start("a", ring(1, &[])).await;
    let (to, stop) = (addr(&a), Arc::new(AtomicBool::new(false)));
    let flood = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send_to(b"noise", to);
            }
        }
    });
    // Nobody is there to answer: what is sent, timers send.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    a.join(vec![nobody.local_addr().unwrap()]);
    wait_stats(&a, |stats| stats.sent >= 3 && stats.rejected.unsealed >= 1_000).await;
    let stopped = timeout(PATIENCE, a.stop()).await;
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    stopped.expect("in time");
}
