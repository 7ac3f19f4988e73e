//! What others change behind the overlay's back is repaired within five seconds, and logged: rules, links, entries,
//! addresses, routes and values, in the host's namespace, the node's own and the tasks'.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are test code")]

mod world;

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_net::Desired;
use overlay_net::kernel::{Links, NetNs, Peer, Tables};
use overlay_net::plan::ruleset::{Chain, Family, Table};
use world::*;

/// How long a repair may take.
const TARGET: Duration = Duration::from_secs(5);

const PLACES: [(&str, u8, u8); 2] = [("app.1", 21, 1), ("web.2", 12, 2)];

fn nft(namespace: &NetNs, words: &str) {
    let done = namespace.visit(|| Command::new("nft").arg(words).output()).unwrap();
    assert!(done.status.success(), "nft {words}: {}", String::from_utf8_lossy(&done.stderr));
}

/// What `nft` shows of our table of a family.
fn listing(namespace: &NetNs, family: &str) -> String {
    let done = namespace.visit(|| Command::new("nft").args(["list", "table", family, "shoal"]).output()).unwrap();
    String::from_utf8(done.stdout).unwrap()
}

fn has_nft() -> bool {
    let there = Command::new("nft").arg("--version").output().is_ok();
    if !there {
        println!("skipped: the program nft is not installed");
    }
    there
}

