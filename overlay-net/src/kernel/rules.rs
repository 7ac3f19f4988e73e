//! The tables of ours in one namespace, kept as they should be.
//!
//! The kernel numbers each state of a namespace's rules. As long as the number is the one that our own last transaction
//! left, nobody has touched anything, and what we sent is what is there; with any other number the tables are read back
//! and that is what counts. So looking costs one question, and a foreign change costs one listing.

use std::io;

use super::netns::NetNs;
use super::nftables::{Batch, Tables};
use crate::plan::names;
use crate::plan::ruleset::Table;

/// A handle on our tables in one namespace. It is kept: closing one waits until the kernel has freed what was replaced.
#[derive(Debug)]
pub(crate) struct Rules {
    tables: Tables,
    known: Option<Known>,
}

/// What we have put in force, or found as it should be.
#[derive(Debug)]
struct Known {
    /// The number of that state; nothing when somebody else changed rules at the same time.
    generation: Option<u32>,
    tables: Vec<Table>,
}

impl Rules {
    /// Opens a handle on a namespace.
    pub(crate) fn open(namespace: &NetNs) -> io::Result<Rules> {
        Ok(Rules { tables: Tables::open(namespace)?, known: None })
    }

    /// Brings the kernel to these tables, in one transaction, or in none when they are there. Gives what others had
    /// changed since the last time.
    ///
    /// On an error nothing was changed.
    pub(crate) fn ensure(&mut self, wanted: Vec<Table>) -> io::Result<Vec<String>> {
        let generation = self.tables.generation()?;
        let mut foreign = Vec::new();
        let mut present = None;
        let untouched = self.known.as_ref().is_some_and(|known| known.generation == Some(generation));
        if !untouched {
            let seen = self.tables.read(names::TABLE)?;
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
        match self.known.take().filter(|_| foreign.is_empty()) {
            Some(known) if known.tables == wanted => {
                self.known = Some(known);
                return Ok(foreign);
            }
            Some(known) => self.change(&known.tables, &wanted)?,
            None => {
                let present = match present {
                    Some(seen) => seen,
                    None => self.tables.read(names::TABLE)?,
                };
                let mut batch = Batch::default();
                for family in present.families().filter(|family| !wanted.iter().any(|t| t.family == *family)) {
                    batch.delete(family, names::TABLE);
                }
                wanted.iter().for_each(|table| batch.whole(table));
                batch.send(&mut self.tables.socket)?;
            }
        }
        self.note(generation, wanted, 1)?;
        Ok(foreign)
    }

    /// Forgets what is known, so that the next time looks.
    pub(crate) fn doubt(&mut self) {
        if let Some(known) = &mut self.known {
            known.generation = None;
        }
    }

    fn change(&mut self, old: &[Table], new: &[Table]) -> io::Result<()> {
        let mut batch = Batch::default();
        for table in old.iter().filter(|old| !new.iter().any(|new| new.family == old.family)) {
            batch.delete(table.family, &table.name);
        }
        for table in new {
            match old.iter().find(|old| old.family == table.family) {
                Some(old) if old == table => {}
                Some(old) if batch.difference(old, table) => {}
                _ => batch.whole(table),
            }
        }
        batch.send(&mut self.tables.socket)
    }

    /// Remembers what is in force, with the state's number if only `ours` transactions came after `before`.
    fn note(&mut self, before: u32, tables: Vec<Table>, ours: u32) -> io::Result<()> {
        let after = self.tables.generation()?;
        // The kernel leaves out 0 when it counts.
        let expected = if ours > 0 { before.wrapping_add(ours).max(1) } else { before };
        self.known = Some(Known { generation: (after == expected).then_some(after), tables });
        Ok(())
    }

    /// Removes our tables; missing ones are fine.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.known = None;
        self.tables.delete(names::TABLE)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Protocol;
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
    fn tables(services: &[Vec<u8>], ingress: bool) -> Vec<Table> {
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
        };
        let side = IngressSide { interface: "lo".into(), subnet: "10.0.9.0/24".parse().unwrap() };
        let side = ingress.then_some(side);
        // The host's and a task's table in one, so that everything that we ever say is said.
        let mut table = balance.task_table(&["net".into()], (1053, 1054), side.as_ref());
        let host = HostSide {
            ingress: Some(("shi-n1".into(), "10.0.9.0/24".parse().unwrap())),
            egress: Some(("she-n1".into(), "172.30.0.0/16".parse().unwrap())),
            tasks: [("t1".to_owned(), address(77))].into(),
            replies: Return::Remember,
        };
        let host = balance.host_table("n1", &host).unwrap();
        table.chains.extend(host.chains);
        table.sets.extend(host.sets);
        side.as_ref().map(Balance::frame_table).into_iter().chain([table]).collect()
    }

