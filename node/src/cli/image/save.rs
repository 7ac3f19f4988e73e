//! `shoal image save`: an archive that `load` takes here and `docker load` elsewhere.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::client::{Client, Streamed, route};
use super::super::error::CliError;
use super::super::values;

/// Flags of `shoal image save`.
#[derive(Args, Debug)]
pub(super) struct SaveArgs {
    /// Images; a name without a tag means all tags that it has
    #[arg(required = true, value_name = "IMAGE", value_parser = values::name)]
    images: Vec<String>,
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(client: &Client, args: SaveArgs) -> Result<(), CliError> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::usage("standard output is a terminal: name the archive with -o, or pipe it on"));
    }
    let names: Vec<(&str, &str)> = args.images.iter().map(|name| ("names", name.as_str())).collect();
    let answer = client.stream(&route(&["images", "get"], &names)).await?;
    match &args.output {
        Some(file) => to_file(answer, file).await,
        None => copy(answer, &mut std::io::stdout().lock()).await,
    }
}

/// What is not whole gets no name.
pub(in crate::cli) async fn to_file(answer: Streamed, file: &Path) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot write {}: {e}", file.display()));
    let directory = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    copy(answer, temporary.as_file_mut()).await?;
    temporary.persist(file).map_err(|e| failed(e.error))?;
    Ok(())
}

async fn copy(mut answer: Streamed, to: &mut impl Write) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot write the archive: {e}"));
    while let Some(piece) = answer.next().await? {
        to.write_all(&piece).map_err(failed)?;
    }
    to.flush().map_err(failed)
}