/// Waits until a state is there again; it must be within the target.
#[track_caller]
fn repaired(what: &str, mut fine: impl FnMut() -> bool) {
    let (start, begun) = (Instant::now(), given());
    while !fine() {
        assert!(given() - begun < TARGET, "{what} is not repaired after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{what}: {:?}", start.elapsed());
}

/// How many warnings have all of these words.
fn told_of(words: &[&str]) -> usize {
    warnings().iter().filter(|text| words.iter().all(|word| text.contains(word))).count()
}

#[track_caller]
fn logged(words: &[&str]) {
    assert!(told_of(words) > 0, "{words:?} is not in {:#?}", warnings());
}

struct Scene {
    world: World,
    app: Task,
    web: Task,
    _greeter: Greeter,
}

impl Scene {
    fn new() -> Option<Scene> {
        Scene::of(&desired(1, &PLACES, 2))
    }

    fn of(desired: &Desired) -> Option<Scene> {
        if !possible() {
            return None;
        }
        listen_to_warnings();
        let world = World::new(2);
        world.set_desired_everywhere(desired);
        let (app, web) = (Task::new("app.1", 21, false), Task::new("web.2", 12, true));
        world.attach(1, &app, None);
        world.attach(2, &web, None);
        let greeter = Greeter::start(&web.namespace, 80, "web.2");
        let scene = Scene { world, app, web, _greeter: greeter };
        repaired("nothing", || scene.works());
        Some(scene)
    }

    /// Virtual address, names, the mesh through both hosts with the client's own address, and the way out.
    fn works(&self) -> bool {
        // Short, so that a packet that was lost before the repair does not count after it.
        let patience = Duration::from_millis(900);
        let via = |host| {
            greet_within(&self.world.client, host_address(host), 8080, patience)
                .is_ok_and(|said| said == format!("web.2 {CLIENT}"))
        };
        let out = |task: &Task| {
            greet_within(&task.namespace, CLIENT, 1, patience).is_err_and(|error| error.kind() == REFUSED)
        };
        greet_within(&self.app.namespace, web(2), 80, patience).is_ok()
            && look_up_within(&self.app.namespace, "web", patience).is_ok_and(|(_, found)| found == [web(2)])
            && via(1)
            && via(2)
            && out(&self.app)
            && out(&self.web)
    }

    fn inner(&self, host: u8) -> NetNs {
        NetNs::open(&self.world.pin(host)).unwrap()
    }
}

/// Nobody listens at the client's port 1; that it says so needs the way there and back.
const REFUSED: std::io::ErrorKind = std::io::ErrorKind::ConnectionRefused;

#[test]
fn flushed_rules_come_back_everywhere() {
    let Some(scene) = Scene::new().filter(|_| has_nft()) else { return };
    for (namespace, what) in [
        (&scene.world.host(1).namespace, "the host's rules"),
        (&scene.app.namespace, "the rules of task app.1"),
        (&scene.web.namespace, "the rules of task web.2"),
    ] {
        nft(namespace, "flush ruleset");
        repaired(what, || scene.works());
        logged(&[what, "table shoal is missing"]);
    }
}

#[test]
fn changed_rules_are_changed_back() {
    let Some(scene) = Scene::new().filter(|_| has_nft()) else { return };
    let (host, app, web) = (&scene.world.host(1).namespace, &scene.app.namespace, &scene.web.namespace);
    for (namespace, family, words, told) in [
        (
            app,
            "ip",
            "delete element ip shoal backends-of-1 { 10.0.1.2 . 0 }",
            "1 elements of backends-of-1 are missing",
        ),
        (app, "ip", "flush chain ip shoal translate", "rules of chain translate were changed"),
        (app, "ip", "insert rule ip shoal translate ip daddr 10.0.1.2 counter accept", "rules of chain translate"),
        (app, "ip", "chain ip shoal translate { policy drop; }", "chain translate was changed"),
        (app, "ip", "add table ip shoal { flags dormant; }", "table shoal is dormant"),
        (web, "netdev", "delete table netdev shoal", "table shoal is missing"),
        (host, "ip", "add element ip shoal tcp-ports { 9999 : goto tcp-8080 }", "1 were added"),
        (host, "ip", "delete table ip shoal", "table shoal is missing"),
    ] {
        let before = listing(namespace, family);
        let known = told_of(&[told]);
        nft(namespace, words);
        // It may be repaired before anybody else can look, but not without being told.
        repaired(words, || told_of(&[told]) > known && listing(namespace, family) == before);
    }
    repaired("everything", || scene.works());
}

#[test]
fn deleted_links_come_back() {
    let Some(scene) = Scene::new() else { return };
    let host = &scene.world.host(1).namespace;
    let (inner, other) = (scene.inner(1), scene.inner(2));
    for (namespace, link, told) in [
        (host, "she-n1", "she-n1 is missing"),
        (host, "shi-n1", "make the host's place"),
        (&inner, "uplink", "she-n1 is missing"),
        (&inner, "egress", "the bridge of the way out"),
        (&inner, "br-100001", "make bridge 100001 of network webnet"),
        (&inner, "vx-100001", "make tunnel 100001"),
        (&other, "br-100000", "make bridge 100000 of network ingressnet"),
        (&scene.app.namespace, "eth0", "eth0 is missing"),
        (&scene.web.namespace, "eth1", "eth1 is missing"),
    ] {
        Links::open(namespace).unwrap().delete(link).unwrap();
        repaired(link, || scene.works());
        logged(&[told]);
    }
}

#[test]
fn a_change_that_meets_what_somebody_has_deleted_brings_it_back() {
    let Some(scene) = Scene::new() else { return };
    let mut links = Links::open(&scene.inner(1)).unwrap();
    links.delete("vx-100001").unwrap();
    let places = [PLACES[0], PLACES[1], ("api.1", 19, 2)];
    scene.world.set_desired(1, &for_host(&desired(2, &places, 2), 1));
    // By then, and not when somebody looks after it by and by.
    assert!(links.find("vx-100001").unwrap().is_some());
    logged(&["make tunnel 100001"]);
    repaired("everything", || scene.works());
}

#[test]
fn links_that_are_bent_are_straightened() {
    let Some(scene) = Scene::new() else { return };
    let (inner, other) = (scene.inner(1), scene.inner(2));
    let port = |namespace: &NetNs, task: &str| {
        let links = Links::open(namespace).unwrap().list().unwrap();
        let own = |alias: &str| alias.starts_with(&format!("shoal task {task} webnet"));
        links.into_iter().find(|link| own(&link.alias)).unwrap().name
    };
    for (namespace, link) in [
        (&inner, "br-100001".to_owned()),
        (&inner, "vx-100001".into()),
        (&inner, port(&inner, "app.1")),
        (&inner, "host".into()),
        (&inner, "egress".into()),
        (&scene.world.host(1).namespace, "she-n1".into()),
        (&scene.world.host(1).namespace, "shi-n1".into()),
        (&scene.app.namespace, "eth0".into()),
    ] {
        Links::open(namespace).unwrap().set_down(&link).unwrap();
    }
    repaired("links that are down", || scene.works());
    let (port_of_app, port_of_web) = (port(&inner, "app.1"), port(&other, "web.2"));
    for (namespace, link) in [(&inner, &port_of_app), (&other, &port_of_web)] {
        Links::open(namespace).unwrap().set_controller(link, None).unwrap();
    }
    repaired("links without a bridge", || scene.works());
    for link in [&port_of_app, &port_of_web] {
        logged(&[&format!("connect link {link}")]);
    }
    let mut app = Links::open(&scene.app.namespace).unwrap();
    let address = "10.0.1.21/24".parse().unwrap();
    app.delete_address("eth0", address).unwrap();
    repaired("an address", || scene.works());
    logged(&["eth0 has lost its address"]);
    app.set_mtu("eth0", 900).unwrap();
    repaired("an MTU", || app.find("eth0").unwrap().unwrap().mtu == 1450);
}

#[test]
fn a_default_route_is_the_tasks_to_take_away_and_comes_back_with_its_link() {
    let Some(mut scene) = Scene::new() else { return };
    let sockets = scene.world.attach(1, &scene.app, None).sockets;
    let mut app = Links::open(&scene.app.namespace).unwrap();
    let everything: ipnet::Ipv4Net = "0.0.0.0/0".parse().unwrap();
    let (gateway, link) = (Ipv4Addr::new(172, 30, 0, 1), "eth1");
    let routed = |links: &mut Links| links.routes().unwrap().iter().any(|(net, _)| *net == everything);
    // What is repaired after it was looked at.
    let look = |scene: &Scene| {
        let mut app = Links::open(&scene.app.namespace).unwrap();
        app.set_mtu("eth0", 900).unwrap();
        repaired("an MTU", || app.find("eth0").unwrap().unwrap().mtu == 1450);
        scene.world.runtime.block_on(scene.world.host(1).overlay.leave_out([].into())).unwrap();
    };
    // The link and what is on it come back together.
    app.delete(link).unwrap();
    repaired("a link and its route", || app.find(link).unwrap().is_some() && scene.works());
    logged(&["the default route is missing"]);
    look(&scene);
    // Somebody in the task wants nothing to leave by that link.
    app.delete_route(everything, Some(gateway), link).unwrap();
    look(&scene);
    assert!(!routed(&mut app), "it was put back");
    scene.world.restart(1);
    scene.world.set_desired(1, &for_host(&desired(2, &PLACES, 2), 1));
    scene.world.attach(1, &scene.app, Some(sockets));
    look(&scene);
    assert!(!routed(&mut app), "the next daemon has put it back");
    app.delete(link).unwrap();
    repaired("a link", || app.find(link).unwrap().is_some());
    look(&scene);
    assert!(!routed(&mut app), "it came back with its link, and had been taken away before");
    // It is wanted again.
    app.add_route(everything, Some(gateway), link).unwrap();
    repaired("everything", || scene.works());
    // Another one takes its place, as that of a tunnel; what is repaired leaves it there.
    app.add_route(everything, Some(web(12)), "eth0").unwrap();
    look(&scene);
    app.delete(link).unwrap();
    repaired("a link", || app.find(link).unwrap().is_some());
    look(&scene);
    let index = app.index("eth0").unwrap();
    assert!(app.routes().unwrap().contains(&(everything, index)));
}

#[test]
fn a_task_that_fills_its_namespace_is_left_alone_until_it_has_less() {
    let Some(mut scene) = Scene::new() else { return };
    let sockets = scene.world.attach(1, &scene.app, None).sockets;
    let mut app = Links::open(&scene.app.namespace).unwrap();
    let nowhere = NetNs::anonymous().unwrap();
    app.create_veth_into("full0", None, 1500, &Peer { namespace: &nowhere, name: "x", mac: None }).unwrap();
    for n in 0..16_000u32 {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 201, 0, 0)) + n);
        app.add_address("full0", address.into()).unwrap();
    }
    let words = ["app.1", "left alone"];
    repaired("that it is said", || told_of(&words) == 1);
    app.set_mtu("eth0", 900).unwrap();
    // Others are looked after, in rounds that come after that.
    for _ in 0..2 {
        Links::open(&scene.world.host(1).namespace).unwrap().set_mtu("she-n1", 1000).unwrap();
        let mut host = Links::open(&scene.world.host(1).namespace).unwrap();
        repaired("another one", || host.find("she-n1").unwrap().unwrap().mtu == 1500);
        scene.world.runtime.block_on(scene.world.host(1).overlay.leave_out([].into())).unwrap();
    }
    assert_eq!((app.find("eth0").unwrap().unwrap().mtu, told_of(&words)), (900, 1));
    // The next daemon takes it as it is, also with more rules than anybody reads.
    let mut rules = Table::new(Family::Ip, "full", String::new());
    rules.chains = (0..15_000).map(|n| (format!("chain-{n}"), Chain::default())).collect();
    let mut tables = Tables::open(&scene.app.namespace).unwrap();
    tables.replace(&rules).unwrap();
    scene.world.restart(1);
    scene.world.set_desired(1, &for_host(&desired(2, &PLACES, 2), 1));
    scene.world.attach(1, &scene.app, Some(sockets));
    app.delete("full0").unwrap();
    repaired("an MTU", || app.find("eth0").unwrap().unwrap().mtu == 1450);
    tables.delete(&["full", "shoal"]).unwrap();
    repaired("everything", || scene.works());
}

