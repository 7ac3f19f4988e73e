//! What the kernel has, as the usual tools show it: `ip`, `bridge` and `nft`, none of which the daemons use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use overlay_net::kernel::NetNs;
use serde_json::Value;

/// Bridges and tunnels of one host's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Switches {
    /// By VNI.
    pub(super) networks: BTreeMap<u32, Switch>,
    /// Links of tasks: task, network's id, address.
    pub(super) ports: BTreeSet<(String, String, Ipv4Addr)>,
}

/// One network there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Switch {
    /// Its bridge and its tunnel are there, up, and belong together.
    pub(super) whole: bool,
    /// The tunnel's table: hardware address to host.
    pub(super) hosts: BTreeMap<String, Ipv4Addr>,
    /// The bridge's table: hardware addresses behind the tunnel.
    pub(super) forwards: BTreeSet<String>,
    /// Permanent neighbours.
    pub(super) neighbours: BTreeMap<Ipv4Addr, String>,
}

/// Why this machine cannot be read; nothing when it can.
#[must_use]
pub fn unusable() -> Option<String> {
    for tool in [["ip", "-V"], ["bridge", "-V"], ["nft", "--version"]] {
        let run = Command::new(tool[0]).arg(tool[1]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !run.is_ok_and(|status| status.success()) {
            return Some(format!("comparing kernels needs the command {}", tool[0]));
        }
    }
    None
}

/// The hardware address that goes with an address.
pub(super) fn mac_of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Opens a namespace by a process in it.
///
/// # Errors
/// When the process has ended.
pub(super) fn of_process(pid: u64) -> Result<NetNs> {
    NetNs::open(Path::new(&format!("/proc/{pid}/ns/net"))).with_context(|| format!("the namespace of process {pid}"))
}

/// What a tool says in a namespace.
///
/// # Errors
/// What it complains of.
pub(super) fn run(namespace: &NetNs, words: &[&str]) -> Result<Vec<u8>> {
    let run = || Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = namespace.visit(run).with_context(|| words.join(" "))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {error}", words.join(" "));
    Ok(output.stdout)
}

/// The same as JSON; null if it says nothing.
fn json(namespace: &NetNs, words: &[&str]) -> Result<Value> {
    let said = run(namespace, words)?;
    if said.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&said).with_context(|| words.join(" "))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn has(value: &Value, word: &str) -> bool {
    list(value).any(|found| found == word)
}

fn vni(name: &str, prefix: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

/// The links of tasks that a host holds.
///
/// # Errors
/// What `ip` says.
pub(super) fn ports(own: &NetNs) -> Result<BTreeSet<(String, String, Ipv4Addr)>> {
    Ok(list(&json(own, &["ip", "-j", "link"])?).filter_map(port).collect())
}

fn port(link: &Value) -> Option<(String, String, Ipv4Addr)> {
    let mut words = text(&link["ifalias"]).strip_prefix("shoal task ")?.split(' ');
    let (task, network) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some((task, network, words.next()?.parse().ok()?)).filter(|(_, network, _)| !network.starts_with('/'))
}

/// Reads a host's own namespace.
///
/// # Errors
/// What the tools say.
pub(super) fn switches(own: &NetNs) -> Result<Switches> {
    let mut found = Switches::default();
    let links = json(own, &["ip", "-j", "-d", "link"])?;
    let is_up = |link: &Value| has(&link["flags"], "UP");
    let bridges: BTreeMap<u32, bool> =
        list(&links).filter_map(|link| Some((vni(text(&link["ifname"]), "br-")?, is_up(link)))).collect();
    for link in list(&links) {
        found.ports.extend(port(link));
        let Some(number) = vni(text(&link["ifname"]), "vx-") else { continue };
        let connected = link["master"] == format!("br-{number:x}").as_str();
        let own_number = link["linkinfo"]["info_data"]["id"] == number;
        let whole = is_up(link) && connected && own_number && bridges.get(&number) == Some(&true);
        found.networks.entry(number).or_default().whole = whole;
    }
    for number in bridges.keys() {
        found.networks.entry(*number).or_default();
    }
    for entry in list(&json(own, &["bridge", "-j", "fdb", "show"])?) {
        let Some(number) = vni(text(&entry["ifname"]), "vx-") else { continue };
        let switch = found.networks.entry(number).or_default();
        let mac = text(&entry["mac"]).to_owned();
        match entry["dst"].as_str() {
            Some(host) => drop(switch.hosts.insert(mac, host.parse()?)),
            None if entry["state"] == "static" => drop(switch.forwards.insert(mac)),
            None => {}
        }
    }
    for entry in list(&json(own, &["ip", "-j", "-4", "neigh", "show", "nud", "permanent"])?) {
        let Some(number) = vni(text(&entry["dev"]), "br-") else { continue };
        let (address, mac) = (text(&entry["dst"]).parse()?, text(&entry["lladdr"]).to_owned());
        found.networks.entry(number).or_default().neighbours.insert(address, mac);
    }
    Ok(found)
}

/// The IPv4 addresses in a namespace, by link.
///
/// # Errors
/// What `ip` says.
pub(super) fn addresses(namespace: &NetNs) -> Result<BTreeMap<String, BTreeSet<Ipv4Addr>>> {
    let links = json(namespace, &["ip", "-j", "-4", "addr"])?;
    let own = |link: &Value| {
        let all = list(&link["addr_info"]).filter_map(|info| text(&info["local"]).parse().ok());
        (text(&link["ifname"]).to_owned(), all.collect())
    };
    Ok(list(&links).map(own).collect())
}

/// Our table of a namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    listed: Vec<Value>,
}

impl Rules {
    /// Reads it; an empty one where there is none.
    ///
    /// # Errors
    /// What `nft` says.
    pub(super) fn read(namespace: &NetNs) -> Result<Rules> {
        let listed = json(namespace, &["nft", "-j", "list", "ruleset"])?;
        let own = |item: &&Value| {
            let object = item.as_object().and_then(|object| object.values().next());
            object.is_some_and(|o| o["family"] == "ip" && (o["table"] == "shoal" || o["name"] == "shoal"))
        };
        Ok(Rules { listed: list(&listed["nftables"]).filter(own).cloned().collect() })
    }

    fn named(&self, kind: &str, name: &str) -> Option<&Value> {
        self.listed.iter().map(|item| &item[kind]).find(|object| object["name"] == name)
    }

    /// Where the addresses of a map lead, and the port that they are led to, if it is another one.
    fn chain(&self, name: &str) -> (BTreeSet<Ipv4Addr>, Option<u16>) {
        let (mut found, mut port) = (BTreeSet::new(), None);
        for rule in self.listed.iter().map(|item| &item["rule"]).filter(|rule| rule["chain"] == name) {
            for target in list(&rule["expr"]).map(|expression| &expression["dnat"]) {
                port = port.or(target["port"].as_u64().and_then(|port| u16::try_from(port).ok()));
                match &target["addr"] {
                    Value::String(address) => found.extend(address.parse::<Ipv4Addr>()),
                    other => found.extend(self.numbered(&other["map"])),
                }
            }
        }
        (found, port)
    }

    /// The addresses that a rule chooses from, all of the numbers that it can draw.
    fn numbered(&self, choice: &Value) -> BTreeSet<Ipv4Addr> {
        let drawn = choice["key"]["numgen"]["mod"].as_u64().unwrap_or(0);
        let name = text(&choice["data"]).trim_start_matches('@');
        let Some(map) = self.named("map", name) else { return BTreeSet::new() };
        let pairs =
            list(&map["elem"]).filter_map(|pair| Some((number(&pair[0], drawn)?, text(&pair[1]).parse().ok()?)));
        let all: BTreeMap<u64, Ipv4Addr> = pairs.collect();
        // One that is never drawn, or a number that leads nowhere, is as wrong as a wrong address.
        let exact = all.keys().copied().eq(0..drawn);
        if exact { all.into_values().collect() } else { BTreeSet::new() }
    }

    /// Pairs of a map: the key as `nft` writes it, and the chain that it leads to.
    fn verdicts(&self, map: &str) -> BTreeMap<String, String> {
        let Some(map) = self.named("map", map) else { return BTreeMap::new() };
        let pairs = list(&map["elem"]).filter_map(|pair| {
            let key = pair[0].as_str().map_or_else(|| pair[0].to_string(), str::to_owned);
            Some((key, pair[1]["goto"]["target"].as_str()?.to_owned()))
        });
        pairs.collect()
    }

    /// Where virtual addresses lead; to nobody those that are refused.
    pub(super) fn vips(&self) -> BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> {
        let elements = |kind: &str, name: &str| {
            let elements = self.named(kind, name.trim_start_matches('@')).map(|it| list(&it["elem"]));
            elements.into_iter().flatten().collect::<Vec<_>>()
        };
        let vip_of = |pair: &Value| text(&pair[0]["concat"][0]).parse::<Ipv4Addr>().ok();
        let maps =
            self.listed.iter().map(|item| text(&item["map"]["name"])).filter(|name| name.starts_with("backends-of-"));
        // How many maps have an address: one in two of them, or in one that no rule draws from, is as wrong as a wrong address.
        let mut in_maps: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        for map in maps {
            let vips: BTreeSet<Ipv4Addr> = elements("map", map).into_iter().filter_map(vip_of).collect();
            vips.into_iter().for_each(|vip| *in_maps.entry(vip).or_default() += 1);
        }
        let mut found: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> =
            in_maps.keys().map(|vip| (*vip, BTreeSet::new())).collect();
        for rule in self.listed.iter().map(|item| &item["rule"]).filter(|rule| rule["chain"] == "translate") {
            let choices = list(&rule["expr"]).map(|expression| &expression["dnat"]["addr"]["map"]);
            let Some(choice) = choices.into_iter().find(|choice| !choice.is_null()) else { continue };
            let drawn = choice["key"]["concat"][1]["numgen"]["mod"].as_u64().unwrap_or(0);
            let mut numbered: BTreeMap<Ipv4Addr, BTreeMap<u64, Ipv4Addr>> = BTreeMap::new();
            for pair in elements("map", text(&choice["data"])) {
                let (Some(vip), Some(number)) = (vip_of(pair), number(&pair[0]["concat"][1], drawn)) else { continue };
                numbered.entry(vip).or_default().extend(text(&pair[1]).parse().ok().map(|address| (number, address)));
            }
            for (vip, numbered) in numbered {
                // One that is never drawn, or a number that leads nowhere, is as wrong.
                let exact = in_maps.get(&vip) == Some(&1) && numbered.keys().copied().eq(0..drawn);
                found.insert(vip, if exact { numbered.into_values().collect() } else { BTreeSet::new() });
            }
        }
        let unserved = elements("set", "unserved").into_iter().filter_map(|vip| text(vip).parse().ok());
        found.extend(unserved.map(|vip: Ipv4Addr| (vip, BTreeSet::new())));
        found
    }

    /// Published ports: protocol and port, to the port in the tasks and their addresses.
    pub(super) fn ports(&self) -> BTreeMap<(String, u16), (u16, BTreeSet<Ipv4Addr>)> {
        let mut found = BTreeMap::new();
        for protocol in ["tcp", "udp", "sctp"] {
            for (port, chain) in self.verdicts(&format!("{protocol}-ports")) {
                let Ok(port) = port.parse() else { continue };
                let (addresses, target) = self.chain(&chain);
                found.insert((protocol.to_owned(), port), (target.unwrap_or(port), addresses));
            }
        }
        found
    }
}

/// A number below `most` as `nft` writes it: one in the host's byte order it may take for the network's.
fn number(value: &Value, most: u64) -> Option<u64> {
    let number = u32::try_from(value.as_u64()?).ok()?;
    let number = if u64::from(number) < most { number } else { number.swap_bytes() };
    Some(u64::from(number))
}

#[cfg(test)]
mod tests {
    use overlay_net::Protocol;
    use overlay_net::kernel::Tables;
    use overlay_net::plan::balance::{Balance, HostSide, Target};

    use super::*;

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 9, last)
    }

    #[test]
    fn what_daemons_write_is_read_by_other_means() {
        let (Ok(namespace), None) = (NetNs::anonymous(), unusable()) else {
            println!("skipped: this needs root, nft and iproute2");
            return;
        };
        let all = |range: std::ops::Range<u8>| range.map(at).collect::<Vec<_>>();
        let vips = [(at(100), all(1..8)), (at(101), all(3..4)), (at(102), Vec::new())];
        let ports = [((Protocol::Tcp, 8080), 80, all(1..4)), ((Protocol::Udp, 53), 53, all(2..3))];
        let balance = Balance {
            vips: [("net".to_owned(), vips.clone().into())].into(),
            ports: ports.clone().map(|(key, port, backends)| (key, Target { port, backends })).into(),
            ..Balance::default()
        };
        let mut tables = Tables::open(&namespace).unwrap();
        tables.replace(&balance.task_table(&["net".to_owned()], None)).unwrap();
        let expected = vips.map(|(vip, all)| (vip, BTreeSet::from_iter(all)));
        assert_eq!(Rules::read(&namespace).unwrap().vips(), expected.into());
        let side = HostSide { ingress: Some(("shi-n".into(), "10.0.9.0/24".parse().unwrap())), ..HostSide::default() };
        tables.replace(&balance.host_table("n", &side).unwrap()).unwrap();
        let expected = ports.map(|((protocol, port), target, all)| {
            ((protocol.name().to_owned(), port), (target, BTreeSet::from_iter(all)))
        });
        assert_eq!(Rules::read(&namespace).unwrap().ports(), expected.into());
        assert!(Rules::read(&NetNs::anonymous().unwrap()).unwrap().ports().is_empty());
    }
}
