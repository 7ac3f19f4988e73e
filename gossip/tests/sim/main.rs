//! The protocol in a deterministic simulation, where time is free and faults are ordered.

#![allow(clippy::unwrap_used)]

mod net;
mod sync;

use std::time::Duration;

use gossip::swim::PacketError;
use gossip::{Event, Key, Keyring, OpenError};

use net::{Net, identity};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn joined(nodes: usize, seed: u64, loss: u32) -> Net {
    let mut net = Net::new(nodes, seed);
    net.loss = loss;
    for at in 1..nodes {
        net.join(at, &[0, 1, 2]);
    }
    assert!(net.run(60 * S, Net::is_whole), "{nodes} nodes found each other with seed {seed}: {:?}", net.now);
    net
}

#[track_caller]
fn downs(net: &Net) -> Vec<String> {
    let downs = net.events.iter().filter(|(_, _, event)| matches!(event, Event::Down(_) | Event::Left(_)));
    downs.map(|(at, node, event)| format!("{at:?} node {node}: {event:?}")).collect()
}

/// Everybody joins, nobody is called dead who is not, a crash is seen by all in time.
fn crash_is_seen(nodes: usize, seed: u64, loss: u32, first_bound: Duration, all_bound: Duration) -> Duration {
    let mut net = joined(nodes, seed, loss);
    let quiet_until = net.now + 20 * S;
    net.run(quiet_until, |_| false);
    assert_eq!(downs(&net), Vec::<String>::new(), "seed {seed}: nobody was dead");

    let victim = nodes / 2;
    let crash = net.now;
    net.crash(victim);
    let others = || (0..nodes).filter(move |at| *at != victim);
    let first = net.run(crash + first_bound, |net| others().any(|at| !net.sees(at, victim)));
    assert!(first, "seed {seed}: nobody saw the crash within {first_bound:?}");
    let first = net.now - crash;
    let all = net.run(crash + all_bound, |net| others().all(|at| !net.sees(at, victim)));
    assert!(all, "seed {seed}: not all saw the crash within {all_bound:?}");
    net.run(crash + 10 * S, |_| false);
    let false_downs: Vec<String> =
        downs(&net).into_iter().filter(|d| !d.contains(&identity(victim, 1).node_id)).collect();
    assert_eq!(false_downs, Vec::<String>::new(), "seed {seed}");
    first
}

#[test]
fn three_nodes_see_a_crash_in_about_a_second() {
    let mut times: Vec<Duration> = (0..21).map(|seed| crash_is_seen(3, seed, 0, 1600 * MS, 2000 * MS)).collect();
    times.sort();
    println!("3 nodes: p50 {:?}, max {:?}", times[10], times[20]);
    assert!(times[10] < 1100 * MS, "p50 {:?}", times[10]);
}

#[test]
fn five_nodes_see_a_crash_in_about_a_second() {
    let mut times: Vec<Duration> = (0..21).map(|seed| crash_is_seen(5, seed, 0, 1800 * MS, 2200 * MS)).collect();
    times.sort();
    println!("5 nodes: p50 {:?}, max {:?}", times[10], times[20]);
    assert!(times[10] < 1100 * MS, "p50 {:?}", times[10]);
}

#[test]
fn ten_nodes_under_loss() {
    for seed in 0..5 {
        crash_is_seen(10, seed, 50, 3 * S, 4 * S);
    }
}

#[test]
fn a_hundred_nodes_under_loss() {
    let first = crash_is_seen(100, 7, 50, 3 * S, 5 * S);
    println!("100 nodes, 5 % loss: first saw it after {first:?}");
}

#[test]
fn what_happens_is_counted() {
    let mut net = joined(5, 11, 100);
    net.loss = 300;
    net.run(net.now + 60 * S, |_| false);
    net.loss = 0;
    net.crash(4);
    let crash = net.now;
    net.run(crash + 60 * S, |_| false);
    let counted: Vec<_> = (0..4).map(|at| net.swim(at).counters()).collect();
    assert!(counted.iter().all(|c| c.deaths >= 1 && c.suspicions >= c.deaths), "{counted:?}");
    assert!(counted.iter().any(|c| c.refutations > 0), "a third of all packets lost, and no suspicion: {counted:?}");
    for counters in counted {
        let trips = counters.round_trips;
        // Three probes a second; a ping and its answer take 0.4 to 4 ms together.
        assert!(trips.count > 200 && trips.max <= 4 * MS, "{trips:?}");
        assert!(trips.buckets[0] < trips.buckets[2] && trips.buckets[3] == trips.count, "{trips:?}");
    }
}

