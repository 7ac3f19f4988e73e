//! The tables of ours in one namespace, kept as they should be.
//!
//! The kernel numbers each state of a namespace's rules. As long as the number is the one that our own last transaction
//! left, nobody has touched anything, and what we sent is what is there; with any other number the tables are read back
//! and that is what counts. So looking costs one question, and a foreign change costs one listing.

use std::io;
use std::sync::Arc;

use super::netlink::{is_too_much, too_much};
use super::netns::NetNs;
use super::nftables::{Batch, Tables};
use super::readback::Seen;
use crate::plan::names;
use crate::plan::ruleset::Table;

/// What lists of a task's rules may come to in bytes: so much of others', and so much for each part of ours.
const FOREIGN_MAX: usize = 1 << 20;
const PART_MAX: usize = 512;
/// How often what seems wrong is read at the most.
const READS: usize = 4;

/// A handle on our tables in one namespace. It is kept: closing one waits until the kernel has freed what was replaced.
#[derive(Debug)]
pub(crate) struct Rules {
    tables: Tables,
    known: Option<Known>,
    /// The namespace, where others than the host's owner may fill it.
    task: Option<NetNs>,
    /// The number of a state that was too much to be read.
    overfull: Option<u32>,
}

/// What we have put in force, or found as it should be.
#[derive(Debug)]
struct Known {
    /// The number of that state; nothing when somebody else changed rules at the same time.
    generation: Option<u32>,
    tables: Vec<Arc<Table>>,
}

/// What leads from one value of a table to another, worked out once for all namespaces in which it is done.
#[derive(Debug, Default)]
pub(crate) struct Transitions {
    known: Vec<(Arc<Table>, Arc<Table>, Batch)>,
    /// The same from nothing.
    whole: Vec<(Arc<Table>, Batch)>,
}

impl Transitions {
    fn between(&mut self, old: &Arc<Table>, new: &Arc<Table>) -> &Batch {
        let is_it = |(from, to, _): &(Arc<Table>, Arc<Table>, _)| Arc::ptr_eq(from, old) && Arc::ptr_eq(to, new);
        let place = self.known.iter().position(is_it).unwrap_or_else(|| {
            let mut batch = Batch::default();
            if old != new && !batch.difference(old, new) {
                batch.whole(new);
            }
            self.known.push((Arc::clone(old), Arc::clone(new), batch));
            self.known.len() - 1
        });
        &self.known[place].2
    }

    fn whole(&mut self, table: &Arc<Table>) -> &Batch {
        let place = self.whole.iter().position(|(known, _)| Arc::ptr_eq(known, table)).unwrap_or_else(|| {
            let mut batch = Batch::default();
            batch.whole(table);
            self.whole.push((Arc::clone(table), batch));
            self.whole.len() - 1
        });
        &self.whole[place].1
    }
}

/// Whether two tables have the same place.
fn same_place(one: &Table, other: &Table) -> bool {
    one.family == other.family && one.name == other.name
}

impl Rules {
    /// Opens a handle on a namespace.
    pub(crate) fn open(namespace: &NetNs) -> io::Result<Rules> {
        Ok(Rules { tables: Tables::open(namespace)?, known: None, task: None, overfull: None })
    }

    /// The same for the namespace of a task, which may have any number of rules there: those are not all read.
    pub(crate) fn open_in_task(namespace: &NetNs) -> io::Result<Rules> {
        Ok(Rules { task: Some(namespace.try_clone()?), ..Rules::open(namespace)? })
    }

    /// Reads what is there, where it is not much more than it should be. Where something seems wrong, it is read until two
    /// lists say the same: while the kernel spreads the elements of a set that has grown over more buckets, a list of them
    /// may lack some.
    fn read(&mut self, wanted: &[Arc<Table>]) -> io::Result<Seen> {
        let known = self.known.as_ref().map_or(&[][..], |known| &known.tables);
        let parts: usize = wanted.iter().chain(known).map(|table| table.parts()).sum();
        let bound = FOREIGN_MAX.saturating_add(parts.saturating_mul(PART_MAX));
        let expected = if known.is_empty() { wanted.to_vec() } else { known.to_vec() };
        let mut seen = self.bounded(bound, |tables| tables.read(&names::TABLES))?;
        let mut wrong = seen.differences(&expected);
        for _ in 1..READS {
            if wrong.is_empty() {
                break;
            }
            seen = self.bounded(bound, |tables| tables.read(&names::TABLES))?;
            let before = std::mem::replace(&mut wrong, seen.differences(&expected));
            if before == wrong {
                break;
            }
        }
        Ok(seen)
    }

