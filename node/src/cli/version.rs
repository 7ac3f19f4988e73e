//! `shoal version`.

use serde_json::{Value, json};

use super::error::CliError;
use super::{Engine, output};

/// Flags of `shoal version`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  shoal version\n  shoal version --format json")]
pub(super) struct VersionArgs {
    /// "json" for programs
    #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
    format: Option<String>,
}

/// Prints the client's version also where no engine answers.
pub(super) fn run(engine: &Engine, args: &VersionArgs) -> Result<(), CliError> {
    let client = json!({ "Version": env!("CARGO_PKG_VERSION"), "Os": "linux", "Arch": std::env::consts::ARCH });
    let mut server = None;
    let asked = engine.drive(|client| {
        let server = &mut server;
        async move {
            *server = Some(client.get::<Value>("/version").await?);
            Ok(())
        }
    });
    if args.format.is_some() {
        output::json(&json!({ "Client": client, "Server": server }))?;
        return asked;
    }
    output::line(format_args!("Client: shoal {} ({})", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH))?;
    if let Some(server) = server {
        let of = |key: &str| output::printable(server[key].as_str().unwrap_or("unknown"));
        output::line(format_args!(
            "Engine: shoal {} ({}), API {} (from {}), kernel {}",
            of("Version"),
            of("Arch"),
            of("ApiVersion"),
            of("MinAPIVersion"),
            of("KernelVersion")
        ))?;
    }
    asked
}
