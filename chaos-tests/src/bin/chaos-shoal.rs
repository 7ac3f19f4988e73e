//! `shoal` as the tests of this crate run it: cargo builds a test's own crate's binaries, not those of others.

use std::process::ExitCode;

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
    node::cli::run(args)
}
