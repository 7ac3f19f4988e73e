//! Beside the firewalls of others: chains that drop what is forwarded, as Docker, `ufw` and an administrator make them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are test code")]

mod world;

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use overlay_net::FirewallObstacle;
use overlay_net::kernel::{Links, NetNs, Peer};
use world::*;

const PLACES: [(&str, u8, u8); 3] = [("app.1", 21, 1), ("web.1", 11, 1), ("web.2", 12, 2)];

/// What Docker makes at its start, in its words for nf_tables: a policy, and a chain for the administrator that is
/// jumped to first.
const DOCKER: &str = "add table ip filter
    add chain ip filter DOCKER-USER
    add rule ip filter DOCKER-USER counter return
    add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }
    add rule ip filter FORWARD counter jump DOCKER-USER
    add rule ip filter FORWARD oifname docker0 counter accept";
const ADMINISTRATOR: &str = "add table inet firewall
    add chain inet firewall forwarded { type filter hook forward priority 10; policy drop; }";

fn run(namespace: &NetNs, program: &str, words: &[&str]) -> std::io::Result<String> {
    let done = namespace.visit(|| Command::new(program).args(words).output())?;
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout).unwrap())
}

fn nft(namespace: &NetNs, words: &str) -> String {
    run(namespace, "nft", &[words]).unwrap()
}

fn ours(namespace: &NetNs, chain: &str) -> Vec<String> {
    let text = nft(namespace, &format!("list chain {chain}"));
    text.lines().filter(|line| line.contains("made by shoal")).map(|line| line.trim().to_owned()).collect()
}

struct Scene {
    world: World,
    app: Task,
    _tasks: Vec<Task>,
    _greeters: Vec<Greeter>,
}

impl Scene {
    /// Two hosts with tasks; on host 1 whatever `before` makes was there first.
    fn new(before: &str) -> Option<Scene> {
        if !possible() {
            return None;
        }
        if Command::new("nft").arg("--version").output().is_err() {
            println!("skipped: the program nft is not installed");
            return None;
        }
        let world = World::new(2);
        if !before.is_empty() {
            nft(&world.host(1).namespace, before);
        }
        world.set_desired_everywhere(&desired(1, &PLACES, 2));
        let app = Task::new("app.1", 21, false);
        world.attach(1, &app, None);
        let (mut tasks, mut greeters) = (Vec::new(), Vec::new());
        for (name, last, host) in &PLACES[1..] {
            let task = Task::new(name, *last, true);
            world.attach(*host, &task, None);
            greeters.push(Greeter::start(&task.namespace, 80, name));
            tasks.push(task);
        }
        Some(Scene { world, app, _tasks: tasks, _greeters: greeters })
    }

    fn host(&self) -> &NetNs {
        &self.world.host(1).namespace
    }

    /// The mesh through host 1 to both tasks, from outside and from a task, and the way out of a task there.
    fn works(&self) -> Result<(), String> {
        // Short, so that a packet that was lost before a repair does not count after it.
        let patience = Duration::from_millis(900);
        for from in [&self.world.client, &self.world.host(2).namespace, &self.app.namespace] {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 {
                seen.insert(
                    greet_within(from, host_address(1), 8080, patience).map_err(|e| e.to_string())?.replace(' ', "\n"),
                );
            }
            if seen.len() < 2 {
                return Err(format!("not balanced: {seen:?}"));
            }
        }
        match greet_within(&self.app.namespace, CLIENT, 1, patience) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("the way out: {other:?}")),
        }
    }

    #[track_caller]
    fn works_within_five_seconds(&self) {
        let (start, begun) = (Instant::now(), given());
        while let Err(error) = self.works() {
            assert!(given() - begun < Duration::from_secs(5), "{error}");
        }
        println!("after {:?}", start.elapsed());
    }
}

