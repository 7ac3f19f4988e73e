//! The `shoal` binary: becomes a shim when it was started as one, and otherwise reads the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // A shim must be recognised before any thread exists.
    if let Some(code) = runtime::dispatch(&mut args) {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = node::daemon::Config {
        data_dir: args[2].clone().into(),
        run_dir: args[3].clone().into(),
        hosts: vec![format!("unix://{}/shoal.sock", args[3])],
        labels: Default::default(),
    };
    match tokio::runtime::Runtime::new().unwrap().block_on(node::daemon::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => { eprintln!("{}", node::chain(&e)); ExitCode::FAILURE }
    }
}
