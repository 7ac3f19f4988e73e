//! `shoal node autolock`, `unlock` and `unlock-key`.

use std::io::IsTerminal;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::super::client::{Client, route};
use super::super::error::CliError;
use super::super::output;
use super::{index, retried};
use crate::docker_api::wire::{EncryptionConfig, Swarm, UnlockKey};

/// More than a key has, and whatever may be around it.
const MAX_INPUT: u64 = 4096;

pub(super) async fn set(client: &Client, on: bool) -> Result<(), CliError> {
    update(client, on, false).await?;
    match on {
        true => key(client, false, false).await,
        false => output::line("Managers of this cluster start without a key from now on."),
    }
}

/// Opens the files of a locked manager.
pub(super) async fn unlock(client: &Client) -> Result<(), CliError> {
    let info: Value = client.get("/info").await?;
    match info["Swarm"]["LocalNodeState"].as_str() {
        Some("locked") => {}
        Some("inactive") => return Err(CliError::Failed("this node is in no cluster".to_owned())),
        _ => return Err(CliError::Failed("this node is not locked".to_owned())),
    }
    if std::io::stdin().is_terminal() {
        output::line("Please enter the unlock key:")?;
    }
    let mut text = String::new();
    let read = read_line(&mut text).await;
    read.map_err(|error| CliError::Failed(format!("the unlock key could not be read: {error}")))?;
    client.post_patiently("/swarm/unlock", &UnlockKey { unlock_key: Some(text.trim().to_owned()) }).await?;
    output::line("This manager is unlocked.")
}

/// One line, or all there is: a person ends a key with Enter, a file may not.
async fn read_line(text: &mut String) -> std::io::Result<()> {
    let mut stdin = tokio::io::stdin().take(MAX_INPUT);
    let mut byte = [0];
    while stdin.read(&mut byte).await? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(())
}

pub(super) async fn key(client: &Client, quiet: bool, rotate: bool) -> Result<(), CliError> {
    if rotate {
        read_key(client).await?;
        update(client, true, true).await?;
        if !quiet {
            output::line("Successfully rotated the unlock key.\n")?;
        }
    }
    let key = read_key(client).await?;
    if quiet {
        return output::line(key);
    }
    output::line(format_args!(
        "To unlock a manager of this cluster after it restarts, run 'shoal node unlock' there and give this key:\n\n    \
         {key}\n\nKeep it in a safe place: without it no manager can be started again.\n"
    ))
}

async fn read_key(client: &Client) -> Result<String, CliError> {
    let answer: UnlockKey = client.get("/swarm/unlockkey").await?;
    answer.unlock_key.filter(|key| !key.is_empty()).ok_or_else(|| {
        CliError::Failed("no unlock key is set: managers start without one until 'shoal node autolock on'".to_owned())
    })
}

async fn update(client: &Client, autolock: bool, rotate: bool) -> Result<(), CliError> {
    retried(async || {
        let swarm: Swarm = client.get("/swarm").await?;
        let mut spec = swarm.spec.unwrap_or_default();
        spec.encryption_config = Some(EncryptionConfig { auto_lock_managers: Some(autolock) });
        let version = index(&swarm.version);
        let mut query = vec![("version", version.as_str())];
        if rotate {
            query.push(("rotateManagerUnlockKey", "true"));
        }
        client.post(&route(&["swarm", "update"], &query), &spec).await
    })
    .await
    .map(drop)
}
