//! `shoal node ca`: prints the root, or has a new one take its place and shows how far that is.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{index, retried};
use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::{output, values};
use crate::docker_api::wire::{Node, Swarm, TlsInfo};

/// How often the engine is asked; as in Docker.
const EVERY: Duration = Duration::from_millis(200);
/// A cluster that loses its leader on the way gets so long to find a new one.
const PATIENCE: u32 = 150;

#[derive(Args, Debug)]
pub(super) struct CaArgs {
    /// Have a new root take the place of the present one; tasks go on, join tokens change when it is done
    #[arg(long)]
    rotate: bool,
    /// The new root's certificate (PEM) [default: made by the cluster]
    #[arg(long, value_name = "FILE", requires = "ca_key", requires = "rotate")]
    ca_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "ca_cert", requires = "rotate")]
    ca_key: Option<PathBuf>,
    /// For how long nodes' certificates hold from now on, at least 1h (unless changed, 2160h)
    #[arg(long, value_name = "DURATION", requires = "rotate", value_parser = values::duration)]
    cert_expiry: Option<i64>,
    /// Do not wait until every node has a certificate of the new root
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Show no progress
    #[arg(short, long, requires = "rotate")]
    quiet: bool,
}

pub(super) async fn run(client: &Client, args: CaArgs) -> Result<(), CliError> {
    if args.rotate {
        begin(client, &args).await?;
        if args.detach {
            return Ok(());
        }
        follow(client, args.quiet).await?;
    }
    let swarm: Swarm = client.get("/swarm").await?;
    output::text(&swarm.tls_info.and_then(|tls| tls.trust_root).unwrap_or_default())
}

async fn begin(client: &Client, args: &CaArgs) -> Result<(), CliError> {
    let read = |path: &Option<PathBuf>| -> Result<Option<String>, CliError> {
        let Some(path) = path else { return Ok(None) };
        let text = std::fs::read_to_string(path);
        text.map(Some).map_err(|e| CliError::usage(format!("cannot read {}: {e}", path.display())))
    };
    let (cert, key) = (read(&args.ca_cert)?, read(&args.ca_key)?);
    retried(async || {
        let swarm: Swarm = client.get("/swarm").await?;
        let path = route(&["swarm", "update"], &[("version", &index(&swarm.version))]);
        let mut spec = swarm.spec.unwrap_or_default();
        let ca = spec.ca_config.get_or_insert_default();
        if cert.is_none() {
            ca.force_rotate = Some(ca.force_rotate.unwrap_or_default() + 1);
        }
        ca.signing_ca_cert.clone_from(&cert);
        ca.signing_ca_key.clone_from(&key);
        ca.node_cert_expiry = args.cert_expiry.or(ca.node_cert_expiry);
        client.post(&path, &spec).await
    })
    .await
    .map(drop)
}

/// Waits for the end, and says each time that more nodes have a new certificate. Ctrl-C ends the waiting only.
async fn follow(client: &Client, quiet: bool) -> Result<(), CliError> {
    let mut said = String::new();
    let mut silent = 0;
    loop {
        let looked = async {
            let swarm: Swarm = client.get("/swarm").await?;
            let nodes: Vec<Node> = client.get("/nodes").await?;
            Ok::<_, CliError>((swarm, nodes))
        };
        match looked.await {
            Ok((swarm, nodes)) => {
                silent = 0;
                let (line, done) = progress(&swarm, &nodes);
                if line != said && !quiet {
                    output::note(&line);
                }
                said = line;
                if done {
                    return Ok(());
                }
            }
            // Between two leaders there is no answer for a moment.
            Err(error) if silent >= PATIENCE => return Err(error),
            Err(_) => silent += 1,
        }
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => {
                output::note("It goes on in the background: `shoal node ca` prints the new root when it is done.");
                return Ok(());
            }
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// How far it is, for people, and whether it is done.
fn progress(swarm: &Swarm, nodes: &[Node]) -> (String, bool) {
    let issuer = |tls: &Option<TlsInfo>| tls.as_ref().and_then(|tls| tls.cert_issuer_public_key.clone());
    let wanted = issuer(&swarm.tls_info);
    let described = |node: &Node| node.description.clone().unwrap_or_default();
    let (right, rest): (Vec<&Node>, Vec<&Node>) =
        nodes.iter().partition(|node| issuer(&described(node).tls_info) == wanted);
    let is_ready = |node: &&&Node| node.status.as_ref().and_then(|s| s.state.as_deref()) == Some("ready");
    let names = |nodes: Vec<&&Node>| {
        nodes.into_iter().map(|node| described(node).hostname.unwrap_or_default()).collect::<Vec<_>>().join(", ")
    };
    let mut line = format!("{} of {} nodes have a certificate of the new root", right.len(), nodes.len());
    let waiting: Vec<_> = rest.iter().filter(is_ready).collect();
    let away: Vec<_> = rest.iter().filter(|node| !is_ready(node)).collect();
    if !waiting.is_empty() {
        line += &format!("; waiting for {}", names(waiting));
    }
    if !away.is_empty() {
        line += &format!("; not waiting for {}, which get theirs when they are back", names(away));
    }
    (output::printable(&line), swarm.root_rotation_in_progress != Some(true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_names_who_is_waited_for_and_who_is_not() {
        let node = |name: &str, state: &str, issuer: &str| json!({"Description": {"Hostname": name, "TLSInfo": {"CertIssuerPublicKey": issuer}}, "Status": {"State": state}});
        let mut swarm: Swarm =
            serde_json::from_value(json!({"TLSInfo": {"CertIssuerPublicKey": "new"}, "RootRotationInProgress": true}))
                .unwrap();
        let nodes: Vec<Node> = serde_json::from_value(json!([
            node("a", "ready", "new"),
            node("b", "ready", "old"),
            node("c", "down", "old")
        ]))
        .unwrap();
        let expected = "1 of 3 nodes have a certificate of the new root; waiting for b; not waiting for c, which get \
                        theirs when they are back";
        assert_eq!(progress(&swarm, &nodes), (expected.to_owned(), false));
        swarm.root_rotation_in_progress = Some(false);
        assert!(progress(&swarm, &nodes).1);
    }
}
