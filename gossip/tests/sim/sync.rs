//! Tables that differ, and how they become the same again.

use gossip::Event;

use crate::net::{Net, identity};
use crate::{MS, S, downs, joined};

/// The node that hears nothing of [`STRANGER`].
const DEAF: usize = 5;
const STRANGER: usize = 7;

fn names(packet: &[u8], node: usize) -> bool {
    let id = identity(node, 1).node_id;
    packet.windows(id.len()).any(|window| window == id.as_bytes())
}

fn is_deaf(to: usize, packet: &[u8]) -> bool {
    to == DEAF && names(packet, STRANGER)
}

fn is_quiet(net: &Net) -> bool {
    (0..net.len()).all(|at| net.swim(at).backlog() == 0)
}

fn syncs(net: &Net, at: usize) -> u64 {
    net.swim(at).counters().syncs
}

/// Who was called dead by somebody else since `since`, and lives.
fn false_downs(net: &Net, since: std::time::Duration, dead: &[usize]) -> Vec<String> {
    let dead: Vec<_> = dead.iter().map(|at| identity(*at, 1).node_id).collect();
    let told = net.events.iter().filter(|(at, _, _)| *at >= since);
    let downs = told.filter(|(_, _, event)| matches!(event, Event::Down(id) if !dead.contains(&id.node_id)));
    downs.map(|(at, node, event)| format!("{at:?} node {node}: {event:?}")).collect()
}

#[test]
fn news_that_was_lost_for_good_is_found_within_seconds() {
    for seed in 0..3 {
        let mut net = Net::new(60, seed);
        net.loss = 50;
        net.loses = is_deaf;
        for at in (1..60).filter(|at| *at != STRANGER) {
            net.join(at, &[0, 1, 2]);
        }
        assert!(net.run(60 * S, |net| (0..60).all(|at| at == STRANGER || net.alive(at) == 58)));
        net.join(STRANGER, &[0, 1, 2]);
        let known = |net: &Net| (0..60).all(|at| at == DEAF || at == STRANGER || net.sees(at, STRANGER));
        assert!(
            net.run(net.now + 5 * S, |net| known(net) && is_quiet(net)),
            "seed {seed}: all others know, and are quiet"
        );
        assert!(!net.sees(DEAF, STRANGER));
        net.loses = |_, _| false;
        let (healed, before) = (net.now, syncs(&net, DEAF));
        assert!(net.run(healed + 3 * S, |net| net.sees(DEAF, STRANGER)), "seed {seed}");
        println!("seed {seed}: after {:?}, by {} exchanges", net.now - healed, syncs(&net, DEAF) - before);
        net.run(net.now + 10 * S, |_| false);
        assert!(net.is_whole());
        assert_eq!(downs(&net), Vec::<String>::new(), "seed {seed}");
        // Who agrees is silent.
        let agreed: Vec<u64> = (0..60).map(|at| syncs(&net, at)).collect();
        net.run(net.now + 30 * S, |_| false);
        assert_eq!((0..60).map(|at| syncs(&net, at)).collect::<Vec<_>>(), agreed, "seed {seed}");
    }
}

#[test]
fn a_death_and_a_goodbye_that_were_missed_are_heard_of() {
    let mut missed = 0;
    for seed in 0..3 {
        for leaves in [false, true] {
            let mut net = joined(60, seed, 50);
            net.run(net.now + 10 * S, |_| false);
            net.events.clear();
            net.loses = is_deaf;
            if leaves {
                net.with(STRANGER, |swim, now| swim.leave(now));
                assert!(net.run(net.now + S, |net| net.swim(STRANGER).is_gone()));
            }
            net.crash(STRANGER);
            let knows = |net: &Net, at| if leaves { net.alive(at) == 58 } else { !net.sees(at, STRANGER) };
            let all = |net: &Net| (0..60).all(|at| at == DEAF || at == STRANGER || knows(net, at));
            assert!(net.run(net.now + 6 * S, |net| all(net) && is_quiet(net)), "seed {seed}");
            net.loses = |_, _| false;
            if !net.sees(DEAF, STRANGER) {
                // It happened to probe the dead one itself.
                continue;
            }
            missed += 1;
            let healed = net.now;
            assert!(net.run(healed + 5 * S, |net| knows(net, DEAF)), "seed {seed}");
            println!("seed {seed}: after {:?}", net.now - healed);
            net.run(net.now + 10 * S, |_| false);
            let told = net.events.iter().filter(|(_, at, _)| *at == DEAF).map(|(_, _, event)| event);
            let told: Vec<_> = told.filter(|event| matches!(event, Event::Down(_) | Event::Left(_))).cloned().collect();
            let id = identity(STRANGER, 1);
            assert_eq!(told, [if leaves { Event::Left(id) } else { Event::Down(id) }], "seed {seed}");
            assert_eq!(false_downs(&net, healed, &[STRANGER]), Vec::<String>::new());
        }
    }
    assert!(missed >= 4, "{missed} of 6 runs");
}

