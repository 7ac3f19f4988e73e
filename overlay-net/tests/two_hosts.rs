//! Two hosts on one wire, with the real kernel: what tasks, outside clients and hosts can reach, and that nothing
//! remains.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use overlay_net::kernel::{Links, NetNs, Tables};
use world::*;

/// web.1 on host 1, web.2 on host 2, and a client task on each.
fn usual() -> (World, BTreeMap<&'static str, Task>, Vec<Greeter>) {
    let world = World::new(2);
    world.set_desired_everywhere(&usual_desired(1));
    let mut tasks = BTreeMap::new();
    let mut greeters = Vec::new();
    for (name, last, host) in PLACES {
        let task = Task::new(name, last, name.starts_with("web"));
        world.attach(host, &task, None);
        greeters.push(Greeter::start(&task.namespace, 80, name));
        tasks.insert(name, task);
    }
    (world, tasks, greeters)
}

const PLACES: [(&str, u8, u8); 4] = [("web.1", 11, 1), ("web.2", 12, 2), ("app.1", 21, 1), ("app.2", 22, 2)];

fn usual_desired(revision: u64) -> overlay_net::Desired {
    desired(revision, &PLACES, 2)
}

#[test]
fn tasks_reach_each_other_by_address_name_and_virtual_address() {
    if !possible() {
        return;
    }
    let (_world, tasks, _greeters) = usual();
    for from in ["app.1", "app.2"] {
        let from = &tasks[from].namespace;
        for to in ["web.1", "web.2", "app.1", "app.2"] {
            let said = greet(from, tasks[to].address, 80).unwrap();
            assert!(said.starts_with(to), "{to}: {said}");
        }
        assert_eq!(look_up(from, "web").unwrap(), (0, vec![web(2)]));
        assert_eq!(look_up(from, "WWW.web-network").unwrap(), (0, vec![web(2)]));
        assert_eq!(look_up(from, "nosuch").unwrap(), (3, vec![]));
        let (code, mut all) = look_up(from, "tasks.web").unwrap();
        all.sort();
        assert_eq!((code, all), (0, vec![web(11), web(12)]));
        let mut seen = BTreeMap::new();
        for _ in 0..60 {
            let said = greet(from, web(2), 80).unwrap();
            *seen.entry(said.split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 2, "both tasks serve the virtual address: {seen:?}");
        assert!(seen.values().all(|count| *count >= 8), "balanced: {seen:?}");
    }
}

#[test]
fn a_published_port_answers_on_every_host_for_everybody() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    for number in [1, 2] {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let said = greet(&world.client, host_address(number), 8080).unwrap();
            seen.insert(said.split(' ').next().unwrap().to_owned());
        }
        assert_eq!(seen.len(), 2, "both tasks serve port 8080 of host {number}: {seen:?}");
        for host in [1, 2] {
            let from = &world.host(host).namespace;
            greet(from, host_address(number), 8080).unwrap();
        }
        let own = &world.host(number).namespace;
        for _ in 0..4 {
            let said = greet(own, std::net::Ipv4Addr::LOCALHOST, 8080).unwrap();
            assert!(said.ends_with(&format!(" {}", ingress_address(number))), "as its host: {said}");
        }
        for (name, _, host) in PLACES {
            // Tasks are seen as their host, which has an address for others and one among tasks.
            let expected = if host == number { ingress_address(host) } else { host_address(host) };
            // Often enough that tasks of the service ask themselves.
            for _ in 0..8 {
                let said = greet(&tasks[name].namespace, host_address(number), 8080).unwrap();
                assert!(said.ends_with(&format!(" {expected}")), "{name} through host {number}: {said}");
            }
        }
        let refused = greet(&world.client, host_address(number), 8081).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_published_port_shows_the_clients_own_address() {
    if !possible() {
        return;
    }
    let (world, _tasks, _greeters) = usual();
    for number in [1, 2] {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..30 {
            seen.insert(greet(&world.client, host_address(number), 8080).unwrap());
        }
        let expected = [format!("web.1 {CLIENT}"), format!("web.2 {CLIENT}")];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected, "through host {number}");
        for other in [1, 2] {
            let said = greet(&world.host(other).namespace, host_address(number), 8080).unwrap();
            let address = host_address(other).to_string();
            assert!(said.ends_with(&address), "host {other} through host {number}: {said}");
        }
    }
}

#[test]
fn tasks_have_a_way_out() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    let _outside = Greeter::start(&world.client, 7000, "outside");
    for (task, host) in [("app.1", 1), ("web.2", 2)] {
        let said = greet(&tasks[task].namespace, CLIENT, 7000).unwrap();
        assert_eq!(said, format!("outside {}", host_address(host)), "as the host's address");
    }
}