    fn bounded<T>(&mut self, bytes: usize, look: impl FnOnce(&mut Tables) -> io::Result<T>) -> io::Result<T> {
        let Some(task) = &self.task else { return look(&mut self.tables) };
        self.tables.socket.allow(Some(bytes));
        let seen = look(&mut self.tables);
        self.tables.socket.allow(None);
        if seen.as_ref().is_err_and(is_too_much) {
            // The kernel is in the middle of a list, and begins no other one for this socket.
            self.tables = Tables::open(task)?;
        }
        seen
    }

    /// Brings the kernel to these tables, in one transaction, or in none when they are there. Gives what others had
    /// changed since the last time.
    ///
    /// On an error nothing was changed. Where there is too much to be read, nobody looks again before something changes.
    pub(crate) fn ensure(&mut self, wanted: Vec<Arc<Table>>, transitions: &mut Transitions) -> io::Result<Vec<String>> {
        let generation = self.tables.generation()?;
        let mut foreign = Vec::new();
        let mut present = None;
        let untouched = self.known.as_ref().is_some_and(|known| known.generation == Some(generation));
        if !untouched {
            if self.overfull == Some(generation) {
                return Err(too_much());
            }
            let seen = self.read(&wanted);
            self.overfull = seen.as_ref().is_err_and(is_too_much).then_some(generation);
            let seen = seen?;
            if let Some(known) = &self.known {
                foreign = seen.differences(&known.tables);
            }
            if seen.differences(&wanted).is_empty() {
                self.note(generation, wanted, 0)?;
                return Ok(foreign);
            }
            present = Some(seen);
        }
        // What is known to be there is changed by what differs; anything else is replaced.
        let mut batch = Batch::default();
        match self.known.as_ref().filter(|_| foreign.is_empty()) {
            Some(known) => {
                for old in known.tables.iter().filter(|old| !wanted.iter().any(|new| same_place(old, new))) {
                    batch.delete(old.family, &old.name);
                }
                for new in &wanted {
                    match known.tables.iter().find(|old| same_place(old, new)) {
                        Some(old) if Arc::ptr_eq(old, new) => {}
                        Some(old) => batch.append(transitions.between(old, new)),
                        None => batch.append(transitions.whole(new)),
                    }
                }
            }
            None => {
                let present = match present {
                    Some(seen) => seen,
                    None => self.read(&wanted)?,
                };
                let goes = |(family, name): &(_, &str)| !wanted.iter().any(|t| t.family == *family && t.name == *name);
                for (family, name) in present.tables().filter(goes) {
                    batch.delete(family, name);
                }
                wanted.iter().for_each(|table| batch.append(transitions.whole(table)));
            }
        }
        if batch.is_empty() {
            if let Some(known) = &mut self.known {
                known.tables = wanted;
            }
            return Ok(foreign);
        }
        // Should it fail, what is there is read again.
        self.known = None;
        batch.send(&mut self.tables.socket)?;
        self.note(generation, wanted, 1)?;
        Ok(foreign)
    }

    /// What is not as these tables say; nothing is changed.
    pub(crate) fn differences(&mut self, wanted: &[Arc<Table>]) -> io::Result<Vec<String>> {
        Ok(self.read(wanted)?.differences(wanted))
    }

    /// Forgets what is known, so that the next time looks.
    pub(crate) fn doubt(&mut self) {
        if let Some(known) = &mut self.known {
            known.generation = None;
        }
    }

    /// Remembers what is in force, with the state's number if only `ours` transactions came after `before`.
    fn note(&mut self, before: u32, tables: Vec<Arc<Table>>, ours: u32) -> io::Result<()> {
        let after = self.tables.generation()?;
        // The kernel leaves out 0 when it counts.
        let expected = if ours > 0 { before.wrapping_add(ours).max(1) } else { before };
        self.known = Some(Known { generation: (after == expected).then_some(after), tables });
        Ok(())
    }

    /// Removes our tables; missing ones are fine. In a task's namespace that is too full to be looked through, they end
    /// with the namespace.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.known = None;
        match self.bounded(FOREIGN_MAX, |tables| tables.delete(&names::TABLES)) {
            Err(error) if is_too_much(&error) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Beside, Protocol};
    use crate::kernel::NetNs;
    use crate::plan::balance::{Balance, HostSide, IngressSide, Return, Target};
    use crate::plan::ruleset::Set;

