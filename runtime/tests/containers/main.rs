//! Containers for real: needs root, cgroups and overlayfs, and says so where it skips.
//!
//! The test binary is static, so it plays all parts: the daemon that runs the tests, the shims, and (copied into an
//! otherwise empty root) the program in the containers.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

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
mod isolation;
mod kernel;
mod layouts;
mod lifecycle;
mod limits;
mod logging;
mod pause;
mod payload;
mod records;
mod survival;
mod upgrade;
mod users;
mod volumes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "payload") {
        return payload::run(&args[1..]);
    }
    if std::process::id() == 1 && args.first().is_some_and(|first| first == "kernel") {
        kernel::first_process(&args[1..]);
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

/// A harness of its own, for a binary that must look at its arguments before any thread exists.
fn run(args: &[String]) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-') && !arg.contains('=')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|f| if exact { *f == name } else { name.contains(f.as_str()) })
    };
    let tests: Vec<Test> = [
        lifecycle::TESTS,
        limits::TESTS,
        logging::TESTS,
        disk::TESTS,
        isolation::TESTS,
        users::TESTS,
        confinement::TESTS,
        survival::TESTS,
        records::TESTS,
        cycles::TESTS,
        upgrade::TESTS,
        volumes::TESTS,
        exec::TESTS,
        attach::TESTS,
        pause::TESTS,
        copies::TESTS,
        layouts::TESTS,
    ]
    .concat()
    .into_iter()
    .filter(|(name, _)| wanted(name))
    .collect();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = fixture::possible() {
        println!("skipping all {} container tests: {reason}", tests.len());
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in &tests {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    fixture::clean_up();
    println!("{} passed, {} failed: {failed:?}", tests.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
