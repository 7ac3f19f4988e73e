//! `shoal runtime` on bundles, as engines call it: needs root and cgroups, and says so where it skips.
//!
//! The test binary is static, so it plays all parts: the runtime, the program in the containers, and their hooks.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod attacks;
mod bundle;
mod exec;
mod hooks;
mod interrupted;
mod isolation;
mod lifecycle;
mod payload;
mod refusals;
mod update;

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
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|f| if exact { *f == name } else { name.contains(f.as_str()) })
    };
    let tests: Vec<Test> = [
        lifecycle::TESTS,
        hooks::TESTS,
        isolation::TESTS,
        exec::TESTS,
        update::TESTS,
        refusals::TESTS,
        attacks::TESTS,
        interrupted::TESTS,
    ]
    .concat()
    .into_iter()
    .filter(|(name, _)| wanted(name))
    .collect();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = bundle::possible() {
        println!("skipping all {} tests of bundles: {reason}", tests.len());
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
    println!("{} passed, {} failed: {failed:?}", tests.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