/// A host that was away comes back with the belief that others are dead, and knows dead ones as living.
#[test]
fn who_was_away_convinces_nobody_and_learns() {
    for seed in 0..3 {
        let mut net = joined(60, seed, 50);
        net.run(net.now + 10 * S, |_| false);
        net.cut(&[9]);
        net.crash(30);
        net.run(net.now + 5 * S, |_| false);
        let blamed = (0..60).filter(|at| ![9, 30].contains(at) && !net.sees(9, *at)).count();
        assert!(blamed > 5, "seed {seed}: it blamed {blamed}");
        net.cut(&[]);
        let healed = net.now;
        assert!(net.run(healed + 10 * S, Net::is_whole), "seed {seed}");
        println!("seed {seed}: blamed {blamed}, whole after {:?}", net.now - healed);
        net.run(healed + 30 * S, |_| false);
        assert!(net.is_whole());
        // Its own last suspicions still ran out.
        let false_downs = false_downs(&net, healed, &[30]);
        let told: Vec<_> = false_downs.iter().filter(|down| !down.contains(" node 9: ")).collect();
        assert_eq!(told, Vec::<&String>::new(), "seed {seed}");
        let others = net.events.iter().filter(|(at, node, _)| *at >= healed && *node != 9);
        let revived = others.filter(|(_, _, event)| matches!(event, Event::Up(id) if *id == identity(30, 1)));
        assert_eq!(revived.count(), 0, "seed {seed}");
    }
}

#[test]
fn halves_of_a_split_are_one_within_seconds() {
    for seed in 0..3 {
        let mut net = joined(60, seed, 50);
        net.run(net.now + 10 * S, |_| false);
        net.cut(&(0..60).filter(|at| at % 2 == 0).collect::<Vec<_>>());
        assert!(net.run(net.now + 60 * S, |net| (0..60).all(|at| net.alive(at) == 29)), "seed {seed}: two clusters");
        net.cut(&[]);
        let healed = net.now;
        assert!(net.run(healed + 15 * S, Net::is_whole), "seed {seed}");
        println!("seed {seed}: whole after {:?}", net.now - healed);
        net.run(healed + 30 * S, |_| false);
        assert!(net.is_whole());
        assert_eq!(false_downs(&net, healed + MS, &[]), Vec::<String>::new(), "seed {seed}");
    }
}

/// The dead are remembered for an hour after each host's own news of them, not after the last host's.
#[test]
fn the_dead_and_the_left_are_not_revived_and_not_kept_alive_by_talk() {
    let mut net = Net::new(10, 3);
    net.loss = 50;
    let newcomer = 9;
    for at in 1..newcomer {
        net.join(at, &[0, 1, 2]);
    }
    assert!(net.run(60 * S, |net| (0..newcomer).all(|at| net.alive(at) == 8)));
    net.with(3, |swim, now| swim.leave(now));
    net.run(net.now + S, |_| false);
    net.crash(3);
    net.crash(4);
    net.run(net.now + 10 * S, |_| false);
    net.events.clear();
    // Who comes later hears of the living only, all the time that the others remember.
    net.join(newcomer, &[0, 1, 2]);
    for _ in 0..38 {
        net.run(net.now + 100 * S, |_| false);
        assert_eq!(net.swim(newcomer).remembered(), 7);
    }
    for at in [0, 1, 2, 5, 6, 7, 8, newcomer] {
        assert_eq!((net.alive(at), net.swim(at).remembered()), (7, 7), "node {at}");
    }
    let ups = net.events.iter().filter(|(_, at, event)| *at != newcomer && matches!(event, Event::Up(_)));
    assert!(
        ups.clone().all(|(_, _, event)| *event == Event::Up(identity(newcomer, 1))),
        "{:?}",
        ups.collect::<Vec<_>>()
    );
    assert_eq!(downs(&net), Vec::<String>::new());
}

