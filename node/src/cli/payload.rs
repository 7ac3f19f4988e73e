//! What secrets and configs have in common: they are small files that the cluster keeps.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

use super::client::{Client, route};
use super::error::CliError;
use super::output::{self, List, ListFormat};
use super::values::{self, KeyValue};
use super::{age, filters};
use crate::docker_api::wire::{IdResponse, Payload, PayloadSpec};

/// More is refused before it is sent; the engine's own limits are below.
const MAX_BYTES: u64 = 2 << 20;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    Config,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::Config => "configs",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum PayloadCommand {
    /// Create one from a file or standard input
    Create {
        #[arg(value_parser = values::name)]
        name: String,
        /// The file, or - for standard input
        file: PathBuf,
        /// A label; may be repeated
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<KeyValue>,
    },
    /// List them
    Ls {
        /// Only those that fit, e.g. name=db or label=app=web
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show all about them
    Inspect {
        #[arg(required = true, value_name = "NAME", value_parser = values::name)]
        names: Vec<String>,
    },
    /// Remove them
    Rm {
        #[arg(required = true, value_name = "NAME", value_parser = values::name)]
        names: Vec<String>,
    },
}

pub(super) async fn run(client: Client, kind: Kind, command: PayloadCommand) -> Result<(), CliError> {
    match command {
        PayloadCommand::Create { name, file, label } => {
            let data = read(&file).await?;
            let spec = PayloadSpec {
                name: Some(name),
                labels: Some(label.into_iter().map(|l| (l.key, l.value)).collect()),
                data: Some(BASE64.encode(&data)),
                ..PayloadSpec::default()
            };
            let created: IdResponse = client.create(&route(&[kind.noun(), "create"], &[]), &spec).await?;
            output::line(created.id.unwrap_or_default())
        }
        PayloadCommand::Ls { filter, format } => {
            let filters = filters(&filter)?;
            let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
            let mut found: Vec<Payload> = client.get(&route(&[kind.noun()], &query)).await?;
            found.sort_by_key(|p| p.spec.as_ref().and_then(|s| s.name.clone()));
            table(found).print(&format)
        }
        PayloadCommand::Inspect { names } => super::inspect(&client, kind.noun(), &names, &[]).await,
        PayloadCommand::Rm { names } => super::remove(&client, kind.noun(), &names, &[]).await,
    }
}

async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    if path.as_os_str() == "-" {
        return read_bounded(tokio::io::stdin(), "standard input").await;
    }
    let what = path.display().to_string();
    let file = tokio::fs::File::open(path).await.map_err(|e| CliError::usage(format!("cannot read {what}: {e}")))?;
    read_bounded(file, &what).await
}

async fn read_bounded(reader: impl AsyncRead + Unpin, what: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let mut data = Zeroizing::new(Vec::new());
    let mut bounded = reader.take(MAX_BYTES + 1);
    bounded.read_to_end(&mut data).await.map_err(|e| CliError::usage(format!("cannot read {what}: {e}")))?;
    match data.len() as u64 {
        0 => Err(CliError::usage(format!("{what} is empty"))),
        n if n > MAX_BYTES => Err(CliError::usage(format!("{what} is larger than {MAX_BYTES} bytes"))),
        _ => Ok(data),
    }
}

fn table(found: Vec<Payload>) -> List {
    let mut list = List::new(&[("ID", "ID"), ("NAME", "Name"), ("CREATED", "CreatedAt"), ("UPDATED", "UpdatedAt")]);
    for payload in found {
        list.row([
            payload.id.unwrap_or_default(),
            payload.spec.unwrap_or_default().name.unwrap_or_default(),
            age::ago(payload.created_at.as_deref().unwrap_or_default()),
            age::ago(payload.updated_at.as_deref().unwrap_or_default()),
        ]);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn payloads_are_bounded() {
        assert_eq!(*read_bounded(&b"abc"[..], "x").await.unwrap(), b"abc");
        assert_eq!(read_bounded(&b""[..], "x").await.unwrap_err().code(), 2);
        let error = read_bounded(tokio::io::repeat(0), "x").await.unwrap_err();
        assert!(error.to_string().contains("larger"), "{error}");
        let error = read(Path::new("/nonexistent/key")).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/key"), "{error}");
    }
}
