//! The `shoal` binary: what must happen while the process has one thread, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // A shim must be recognised before any thread exists.
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    // What `shoal` starts of itself; no user types these.
    match std::env::args_os().nth(1).as_deref().and_then(|first| first.to_str()) {
        Some("__whoami") => return node::demo::whoami::main(),
        Some("__enter") => return node::demo::enter::main(args.skip(2)),
        _ => {}
    }
    // Fails only when there is one already, and nothing before could have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    node::cli::run(args)
}
