//! `shoal config`.

use super::payload::PayloadCommand;

/// `shoal config`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  shoal config create web.conf ./web.conf
  shoal config inspect web.conf
  shoal config ls
  shoal config rm web.conf")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: PayloadCommand,
}
