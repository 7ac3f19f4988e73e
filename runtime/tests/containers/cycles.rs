//! Containers come and go while daemons and shims are killed at random moments: nothing may stay behind.
//!
//! `cargo test -p runtime --test containers -- cycles:: cycles=1000 seed=7`; without the numbers it is a short run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::engine::{Engine, Outcome};
use super::fixture::{Fixture, image, processes_of, until};
use super::option;

pub const TESTS: &[(&str, fn())] = &[("cycles::killed_at_random", killed_at_random)];

/// Containers at a time.
const TOGETHER: u64 = 4;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn killed_at_random() {
    let (count, seed) = (option("cycles").unwrap_or(48), option("seed").unwrap_or(1));
    let mut fixture = Fixture::new();
    // Its place and its clean-up are used; the daemons are processes of their own.
    fixture.die();
    let mut world = World::new(&fixture, seed);
    let begin = Instant::now();
    for round in 0..count.div_ceil(TOGETHER) {
        let ids: Vec<String> = (0..TOGETHER.min(count - round * TOGETHER)).map(|n| format!("c{round}-{n}")).collect();
        world.round(&ids);
        for id in &ids {
            assert_eq!(world.traces(id), Vec::<String>::new(), "round {round}, seed {seed}");
        }
    }
    drop(world.engine);
    let took = begin.elapsed().as_secs_f64();
    println!("{count} cycles in {took:.1} s, seed {seed}; {}", world.tally.report());
    until("nothing is left behind", || fixture.leftovers().is_empty() && processes_of(fixture.path()).is_empty());
}

struct World<'a> {
    fixture: &'a Fixture,
    random: Random,
    engine: Engine,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    daemons: u64,
    shims: u64,
    unknown: u64,
    failed: BTreeMap<String, u64>,
}

impl Tally {
    fn report(&self) -> String {
        let failed: u64 = self.failed.values().sum();
        let (daemons, shims, unknown) = (self.daemons, self.shims, self.unknown);
        let mut text =
            format!("killed {daemons} daemons and {shims} shims; {unknown} orders unanswered, {failed} failed");
        for (why, times) in &self.failed {
            text.push_str(&format!("\n    {times} x {why}"));
        }
        text
    }
}

impl World<'_> {
    fn new(fixture: &Fixture, seed: u64) -> World<'_> {
        let engine = Engine::start(&std::env::current_exe().unwrap(), &fixture.config, image());
        World { fixture, random: Random(seed), engine, tally: Tally::default() }
    }

    /// A few containers, from their creation to their removal.
    fn round(&mut self, ids: &[String]) {
        let words = ["exit 0", "grandchild then sleep", "flood 300 then sleep", "sleep", "trap"];
        self.step(ids, |random, id| format!("create {id} {}", words[random.below(5) as usize]));
        self.step(ids, |_, id| format!("start {id}"));
        self.step(ids, |random, id| format!("signal {id} {}", ["KILL", "TERM", "HUP"][random.below(3) as usize]));
        self.step(ids, |_, id| format!("delete {id}"));
        // Whatever became of all that: a removal that is not disturbed must succeed.
        for id in ids {
            self.engine.must(&format!("delete {id}"));
        }
    }

    /// One order for each container, and perhaps somebody is killed while they are carried out.
    fn step(&mut self, ids: &[String], order: impl Fn(&mut Random, &str) -> String) {
        let orders: Vec<u64> = ids
            .iter()
            .map(|id| {
                let text = order(&mut self.random, id);
                self.engine.order(&text)
            })
            .collect();
        let dies = match self.random.below(10) {
            0 | 1 => {
                self.pause();
                self.kill_a_shim();
                false
            }
            2 => {
                self.pause();
                self.engine.kill();
                self.tally.daemons += 1;
                true
            }
            _ => false,
        };
        for number in orders {
            match self.engine.answer(number) {
                Outcome::Done(_) => {}
                Outcome::Unknown => self.tally.unknown += 1,
                Outcome::Failed(why) => {
                    // Ids and pids are not the same in any two.
                    let why = why.split(['-', '/']).next().unwrap_or_default().trim_end_matches(char::is_numeric);
                    *self.tally.failed.entry(why.to_owned()).or_default() += 1;
                }
            }
        }
        if dies {
            self.engine = Engine::start(&std::env::current_exe().unwrap(), &self.fixture.config, image());
        }
    }

    /// Not synchronisation: it makes the moment of a death a random one.
    fn pause(&mut self) {
        std::thread::sleep(Duration::from_micros(self.random.below(12_000)));
    }

    fn kill_a_shim(&mut self) {
        let shims = processes_of(&self.fixture.config.data_dir.join("containers"));
        if shims.is_empty() {
            return;
        }
        let chosen = shims[self.random.below(shims.len() as u64) as usize];
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(chosen).unwrap())
            && rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
        {
            self.tally.shims += 1;
        }
    }

    /// What can be seen of a container from outside.
    fn traces(&self, id: &str) -> Vec<String> {
        let dir = self.fixture.config.data_dir.join("containers");
        let socket = self.fixture.config.run_dir.join(format!("shims/{id}.sock"));
        let mut traces = Vec::new();
        for path in [dir.join(id), dir.join(format!(".removing-{id}")), socket] {
            if path.symlink_metadata().is_ok() {
                traces.push(path.display().to_string());
            }
        }
        if self.fixture.cgroup_file(id, "cgroup.procs").is_some() {
            traces.push(format!("cgroup of {id}"));
        }
        traces
    }
}