    fn namespace() -> Option<NetNs> {
        let made = NetNs::anonymous();
        if let Err(error) = &made {
            println!("skipped: cannot make a network namespace ({error}); root is needed");
        }
        made.ok()
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 9, last)
    }

    /// Virtual addresses .100 and up with these endpoints each, and as many published ports.
    fn tables(services: &[Vec<u8>], ingress: bool) -> Vec<Arc<Table>> {
        let lists = || services.iter().map(|list| list.iter().map(|last| address(*last)).collect::<Vec<_>>());
        let vips = (100..).map(address).zip(lists()).collect();
        let ports = (8000..).map(|port| (Protocol::Tcp, port)).zip(lists());
        let balance = Balance {
            vips: [("net".to_owned(), vips)].into(),
            ports: ports
                .filter(|(_, b)| !b.is_empty())
                .map(|(k, backends)| (k, Target { port: 80, backends }))
                .collect(),
            host_ports: [((Protocol::Udp, 53), (53, "t1".to_owned()))].into(),
            former: [("net".to_owned(), [address(99)].into())].into(),
            beside: BTreeMap::new(),
        };
        let side = IngressSide { interface: "lo".into(), subnet: "10.0.9.0/24".parse().unwrap() };
        let side = ingress.then_some(side);
        // The host's and a task's table in one, so that everything that we ever say is said.
        let mut table = balance.task_table(&["net".into()], side.as_ref());
        let host = HostSide {
            ingress: Some(("shi-n1".into(), "10.0.9.0/24".parse().unwrap())),
            egress: Some(("she-n1".into(), "172.30.0.0/16".parse().unwrap())),
            tasks: [("t1".to_owned(), address(77))].into(),
            replies: Return::Remember,
            tunnel: Some(4789),
            seals: vec![4790, 4791],
            apart: vec!["eth0".into(), "a-long-name-15b".into()],
            apart6: Vec::new(),
        };
        let host = balance.host_table("n1", &host).unwrap();
        let own = |way_out| Balance::own_table((1053, 1054), side.as_ref(), way_out);
        table.chains.extend(own(None).chains.into_iter().filter(|(name, _)| name == "no-way-out"));
        table.chains.extend(host.chains);
        table.sets.extend(host.sets);
        let beside = Beside::new("10.0.9.0/24".parse().unwrap(), "fd00:9::/64".parse().unwrap()).unwrap();
        let six = table.clone().six(vec![beside]);
        let frames = side.as_ref().map(Balance::frame_table).into_iter();
        frames.chain([table, six, own(Some(address(78)))]).map(Arc::new).collect()
    }

    fn ensure(rules: &mut Rules, wanted: Vec<Arc<Table>>) -> io::Result<Vec<String>> {
        rules.ensure(wanted, &mut Transitions::default())
    }

    #[track_caller]
    fn check(rules: &mut Rules, wanted: &[Arc<Table>]) {
        let seen = rules.tables.read(&names::TABLES).unwrap();
        assert_eq!(seen.differences(wanted), Vec::<String>::new());
    }

    #[test]
    fn a_task_with_too_many_rules_is_not_read_again_before_it_has_others() {
        let Some(namespace) = namespace() else { return };
        let mut rules = Rules::open_in_task(&namespace).unwrap();
        // Much of our own is no reason: twenty thousand elements.
        let many = tables(&vec![(1..=99).collect(); 100], true);
        ensure(&mut rules, many.clone()).unwrap();
        rules.doubt();
        assert_eq!(ensure(&mut rules, many).unwrap(), Vec::<String>::new());
        let wanted = tables(&[vec![1]], true);
        ensure(&mut rules, wanted.clone()).unwrap();
        let mut others = Table::new(crate::plan::ruleset::Family::Ip, "others", String::new());
        others.chains = (0..15_000).map(|n| (format!("chain-{n}"), Default::default())).collect();
        let mut theirs = Tables::open(&namespace).unwrap();
        theirs.replace(&others).unwrap();
        for _ in 0..2 {
            assert!(is_too_much(&ensure(&mut rules, wanted.clone()).unwrap_err()));
        }
        assert!(is_too_much(&rules.differences(&wanted).unwrap_err()));
        assert!(rules.overfull.is_some());
        theirs.delete(&["others"]).unwrap();
        assert_eq!(ensure(&mut rules, wanted).unwrap(), Vec::<String>::new());
        assert_eq!(rules.overfull, None);
        theirs.replace(&others).unwrap();
        rules.remove().unwrap();
        // The host's owner may have as many as he likes.
        let mut host = Rules::open(&namespace).unwrap();
        ensure(&mut host, tables(&[vec![2]], true)).unwrap();
    }

    #[test]
    fn what_we_put_in_force_is_read_back_the_same() {
        let Some(namespace) = namespace() else { return };
        let mut rules = Rules::open(&namespace).unwrap();
        let wanted = tables(&[vec![1, 2, 3], vec![4], vec![]], true);
        assert_eq!(ensure(&mut rules, wanted.clone()).unwrap(), Vec::<String>::new());
        check(&mut rules, &wanted);
        // Nothing to do is no transaction, also for one who comes anew and does not know what is there.
        let generation = rules.tables.generation().unwrap();
        assert_eq!(ensure(&mut rules, wanted.clone()).unwrap(), Vec::<String>::new());
        let mut fresh = Rules::open(&namespace).unwrap();
        assert_eq!(ensure(&mut fresh, wanted.clone()).unwrap(), Vec::<String>::new());
        assert_eq!(rules.tables.generation().unwrap(), generation);
        // A table that is no longer wanted goes, in the same transaction as the other changes.
        let less = tables(&[vec![1]], false);
        ensure(&mut rules, less.clone()).unwrap();
        check(&mut rules, &less);
        assert_eq!(rules.tables.generation().unwrap(), generation + 1);
        rules.remove().unwrap();
        ensure(&mut rules, Vec::new()).unwrap();
        assert_eq!(rules.tables.list().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_others_change_is_named_and_changed_back() {
        let Some(namespace) = namespace() else { return };
        let mut rules = Rules::open(&namespace).unwrap();
        let mut other = Tables::open(&namespace).unwrap();
        let wanted = tables(&[vec![1, 2, 3], vec![4], vec![]], true);
        ensure(&mut rules, wanted.clone()).unwrap();
        type Spoil = fn(&mut Table);
        let cases: [(&str, Spoil); 9] = [
            ("2 elements of backends-of-3 are missing", |t| {
                let all = BTreeMap::from([(address(100), vec![address(1)])]);
                t.sets.insert("backends-of-3".into(), Set::BackendsOf(all));
            }),
            ("1 elements of backends-of-3 are missing", |t| {
                let all = BTreeMap::from([(address(100), vec![address(1), address(9), address(3)])]);
                t.sets.insert("backends-of-3".into(), Set::BackendsOf(all));
            }),
            ("0 elements of unserved are missing, 1 were added", |t| {
                t.sets.insert("unserved".into(), Set::Addresses(vec![address(102), address(7)]));
            }),
            ("set extra was added", |t| {
                t.sets.insert("extra".into(), Set::Ports(vec![1]));
            }),
            ("chain extra was added", |t| {
                t.chains.insert("extra".into(), Default::default());
            }),
            ("chain refuse is missing", |t| {
                t.chains.remove("refuse");
            }),
            ("rules of chain source were changed", |t| {
                t.chains.get_mut("source").unwrap().rules.swap(0, 1);
            }),
            ("rules of chain tcp-8000 were changed", |t| {
                t.chains.get_mut("tcp-8000").unwrap().rules.clear();
            }),
            ("chain recall was changed", |t| {
                t.chains.get_mut("recall").unwrap().hook.as_mut().unwrap().priority = 7;
            }),
        ];
        for (words, spoil) in cases {
            let mut spoiled = Table::clone(&wanted[1]);
            spoil(&mut spoiled);
            other.replace(&spoiled).unwrap();
            let named = ensure(&mut rules, wanted.clone()).unwrap();
            assert!(named.iter().any(|text| text == words), "{words}: {named:?}");
            check(&mut rules, &wanted);
        }
        other.delete(&names::TABLES).unwrap();
        let mut named = ensure(&mut rules, wanted.clone()).unwrap();
        named.sort();
        let gone = ["shoal is missing", "shoal is missing", "shoal is missing", "shoal-own is missing"];
        assert_eq!(named, gone.map(|what| format!("table {what}")));
        check(&mut rules, &wanted);
        assert_eq!(ensure(&mut rules, wanted).unwrap(), Vec::<String>::new(), "and told once");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn differences_lead_where_a_whole_replacement_would(
            steps in proptest::collection::vec(
                (proptest::collection::vec(proptest::collection::btree_set(1u8..9, 0..4), 0..5), any::<bool>()), 1..6,
            ),
        ) {
            if let Some(namespace) = namespace() {
                let mut rules = Rules::open(&namespace).unwrap();
                for (services, ingress) in steps {
                    let lists: Vec<Vec<u8>> = services.iter().map(|s: &BTreeSet<u8>| s.iter().copied().collect()).collect();
                    let wanted = tables(&lists, ingress);
                    prop_assert_eq!(ensure(&mut rules, wanted.clone()).unwrap(), Vec::<String>::new());
                    let seen = rules.tables.read(&names::TABLES).unwrap();
                    prop_assert_eq!(seen.differences(&wanted), Vec::<String>::new());
                }
            }
        }
    }
}
