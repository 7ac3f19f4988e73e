//! Judges what was found out: a line a check, what is wrong with what to do. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use overlay_net::FirewallObstacle;
use overlay_net::plan::seal::ports as sealing_ports;
use overlay_net::probe::{Answer, Reached};

use super::observed::{NetworkSeen, Observed, PeerSeen, expected_names};
use super::{Line, Verdict};

/// Examples that a line gives of many.
const EXAMPLES: usize = 3;

fn line(check: &str, subject: &str, result: Verdict, detail: impl Into<String>, advice: impl Into<String>) -> Line {
    let (check, subject) = (check.to_owned(), subject.to_owned());
    Line { check, subject, result, detail: detail.into(), advice: advice.into() }
}

fn ok(check: &str, subject: &str, detail: impl Into<String>) -> Line {
    line(check, subject, Verdict::Ok, detail, "")
}

fn wrong(check: &str, subject: &str, detail: impl Into<String>, advice: impl Into<String>) -> Line {
    line(check, subject, Verdict::Wrong, detail, advice)
}

fn skipped(check: &str, subject: &str, why: impl Into<String>) -> Line {
    line(check, subject, Verdict::Skipped, why, "")
}

/// `a; b; c; and 4 more`
fn some(all: &[impl ToString]) -> String {
    let mut shown: Vec<String> = all.iter().take(EXAMPLES).map(ToString::to_string).collect();
    if all.len() > EXAMPLES {
        shown.push(format!("and {} more", all.len() - EXAMPLES));
    }
    shown.join("; ")
}

/// The whole report.
pub(super) fn evaluate(seen: &Observed) -> Vec<Line> {
    let mut lines = vec![revision(seen), kernel(seen)];
    if !seen.refused.is_empty() {
        let advice = "the managers' data are at fault; the daemon's log names each object: please report it";
        lines.push(wrong("refused", "", some(&seen.refused), advice));
    }
    lines.extend([firewall(seen), way_out(seen)]);
    lines.extend(seen.peers.iter().map(|peer| self::peer(peer, seen)));
    if let Some(message) = &seen.not_carried {
        lines.push(skipped("network", "", message.clone()));
    }
    for network in &seen.networks {
        lines.push(addresses(network, seen));
        lines.extend(on_network(network, seen));
    }
    lines
}

/// What can be seen of one network by asking; those who ask twice do so where this has something wrong.
pub(super) fn on_network(network: &NetworkSeen, seen: &Observed) -> Vec<Line> {
    let mut lines = Vec::new();
    // Nobody is found by name there, and its virtual addresses are the hosts' own business.
    if !network.network.ingress {
        lines.extend([names(network), vips(network)]);
    }
    lines.extend(narrow(network, seen));
    lines.extend(encryption(network, seen));
    lines.extend(paths(network, seen));
    lines
}

/// A network that this host cannot carry as it was asked for.
fn narrow(network: &NetworkSeen, seen: &Observed) -> Option<Line> {
    let asked = network.network.room().lacks(seen.underlay_mtu)?;
    let address = seen.data_path_addr.map(|address| address.to_string()).unwrap_or_default();
    let detail = format!(
        "made for an MTU of {asked} bytes, and the interface with {address} has {}: on this host its links have {}",
        seen.underlay_mtu, network.mtu
    );
    let advice = format!("set the MTU of that interface to {asked}, or make the network anew for a smaller one");
    Some(wrong("mtu", &network.network.name, detail, advice))
}

/// Whether what this host exchanges of an encrypted network can be encrypted; nothing for others.
fn encryption(network: &NetworkSeen, seen: &Observed) -> Vec<Line> {
    let (check, name) = ("encryption", &network.network.name);
    if !network.network.encrypted {
        return Vec::new();
    }
    if let Some(obstacle) = &seen.sealing_obstacle {
        let advice = "nothing of it leaves this host or comes to it; docs/encryption.md says what a host needs";
        return vec![wrong(check, name, format!("this host cannot carry it: {obstacle}"), advice)];
    }
    let hosts: BTreeSet<Ipv4Addr> = network.network.stations.iter().map(|station| station.host).collect();
    let others = hosts.into_iter().filter(|host| Some(*host) != seen.data_path_addr);
    let (without, with): (Vec<Ipv4Addr>, Vec<Ipv4Addr>) = others.partition(|host| network.without_key.contains(host));
    let mut lines: Vec<Line> = without
        .iter()
        .filter(|host| !seen.peer(**host).is_some_and(|peer| peer.down))
        .map(|host| {
            let peer = seen.peer(*host).map_or_else(|| host.to_string(), |peer| peer.hostname.clone());
            let detail = format!("no key from {peer}: nothing is sent to it");
            let advice =
                "its daemon says its key once a manager serves it; its log and the managers' say if that was refused";
            wrong(check, &format!("{name} to {peer}"), detail, advice)
        })
        .collect();
    if lines.is_empty() {
        let many = if with.len() == 1 { "" } else { "s" };
        lines.push(ok(check, name, format!("the keys of {} other host{many} are known", with.len())));
    }
    lines
}

