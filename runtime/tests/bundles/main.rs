//! `shoal runtime` on bundles, as engines call it: needs root and cgroups, and says so where it skips.
//!
//! The test binary is static, so it plays all parts: the runtime, the program in the containers, and their hooks.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod attacks;
mod bundle;
mod exec;
#[path = "../harness/mod.rs"]
mod harness;
mod hooks;
mod interrupted;
mod isolation;
mod lifecycle;
mod payload;
mod refusals;
mod update;

use std::process::ExitCode;

use harness::Test;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "payload") {
        return payload::run(&args[1..]);
    }
    let tests = [
        lifecycle::TESTS,
        hooks::TESTS,
        isolation::TESTS,
        exec::TESTS,
        update::TESTS,
        refusals::TESTS,
        attacks::TESTS,
        interrupted::TESTS,
    ];
    harness::run("bundle", &args, &tests, bundle::possible, || {})
}