    #[track_caller]
    fn check(rules: &mut Rules, wanted: &[Table]) {
        let seen = rules.tables.read(names::TABLE).unwrap();
        assert_eq!(seen.differences(wanted), Vec::<String>::new());
    }

    #[test]
    fn what_we_put_in_force_is_read_back_the_same() {
        let Some(namespace) = namespace() else { return };
        let mut rules = Rules::open(&namespace).unwrap();
        let wanted = tables(&[vec![1, 2, 3], vec![4], vec![]], true);
        assert_eq!(rules.ensure(wanted.clone()).unwrap(), Vec::<String>::new());
        check(&mut rules, &wanted);
        // Nothing to do is no transaction, also for one who comes anew and does not know what is there.
        let generation = rules.tables.generation().unwrap();
        assert_eq!(rules.ensure(wanted.clone()).unwrap(), Vec::<String>::new());
        let mut fresh = Rules::open(&namespace).unwrap();
        assert_eq!(fresh.ensure(wanted.clone()).unwrap(), Vec::<String>::new());
        assert_eq!(rules.tables.generation().unwrap(), generation);
        // A table that is no longer wanted goes, in the same transaction as the other changes.
        let less = tables(&[vec![1]], false);
        rules.ensure(less.clone()).unwrap();
        check(&mut rules, &less);
        assert_eq!(rules.tables.generation().unwrap(), generation + 1);
        rules.remove().unwrap();
        rules.ensure(Vec::new()).unwrap();
        assert_eq!(rules.tables.list().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_others_change_is_named_and_changed_back() {
        let Some(namespace) = namespace() else { return };
        let mut rules = Rules::open(&namespace).unwrap();
        let mut other = Tables::open(&namespace).unwrap();
        let wanted = tables(&[vec![1, 2, 3], vec![4], vec![]], true);
        rules.ensure(wanted.clone()).unwrap();
        type Spoil = fn(&mut Table);
        let cases: [(&str, Spoil); 9] = [
            ("2 elements of to-vip-10.0.9.100 are missing", |t| {
                t.sets.insert("to-vip-10.0.9.100".into(), Set::Backends(vec![address(1)]));
            }),
            ("1 elements of to-vip-10.0.9.100 are missing", |t| {
                let all = vec![address(1), address(9), address(3)];
                t.sets.insert("to-vip-10.0.9.100".into(), Set::Backends(all));
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
            ("rules of chain vip-10.0.9.100 were changed", |t| {
                t.chains.get_mut("vip-10.0.9.100").unwrap().rules.clear();
            }),
            ("chain recall was changed", |t| {
                t.chains.get_mut("recall").unwrap().hook.as_mut().unwrap().priority = 7;
            }),
        ];
        for (words, spoil) in cases {
            let mut spoiled = wanted[1].clone();
            spoil(&mut spoiled);
            other.replace(&spoiled).unwrap();
            let named = rules.ensure(wanted.clone()).unwrap();
            assert!(named.iter().any(|text| text == words), "{words}: {named:?}");
            check(&mut rules, &wanted);
        }
        other.delete(names::TABLE).unwrap();
        let named = rules.ensure(wanted.clone()).unwrap();
        assert_eq!(named, ["table shoal is missing", "table shoal is missing"]);
        check(&mut rules, &wanted);
        assert_eq!(rules.ensure(wanted).unwrap(), Vec::<String>::new(), "and told once");
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
                    prop_assert_eq!(rules.ensure(wanted.clone()).unwrap(), Vec::<String>::new());
                    let seen = rules.tables.read(names::TABLE).unwrap();
                    prop_assert_eq!(seen.differences(&wanted), Vec::<String>::new());
                }
            }
        }
    }
}