fn revision(seen: &Observed) -> Line {
    let standing = &seen.standing;
    let ((told, term), applied) = (standing.told, standing.applied);
    let check = "revision";
    if !standing.connected {
        let detail = format!("no manager serves this host: it goes on with revision {told} of term {term}");
        return wrong(check, "", detail, "see whether a majority of the managers runs and is reached: shoal node ls");
    }
    if applied < told {
        let detail = format!("told revision {told}, and after 2 s carried out only {applied}");
        let advice = "the daemon's log says what cannot be set up (\"networks could not all be set up\")";
        return wrong(check, "", detail, advice);
    }
    if standing.as_the_store == Some(false) {
        let detail = "this host was not told within 2 s what its manager's store says";
        return wrong(check, "", detail, "restart the daemon of this host (tasks go on), and please report it");
    }
    ok(check, "", format!("revision {told} of term {term} is carried out"))
}

fn kernel(seen: &Observed) -> Line {
    let mut found = Vec::new();
    for (place, lacks) in &seen.kernel {
        match lacks {
            Ok(lacks) => found.extend(lacks.iter().map(|lack| format!("{place}: {lack}"))),
            Err(error) => found.push(format!("{place} cannot be read: {error}")),
        }
    }
    let audit = seen.audit.as_ref();
    found.extend(audit.iter().flat_map(|audit| &audit.wrong).map(|what| format!("cannot be repaired: {what}")));
    let ago = audit.map_or_else(
        || "not looked after yet".to_owned(),
        |audit| format!("looked after {:.1} s ago", audit.ago.as_secs_f64()),
    );
    if !found.is_empty() {
        let advice =
            "it is repaired within 5 s unless something stands in the way: check again, then see the daemon's log";
        return wrong("kernel", "", format!("{} ({ago})", some(&found)), advice);
    }
    let repaired = audit.map(|audit| audit.repaired.as_slice()).unwrap_or_default();
    if !repaired.is_empty() {
        let advice = "find out which program changes rules or links of the overlay, and stop it from doing so";
        return wrong(
            "kernel",
            "",
            format!("somebody changes what is ours; repaired {ago}: {}", some(repaired)),
            advice,
        );
    }
    let tasks = seen.kernel.len().saturating_sub(2);
    ok("kernel", "", format!("links, entries and rules of the host and of {tasks} tasks are as they should be; {ago}"))
}

fn firewall(seen: &Observed) -> Line {
    let out = seen.way_out.as_ref().is_some_and(|way| way.reached == Reached::Yes);
    match &seen.firewalls {
        Err(error) => skipped("firewall", "", format!("the host's rules cannot be read: {error}")),
        Ok(found) if found.is_empty() => ok("firewall", "", "no rule of others that is known to drop what is ours"),
        // A rule before it may let our packets pass; they do.
        Ok(found) if out && found.iter().all(|what| matches!(what, FirewallObstacle::DropsRest { .. })) => {
            ok("firewall", "", format!("{}, but a task's packets pass", some(found)))
        }
        Ok(found) => {
            let advice = "let the links she-… and shi-… pass there, with firewalld for example: firewall-cmd --permanent \
                          --zone=trusted --add-interface=she-…";
            wrong("firewall", "", some(found), advice)
        }
    }
}

fn way_out(seen: &Observed) -> Line {
    let Some(way) = &seen.way_out else {
        return skipped("way out", "", "no task of this host has one, or no other host answers echoes");
    };
    let from = format!("{} from task {}", way.to, way.task);
    match way.reached {
        Reached::Yes => ok("way out", "", format!("{from} answers")),
        _ => {
            let detail = format!("{from} does not answer, though it answers this host");
            wrong(
                "way out",
                "",
                detail,
                "a firewall of this host drops what it forwards: nft list ruleset, hook forward",
            )
        }
    }
}

