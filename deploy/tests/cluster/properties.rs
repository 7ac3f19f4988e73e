//! Random operations on the fake cluster. What holds after every transaction is in `sim/checks.rs`; here is what must
//! come of it once faults stop. `CASES=2000 SEED=3` runs more and others; a failure prints the operations, shrunk.

use std::time::Duration;

use crate::sim::{self, Sim};
use deploy::dispatcher::{AssignmentSet, assignment};
use deploy::model::{NodeRole, ServiceMode, TaskState};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs a property: 24 cases from a fixed seed, or as `CASES` and `SEED` say.
fn runner() -> TestRunner {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let cases = number("CASES").map_or(24, |n| n as u32);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("SEED").unwrap_or(1).to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

const HOSTS: [&str; 4] = ["n1", "n2", "n3", "n4"];
const SERVICES: [&str; 3] = ["web", "db", "agent"];

/// One operation, from random numbers; what makes no sense in the present state does nothing.
#[derive(Clone, Debug)]
enum Step {
    Create(usize, Vec<String>),
    Update(usize, Vec<String>),
    Scale(usize, u64),
    Rollback(usize),
    Remove(usize),
    Cut(usize),
    Kill(usize),
    Restart(usize),
    Up(usize),
    Drain(usize),
    Pause(usize),
    Activate(usize),
    Label(usize, bool),
    Leader,
    Advance(u64),
}

fn options() -> impl Strategy<Value = Vec<String>> {
    let option = prop_oneof![
        (0..6u64).prop_map(|n| format!("args=v{n}")),
        (0..3u64).prop_map(|n| format!("args=v{n},stop=2s")),
        Just("args=crash=1s".to_owned()),
        Just("args=reject".to_owned()),
        Just("args=nostart".to_owned()),
        Just("args=exit=2s".to_owned()),
        Just("args=v9,pull=3s".to_owned()),
        Just("order=start-first".to_owned()),
        (0..4u64).prop_map(|n| format!("parallelism={n}")),
        Just("update-delay=1s".to_owned()),
        Just("failure=rollback".to_owned()),
        Just("failure=continue".to_owned()),
        Just("ratio=0.5".to_owned()),
        Just("monitor=2s".to_owned()),
        Just("restart=on-failure".to_owned()),
        Just("restart=none".to_owned()),
        (1..4u64).prop_map(|n| format!("delay={n}s")),
        (1..3u64).prop_map(|n| format!("attempts={n}")),
        Just("window=5s".to_owned()),
        Just("constraint=node.labels.zone==a".to_owned()),
        Just("no-constraints".to_owned()),
        Just("spread=node.labels.zone".to_owned()),
        Just("mem=1g".to_owned()),
        Just("max=1".to_owned()),
        Just("hostport=8080:80".to_owned()),
        Just("port=9090:80".to_owned()),
        Just("network=net".to_owned()),
        Just("force".to_owned()),
    ];
    prop::collection::vec(option, 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    let (service, host) = (0..SERVICES.len(), 0..HOSTS.len());
    prop_oneof![
        3 => (service.clone(), options()).prop_map(|(s, o)| Step::Create(s, o)),
        5 => (service.clone(), options()).prop_map(|(s, o)| Step::Update(s, o)),
        3 => (service.clone(), 0..7u64).prop_map(|(s, n)| Step::Scale(s, n)),
        1 => service.clone().prop_map(Step::Rollback),
        1 => service.prop_map(Step::Remove),
        1 => host.clone().prop_map(Step::Cut),
        1 => host.clone().prop_map(Step::Kill),
        1 => host.clone().prop_map(Step::Restart),
        2 => host.clone().prop_map(Step::Up),
        1 => host.clone().prop_map(Step::Drain),
        1 => host.clone().prop_map(Step::Pause),
        2 => host.clone().prop_map(Step::Activate),
        1 => (host, any::<bool>()).prop_map(|(h, a)| Step::Label(h, a)),
        1 => Just(Step::Leader),
        6 => (0..4000u64).prop_map(Step::Advance),
    ]
}

fn cluster() -> Sim {
    let mut sim = Sim::new(7);
    for host in HOSTS {
        sim.add_host(host, NodeRole::Worker, |_| ());
    }
    sim.run("network create net");
    sim
}

impl Sim {
    /// A command; a refusal is as good as an answer.
    fn run(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let _ = self.command(&words);
    }

    fn is_down(&self, host: &str) -> bool {
        !self.hosts[host].connected
    }

    fn apply(&mut self, step: &Step) {
        let exists = |sim: &Sim, s: usize| sim.store.service_by_name(SERVICES[s]).is_some();
        match step {
            Step::Create(s, options) if !exists(self, *s) => {
                let mode = if *s == 2 { "global" } else { "replicas=3" };
                self.run(&format!("service create {} {mode} {}", SERVICES[*s], options.join(" ")));
            }
            Step::Update(s, options) if exists(self, *s) => {
                self.run(&format!("service update {} {}", SERVICES[*s], options.join(" ")));
            }
            Step::Scale(s, count) if exists(self, *s) && *s != 2 => {
                self.run(&format!("service scale {} {count}", SERVICES[*s]));
            }
            Step::Rollback(s) if exists(self, *s) => self.run(&format!("service rollback {}", SERVICES[*s])),
            Step::Remove(s) if exists(self, *s) => self.run(&format!("service rm {}", SERVICES[*s])),
            Step::Cut(h) if !self.is_down(HOSTS[*h]) => self.cut(HOSTS[*h]),
            Step::Kill(h) if !self.is_down(HOSTS[*h]) => self.kill(HOSTS[*h]),
            Step::Restart(h) if !self.is_down(HOSTS[*h]) => self.restart_daemon(HOSTS[*h]),
            Step::Up(h) if self.is_down(HOSTS[*h]) => self.connect(HOSTS[*h]),
            Step::Drain(h) => self.run(&format!("node drain {}", HOSTS[*h])),
            Step::Pause(h) => self.run(&format!("node pause {}", HOSTS[*h])),
            Step::Activate(h) => self.run(&format!("node activate {}", HOSTS[*h])),
            Step::Label(h, a) => self.run(&format!("node label {} zone={}", HOSTS[*h], if *a { "a" } else { "b" })),
            Step::Leader => self.change_leader(),
            Step::Advance(ms) => self.advance(Duration::from_millis(*ms)),
            _ => {}
        }
    }

    /// Faults stop.
    fn heal(&mut self) {
        for host in HOSTS {
            if self.is_down(host) {
                self.connect(host);
            }
            self.run(&format!("node activate {host}"));
            self.run(&format!("node label {host} zone=a"));
        }
    }

    /// Replicas are as desired, every agent runs exactly what is wanted, nothing is left behind.
    fn check_quiet(&self) {
        for service in self.store.services() {
            let tasks = self.tasks_of(&service.id);
            let wanted = match &service.spec.mode {
                Some(ServiceMode::Global(_)) => HOSTS.len(),
                _ => service.spec.replicas().unwrap_or(1) as usize,
            };
            let running = tasks.iter().filter(|t| t.is_wanted() && t.state() == TaskState::Running).count();
            let states: Vec<_> =
                tasks.iter().map(|t| (t.slot, t.ordinal, t.state(), t.desired(), &t.status.err)).collect();
            assert_eq!(running, wanted, "{}: {states:?} {:?}", service.spec.name, service.update_status);
        }
        for task in self.store.tasks().filter(|t| !t.is_wanted()) {
            let name = format!("{}.{}#{}", task.service_name, task.slot, task.ordinal);
            assert!(task.has_ended(), "{name} is not over: {:?} {:?}", task.state(), task.desired());
        }
        for (name, host) in &self.hosts {
            let should: Vec<_> =
                self.store.tasks_on_node(&host.id).filter(|t| t.is_wanted()).map(|t| t.id.clone()).collect();
            assert_eq!(host.running.iter().cloned().collect::<Vec<_>>(), should, "{name}");
            let known: Vec<_> = host.tasks.keys().cloned().collect();
            let stored: Vec<_> = self.store.tasks_on_node(&host.id).map(|t| t.id.clone()).collect();
            assert_eq!(known, stored, "{name} holds what the cluster forgot");
        }
    }
}

/// Whatever was done: after the faults stop and the services are given a sane spec, they run as wanted.
#[test]
fn random_operations_come_to_rest() {
    let mut runner = runner();
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            let mut sim = cluster();
            for step in &steps {
                sim.apply(step);
            }
            sim.heal();
            for service in SERVICES {
                if sim.store.service_by_name(service).is_some() {
                    let _ = sim.update_service(service, |spec| {
                        let (mode, name) = (spec.mode.clone(), spec.name.clone());
                        *spec = deploy::model::ServiceSpec { mode, name, ..Default::default() };
                        spec.task.container.image = "shoal/test:2".into();
                        spec.task.force_update = 1;
                    });
                }
            }
            sim.settle(Duration::from_secs(3600));
            sim.check_quiet();
            Ok(())
        })
        .expect("property");
}

