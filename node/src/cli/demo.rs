//! `shoal demo`: a cluster on this machine, and the story that is told on it.

use std::process::ExitCode;

use super::output;
use crate::demo::DemoOptions;

/// Flags of `shoal demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
It makes hosts out of network namespaces, runs a daemon in each, starts a web service from an image that is made of
this very binary, scales it, kills a host, and shows how the cluster heals, with timings. It needs root and nothing
that is installed; it opens no port of this machine.

Examples:
  shoal demo
  shoal demo --hosts 5 --keep      Leaves the cluster up, and prints how to reach it and how to remove it")]
pub(super) struct DemoArgs {
    /// How many hosts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=20))]
    hosts: u8,
    /// Leave the cluster up at the end
    #[arg(long)]
    keep: bool,
    /// Print the timings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let options = DemoOptions { hosts: args.hosts.into(), keep: args.keep, json: args.json };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(crate::demo::run(options)),
        Err(e) => {
            output::note(format_args!("shoal: cannot start threads: {e}"));
            ExitCode::FAILURE
        }
    }
}
