//! `shoal system`.

use clap::{Args, Subcommand};

use super::Engine;
use super::error::CliError;

mod check;
mod info;

/// `shoal system`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  shoal system info
  shoal system check      As root, before the first `shoal daemon` on a host")]
pub(super) struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Show what the engine says of itself and its host
    Info {
        /// "json" for programs
        #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
        format: Option<String>,
    },
    /// Tell what this machine lacks for running a node; needs no daemon
    Check {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(engine: &Engine, args: SystemArgs) -> Result<(), CliError> {
    match args.command {
        SystemCommand::Info { format } => engine.drive(|client| info::run(client, format.is_some())),
        SystemCommand::Check { json } => check::run(json),
    }
}