#[test]
fn published_ports_and_the_way_out_work_beside_dockers_firewall() {
    let Some(scene) = Scene::new(DOCKER) else { return };
    scene.works_within_five_seconds();
    let rules = ours(scene.host(), "ip filter FORWARD");
    assert_eq!(rules.len(), 4, "{rules:?}");
    // Ours are the last: what the others' rules say comes first.
    let all = nft(scene.host(), "list chain ip filter FORWARD");
    assert!(all.find("docker0").unwrap() < all.find("made by shoal").unwrap(), "{all}");
    // Docker and administrators list this chain with iptables, which must understand what is there.
    if let Ok(listed) = run(scene.host(), "iptables-nft", &["-S", "FORWARD"]) {
        assert!(listed.contains("-A FORWARD -i she-n1") && listed.contains("-o shi-n1"), "{listed}");
    } else {
        println!("not checked with iptables: it is not installed");
    }
    // Nothing else passes that did not pass before.
    nft(scene.host(), "insert rule ip filter DOCKER-USER tcp dport 80 counter drop");
    assert!(greet(&scene.world.client, host_address(1), 8080).is_err(), "an administrator's rule counts");
}

#[test]
fn a_firewall_that_comes_later_or_comes_anew_is_met_too() {
    let Some(scene) = Scene::new("") else { return };
    scene.works_within_five_seconds();
    for (made, chain) in [(DOCKER, "ip filter FORWARD"), (ADMINISTRATOR, "inet firewall forwarded")] {
        nft(scene.host(), made);
        scene.works_within_five_seconds();
        assert_eq!(ours(scene.host(), chain).len(), 4);
        // As on a restart of its owner, and as by somebody who tidies up.
        nft(scene.host(), &format!("flush chain {chain}"));
        scene.works_within_five_seconds();
        assert_eq!(ours(scene.host(), chain).len(), 4);
    }
    // Where nothing is dropped any more, ours are not needed.
    nft(scene.host(), "chain inet firewall forwarded { policy accept; }");
    let begun = given();
    while !ours(scene.host(), "inet firewall forwarded").is_empty() {
        assert!(given() - begun < Duration::from_secs(5), "they stay");
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.world.runtime.block_on(scene.world.host(1).overlay.clone().destroy()).unwrap();
    assert_eq!(ours(scene.host(), "ip filter FORWARD"), Vec::<String>::new(), "all are gone with the overlay");
    assert!(nft(scene.host(), "list chain ip filter FORWARD").contains("policy drop"), "and nothing of others is");
}

#[test]
fn tasks_are_reached_by_what_they_publish_alone() {
    let Some(scene) = Scene::new(DOCKER) else { return };
    scene.works_within_five_seconds();
    // A neighbour that knows the way to the tasks' own addresses does not get there.
    let mut client = Links::open(&scene.world.client).unwrap();
    for net in ["172.30.0.0/16", "10.0.0.0/24"] {
        client.add_route(net.parse().unwrap(), Some(host_address(1)), "u0").unwrap();
    }
    let own = Links::open(&scene.app.namespace).unwrap().addresses().unwrap();
    let out = own.iter().map(|(_, net)| net.addr()).find(|address| address.octets()[0] == 172).unwrap();
    let _listening = Greeter::start(&scene.app.namespace, 80, "app.1");
    for address in [out, Ipv4Addr::new(10, 0, 0, 11)] {
        let error = greet(&scene.world.client, address, 80).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{address}");
    }
}

#[test]
fn obstacles_are_told_apart() {
    let Some(scene) = Scene::new(DOCKER) else { return };
    scene.works_within_five_seconds();
    let found = || {
        let overlay = scene.world.host(1).overlay.clone();
        scene.world.runtime.block_on(overlay.examine_firewalls()).unwrap()
    };
    assert_eq!(found(), [], "our rules are in the chain whose policy drops");
    let chain = || "filter FORWARD".to_owned();
    nft(scene.host(), "add rule ip filter FORWARD counter drop");
    assert_eq!(found(), [FirewallObstacle::DropsRest { chain: chain() }]);
    nft(scene.host(), "insert rule ip filter DOCKER-USER iifname she-n1 drop");
    let named = FirewallObstacle::DropsOurs { chain: "filter DOCKER-USER".to_owned(), link: "she-n1".to_owned() };
    assert_eq!(found(), [named, FirewallObstacle::DropsRest { chain: chain() }]);
}

/// A wire of its own between a host and a neighbour, who knows the way to the client of the first wire through the host.
fn neighbour(host: &NetNs, link: &str, net: u8) -> NetNs {
    let other = NetNs::anonymous().unwrap();
    let (mut near, mut far) = (Links::open(host).unwrap(), Links::open(&other).unwrap());
    near.create_veth_into(link, None, 1500, &Peer { namespace: &other, name: "n0", mac: None }).unwrap();
    near.add_address(link, format!("10.{net}.0.1/24").parse().unwrap()).unwrap();
    far.add_address("n0", format!("10.{net}.0.2/24").parse().unwrap()).unwrap();
    near.set_up(link).unwrap();
    far.set_up("n0").unwrap();
    near.wait_running(link, PATIENCE).unwrap();
    far.wait_running("n0", PATIENCE).unwrap();
    far.add_route("10.77.0.0/24".parse().unwrap(), Some(Ipv4Addr::new(10, net, 0, 1)), "n0").unwrap();
    other
}

#[test]
fn a_host_that_was_no_router_does_not_become_one() {
    if !possible() {
        return;
    }
    let mut world = World::new(2);
    let off = |host: &NetNs| host.set_sysctl("ipv4/ip_forward", "0").unwrap();
    world.hosts.iter().for_each(|host| off(&host.namespace));
    let mut client = Links::open(&world.client).unwrap();
    let before: Vec<NetNs> = [(1, 101), (2, 102)]
        .map(|(number, net)| {
            let route = format!("10.{net}.0.0/24").parse().unwrap();
            client.add_route(route, Some(host_address(number)), "u0").unwrap();
            neighbour(&world.host(number).namespace, "lan", net)
        })
        .into();
    // Host 2 is a router.
    world.host(2).namespace.set_sysctl("ipv4/ip_forward", "1").unwrap();
    let _outside = Greeter::start(&world.client, 7000, "outside");
    let stopped = |from: &NetNs| greet_within(from, CLIENT, 7000, Duration::from_millis(400)).is_err();
    let passes = |from: &NetNs| greet_within(from, CLIENT, 7000, PATIENCE).is_ok();
    assert!(stopped(&before[0]) && passes(&before[1]));

    world.set_desired_everywhere(&desired(1, &PLACES, 2));
    let web = Task::new("web.1", 11, true);
    world.attach(1, &web, None);
    let _greeter = Greeter::start(&web.namespace, 80, "web.1");
    let check = |world: &World| {
        assert!(greet(&world.client, host_address(1), 8080).unwrap().starts_with("web.1"));
        assert!(stopped(&before[0]), "it routes");
        assert!(passes(&before[1]), "it was a router, and is none any more");
        // What is published is for everybody who reaches the host.
        assert!(greet(&before[0], Ipv4Addr::new(10, 101, 0, 1), 8080).unwrap().starts_with("web.1"));
    };
    // A port of the second task would be on host 2, where nothing is.
    world.set_desired_everywhere(&desired(2, &PLACES[..2], 2));
    check(&world);
    // Links of others who came later, and know that the host forwards.
    client.add_route("10.103.0.0/24".parse().unwrap(), Some(host_address(1)), "u0").unwrap();
    assert!(passes(&neighbour(&world.host(1).namespace, "docker0", 103)));
    world.restart(1);
    world.set_desired(1, &for_host(&desired(3, &PLACES[..2], 2), 1));
    world.attach(1, &web, None);
    check(&world);
    for number in [1, 2] {
        world.runtime.block_on(world.host(number).overlay.clone().destroy()).unwrap();
    }
    assert!(stopped(&before[0]) && passes(&before[1]), "as it was");
}
