//! How two tables are compared, and what another's table means for this one; pure.
//!
//! Gossip forgets: each piece of news is passed on so and so often, and a host that lost them all would not hear of it
//! again. So each host asks a random one now and then whether they know the same members. The question is a hash,
//! and mostly the end of it; where the hashes differ, those of 256 buckets are compared, and the members of the
//! buckets that differ are fetched:
//!
//! ```text
//! asker             asked
//!   | -- root ------> |     nothing, if it is the same
//!   | <---- buckets - |
//!   | -- want ------> |     which of them
//!   | <---- entries - |     at most 8 packets, of buckets chosen at random
//! ```
//! Hashes are of who is active (suspects are), in which life; not of incarnations, which live from minute to minute,
//! nor of the dead, which hosts forget at different times.
//!
//! Another's table is hearsay, and may be old: that of a host that was away knows the dead as living and the
//! living as dead. So [`judge`] takes nobody's word for a death: it makes a suspicion, which a living host refutes
//! (`Swim::doubt`). And dead ones of whom nobody here knows are not heard of, or they would go round for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::{Identity as _, Member, State};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::identity::PeerId;
use crate::wire::{BUCKET_COUNT, Wanted};

/// Packets a second that exchanges may make this node send beside its own questions, whatever others ask: 170 kB/s.
const ANSWERS: u32 = 128;

/// What a table is, as far as it is compared. Sums, because the order of members is nobody's business.
#[derive(Debug)]
pub(super) struct Digest {
    sums: Box<[u64; BUCKET_COUNT]>,
    count: u16,
}

impl Digest {
    /// Of these members, who are all active.
    pub(super) fn of<'a>(members: impl Iterator<Item = &'a PeerId>) -> Self {
        let mut digest = Self { sums: Box::new([0; BUCKET_COUNT]), count: 0 };
        for peer in members {
            let sum = &mut digest.sums[usize::from(bucket(peer))];
            *sum = sum.wrapping_add(peer.life_hash());
            digest.count = digest.count.wrapping_add(1);
        }
        digest
    }

    pub(super) fn root(&self) -> (u64, u16) {
        (self.sums.iter().fold(0, |all, sum| all.wrapping_add(*sum)), self.count)
    }

    pub(super) fn buckets(&self) -> Box<[u32; BUCKET_COUNT]> {
        Box::new(std::array::from_fn(|at| (self.sums[at] >> 32) as u32))
    }

    /// The buckets in which the other table is another.
    pub(super) fn differing(&self, theirs: &[u32; BUCKET_COUNT]) -> Wanted {
        let mut wanted = Wanted::default();
        for (at, (own, their)) in (0..=u8::MAX).zip(self.buckets().iter().zip(theirs)) {
            if own != their {
                wanted.insert(at);
            }
        }
        wanted
    }
}

fn bucket(peer: &PeerId) -> u8 {
    peer.node_hash() as u8
}

/// The members of these buckets, bucket by bucket in an order that differs each time: who asks again gets to know all
/// of them, however few fit into an answer.
pub(super) fn pick<'a>(
    table: impl Iterator<Item = &'a Member<PeerId>>,
    wanted: &Wanted,
    rng: &mut impl Rng,
) -> Vec<&'a Member<PeerId>> {
    let mut order: Vec<u8> = (0..=u8::MAX).collect();
    order.shuffle(rng);
    let mut picked: Vec<_> = table.filter(|member| wanted.contains(bucket(member.id()))).collect();
    picked.shuffle(rng);
    picked.sort_by_key(|member| order[usize::from(bucket(member.id()))]);
    picked
}

/// What the table knows of the node of each piece of news, in one pass: foca looks through all of it for each piece.
pub(super) fn known<'a>(
    table: impl Iterator<Item = &'a Member<PeerId>>,
    news: &[Member<PeerId>],
) -> Vec<Option<&'a Member<PeerId>>> {
    let mut found = vec![None; news.len()];
    if news.is_empty() {
        return found;
    }
    let mut at: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut buckets = [false; BUCKET_COUNT];
    for (index, piece) in news.iter().enumerate() {
        at.entry(piece.id().node_hash()).or_default().push(index);
        buckets[usize::from(bucket(piece.id()))] = true;
    }
    for member in table.filter(|member| buckets[usize::from(bucket(member.id()))]) {
        for index in at.get(&member.id().node_hash()).into_iter().flatten() {
            if news[*index].id().addr() == member.id().addr() {
                found[*index] = Some(member);
            }
        }
    }
    found
}

/// Whether foca's table changes by this news about a member of it: SWIM's order of what overrides what.
pub(super) fn changes(known: &Member<PeerId>, news: &Member<PeerId>) -> bool {
    if known.id() != news.id() {
        return !known.id().win_addr_conflict(news.id());
    }
    match (known.state(), news.state()) {
        (State::Down, _) => false,
        (_, State::Down) => true,
        (State::Alive, State::Suspect) => news.incarnation() >= known.incarnation(),
        _ => news.incarnation() > known.incarnation(),
    }
}