fn peer(peer: &PeerSeen, seen: &Observed) -> Line {
    let name = peer.hostname.as_str();
    if peer.down {
        return skipped("peer", name, "is down, as the managers say");
    }
    let check = |result: Result<String, (String, String)>| match result {
        Ok(detail) => ok("peer", name, detail),
        Err((detail, advice)) => wrong("peer", name, detail, advice),
    };
    let control = &peer.control;
    let address = peer.data_path.map(|address| address.to_string()).unwrap_or_default();
    let silent = matches!(peer.underlay, Some((Reached::Silence | Reached::NotSent, _)));
    check(match (peer.opens, peer.underlay) {
        (None, _) => return skipped("peer", name, "was not asked in time"),
        (Some(false), _) if silent => Err((
            format!("neither {control} opens nor does {address} answer echoes"),
            format!("see whether {name} runs and is reached: shoal node ls, ping {address}"),
        )),
        (Some(false), _) => Err((
            format!("control port {control} does not open"),
            format!("see whether the daemon of {name} runs, and open TCP and UDP port 2377 between the hosts"),
        )),
        (Some(true), Some((Reached::Yes, full))) if full != Reached::Yes => {
            let word = if let Reached::TooLong(word) = full { word } else { None };
            let fits = peer.fits.max(word).map_or_else(|| "shorter".to_owned(), |fits| format!("{fits} bytes"));
            Err((
                format!("packets of {} bytes do not get to {address}, only {fits} do", seen.underlay_mtu),
                format!(
                    "mend the path, or set the MTU of the interface with {} to what it carries, on all hosts; networks \
                     follow",
                    seen.data_path_addr.map(|address| address.to_string()).unwrap_or_default()
                ),
            ))
        }
        (Some(true), Some((Reached::Yes, _))) => {
            let left = if peer.left_out { "; left out of balancing at the moment" } else { "" };
            Ok(format!("{control} opens; packets of {} bytes get to {address}{left}", seen.underlay_mtu))
        }
        (Some(true), _) => Ok(format!("{control} opens; {address} does not answer echoes, so its MTU is not known")),
    })
}

fn addresses(network: &NetworkSeen, seen: &Observed) -> Line {
    let network = &network.network;
    let mut holders: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
    for service in &network.services {
        if let Some(vip) = service.vip {
            holders.entry(vip).or_default().push(format!("service {}", service.name));
        }
        for endpoint in &service.endpoints {
            holders.entry(endpoint.address).or_default().push(format!("task {}", endpoint.task));
        }
    }
    let own = seen.data_path_addr;
    for (_, address, task) in seen.held.iter().filter(|(id, ..)| *id == network.id) {
        let holders = holders.entry(*address).or_default();
        let text = format!("task {task}");
        // One that ends still has its link for a moment; nobody else may have the address by then.
        if !holders.contains(&text) {
            holders.push(text);
        }
    }
    let mut twice: Vec<String> = Vec::new();
    for station in &network.stations {
        let here = seen.held.iter().any(|(id, address, _)| *id == network.id && *address == station.address);
        if here && Some(station.host) != own {
            twice.push(format!("{} is on a link here, and behind host {}", station.address, station.host));
        }
        let others = network.stations.iter().filter(|other| other.address == station.address);
        if others.clone().any(|other| other.host > station.host) {
            twice.push(format!("{} is behind two hosts", station.address));
        }
    }
    let count = holders.len();
    let shared = holders.into_iter().filter(|(_, holders)| holders.len() > 1);
    twice.extend(shared.map(|(address, holders)| format!("{address} is of {}", holders.join(" and "))));
    if twice.is_empty() {
        return ok("addresses", &network.name, format!("{count} addresses, none of them twice"));
    }
    wrong(
        "addresses",
        &network.name,
        some(&twice),
        "check again; if it stays, restart the tasks that are named, and report it",
    )
}

fn names(network: &NetworkSeen) -> Line {
    let name = &network.network.name;
    let (Some(from), Some(asked)) = (&network.from, &network.names) else {
        return skipped("names", name, "no task of this host is connected to it, so there is nowhere to ask from");
    };
    let expected = expected_names(&network.network, &network.left_out);
    let (mut bad, mut right) = (Vec::new(), 0);
    for (asked, answer) in asked {
        let wanted = &expected[asked];
        match answer {
            Answer::Addresses(found) if found == wanted => right += 1,
            Answer::Addresses(found) => {
                let list = |all: &std::collections::BTreeSet<IpAddr>| {
                    some(&all.iter().map(ToString::to_string).collect::<Vec<_>>())
                };
                let without = wanted.difference(found).copied().collect();
                let beside = found.difference(wanted).copied().collect();
                bad.push(format!("{asked} lacks [{}], has also [{}]", list(&without), list(&beside)));
            }
            Answer::NoSuchName => bad.push(format!("{asked} is no name")),
            Answer::Failure(code) => bad.push(format!("{asked} fails with code {code}")),
            Answer::Silence => bad.push(format!("{asked} is not answered")),
            Answer::NotAsked => {}
        }
    }
    if bad.is_empty() {
        let late = asked.len() - right;
        let rest = if late > 0 { format!(", {late} more not asked in time") } else { String::new() };
        return ok("names", name, format!("{right} names are answered right, asked from task {from}{rest}"));
    }
    let advice = "restart the daemon of this host (tasks go on); its log says what the resolver complains of";
    wrong("names", name, format!("from task {from}: {}", some(&bad)), advice)
}

