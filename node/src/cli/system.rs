//! `shoal system`.

use clap::{Args, Subcommand};

use super::Engine;
use super::error::CliError;

mod backup;
mod check;
mod info;

/// `shoal system`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  shoal system info
  shoal system backup cluster.bak       All that the cluster knows, its keys included: keep it secret
  shoal system restore cluster.bak      On a manager, or on a host that is in no cluster
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
    /// Write all that the cluster knows into a file, which is as secret as the cluster's keys
    Backup {
        /// The file; it must not exist
        #[arg(value_name = "FILE")]
        file: std::path::PathBuf,
    },
    /// Have the cluster begin anew from a backup, or make a cluster of this host out of it
    Restore(backup::RestoreArgs),
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
        SystemCommand::Backup { file } => engine.drive(|client| backup::save(client, file)),
        SystemCommand::Restore(args) => engine.drive(|client| backup::restore(client, args)),
        SystemCommand::Check { json } => check::run(json),
    }
}