/// Whether a member counts as being there. Who is about to leave does not.
pub(super) fn is_active(member: &Member<PeerId>) -> bool {
    member.state() != State::Down && !member.id().left
}

/// What to do about an entry of another's table.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Ignore,
    /// Somebody new.
    Join,
    /// Something newer about a member.
    Apply(Member<PeerId>),
    /// A member is said to be dead: this is the suspicion to raise.
    Doubt(Member<PeerId>),
    /// Who is dead here lives there. If he does, he needs a new life to be heard here, and has to be told.
    Tell(PeerId),
}

pub(super) fn judge(known: Option<&Member<PeerId>>, told: &Member<PeerId>) -> Verdict {
    let Some(known) = known else {
        return if is_active(told) { Verdict::Join } else { Verdict::Ignore };
    };
    let same = known.id() == told.id();
    if !same && known.id().win_addr_conflict(told.id()) {
        return Verdict::Ignore;
    }
    if told.id().left {
        // His own word: nobody else makes such an identity.
        let gone = Member::new(told.id().clone(), told.incarnation(), State::Down);
        return if changes(known, &gone) { Verdict::Apply(gone) } else { Verdict::Ignore };
    }
    if told.state() == State::Down {
        if !is_active(known) {
            return Verdict::Ignore;
        }
        let incarnation = if same { known.incarnation().max(told.incarnation()) } else { told.incarnation() };
        return Verdict::Doubt(Member::new(told.id().clone(), incarnation, State::Suspect));
    }
    if same && known.state() == State::Down {
        Verdict::Tell(known.id().clone())
    } else if changes(known, told) {
        Verdict::Apply(told.clone())
    } else {
        Verdict::Ignore
    }
}

/// How many packets may still be sent within this second.
#[derive(Debug, Default)]
pub(super) struct Budget {
    second: u64,
    spent: u32,
}

impl Budget {
    /// As many of `wanted` as there are, which are spent then.
    pub(super) fn take(&mut self, wanted: u32, now: Duration) -> u32 {
        if now.as_secs() != self.second {
            *self = Self { second: now.as_secs(), spent: 0 };
        }
        let taken = wanted.min(ANSWERS - self.spent);
        self.spent += taken;
        taken
    }

