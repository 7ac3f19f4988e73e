//! Containers for real: needs root, cgroups and overlayfs, and says so where it skips.
//!
//! The test binary is static, so it plays all parts: the daemon that runs the tests, the shims, and (copied into an
//! otherwise empty root) the program in the containers.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod apparmor;
mod attach;
mod confinement;
mod copies;
mod cycles;
mod disk;
mod engine;
mod exec;
mod fixture;
#[allow(dead_code)]
#[path = "../../src/fuzz/engine.rs"]
mod fuzz_engine;
#[path = "../harness/mod.rs"]
mod harness;
mod isolation;
mod layouts;
mod lifecycle;
mod limits;
mod logging;
mod pause;
mod payload;
mod records;
mod renew;
mod survival;
mod upgrade;
mod users;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "payload") {
        return payload::run(&args[1..]);
    }
    if args.first().is_some_and(|first| first == "engine") {
        return engine::run(&args[1..]);
    }
    if let Some(layout) = args.first().and_then(|first| first.strip_prefix("layout=")) {
        layouts::pretend(layout);
        return run(&args[1..]);
    }
    run(&args)
}

/// `name=value` on the command line, for tests that can be made longer.
fn option_text(name: &str) -> Option<String> {
    std::env::args().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

fn option(name: &str) -> Option<u64> {
    option_text(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn run(args: &[String]) -> ExitCode {
    let tests = [
        lifecycle::TESTS,
        limits::TESTS,
        logging::TESTS,
        disk::TESTS,
        isolation::TESTS,
        users::TESTS,
        confinement::TESTS,
        apparmor::TESTS,
        survival::TESTS,
        records::TESTS,
        renew::TESTS,
        cycles::TESTS,
        upgrade::TESTS,
        volumes::TESTS,
        exec::TESTS,
        attach::TESTS,
        pause::TESTS,
        copies::TESTS,
        layouts::TESTS,
    ];
    harness::run("container", args, &tests, fixture::possible, fixture::clean_up)
}
