//! The member table as others see it, and the events that lead to it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::event::{Event, Member, Members};
use crate::identity::{Identity, PeerId};

/// Removed nodes that are remembered. Their ids never come back, and with the key rotated their packets do not
/// open either: the memory only has to bridge that time.
const MAX_FORGOTTEN: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct View {
    members: Arc<Members>,
    /// Node ids of the members with `suspect` set.
    suspects: BTreeSet<String>,
    forgotten: BTreeSet<String>,
    forgotten_order: VecDeque<String>,
    pub(super) events: VecDeque<Event>,
    pub(super) told: Told,
}

/// How many events there were of some kinds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) suspicions: u64,
    pub(super) refutations: u64,
    pub(super) deaths: u64,
}

impl View {
    pub(super) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    pub(super) fn is_forgotten(&self, node_id: &str) -> bool {
        self.forgotten.contains(node_id)
    }

    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    pub(super) fn up(&mut self, peer: &PeerId, now: Instant) {
        if peer.left || self.is_forgotten(peer.node_id()) {
            return;
        }
        let member = Member { identity: Arc::clone(&peer.identity), alive: true, suspect: false, since: now };
        self.suspects.remove(peer.node_id());
        Arc::make_mut(&mut self.members).insert(peer.node_id().to_owned(), member);
        self.events.push_back(Event::Up(Identity::clone(&peer.identity)));
    }

    pub(super) fn down(&mut self, peer: &PeerId, now: Instant) {
        if peer.left {
            return self.left(peer);
        }
        self.suspects.remove(peer.node_id());
        if !self.members.get(peer.node_id()).is_some_and(|member| member.alive) {
            return;
        }
        if let Some(member) = Arc::make_mut(&mut self.members).get_mut(peer.node_id()) {
            *member = Member { identity: Arc::clone(&peer.identity), alive: false, suspect: false, since: now };
            self.told.deaths += 1;
            self.events.push_back(Event::Down(Identity::clone(&peer.identity)));
        }
    }

    /// A member is known under another identity from now on.
    pub(super) fn renamed(&mut self, peer: &PeerId) {
        if peer.left {
            return self.left(peer);
        }
        if !self.members.contains_key(peer.node_id()) {
            return;
        }
        let Some(member) = Arc::make_mut(&mut self.members).get_mut(peer.node_id()) else { return };
        if member.identity == peer.identity {
            return;
        }
        member.identity = Arc::clone(&peer.identity);
        if member.alive {
            self.events.push_back(Event::Renewed(Identity::clone(&peer.identity)));
        }
    }

    fn left(&mut self, peer: &PeerId) {
        if self.members.contains_key(peer.node_id()) {
            self.suspects.remove(peer.node_id());
            Arc::make_mut(&mut self.members).remove(peer.node_id());
            self.events.push_back(Event::Left(Identity::clone(&peer.identity)));
        }
    }

    /// Brings the suspects in line with the protocol's.
    pub(super) fn set_suspects(&mut self, current: BTreeSet<String>) {
        if current == self.suspects {
            return;
        }
        let members = Arc::make_mut(&mut self.members);
        for node_id in current.difference(&self.suspects) {
            if let Some(member) = members.get_mut(node_id).filter(|member| member.alive) {
                member.suspect = true;
                self.told.suspicions += 1;
                self.events.push_back(Event::Suspect(Identity::clone(&member.identity)));
            }
        }
        for node_id in self.suspects.difference(&current) {
            if let Some(member) = members.get_mut(node_id).filter(|member| member.alive) {
                member.suspect = false;
                self.told.refutations += 1;
                self.events.push_back(Event::Alive(Identity::clone(&member.identity)));
            }
        }
        self.suspects = current;
    }

    pub(super) fn forget(&mut self, node_id: &str) {
        self.suspects.remove(node_id);
        if self.members.contains_key(node_id) {
            Arc::make_mut(&mut self.members).remove(node_id);
        }
        if !self.forgotten.insert(node_id.to_owned()) {
            return;
        }
        self.forgotten_order.push_back(node_id.to_owned());
        if self.forgotten_order.len() > MAX_FORGOTTEN
            && let Some(oldest) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(generation: u64, bump: u32, left: bool) -> PeerId {
        let identity = Identity { node_id: "n1".to_owned(), addr: "10.0.0.1:2377".parse().unwrap(), generation };
        PeerId::with(identity, bump, left)
    }

    #[track_caller]
    fn check(view: &mut View, expected: &[&str]) {
        let names = view.events.drain(..).map(|event| format!("{event:?}"));
        let names: Vec<_> = names.map(|text| text.split('(').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn one_event_for_each_change() {
        let now = Instant::now();
        let mut view = View::default();
        view.up(&peer(1, 0, false), now);
        check(&mut view, &["Up"]);
        view.set_suspects(["n1".to_owned()].into());
        view.set_suspects(["n1".to_owned()].into());
        check(&mut view, &["Suspect"]);
        assert!(view.members()["n1"].suspect);
        view.set_suspects(BTreeSet::new());
        check(&mut view, &["Alive"]);
        view.renamed(&peer(1, 1, false));
        check(&mut view, &[]);
        view.renamed(&peer(2, 0, false));
        check(&mut view, &["Renewed"]);
        view.set_suspects(["n1".to_owned()].into());
        view.down(&peer(2, 0, false), now);
        view.down(&peer(2, 0, false), now);
        view.set_suspects(BTreeSet::new());
        check(&mut view, &["Suspect", "Down"]);
        assert_eq!((view.told.suspicions, view.told.refutations, view.told.deaths), (2, 1, 1));
        view.up(&peer(2, 1, false), now);
        check(&mut view, &["Up"]);
        view.renamed(&peer(2, 2, true));
        view.down(&peer(2, 2, true), now);
        check(&mut view, &["Left"]);
        assert!(view.members().is_empty());
        view.forget("n1");
        view.up(&peer(3, 0, false), now);
        check(&mut view, &[]);
    }

    #[test]
    fn the_forgotten_are_bounded() {
        let mut view = View::default();
        for at in 0..MAX_FORGOTTEN + 1 {
            view.forget(&format!("n{at}"));
            view.forget(&format!("n{at}"));
        }
        assert_eq!(view.forgotten.len(), MAX_FORGOTTEN);
        assert!(!view.is_forgotten("n0"));
    }
}