    pub(super) fn give_back(&mut self, unused: u32) {
        self.spent = self.spent.saturating_sub(unused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::wire::WireCodec;
    use foca::{Config, Foca};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn peer(node: usize, generation: u64, bump: u32, left: bool) -> PeerId {
        let identity = Identity { node_id: format!("n{node}"), addr: "10.0.0.1:2377".parse().unwrap(), generation };
        PeerId::with(identity, bump, left)
    }

    fn alive(node: usize) -> Member<PeerId> {
        Member::new(peer(node, 1, 0, false), 0, State::Alive)
    }

    #[test]
    fn equal_tables_have_equal_digests_and_others_differ_where_they_do() {
        let mut members: Vec<PeerId> = (0..1000).map(|node| peer(node, 1, 0, false)).collect();
        let before = Digest::of(members.iter());
        members.reverse();
        let same = Digest::of(members.iter());
        assert_eq!(same.root(), before.root());
        assert!(same.differing(&before.buckets()).is_empty());
        let changed = members[17].clone();
        members[17] = PeerId::with((*changed.identity).clone(), 1, false);
        let lost = members.pop().unwrap();
        let after = Digest::of(members.iter());
        assert_ne!(after.root(), before.root());
        let wanted = after.differing(&before.buckets());
        for at in 0..=u8::MAX {
            assert_eq!(wanted.contains(at), [bucket(&changed), bucket(&lost)].contains(&at), "bucket {at}");
        }
        // Members are spread over the buckets.
        let mut sizes = [0; BUCKET_COUNT];
        members.iter().for_each(|peer| sizes[usize::from(bucket(peer))] += 1);
        assert!(sizes.iter().all(|size| *size < 20), "{sizes:?}");
    }

    #[test]
    fn wanted_buckets_are_whole_and_in_any_order() {
        let table: Vec<_> = (0..1000).map(alive).collect();
        let mut wanted = Wanted::default();
        (0..50).for_each(|at| wanted.insert(at * 5));
        let mut rng = StdRng::seed_from_u64(1);
        let first = pick(table.iter(), &wanted, &mut rng);
        let second = pick(table.iter(), &wanted, &mut rng);
        assert_ne!(first, second);
        for picked in [first, second] {
            assert_eq!(picked.len(), table.iter().filter(|m| wanted.contains(bucket(m.id()))).count());
            let runs = picked.chunk_by(|a, b| bucket(a.id()) == bucket(b.id())).count();
            assert!(runs <= 50, "bucket by bucket");
        }
    }

    #[test]
    fn the_known_are_found() {
        let table: Vec<_> = (0..1000).map(alive).collect();
        let news: Vec<_> = [5, 2000, 999, 5].into_iter().map(alive).collect();
        assert_eq!(known(table.iter(), &news), [Some(&table[5]), None, Some(&table[999]), Some(&table[5])]);
    }

    /// For all pairs of what may be known and heard, foca itself is asked.
    #[test]
    fn changes_is_what_foca_thinks() {
        let lives = [(1, 0, false), (1, 1, false), (2, 0, false), (1, 1, true)];
        let states = [State::Alive, State::Suspect, State::Down];
        let mut all = Vec::new();
        for (generation, bump, left) in lives {
            for state in states {
                all.extend((0..3).map(|at| Member::new(peer(1, generation, bump, left), at, state)));
            }
        }
        for known in &all {
            for news in &all {
                let mut foca = Foca::new(peer(0, 1, 0, false), Config::simple(), StdRng::seed_from_u64(1), WireCodec);
                let mut runtime = foca::AccumulatingRuntime::new();
                foca.apply_many(std::iter::once(known.clone()), false, &mut runtime).unwrap();
                foca.apply_many(std::iter::once(news.clone()), false, &mut runtime).unwrap();
                let changed = foca.iter_membership_state().next() != Some(known);
                assert_eq!(changed, changes(known, news), "{known:?}, then {news:?}");
            }
        }
    }

    #[test]
    fn hearsay() {
        let member = |bump, left, incarnation, state| Member::new(peer(1, 1, bump, left), incarnation, state);
        let (alive, suspect) = (member(1, false, 3, State::Alive), member(1, false, 3, State::Suspect));
        let dead = member(1, false, 3, State::Down);
        let check = |known: Option<&Member<PeerId>>, told: &Member<PeerId>, expected: Verdict| {
            assert_eq!(judge(known, told), expected, "{known:?}, {told:?}");
        };
        let left = member(2, true, 0, State::Down);
        // Nobody knows of him: only the living are heard of.
        check(None, &alive, Verdict::Join);
        check(None, &suspect, Verdict::Join);
        check(None, &dead, Verdict::Ignore);
        check(None, &left, Verdict::Ignore);
        check(None, &member(2, true, 0, State::Alive), Verdict::Ignore);
        // Death is doubted, with the highest incarnation that is known.
        check(Some(&alive), &dead, Verdict::Doubt(suspect.clone()));
        check(Some(&suspect), &dead, Verdict::Doubt(suspect.clone()));
        check(Some(&alive), &member(1, false, 1, State::Down), Verdict::Doubt(suspect.clone()));
        let later = member(1, false, 9, State::Down);
        check(Some(&alive), &later, Verdict::Doubt(member(1, false, 9, State::Suspect)));
        let next = member(2, false, 0, State::Down);
        check(Some(&alive), &next, Verdict::Doubt(member(2, false, 0, State::Suspect)));
        // An old life is over, however it ended.
        for state in [State::Alive, State::Suspect, State::Down] {
            check(Some(&alive), &member(0, false, 9, state), Verdict::Ignore);
            check(Some(&dead), &member(0, false, 9, state), Verdict::Ignore);
            check(Some(&left), &member(1, false, 9, state), Verdict::Ignore);
        }
        // A goodbye is believed, once.
        for known in [&alive, &suspect, &dead] {
            check(Some(known), &left, Verdict::Apply(left.clone()));
            check(Some(known), &member(2, true, 0, State::Alive), Verdict::Apply(left.clone()));
        }
        check(Some(&left), &left, Verdict::Ignore);
        // The dead do not rise by hearsay, but by themselves.
        check(Some(&dead), &alive, Verdict::Tell(dead.id().clone()));
        check(Some(&dead), &dead, Verdict::Ignore);
        let renewed = member(2, false, 0, State::Alive);
        check(Some(&dead), &renewed, Verdict::Apply(renewed.clone()));
        // The rest is SWIM's.
        check(Some(&alive), &alive, Verdict::Ignore);
        check(Some(&alive), &suspect, Verdict::Apply(suspect.clone()));
        let refuted = member(1, false, 4, State::Alive);
        check(Some(&suspect), &refuted, Verdict::Apply(refuted.clone()));
        check(Some(&refuted), &suspect, Verdict::Ignore);
    }

    #[test]
    fn answers_are_bounded_by_the_second() {
        let mut budget = Budget::default();
        let now = Duration::from_millis(5100);
        assert_eq!(budget.take(100, now), 100);
        assert_eq!(budget.take(100, now), ANSWERS - 100);
        assert_eq!(budget.take(1, now + Duration::from_millis(800)), 0);
        budget.give_back(3);
        assert_eq!(budget.take(9, now + Duration::from_millis(800)), 3);
        assert_eq!(budget.take(8, now + Duration::from_millis(1000)), 8);
    }
}