#[test]
fn a_network_made_for_a_narrow_underlay_follows_only_a_narrower_one() {
    let mut all = desired(1, &PLACES, 2);
    let networks = all.networks.iter_mut().map(Arc::make_mut);
    networks.for_each(|network| network.mtu = Some(1300));
    let Some(scene) = Scene::of(&all) else { return };
    let mtu = |namespace: &NetNs, link: &str| Links::open(namespace).unwrap().find(link).unwrap().unwrap().mtu;
    let (host, inner, app) = (&scene.world.host(1).namespace, scene.inner(1), &scene.app.namespace);
    for (namespace, link) in [(app, "eth0"), (&inner, "vx-100001"), (&inner, "br-100001"), (host, "shi-n1")] {
        assert_eq!(mtu(namespace, link), 1250, "{link}");
    }
    assert_eq!(mtu(app, "eth1"), 1500, "the way out");
    assert_eq!(told_of(&["made for an MTU of 1300"]), 0);
    Links::open(host).unwrap().set_mtu("u0", 1400).unwrap();
    repaired("MTU of the way out", || mtu(app, "eth1") == 1400);
    assert_eq!(mtu(app, "eth0"), 1250);
    Links::open(host).unwrap().set_mtu("u0", 1200).unwrap();
    repaired("MTU of the network", || mtu(app, "eth0") == 1150);
    repaired("everything", || scene.works() && mtu(host, "shi-n1") == 1150);
    assert_eq!(told_of(&["made for an MTU of 1300", "has 1200", "links have 1150"]), 2, "once of each network");
}

