//! Packets of tasks and of upstreams that try to do harm, as properties. `PROPTEST_CASES=1000000` makes a campaign of them.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::answer::{Answer, ask};
use super::cache::Cache;
use super::resolver::failure;
use super::tests::{extended, query, view, zone};
use super::wire::{HEADER, Query};
use super::{Decision, Transport, resolve};

/// Damage: where, what is put there, and whether in place of a byte or between two.
type Damage = Vec<(usize, u8, bool)>;

fn damage() -> impl Strategy<Value = Damage> {
    vec((any::<usize>(), any::<u8>(), any::<bool>()), 0..6)
}

fn damaged(mut packet: Vec<u8>, damage: &Damage, cut: Option<usize>) -> Vec<u8> {
    for (at, value, between) in damage {
        let at = at % packet.len();
        if *between {
            packet.insert(at, *value);
        } else {
            packet[at] = *value;
        }
    }
    if let Some(cut) = cut {
        packet.truncate(cut % (packet.len() + 1));
    }
    packet
}

/// A record: whether its name is written out, its type, its lifetime, its data.
type Record = (bool, u16, u32, Vec<u8>);

fn record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![Just(1u16), Just(5), Just(6), Just(28), Just(33), Just(41), any::<u16>()];
    let seconds = prop_oneof![0..600u32, Just(u32::MAX), any::<u32>()];
    (any::<bool>(), kind, seconds, vec(any::<u8>(), 0..40))
}

/// A response to a packet of [`ask`] with these records, spread over the three sections.
fn respond(asked: &[u8], code: u8, sections: &[Vec<Record>; 3]) -> Vec<u8> {
    let question_end = asked.len() - if asked[11] == 0 { 0 } else { 11 };
    let mut packet = asked[..question_end].to_vec();
    (packet[2], packet[3]) = (0x81, 0x80 | code);
    for (section, records) in sections.iter().enumerate() {
        packet[7 + 2 * section] = u8::try_from(records.len()).unwrap();
        for (written, kind, seconds, data) in records {
            packet.extend_from_slice(if *written { b"\x03www\x07example\x00" } else { &[0xc0, 12] });
            packet.extend_from_slice(&kind.to_be_bytes());
            packet.extend_from_slice(&[0, 1]);
            packet.extend_from_slice(&seconds.to_be_bytes());
            packet.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            packet.extend_from_slice(data);
        }
    }
    packet
}