#[test]
fn a_removed_node_is_not_heard_of_by_exchanges_and_does_not_keep_them_busy() {
    let mut net = joined(10, 4, 50);
    net.run(net.now + 10 * S, |_| false);
    net.events.clear();
    // Four hosts have heard of the removal, the others have not.
    let removed = identity(8, 1).node_id;
    for at in 0..4 {
        net.with(at, |swim, now| swim.forget(&removed, now));
    }
    net.run(net.now + 30 * S, |_| false);
    for at in 0..4 {
        assert!(!net.swim(at).members().contains_key(&removed));
    }
    for at in 4..8 {
        net.with(at, |swim, now| swim.forget(&removed, now));
    }
    net.with(9, |swim, now| swim.forget(&removed, now));
    net.crash(8);
    net.run(net.now + 10 * S, |_| false);
    net.tap = Some(Vec::new());
    net.run(net.now + 30 * S, |_| false);
    let tap = net.tap.take().unwrap();
    let kinds = |kind: u8| tap.iter().filter(|packet| packet[0] == kind).count();
    assert!(kinds(10) > 200, "{} questions", kinds(10));
    assert_eq!((kinds(11), kinds(12), kinds(13)), (0, 0, 0), "all agree");
    assert_eq!(false_downs(&net, std::time::Duration::ZERO, &[8]), Vec::<String>::new());
}

#[test]
fn many_joins_do_not_pile_up() {
    let mut net = Net::new(250, 6);
    net.loss = 50;
    for at in 1..250 {
        net.join(at, &[0, 1, 2]);
    }
    let mut most = 0;
    let whole = net.run_asking(20 * S, 50 * MS, |net| {
        most = (0..250).map(|at| net.swim(at).backlog()).max().unwrap_or_default().max(most);
        net.is_whole()
    });
    println!("whole at {:?}, at most {most} pieces of news", net.now);
    assert!(whole);
    assert!(most < 180, "{most} pieces of news");
    assert_eq!(downs(&net), Vec::<String>::new());
}

/// A member that has gone mad: exchanges that were damaged, made up or said to others, thousands a second.
#[test]
fn mad_exchanges_harm_nobody_and_are_not_answered_without_bound() {
    let mut net = Net::new(20, 5);
    net.loss = 20;
    net.tap = Some(Vec::new());
    for at in 1..20 {
        net.join(at, &[0, 1, 2]);
    }
    assert!(net.run(60 * S, Net::is_whole));
    net.run(net.now + 20 * S, |_| false);
    let mut samples = net.tap.take().unwrap();
    samples.retain(|packet| (10..14).contains(&packet[0]));
    for kind in 10..14 {
        assert!(samples.iter().any(|packet| packet[0] == kind), "no packet of kind {kind}");
    }
    let mut dice = 1_u64;
    let mut roll = move |sides: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % sides
    };
    net.events.clear();
    for second in 0..10 {
        let before = net.packets;
        for _ in 0..100 {
            for _ in 0..50 {
                let mut packet = samples[roll(samples.len())].clone();
                // Who they are about stays: a member can give others any identity, by gossip as well.
                let body = [10, 1024, 32, 3][usize::from(packet[0] - 10)];
                for _ in 0..roll(4) {
                    let at = packet.len() - 1 - roll(body);
                    packet[at] = if roll(2) == 0 { roll(4) as u8 } else { packet[at] ^ (1 << roll(8)) };
                }
                packet.truncate(packet.len() - if roll(10) == 0 { roll(packet.len()) } else { 0 });
                net.inject(roll(3), packet);
            }
            net.run(net.now + 10 * MS, |_| false);
        }
        // 20 hosts send some 200 packets a second by themselves.
        let sent = net.packets - before;
        assert!(sent < 6_000, "second {second}: {sent} packets for 5 000");
    }
    net.run(net.now + 20 * S, |_| false);
    for at in 0..20 {
        let missed: Vec<usize> = (0..20).filter(|other| *other != at && !net.sees(at, *other)).collect();
        assert_eq!(missed, Vec::<usize>::new(), "node {at}");
    }
    let ids: Vec<String> = (0..20).map(|at| identity(at, 1).node_id).collect();
    let dead = net.events.iter().filter(|(_, _, event)| match event {
        Event::Down(id) | Event::Left(id) => ids.contains(&id.node_id) && id.generation == 1,
        _ => false,
    });
    assert_eq!(dead.collect::<Vec<_>>(), Vec::<&_>::new());
}
