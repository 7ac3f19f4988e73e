//! `shoal node recover`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::output;
use crate::docker_api::wire::Recover;
use crate::engine::{EngineError, RecoverRequest, Recovered};

/// What to do with a data directory that needs the unlock key, which is on no disk.
const LOCKED: &str = "the keys of this data directory are locked (autolock). Start the daemon, run \"shoal node unlock\" with \
                      the unlock key, then \"shoal node recover\" without --data-dir";

/// Flags of `shoal node recover`.
#[derive(Args, Debug)]
#[command(after_help = "\
Run it on ONE former manager, the one with the most recent state, and only when the others will not come back soon.
It keeps everything that is on this host. What only the others had is lost; the output names the last entry kept.
The others become workers when they return: promote them then.

  shoal node recover                                 The daemon runs, and the cluster has no leader
  shoal node recover --advertise-addr 10.0.0.9       The host has another address now
  shoal node recover --data-dir /var/lib/shoal       The daemon is stopped; start it afterwards. With autolock this
                                                     does not work: start it, unlock it, and recover then")]
pub(super) struct RecoverArgs {
    /// Address or interface at which the other hosts reach this one [default: as before]
    #[arg(long, value_name = "ADDR|IFACE[:PORT]", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Address to listen at [default: as before]
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "", hide_default_value = true)]
    listen_addr: String,
    /// Address or interface for traffic between tasks [default: as before]
    #[arg(long, value_name = "ADDR|IFACE", default_value = "", hide_default_value = true)]
    data_path_addr: String,
    /// Also while the cluster has a leader, or could not be asked: parts this host from the other managers
    #[arg(short, long)]
    force: bool,
    /// Recover in this data directory, whose daemon is stopped
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl RecoverArgs {
    pub(super) fn is_offline(&self) -> bool {
        self.data_dir.is_some()
    }
}

/// Through the daemon.
pub(super) async fn online(client: &Client, args: RecoverArgs) -> Result<(), CliError> {
    let request = Recover {
        listen_addr: Some(args.listen_addr),
        advertise_addr: Some(args.advertise_addr),
        data_path_addr: Some(args.data_path_addr),
        force: Some(args.force),
    };
    report(&client.create("/shoal/v1/recover", &request).await?)
}

/// In the data directory of a daemon that does not run.
pub(super) fn offline(args: RecoverArgs) -> Result<(), CliError> {
    let Some(dir) = args.data_dir else {
        return Err(CliError::usage("--data-dir is missing"));
    };
    if !dir.is_dir() {
        return Err(CliError::usage(format!("{} is not a directory", dir.display())));
    }
    let data = crate::datadir::DataDir::open(&dir).map_err(|e| CliError::Failed(crate::chain(&e)))?;
    let request = RecoverRequest {
        listen_addr: args.listen_addr,
        advertise_addr: args.advertise_addr,
        data_path_addr: args.data_path_addr,
        force: true,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::Failed(format!("cannot start: {e}")))?;
    let recovered = runtime.block_on(crate::daemon::recover(&data, &request)).map_err(|error| match error {
        EngineError::Internal(message) => CliError::Failed(message),
        EngineError::Locked => CliError::usage(LOCKED),
        other => CliError::usage(other.to_string()),
    })?;
    report(&recovered)?;
    output::line("Start the daemon now.")
}

/// What was kept, and what it takes to be whole again.
fn report(recovered: &Recovered) -> Result<(), CliError> {
    let Recovered { node_id, addr, index, term, uncommitted, .. } = recovered;
    output::line(format_args!("Node {node_id} at {addr} is now the only manager of the cluster."))?;
    output::line(format_args!("Kept: every log entry up to index {index} of term {term}."))?;
    if *uncommitted > 0 {
        output::line(format_args!(
            "      The last {uncommitted} of them were not known as committed here: changes whose outcome was unknown \
             may be among them."
        ))?;
    }
    output::line("Lost: what came after it, if only other managers had it.")?;
    if !recovered.former_managers.is_empty() {
        output::line(format_args!(
            "Former managers, workers from now on: {}. Promote them when they are back (shoal node promote), or remove \
             them (shoal node rm).",
            recovered.former_managers.join(", ")
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::{UnlockKey, Wanted};

    #[test]
    fn a_locked_directory_says_the_way_that_works() {
        let temp = tempfile::tempdir().unwrap();
        let data = crate::datadir::DataDir::open(temp.path()).unwrap();
        data.save_membership(&crate::datadir::MembershipRecord::default()).unwrap();
        data.vault().follow(&Wanted { lock: UnlockKey::from_bytes(&[1; 32]), version: 1 }).unwrap();
        drop(data);
        let args = RecoverArgs {
            advertise_addr: String::new(),
            listen_addr: String::new(),
            data_path_addr: String::new(),
            force: false,
            data_dir: Some(temp.path().to_owned()),
        };
        let error = offline(args).unwrap_err().to_string();
        assert!(error.contains("shoal node unlock") && error.contains("without --data-dir"), "{error}");
    }
}