#[test]
fn tasks_follow_a_smaller_underlay() {
    let Some(scene) = Scene::new() else { return };
    Links::open(&scene.world.host(1).namespace).unwrap().set_mtu("u0", 1400).unwrap();
    let mut app = Links::open(&scene.app.namespace).unwrap();
    repaired("MTU of the tunnel", || app.find("eth0").unwrap().unwrap().mtu == 1350);
    repaired("MTU of the way out", || app.find("eth1").unwrap().unwrap().mtu == 1400);
    repaired("everything", || scene.works());
}

#[test]
fn removed_entries_and_values_come_back() {
    let Some(scene) = Scene::new() else { return };
    let inner = scene.inner(1);
    let mut links = Links::open(&inner).unwrap();
    let index = |links: &mut Links, name: &str| links.index(name).unwrap();
    let (tunnel, bridge) = (index(&mut links, "vx-100001"), index(&mut links, "br-100001"));
    let mac = overlay_net::kernel::mac_of(web(12));
    let entries = |links: &mut Links| links.forwards().unwrap().iter().filter(|f| f.mac == mac).count();
    let before = entries(&mut links);
    assert_eq!(before, 2, "one of the tunnel, one of the bridge");
    links.delete_tunnel(tunnel, mac).unwrap();
    links.delete_forward(tunnel, mac).unwrap();
    links.delete_neighbour(bridge, web(12).into()).unwrap();
    let known = |links: &mut Links| links.neighbours().unwrap().contains(&(bridge, web(12).into(), mac));
    let told = || ["know 10.0.1.12", "is at 10.77.0.2", "behind the tunnel"].iter().all(|word| told_of(&[word]) > 0);
    repaired("entries", || told() && entries(&mut links) == before && known(&mut links));
    repaired("everything", || scene.works());

    let value = |namespace: &NetNs, name: &str| {
        let path = format!("/proc/sys/net/{name}");
        namespace.visit(|| std::fs::read_to_string(&path)).unwrap().trim().to_owned()
    };
    for (namespace, name, good, bad) in [
        (&scene.web.namespace, "ipv4/conf/eth1/rp_filter", "0", "1"),
        (&scene.web.namespace, "ipv4/conf/all/rp_filter", "0", "1"),
        (&scene.world.host(1).namespace, "ipv4/ip_forward", "1", "0"),
        (&scene.world.host(1).namespace, "ipv4/conf/shi-n1/route_localnet", "1", "0"),
        (&scene.world.host(1).namespace, "ipv4/conf/she-n1/route_localnet", "1", "0"),
    ] {
        namespace.set_sysctl(name, bad).unwrap();
        repaired(name, || value(namespace, name) == good);
    }
    logged(&["rp_filter is on"]);
    logged(&["ipv4/ip_forward was off"]);
    // The routes that came with the addresses of the host's links.
    let mut host = Links::open(&scene.world.host(1).namespace).unwrap();
    for (net, link) in [("172.30.0.0/16", "she-n1"), ("10.0.0.0/24", "shi-n1")] {
        let (net, index) = (net.parse().unwrap(), host.index(link).unwrap());
        host.delete_route(net, None, link).unwrap();
        repaired(link, || host.routes().unwrap().contains(&(net, index)));
        logged(&["the host's routes", link]);
    }
    // The way back to clients.
    let mut web_links = Links::open(&scene.web.namespace).unwrap();
    let gateway = Ipv4Addr::new(169, 254, 83, 72);
    let eth1 = web_links.index("eth1").unwrap();
    web_links.delete_neighbour(eth1, gateway.into()).unwrap();
    repaired("the gateway of replies", || web_links.neighbours().unwrap().iter().any(|n| n.1 == gateway));
    repaired("everything", || scene.works());
}

