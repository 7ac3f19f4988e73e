//! `shoal` as the tests of this crate run it: cargo builds a test's own crate's binaries, not those of others.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Names the file of a daemon's clock; see `Host::set_clock` and, for the file beside it, `Host::hold_agent`.
const CLOCK: &str = "CHAOS_CLOCK_FILE";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "__enter") {
        return node::demo::enter::main(args.skip(2));
    }
    // The tests of rolling upgrades run this as releases before and after the present one.
    if let Some(level) = std::env::var(chaos_tests::hosts::LEVEL).ok().and_then(|text| text.parse().ok()) {
        node::release::Release::act_as(node::release::Release { feature_level: level });
    }
    // Fails only when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(path) = std::env::var_os(CLOCK) {
        follow_clock(path.into());
    }
    node::cli::run(args)
}

/// Lets this process's clock follow the file, which holds how many milliseconds it is ahead of the kernel's; without
/// the file they are the same. While there is a file beside it that ends in `.held`, agents stand still.
fn follow_clock(path: PathBuf) {
    let held = path.with_extension("held");
    let read = move || std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    node::clock::shift(read());
    // Ends with the process.
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            node::clock::shift(read());
            node::agent::hold(held.exists());
        }
    });
}