#[test]
fn who_refutes_a_suspicion_goes_on_as_he_is() {
    let mut net = joined(20, 15, 50);
    net.run(net.now + 10 * S, |_| false);
    let counted = |net: &Net| (0..20).map(|at| net.swim(at).counters()).collect::<Vec<_>>();
    let before = counted(&net);
    net.loss = 200;
    net.run(net.now + 60 * S, |_| false);
    net.loss = 0;
    net.run(net.now + 5 * S, |_| false);
    let after = counted(&net);
    let sum =
        |of: fn(&gossip::swim::Counters) -> u64| after.iter().map(of).sum::<u64>() - before.iter().map(of).sum::<u64>();
    assert_eq!(sum(|c| c.deaths), 0, "this seed is one without a false alarm");
    assert!(sum(|c| c.refutations) > 20, "{} refutations", sum(|c| c.refutations));
    assert_eq!(sum(|c| c.rejoins), 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut net = joined(10, seed, 50);
        net.crash(4);
        net.run(net.now + 5 * S, |_| false);
        (net.packets, net.events)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_cut_off_node_comes_back_as_soon_as_it_is_heard() {
    let mut net = joined(5, 1, 0);
    net.cut(&[4]);
    let cut = net.now;
    assert!(net.run(cut + 10 * S, |net| (0..4).all(|at| !net.sees(at, 4)) && net.alive(4) == 0), "both sides saw it");
    net.cut(&[]);
    let healed = net.now;
    assert!(net.run(healed + 6 * S, Net::is_whole), "the cut healed");
    println!("back after {:?}", net.now - healed);
}

#[test]
fn two_halves_become_one_again() {
    let mut net = joined(10, 2, 10);
    net.cut(&[0, 1, 2, 3, 4]);
    let cut = net.now;
    assert!(net.run(cut + 20 * S, |net| (0..10).all(|at| net.alive(at) == 4)), "each half is one");
    net.run(cut + 120 * S, |_| false);
    net.cut(&[]);
    let healed = net.now;
    assert!(net.run(healed + 15 * S, Net::is_whole), "the halves are one");
    println!("whole after {:?}", net.now - healed);
}

/// The dead are forgotten after an hour; then only the seeds lead from one side to the other.
#[test]
fn a_cut_heals_even_when_both_sides_have_forgotten_each_other() {
    for away in [&[4][..], &[0, 4]] {
        let mut net = Net::new(5, 12);
        net.loss = 50;
        for at in 0..5 {
            net.join(at, &[0, 1, 2]);
        }
        assert!(net.run(60 * S, Net::is_whole));
        net.cut(away);
        let cut = net.now;
        let (one, other) = (away.len() - 1, 4 - away.len());
        let split = |net: &Net| (0..5).all(|at| net.alive(at) == if away.contains(&at) { one } else { other });
        assert!(net.run(cut + 20 * S, split), "two clusters");
        net.run(cut + 3800 * S, |_| false);
        net.cut(&[]);
        let healed = net.now;
        assert!(net.run(healed + 60 * S, Net::is_whole), "without {away:?}, the halves did not become one again");
        println!("without {away:?}: whole after {:?}", net.now - healed);
    }
}

#[test]
fn a_rotation_of_keys_leaves_no_gap_and_replays_are_refused() {
    let key = |id: u32| Key::new(id, [id as u8; 32]);
    let ring =
        |primary: u32, others: &[u32]| Keyring::new(key(primary), others.iter().map(|id| key(*id)).collect()).unwrap();
    let mut net = Net::new(6, 13);
    net.loss = 100;
    net.replayed = 200;
    net.seal(&ring(1, &[]));
    for at in 1..6 {
        net.join(at, &[0, 1, 2]);
    }
    assert!(net.run(60 * S, Net::is_whole));
    net.events.clear();
    // Each step is done everywhere before the next one starts; hosts take it one after another.
    for step in [ring(1, &[2]), ring(2, &[1]), ring(2, &[])] {
        for at in 0..6 {
            net.set_keys(at, &step);
            net.run(net.now + 700 * MS, |_| false);
        }
        net.run(net.now + 5 * S, |_| false);
    }
    assert!(net.is_whole());
    assert_eq!(downs(&net), Vec::<String>::new());
    let old = |error: &OpenError| *error == OpenError::UnknownKey(1);
    for at in 0..6 {
        let refused = net.refused(at);
        let replays = refused.iter().filter(|error| **error == OpenError::Replayed).count();
        assert!(replays > 20, "node {at}: {replays} replays");
        // A replay of a packet from before the last step is of an unknown key by then.
        assert!(refused.iter().all(|e| *e == OpenError::Replayed || old(e)), "{refused:?}");
        assert!(refused.iter().filter(|e| old(e)).count() < 20, "{refused:?}");
    }
    // Garbage, and what was sealed with a key that is no longer in use.
    let mut stranger = gossip::Sealer::new(ring(1, &[]), "cluster".to_owned(), [9; 16], 1);
    for len in 0..100 {
        let before = net.refused(0).len();
        net.inject(0, vec![len as u8; len]);
        net.inject(0, stranger.seal(&vec![len as u8; len]).unwrap());
        let refused = &net.refused(0)[before..];
        assert!(refused.contains(&OpenError::NotSealed) && refused.contains(&OpenError::UnknownKey(1)), "{refused:?}");
    }
    assert!(net.is_whole());
}

/// The short form of the benchmark `membership` of chaos-tests.
#[test]
fn neither_traffic_nor_detection_grow_with_the_cluster() {
    let measure = |nodes: usize| {
        let mut net = joined(nodes, 14, 50);
        let managers_know = net.now;
        net.run(net.now + 40 * S, |_| false);
        let bytes = |net: &Net| (0..nodes).map(|at| net.traffic(at).bytes).sum::<u64>();
        let (before, since) = (bytes(&net), net.now);
        net.run(since + 30 * S, |_| false);
        let rate = (bytes(&net) - before) as f64 / nodes as f64 / 30.0;
        assert_eq!(downs(&net), Vec::<String>::new());
        let mut detection = Vec::new();
        for victim in 4..9 {
            let death = net.now;
            net.crash(victim);
            assert!(net.run(death + 5 * S, |net| !net.sees(0, victim)));
            detection.push(net.now - death);
            net.run(net.now + 2 * S, |_| false);
        }
        detection.sort();
        println!("{nodes} nodes: whole at {managers_know:?}, {rate:.0} B/s, detection {detection:?}");
        (rate, detection[2])
    };
    let (few, many) = (measure(10), measure(80));
    assert!(many.0 < few.0 * 1.5, "{} bytes a second instead of {}", many.0, few.0);
    assert!(many.1 < few.1 * 2, "{:?} instead of {:?}", many.1, few.1);
}

#[test]
fn a_paused_node_blames_nobody_and_is_back_at_once() {
    let mut net = joined(5, 3, 0);
    net.events.clear();
    net.pause(2, 8 * S);
    let pause = net.now;
    assert!(net.run(pause + 7 * S, |net| !net.sees(0, 2)), "the others see that it does not answer");
    net.run(pause + 8 * S, |_| false);
    assert!(net.run(pause + 10 * S, Net::is_whole), "it is back");
    net.run(pause + 30 * S, |_| false);
    assert!(net.is_whole());
    let blamed = net.events.iter().filter(|(_, node, event)| *node == 2 && matches!(event, Event::Down(_)));
    assert_eq!(blamed.count(), 0, "{:?}", net.events);
    let rejoined = net.events.iter().any(|(_, node, event)| *node == 2 && matches!(event, Event::Rejoined(_)));
    assert!(rejoined);
    assert!(net.swim(2).counters().late >= 1);
}

#[test]
fn a_short_pause_harms_nobody() {
    let mut net = joined(5, 4, 0);
    net.events.clear();
    for round in 0..20_u32 {
        net.pause(2, 400 * MS);
        net.run(net.now + 3 * S + round * 17 * MS, |_| false);
    }
    assert_eq!(downs(&net), Vec::<String>::new());
}

#[test]
fn a_restarted_node_is_renewed_before_anybody_misses_it() {
    let mut net = joined(4, 5, 0);
    net.events.clear();
    net.crash(3);
    net.restart(3, 2);
    net.join(3, &[0]);
    let restart = net.now;
    let known = |net: &Net| (0..3).all(|at| net.swim(at).members()[&identity(3, 1).node_id].identity.generation == 2);
    assert!(net.run(restart + 2 * S, known));
    net.run(restart + 10 * S, |_| false);
    assert!(net.is_whole());
    let renewed = net.events.iter().filter(|(_, _, event)| *event == Event::Renewed(identity(3, 2)));
    assert_eq!(renewed.count(), 3);
    assert_eq!(downs(&net), Vec::<String>::new());
}

#[test]
fn a_goodbye_is_no_death() {
    for seed in 0..10 {
        let mut net = joined(5, seed, 50);
        net.events.clear();
        net.with(1, |swim, now| swim.leave(now));
        let leave = net.now;
        assert!(net.run(leave + S, |net| net.swim(1).is_gone()));
        net.crash(1);
        assert!(net.run(leave + 3 * S, Net::is_whole), "seed {seed}");
        net.run(leave + 20 * S, |_| false);
        let who = |at: usize| {
            let told = net.events.iter().filter(|(_, node, _)| *node == at).map(|(_, _, event)| event);
            told.filter(|event| matches!(event, Event::Left(id) | Event::Down(id) if *id == identity(1, 1)))
                .cloned()
                .collect::<Vec<_>>()
        };
        for at in [0, 2, 3, 4] {
            assert_eq!(who(at), [Event::Left(identity(1, 1))], "seed {seed}, node {at}");
        }
    }
}

#[test]
fn alone_it_leaves_at_once() {
    let mut net = Net::new(1, 0);
    net.with(0, |swim, now| swim.leave(now));
    assert!(net.swim(0).is_gone());
}

#[test]
fn a_forgotten_node_stays_away() {
    let mut net = joined(4, 6, 0);
    net.events.clear();
    let removed = identity(3, 1).node_id;
    for at in 0..3 {
        net.with(at, |swim, now| swim.forget(&removed, now));
    }
    // It still lives, has the key, and tries to come back.
    let until = net.now + 60 * S;
    net.run(until, |_| false);
    for at in 0..3 {
        assert_eq!(net.alive(at), 2);
        assert!(!net.swim(at).members().contains_key(&removed));
    }
    assert!(net.events.iter().all(|(_, at, event)| *at == 3 || !format!("{event:?}").contains(&removed)));
}

#[test]
fn a_node_that_starts_alone_finds_the_seeds_when_they_come() {
    let mut net = Net::new(3, 8);
    net.crash(0);
    net.join(1, &[0]);
    net.join(2, &[0]);
    net.run(30 * S, |_| false);
    assert_eq!((net.alive(1), net.alive(2)), (0, 0));
    net.restart(0, 2);
    let start = net.now;
    assert!(net.run(start + 10 * S, Net::is_whole), "announcements go on");
}

#[test]
fn a_copied_disk_is_reported() {
    let mut net = joined(3, 9, 0);
    let twin = gossip::Identity { node_id: identity(1, 1).node_id, ..identity(7, 5) };
    let settings = gossip::swim::Settings { identity: twin.clone(), timing: gossip::Timing::lan(), seed: 1 };
    let origin = std::time::Instant::now();
    let mut other = gossip::swim::Swim::new(settings, origin).unwrap();
    other.join(vec![identity(1, 1).addr], origin);
    let (_, packet) = other.poll_packet().unwrap();
    assert_eq!(net.with(1, |swim, now| swim.handle_packet(&packet, now)), Err(PacketError::FromSelf));
    assert!(net.events.iter().any(|(_, at, event)| *at == 1 && *event == Event::Conflict(twin.clone())));
}

#[test]
fn garbage_changes_nothing() {
    let mut net = joined(3, 10, 0);
    let before = net.swim(0).members().clone();
    for len in 0..200 {
        let garbage = vec![len as u8; len];
        assert!(net.with(0, |swim, now| swim.handle_packet(&garbage, now)).is_err());
    }
    let large = vec![0; gossip::MAX_PACKET + 1];
    assert!(net.with(0, |swim, now| swim.handle_packet(&large, now)).is_err());
    assert_eq!(*net.swim(0).members(), before);
}