/// Without failures, an update never takes down more slots than its parallelism; with start-first none at all.
#[test]
fn updates_respect_their_parallelism() {
    let cases = (1..8u64, 1..4u64, any::<bool>(), prop::collection::vec((0..3u8, 0..1500u64), 0..12));
    let mut runner = runner();
    runner
        .run(&cases, |(replicas, parallelism, start_first, events)| {
            let mut sim = cluster();
            let order = if start_first { "start-first" } else { "stop-first" };
            sim.run(&format!(
                "service create web replicas={replicas} args=v0,stop=1s parallelism={parallelism} order={order}"
            ));
            sim.settle(Duration::from_secs(600));
            let most = if start_first { 0 } else { parallelism as usize };
            sim.checks.most_down.insert("web".into(), most);
            sim.run("service update web args=v1,pull=1s monitor=1s");
            for (what, ms) in events {
                match what {
                    0 => sim.change_leader(),
                    1 => sim.run("node label n1 x=y"),
                    _ => {}
                }
                sim.advance(Duration::from_millis(ms));
            }
            sim.settle(Duration::from_secs(600));
            sim.check_quiet();
            let updated = sim
                .tasks_of(&sim.service("web").id)
                .iter()
                .filter(|t| t.is_wanted())
                .all(|t| t.spec.container.args.first().is_some_and(|a| a == "v1"));
            prop_assert!(updated);
            Ok(())
        })
        .expect("property");
}

/// Deltas, in any grouping, lead to the set that is computed at once.
#[test]
fn deltas_add_up() {
    let mut runner = runner();
    runner
        .run(&prop::collection::vec((step(), any::<bool>()), 1..30), |steps| {
            let mut sim = cluster();
            let host = sim::node_id("n1");
            let mut known = AssignmentSet::default();
            for (step, look) in &steps {
                sim.apply(step);
                if *look {
                    let new = assignment(&sim.store, &host);
                    let delta = known.diff(&new);
                    known.apply(delta.clone());
                    prop_assert_eq!(&known, &new);
                    known.apply(delta);
                    prop_assert_eq!(&known, &new);
                }
            }
            Ok(())
        })
        .expect("property");
}
