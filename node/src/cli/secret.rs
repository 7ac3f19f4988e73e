//! `shoal secret`.

use super::payload::PayloadCommand;

/// `shoal secret`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A secret cannot be read back: the engine gives it to the tasks that use it, and to nobody else.

Examples:
  printf %s hunter2 | shoal secret create db-password -
  shoal secret create tls-key ./key.pem --label app=web
  shoal secret ls
  shoal secret rm db-password")]
pub(super) struct SecretArgs {
    #[command(subcommand)]
    pub(super) command: PayloadCommand,
}
