//! Tables as the kernel has them: read back, and compared with what they should be.
//!
//! The comparison is in the kernel's own terms. What we would send to make a table is held against what the kernel
//! lists of it, attribute by attribute, so that a rule that somebody has changed by one byte is found as well as a
//! flushed table.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use libc::{NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE};

use super::expressions::{DATA_VALUE, DATA_VERDICT, LIST_ELEM, VERDICT_CHAIN, VERDICT_CODE};
use super::netlink::{DUMP, Message, Reply, attributes, be32_of, says, str_of};
use super::nftables::{
    Batch, CHAIN_NAME, CHAIN_TABLE, ELEM_DATA, ELEM_KEY, ELEMENTS, ELEMENTS_SET, ELEMENTS_TABLE, Element, GOTO,
    RULE_CHAIN, RULE_TABLE, SET_DATA_TYPE, SET_FLAGS, SET_KEY_LEN, SET_KEY_TYPE, SET_NAME, SET_TABLE, TABLE_FLAGS,
    TABLE_NAME, Tables, elements, kind, protocol, types,
};
use crate::plan::ruleset::{Family, Set, Table};

/// `NFT_TABLE_F_DORMANT`: its chains see nothing.
const DORMANT: u32 = 1;
/// `NFT_SET_MAP`.
const MAP: u32 = 8;
/// Differences that are named; whoever reads of so many need not know of more.
const NAMED_MAX: usize = 8;

/// Our tables in one namespace, as the kernel lists them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    tables: Vec<(u8, String, SeenTable)>,
}

#[derive(Debug, Default)]
struct SeenTable {
    dormant: bool,
    /// The attributes of each chain.
    chains: BTreeMap<String, Vec<u8>>,
    /// The attributes of each rule of a chain, in order.
    rules: BTreeMap<String, Vec<Vec<u8>>>,
    sets: BTreeMap<String, SeenSet>,
}

#[derive(Debug, Default)]
struct SeenSet {
    /// Flags, type and length of the keys, type of what they lead to.
    types: [u32; 4],
    elements: BTreeMap<Vec<u8>, SeenElement>,
}

#[derive(Debug, PartialEq, Eq)]
enum SeenElement {
    Key,
    Value(Vec<u8>),
    Chain(String),
    Other,
}

impl SeenElement {
    fn is(&self, wanted: &Element<'_>) -> bool {
        match (self, wanted) {
            (SeenElement::Key, Element::Key) => true,
            (SeenElement::Value(found), Element::Value(value)) => found == value,
            (SeenElement::Chain(found), Element::Chain(chain)) => found == chain,
            _ => false,
        }
    }
}

pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The attributes of a listed object, if it is of a table.
fn own<'a>(reply: &'a Reply, of: u16, table: &str) -> Option<&'a [u8]> {
    let body = reply.body.get(4..)?;
    (str_of(attribute(body, of)?) == table).then_some(body)
}

impl Tables {
    pub(super) fn dump(&mut self, message: i32, family: u8, fill: impl FnOnce(&mut Message)) -> io::Result<Vec<Reply>> {
        let mut request = Message::new(kind(message), DUMP, &[family, 0, 0, 0]);
        fill(&mut request);
        self.socket.request(request)
    }

    /// Reads the tables of these names of our families.
    pub(super) fn read(&mut self, names: &[&str]) -> io::Result<Seen> {
        let mut seen = Seen::default();
        for family in Family::ALL.map(protocol) {
            let replies = self.dump(NFT_MSG_GETTABLE, family, |_| {})?;
            for body in replies.iter().filter_map(|reply| reply.body.get(4..)) {
                let Some(name) = attribute(body, TABLE_NAME).map(str_of).filter(|name| names.contains(&name.as_str()))
                else {
                    continue;
                };
                let flags = attribute(body, TABLE_FLAGS).map_or(0, be32_of);
                let table = self.read_table(family, &name, flags & DORMANT != 0)?;
                seen.tables.push((family, name, table));
            }
        }
        Ok(seen)
    }

    fn read_table(&mut self, family: u8, name: &str, dormant: bool) -> io::Result<SeenTable> {
        let mut table = SeenTable { dormant, ..SeenTable::default() };
        let in_table = |m: &mut Message, of| {
            m.put_str(of, name);
        };
        for reply in self.dump(NFT_MSG_GETCHAIN, family, |m| in_table(m, CHAIN_TABLE))? {
            let Some(body) = own(&reply, CHAIN_TABLE, name) else { continue };
            let Some(chain) = attribute(body, CHAIN_NAME) else { continue };
            table.chains.insert(str_of(chain), body.to_vec());
        }
        for reply in self.dump(NFT_MSG_GETRULE, family, |m| in_table(m, RULE_TABLE))? {
            let Some(body) = own(&reply, RULE_TABLE, name) else { continue };
            let Some(chain) = attribute(body, RULE_CHAIN) else { continue };
            table.rules.entry(str_of(chain)).or_default().push(body.to_vec());
        }
        for reply in self.dump(NFT_MSG_GETSET, family, |m| in_table(m, SET_TABLE))? {
            let Some(body) = own(&reply, SET_TABLE, name) else { continue };
            let Some(set) = attribute(body, SET_NAME) else { continue };
            let number = |kind| attribute(body, kind).map_or(0, be32_of);
            let types = [SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DATA_TYPE].map(number);
            table.sets.insert(str_of(set), SeenSet { types, elements: BTreeMap::new() });
        }
        for (set, seen) in &mut table.sets {
            let replies = self.dump(NFT_MSG_GETSETELEM, family, |m| {
                m.put_str(ELEMENTS_TABLE, name).put_str(ELEMENTS_SET, set);
            })?;
            let lists = replies.iter().filter_map(|reply| attribute(reply.body.get(4..)?, ELEMENTS));
            let all = lists.flat_map(attributes).filter(|(kind, _)| *kind == LIST_ELEM);
            seen.elements = all.filter_map(|(_, element)| read_element(element)).collect();
        }
        Ok(table)
    }
}