#[test]
fn a_restart_makes_no_transaction_where_nothing_changed() {
    let Some(mut scene) = Scene::new() else { return };
    let generations = |scene: &Scene| {
        [&scene.world.host(1).namespace, &scene.app.namespace]
            .map(|namespace| Tables::open(namespace).unwrap().generation().unwrap())
    };
    let attached = scene.world.attach(1, &scene.app, None);
    let before = generations(&scene);
    scene.world.restart(1);
    scene.world.set_desired(1, &for_host(&desired(2, &PLACES, 2), 1));
    scene.world.attach(1, &scene.app, Some(attached.sockets));
    scene.world.runtime.block_on(scene.world.host(1).overlay.retain(&["app.1".into()])).unwrap();
    assert_eq!(generations(&scene), before);
    repaired("everything", || scene.works());
}

#[test]
fn what_a_crash_left_in_the_host_is_known_and_removed() {
    if !possible() {
        return;
    }
    let world = World::new(1);
    let host = world.host(1);
    let left = || host.namespace.visit(|| Ok(overlay_net::Overlay::is_left(&host.config))).unwrap();
    world.runtime.block_on(host.overlay.clone().destroy()).unwrap();
    assert!(!left());
    let table = overlay_net::plan::ruleset::Table::new(overlay_net::plan::ruleset::Family::Ip, "shoal", "old".into());
    Tables::open(&host.namespace).unwrap().replace(&table).unwrap();
    assert!(left());
    let overlay = start(&host.namespace, &host.config);
    world.runtime.block_on(overlay.set_desired(overlay_net::Desired::default())).unwrap();
    assert_eq!(Tables::open(&host.namespace).unwrap().list().unwrap(), Vec::<String>::new());
    world.runtime.block_on(overlay.destroy()).unwrap();
    assert!(!left());
}

#[test]
fn a_bad_object_is_named_and_leaves_the_rest_in_force() {
    use overlay_net::{OverlayError, PortMode, Protocol, PublishedPort};
    let Some(scene) = Scene::new() else { return };
    let mut bad = for_host(&desired(2, &PLACES, 2), 1);
    bad.ports.insert(
        0,
        PublishedPort {
            published: 0,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PortMode::Host,
            backends: vec![],
            task: Some("app.1".into()),
        },
    );
    let mut network = (*bad.networks[0]).clone();
    (network.id, network.vni) = ("badnet".into(), 0);
    bad.networks.insert(0, network.into());
    bad.ports[1].published = 8081;
    let overlay = &scene.world.host(1).overlay;
    let error = scene.world.runtime.block_on(overlay.set_desired(bad)).unwrap_err();
    let OverlayError::Refused(refused) = &error else { panic!("{error:?}") };
    let texts: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("badnet") && texts[1].contains("task app.1"), "{texts:?}");
    assert!(!error.retry_helps());
    // What is refused holds up nothing, the confirmation included.
    assert_eq!(*overlay.applied_revision().borrow(), 2);
    assert!(greet(&scene.world.client, host_address(1), 8081).unwrap().starts_with("web.2"));
    // A task of a refused network is told why.
    let mut task = Task::new("app.3", 23, false);
    task.config.attachments[0].network = "badnet".into();
    let error = scene.world.runtime.block_on(overlay.attach(task.fd(), task.config.clone(), None)).unwrap_err();
    let OverlayError::Config(reason) = error else { panic!("{error:?}") };
    assert!(reason.to_string().contains("VNI 0"), "{reason}");
}