fn vips(network: &NetworkSeen) -> Line {
    let name = &network.network.name;
    let (Some(from), Some(tried)) = (&network.from, &network.vips) else {
        return skipped("vip", name, "no task of this host is connected to it, so there is nowhere to ask from");
    };
    if tried.is_empty() {
        return skipped("vip", name, "no service on it has a virtual address and a task that serves");
    }
    let bad: Vec<String> = tried
        .iter()
        .filter(|(.., reached)| *reached != Reached::Yes)
        .map(|(service, vip, _)| format!("{vip} of {service}"))
        .collect();
    let all: Vec<String> = tried.iter().map(|(service, vip, _)| format!("{vip} of {service}")).collect();
    if bad.is_empty() {
        return ok("vip", name, format!("{} answers, asked from task {from}", some(&all)));
    }
    let advice = "see the lines about paths and the kernel; if those are fine, the task behind it may refuse echoes";
    wrong("vip", name, format!("from task {from}, echoes are not answered by {}", some(&bad)), advice)
}

/// The way to one host, by addresses of one family.
fn path(subject: &str, tried: &[&(IpAddr, Reached, Reached)], mtu: u16, (by, ports): (&str, &str)) -> Line {
    let small = tried.iter().find(|(_, small, _)| *small == Reached::Yes);
    let full = tried.iter().find(|(.., full)| *full == Reached::Yes);
    let asked: Vec<String> = tried.iter().map(|(address, ..)| address.to_string()).collect();
    match (small, full) {
        (_, Some((address, ..))) => ok("path", subject, format!("{address} answers packets of {mtu} bytes")),
        (Some((address, ..)), None) => wrong(
            "path",
            subject,
            format!("{address} answers, but not packets of {mtu} bytes: the path is narrower than it says"),
            "see the line about this peer; the MTU of the interfaces between the hosts must be what they carry",
        ),
        (None, None) => wrong(
            "path",
            subject,
            format!("no answer over {by} from {}", some(&asked)),
            format!("open UDP {ports} between the hosts, in both directions; if it is open, run the check there"),
        ),
    }
}

fn paths(network: &NetworkSeen, seen: &Observed) -> Vec<Line> {
    let name = &network.network.name;
    if network.network.local {
        return vec![skipped("path", name, "it ends at each host")];
    }
    let Some(paths) = &network.paths else {
        let own = if network.network.ingress {
            "this host has no place on it"
        } else {
            "no task of this host is connected to it"
        };
        return vec![skipped("path", name, format!("{own}, so there is nowhere to ask from"))];
    };
    let encrypted = network.network.encrypted;
    let (by, ports) = match encrypted {
        false => ("VXLAN", format!("port {}", seen.data_path_port)),
        true => ("WireGuard", sealing_ports(seen.data_path_port).map(|port| format!("port {port}")).join(" and ")),
    };
    let mut lines = Vec::new();
    for (host, tried) in paths {
        let known = seen.peer(*host);
        let subject = format!("{name} to {}", known.map_or_else(|| host.to_string(), |peer| peer.hostname.clone()));
        if known.is_some_and(|peer| peer.down) {
            lines.push(skipped("path", &subject, "is down, as the managers say"));
            continue;
        }
        if encrypted && (seen.sealing_obstacle.is_some() || network.without_key.contains(host)) {
            lines.push(skipped("path", &subject, "nothing can be encrypted for it"));
            continue;
        }
        let (four, six): (Vec<_>, Vec<_>) = tried.iter().partition(|(address, ..)| address.is_ipv4());
        let families = [four, six].into_iter().filter(|tried| !tried.is_empty());
        lines.extend(families.map(|tried| path(&subject, &tried, network.mtu, (by, &ports))));
    }
    if lines.is_empty() {
        lines.push(skipped("path", name, "no other host is on it"));
    }
    lines
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