fn read_element(bytes: &[u8]) -> Option<(Vec<u8>, SeenElement)> {
    let key = attribute(attribute(bytes, ELEM_KEY)?, DATA_VALUE)?.to_vec();
    let Some(data) = attribute(bytes, ELEM_DATA) else { return Some((key, SeenElement::Key)) };
    let element = match (attribute(data, DATA_VALUE), attribute(data, DATA_VERDICT)) {
        (Some(value), _) => SeenElement::Value(value.to_vec()),
        (None, Some(verdict)) if attribute(verdict, VERDICT_CODE).map(be32_of) == Some(GOTO) => {
            SeenElement::Chain(attribute(verdict, VERDICT_CHAIN).map(str_of).unwrap_or_default())
        }
        _ => SeenElement::Other,
    };
    Some((key, element))
}

impl Seen {
    /// The tables that are there.
    pub(super) fn tables(&self) -> impl Iterator<Item = (Family, &str)> {
        let of = |number: u8| Family::ALL.into_iter().find(move |family| protocol(*family) == number);
        self.tables.iter().filter_map(move |(number, name, _)| Some((of(*number)?, name.as_str())))
    }

    /// What is not as these tables say: a text for each, a few at the most.
    pub(super) fn differences(&self, wanted: &[Arc<Table>]) -> Vec<String> {
        let mut found = Vec::new();
        for (family, name) in self.tables() {
            if !wanted.iter().any(|table| table.family == family && table.name == name) {
                found.push("a table of ours that should not be there".to_owned());
            }
        }
        for table in wanted {
            let is_it =
                |(family, name, _): &&(u8, String, SeenTable)| *family == protocol(table.family) && *name == table.name;
            match self.tables.iter().find(is_it) {
                None => found.push(format!("table {} is missing", table.name)),
                Some((_, _, seen)) => seen.differences(table, &mut found),
            }
        }
        let more = found.len().saturating_sub(NAMED_MAX);
        found.truncate(NAMED_MAX);
        if more > 0 {
            found.push(format!("and {more} more"));
        }
        found
    }
}

impl SeenTable {
    fn differences(&self, wanted: &Table, found: &mut Vec<String>) {
        if self.dormant {
            found.push(format!("table {} is dormant", wanted.name));
        }
        let foreign = self.chains.keys().filter(|name| !wanted.chains.contains_key(*name));
        found.extend(foreign.map(|name| format!("chain {name} was added")));
        for (name, chain) in &wanted.chains {
            let Some(seen) = self.chains.get(name) else {
                found.push(format!("chain {name} is missing"));
                continue;
            };
            let mut one = Batch::default();
            one.chain(wanted, name, chain);
            if !one.messages().all(|ours| says(seen, &ours.body()[4..])) {
                found.push(format!("chain {name} was changed"));
            }
            let mut rules = Batch::default();
            rules.rules(wanted, name, chain);
            let seen = self.rules.get(name).map_or(&[][..], Vec::as_slice);
            let same = seen.len() == chain.rules.len()
                && rules.messages().zip(seen).all(|(ours, seen)| says(seen, &ours.body()[4..]));
            if !same {
                found.push(format!("rules of chain {name} were changed"));
            }
        }
        let foreign = self.sets.keys().filter(|name| !wanted.sets.contains_key(*name));
        found.extend(foreign.map(|name| format!("set {name} was added")));
        for (name, set) in &wanted.sets {
            match self.sets.get(name) {
                None => found.push(format!("set {name} is missing")),
                Some(seen) => seen.differences(wanted, name, set, found),
            }
        }
    }
}

impl SeenSet {
    fn differences(&self, table: &Table, name: &str, wanted: &Set, found: &mut Vec<String>) {
        let (key_type, key_length, data) = types(table.family, wanted);
        let flags = if data.is_some() { MAP } else { 0 };
        if self.types != [flags, key_type, key_length, data.map_or(0, |(kind, _)| kind)] {
            found.push(format!("set {name} was changed"));
            return;
        }
        let wanted = elements(table, wanted);
        let missing = wanted.iter().filter(|(key, element)| !self.elements.get(*key).is_some_and(|e| e.is(element)));
        let foreign = self.elements.keys().filter(|key| !wanted.contains_key(*key));
        match (missing.count(), foreign.count()) {
            (0, 0) => {}
            (missing, 0) => found.push(format!("{missing} elements of {name} are missing")),
            (missing, foreign) => found.push(format!("{missing} elements of {name} are missing, {foreign} were added")),
        }
    }
}
