//! `shoal system backup` and `restore`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;

use crate::backup;
use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::engine::Recovered;

/// Flags of `shoal system restore`.
#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The file that `shoal system backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// On a host that is in no cluster: address or interface at which others reach it [default: found out]
    #[arg(long, value_name = "ADDR|IFACE[:PORT]", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// On a host that is in no cluster: address to listen at [default: 0.0.0.0:2377]
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "", hide_default_value = true)]
    listen_addr: String,
    /// On a host that is in no cluster: address or interface for traffic between tasks [default: the advertised one]
    #[arg(long, value_name = "ADDR|IFACE", default_value = "", hide_default_value = true)]
    data_path_addr: String,
}

/// A large cluster takes its time to be encoded, sent and restored.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) async fn save(client: Client, file: PathBuf) -> Result<(), CliError> {
    if file.exists() {
        return Err(CliError::usage(format!("{} exists already", file.display())));
    }
    let mut answer = client.stream("/shoal/v1/backup").await?;
    let mut bytes = Vec::new();
    while let Some(piece) = answer.next().await? {
        if bytes.len() + piece.len() > backup::MAX_BYTES {
            return Err(CliError::Failed("the engine sends more than a backup may have".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    // One that could not be restored is worse than none.
    let header = backup::decode(&bytes).map_err(|e| CliError::Failed(e.to_string()))?.header;
    crate::stored::write_atomically(&file, 0o600, &[&bytes]).map_err(|e| CliError::Failed(crate::chain(&e)))?;
    output::line(format_args!(
        "Wrote {} ({} bytes): cluster {} at revision {}.\nIt holds the cluster's root key, its join tokens and all \
         secrets in clear: keep it where nobody else can read it.",
        file.display(),
        bytes.len(),
        header.cluster_id,
        header.revision
    ))
}

pub(super) async fn restore(client: Client, args: RestoreArgs) -> Result<(), CliError> {
    let bytes = read(&args.file)?;
    // The engine checks as well; this says it before anything is sent.
    let header = backup::decode(&bytes).map_err(|e| CliError::usage(format!("{}: {e}", args.file.display())))?.header;
    let path = route(
        &["shoal", "v1", "restore"],
        &[
            ("advertiseAddr", &args.advertise_addr),
            ("listenAddr", &args.listen_addr),
            ("dataPathAddr", &args.data_path_addr),
        ],
    );
    let body = futures_util::stream::iter([Ok(Bytes::from(bytes))]);
    let answer = client.upload(&path, body).await?.collect(PATIENCE).await.map_err(CliError::OutcomeUnknown)?;
    let restored: Recovered = serde_json::from_slice(&answer)
        .map_err(|e| CliError::Failed(format!("the engine answered with bad JSON: {e}")))?;
    output::line(format_args!(
        "Cluster {} is restored to revision {}; it goes on at {}. Node {} at {} is its first manager.",
        header.cluster_id, header.revision, restored.revision, restored.node_id, restored.addr
    ))?;
    if !restored.former_managers.is_empty() {
        output::line(format_args!(
            "The other managers take part again as soon as they are reached: {}.",
            restored.former_managers.join(", ")
        ))?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    let cannot = |e: std::io::Error| CliError::usage(format!("cannot read {}: {e}", file.display()));
    let length = std::fs::metadata(file).map_err(cannot)?.len();
    if length > backup::MAX_BYTES as u64 {
        return Err(CliError::usage(format!("{} is larger than any backup", file.display())));
    }
    std::fs::read(file).map_err(cannot)
}