/// What must be true of any packet that was taken for an answer.
fn check(client: &[u8], answer: &Answer) -> Result<(), TestCaseError> {
    let query = Query::parse(client).unwrap();
    let question_end = HEADER + query.question().len();
    if let Some((seconds, places)) = answer.lifetime() {
        prop_assert!((1..=300).contains(&seconds));
        prop_assert!(places.is_sorted() && places.iter().all(|at| *at >= question_end && at + 4 <= answer.len()));
    }
    for limit in [512, 4096, 65535] {
        let given = answer.clone().deliver(&query, limit);
        prop_assert!(given.len() <= limit.max(question_end + 11));
        prop_assert_eq!(&given[..2], &client[..2]);
        prop_assert_eq!(given[2] & 0x81, 0x80 | (client[2] & 1));
        prop_assert_eq!(&given[HEADER..question_end], query.question());
        prop_assert!(given.len() == answer.len() || given[2] & 2 != 0);
    }
    // Kept, it is never given for longer, and its lifetimes only shrink.
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(b"key", answer, now);
    let kept = cache.get(b"key", now);
    prop_assert_eq!(kept.is_some(), answer.lifetime().is_some() && answer.len() <= 4096);
    if let Some(kept) = kept {
        prop_assert_eq!(&kept, answer);
        let later = cache.get(b"key", now + Duration::from_secs(1));
        prop_assert!(later.is_none_or(|later| later.lifetime().is_none_or(|(left, _)| left <= 300)));
        prop_assert_eq!(cache.get(b"key", now + Duration::from_secs(300)), None);
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_packet_upsets_the_resolver(packet in vec(any::<u8>(), 0..600), turn in any::<usize>()) {
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Decision::Reply(reply) = resolve(&zone(), &view(&["one", "two"]), &packet, transport, turn) {
                prop_assert!(reply.len() >= 12 && reply[2] & 0x80 != 0);
                prop_assert_eq!(&reply[..2], &packet[..2]);
            }
        }
        drop(failure(&packet));
    }

    #[test]
    fn a_damaged_query_does_no_harm(
        name in prop_oneof![Just("tasks.web.one-net"), Just("_http._tcp.tasks.web"), Just("2.9.0.10.in-addr.arpa")],
        kind in any::<u16>(), limit in any::<u16>(), damage in damage(), cut in proptest::option::of(any::<usize>()),
    ) {
        let packet = damaged(extended(name, kind, limit), &damage, cut);
        if let Decision::Reply(reply) = resolve(&zone(), &view(&["one"]), &packet, Transport::Udp, 0) {
            prop_assert!(reply.len() <= 1232, "{} bytes", reply.len());
            prop_assert_eq!(&reply[..2], &packet[..2]);
        }
        // And as a question for upstreams.
        if let Ok(query) = Query::parse(&packet) {
            let asked = ask(&query, 7);
            let again = Query::parse(&asked).expect("what we ask can be read");
            prop_assert_eq!(again.question(), query.question());
        }
    }

    #[test]
    fn only_an_answer_to_the_question_is_taken(noise in vec(any::<u8>(), 0..64), id in any::<u16>()) {
        let client = query("example.com", 1);
        let asked = ask(&Query::parse(&client).unwrap(), id);
        prop_assert_eq!(Answer::read(&asked, &asked), None, "a query is no answer");
        let reply = respond(&asked, 0, &[vec![], vec![], vec![]]);
        prop_assert!(Answer::read(&asked, &reply).is_some());
        for at in (0..2).chain(HEADER..reply.len()) {
            let mut other = reply.clone();
            other[at] ^= 1;
            prop_assert_eq!(Answer::read(&asked, &other), None, "another id or question");
        }
        prop_assert_eq!(Answer::read(&asked, &noise), None);
    }

    #[test]
    fn whatever_upstreams_say_is_passed_on_or_not_and_kept_or_not(
        code in 0u8..16, sections in [vec(record(), 0..4), vec(record(), 0..3), vec(record(), 0..3)],
        with_opt in any::<bool>(), damage in damage(), cut in proptest::option::of(any::<usize>()),
    ) {
        let client = if with_opt { extended("www.Example", 1, 1400) } else { query("www.Example", 1) };
        let asked = ask(&Query::parse(&client).unwrap(), 7);
        let whole = respond(&asked, code, &sections);
        let answer = Answer::read(&asked, &whole).expect("a good response is taken");
        check(&client, &answer)?;
        if let Some(answer) = Answer::read(&asked, &damaged(whole, &damage, cut)) {
            check(&client, &answer)?;
        }
    }
}

/// Lifetimes as upstreams mean them.
#[test]
fn answers_are_kept_for_as_long_as_they_say() {
    let client = query("www.example", 1);
    let asked = ask(&Query::parse(&client).unwrap(), 7);
    let a = |seconds: u32| (false, 1, seconds, vec![192, 0, 2, 1]);
    let soa = |seconds: u32, minimum: u32| (true, 6, seconds, [&[0; 18], minimum.to_be_bytes().as_slice()].concat());
    let kept = |code: u8, answers: Vec<Record>, authority: Vec<Record>| {
        let packet = respond(&asked, code, &[answers, authority, vec![]]);
        Answer::read(&asked, &packet).unwrap().lifetime().map(|(seconds, _)| seconds)
    };
    assert_eq!(kept(0, vec![a(60), a(30)], vec![]), Some(30));
    assert_eq!(kept(0, vec![a(86_400)], vec![]), Some(300));
    assert_eq!(kept(0, vec![a(0)], vec![]), None);
    assert_eq!(kept(0, vec![a(1 << 31)], vec![]), None, "no lifetime at all");
    assert_eq!(kept(3, vec![], vec![soa(3600, 900)]), Some(5));
    assert_eq!(kept(3, vec![], vec![soa(3600, 2)]), Some(2));
    assert_eq!(kept(0, vec![], vec![soa(1, 900)]), Some(1));
    assert_eq!(kept(3, vec![], vec![]), None, "nobody said for how long");
    assert_eq!(kept(2, vec![a(60)], vec![]), None, "a failure");
    let mut cut_short = respond(&asked, 0, &[vec![a(60)], vec![], vec![]]);
    cut_short[2] |= 2;
    assert_eq!(Answer::read(&asked, &cut_short).unwrap().lifetime(), None);
}
