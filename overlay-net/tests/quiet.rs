//! Where nobody else changes anything, nothing is repaired: what the overlay does itself is not taken for a change by
//! others.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is test code throughout")]

mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_net::{Desired, Service};
use world::*;

/// Services by the side of the one that there is: so many that tasks have rules for what is usual.
fn crowd(desired: &mut Desired) {
    let one = service_of(desired).clone();
    let another = |last: u8| Service { name: format!("other-{last}"), vip: Some(web(last)), ..one.clone() };
    Arc::make_mut(&mut desired.networks[0]).services.extend((100..220).map(another).map(Arc::new));
}

#[test]
fn tasks_and_services_come_and_go_without_a_repair() {
    if !possible() {
        return;
    }
    listen_to_warnings();
    let world = World::new(2);
    let start = Instant::now();
    let mut revision = 0;
    // Three rounds of looking after things, at every moment of a change.
    while start.elapsed() < Duration::from_secs(7) {
        revision += 1;
        let mut all = desired(revision, &[("app.1", 21, 1), ("web.2", 12, 2)], 2);
        if revision % 2 == 0 {
            crowd(&mut all);
        }
        world.set_desired_everywhere(&all);
        let (app, web_task) = (Task::new("app.1", 21, false), Task::new("web.2", 12, true));
        world.attach(1, &app, None);
        world.attach(2, &web_task, None);
        let greeter = Greeter::start(&web_task.namespace, 80, "web.2");
        assert!(greet(&app.namespace, web(2), 80).unwrap().starts_with("web.2"));
        assert!(greet(&world.client, host_address(1), 8080).unwrap().starts_with("web.2"));
        revision += 1;
        world.set_desired_everywhere(&desired(revision, &[("app.1", 21, 1)], 2));
        for (host, task) in [(1, "app.1"), (2, "web.2")] {
            world.runtime.block_on(world.host(host).overlay.detach(task)).unwrap();
        }
        drop(greeter);
        revision += 1;
        let mut less = desired(revision, &[], 2);
        less.networks.remove(0);
        world.set_desired_everywhere(&less);
    }
    println!("{revision} revisions");
    assert_eq!(warnings(), Vec::<String>::new());
}