#[test]
fn a_service_without_endpoints_refuses_instead_of_hanging() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    let mut empty = usual_desired(2);
    for endpoint in &mut service_of(&mut empty).endpoints {
        endpoint.serving = false;
    }
    empty.ports[0].backends.clear();
    world.set_desired_everywhere(&empty);
    let refused = greet(&tasks["app.1"].namespace, web(2), 80).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let refused = greet(&world.client, host_address(1), 8080).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_suspected_host_gets_no_connections_unless_it_is_the_last() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    let overlay = &world.host(1).overlay;
    let from = &tasks["app.1"].namespace;
    let leave_out = |numbers: &[u8]| {
        let hosts = numbers.iter().map(|number| host_address(*number)).collect();
        world.runtime.block_on(overlay.leave_out(hosts)).unwrap();
    };
    let named = || look_up(from, "tasks.web").unwrap().1.into_iter().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(named().len(), 2);
    leave_out(&[2]);
    assert_eq!(named(), [tasks["web.1"].address].into());
    for _ in 0..20 {
        assert!(greet(from, web(2), 80).unwrap().starts_with("web.1"));
        assert!(greet(&world.client, host_address(1), 8080).unwrap().starts_with("web.1"));
    }
    leave_out(&[1, 2]);
    greet(from, web(2), 80).unwrap();
    assert_eq!(named().len(), 2);
    leave_out(&[]);
    let seen: std::collections::BTreeSet<_> = (0..40).map(|_| greet(from, web(2), 80).unwrap()).collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn a_restarted_daemon_adopts_what_is_there() {
    if !possible() {
        return;
    }
    let (mut world, tasks, _greeters) = usual();
    let before = link_names(&world.host(1).namespace);
    let attached = world.attach(1, &tasks["app.1"], None);
    let ports = attached.sockets.ports().unwrap();
    world.restart(1);
    // The kernel carries on alone.
    greet(&tasks["app.1"].namespace, web(2), 80).unwrap();
    world.set_desired(1, &for_host(&usual_desired(2), 1));
    assert_eq!(link_names(&world.host(1).namespace), before);
    // Its tasks still have the rules of before: the host must not say that it is as far.
    let applied = world.host(1).overlay.applied_revision();
    assert_eq!(*applied.borrow(), 0);
    // A new task does not get what one that is not adopted yet has.
    let late = world.attach(1, &Task::new("app.3", 23, false), None);
    assert!(late.gateway_address.is_some() && late.gateway_address != attached.gateway_address);
    // A query that is asked while nobody listens is answered after the adoption.
    let namespace = tasks["app.1"].namespace.try_clone().unwrap();
    let waiting = std::thread::spawn(move || look_up(&namespace, "web"));
    let attached = world.attach(1, &tasks["app.1"], Some(attached.sockets));
    assert_eq!(attached.sockets.ports().unwrap(), ports);
    assert_eq!(waiting.join().unwrap().unwrap(), (0, vec![web(2)]));
    assert_eq!(*applied.borrow(), 0);
    // What is not retained goes, with all of its links.
    world.runtime.block_on(world.host(1).overlay.retain(&["app.1".into()])).unwrap();
    assert_eq!(link_names(&tasks["web.1"].namespace), Vec::<String>::new());
    assert_eq!(link_names(&tasks["app.1"].namespace), ["eth0", "eth1"]);
    assert_eq!(*applied.borrow(), 2);
    greet(&tasks["app.1"].namespace, web(12), 80).unwrap();
}

#[test]
fn a_network_may_end_at_each_host() {
    if !possible() {
        return;
    }
    let world = World::new(2);
    let mut all = desired(1, &[("web.1", 11, 1), ("web.2", 12, 2), ("app.1", 21, 1)], 2);
    Arc::make_mut(&mut all.networks[0]).local = true;
    world.set_desired_everywhere(&all);
    let (near, far) = (Task::new("web.1", 11, true), Task::new("web.2", 12, true));
    let app = Task::new("app.1", 21, false);
    for (host, task) in [(1, &near), (2, &far), (1, &app)] {
        world.attach(host, task, None);
    }
    let _greeters = [(&near, "web.1"), (&far, "web.2")].map(|(task, name)| Greeter::start(&task.namespace, 80, name));
    eventually(|| greet(&app.namespace, web(11), 80));
    for _ in 0..8 {
        assert!(greet(&app.namespace, web(2), 80).unwrap().starts_with("web.1"), "balanced over this host alone");
    }
    assert_eq!(look_up(&app.namespace, "tasks.web").unwrap().1, [web(11)]);
    greet_within(&app.namespace, web(12), 80, Duration::from_millis(400)).unwrap_err();
    let inner = NetNs::open(&world.pin(1)).unwrap();
    assert!(Links::open(&inner).unwrap().find(&format!("vx-{WEB_VNI:x}")).unwrap().is_none());
    // What it publishes is served everywhere, by both.
    let said: BTreeSet<String> = (0..40)
        .map(|_| greet(&world.client, host_address(1), 8080).unwrap().split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn nothing_remains() {
    if !possible() {
        return;
    }
    let (mut world, tasks, _greeters) = usual();
    let overlay = world.host(1).overlay.clone();
    world.runtime.block_on(overlay.detach("app.1")).unwrap();
    assert_eq!(link_names(&tasks["app.1"].namespace), Vec::<String>::new());
    assert_eq!(Tables::open(&tasks["app.1"].namespace).unwrap().list().unwrap(), Vec::<String>::new());
    let pin = world.pin(1);
    assert!(NetNs::open(&pin).is_ok());
    world.runtime.block_on(overlay.destroy()).unwrap();
    let host = &world.host(1).namespace;
    assert_eq!(link_names(host), ["u0"]);
    assert_eq!(Tables::open(host).unwrap().list().unwrap(), Vec::<String>::new());
    assert!(!pin.exists());
    assert_eq!(link_names(&tasks["web.1"].namespace), Vec::<String>::new());
    assert_eq!(Tables::open(&tasks["web.1"].namespace).unwrap().list().unwrap(), Vec::<String>::new());
    // The same place can be used again at once: the VXLAN port is free.
    world.restart(1);
    world.set_desired(1, &for_host(&usual_desired(3), 1));
    world.attach(1, &tasks["app.1"], None);
    greet(&tasks["app.1"].namespace, web(12), 80).unwrap();
}
