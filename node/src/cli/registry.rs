//! `shoal registry`: who one is to registries.
//!
//! The cluster keeps credentials for all its hosts. With `--local` they are kept on the client's side instead, in a file
//! of Docker's form: the command line sends them along with what it asks for, and no engine keeps them. Docker's own
//! file is read too, so that whoever has logged in with `docker login` need not do so again. Programs that Docker asks
//! for credentials are not run.

mod files;

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::client::{Client, route};
use super::error::CliError;
use super::output::{List, ListFormat};
use super::{Engine, age, output, values};
use crate::docker_api::wire::RegistryLogin;
pub(super) use files::CredentialFiles;

/// The registry that is meant when none is named.
const DEFAULT: &str = "docker.io";
/// The user's name with which Docker's command line passes on an identity token as a password.
const TOKEN_USER: &str = "<token>";
/// Bytes of a password.
const MAX_PASSWORD: usize = 16 << 10;

/// `shoal registry`.
#[derive(Args, Debug)]
#[command(after_help = "\
The cluster keeps the credentials, as it keeps secrets, and its hosts pull with them: whenever you log in again, with
another password, they have it a moment later. What a service or a user sends along comes first.

With --local they are kept for you alone, in ~/.shoal/registries.json (or where SHOAL_REGISTRY_FILE says), readable by
its owner only. What `docker login` has put into ~/.docker/config.json is used too.

Examples:
  shoal registry login registry.example -u ann
  printf %s \"$TOKEN\" | shoal registry login registry.example -u ann --password-stdin
  shoal registry ls
  shoal registry logout registry.example")]
pub(super) struct RegistryArgs {
    #[command(subcommand)]
    command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// Log the cluster in to a registry
    Login {
        /// The registry, host:port [default: docker.io]
        #[arg(value_parser = values::name)]
        registry: Option<String>,
        /// The user's name; '<token>' where the password is an identity token
        #[arg(short, long)]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Keep the credentials for this user alone, and not with the cluster
        #[arg(long)]
        local: bool,
    },
    /// Forget the credentials for a registry
    Logout {
        /// The registry, host:port [default: docker.io]
        #[arg(value_parser = values::name)]
        registry: Option<String>,
        /// Those that are kept for this user alone
        #[arg(long)]
        local: bool,
    },
    /// List the registries that the cluster has credentials for
    Ls {
        #[command(flatten)]
        format: ListFormat,
    },
}

pub(super) fn run(engine: &Engine, args: RegistryArgs) -> Result<(), CliError> {
    match args.command {
        RegistryCommand::Login { registry, username, password_stdin, local } => {
            let registry = registry.unwrap_or_else(|| DEFAULT.to_owned());
            engine.drive(|client| login(client, registry, username, password_stdin, local))
        }
        RegistryCommand::Logout { registry, local } => {
            let registry = registry.unwrap_or_else(|| DEFAULT.to_owned());
            if local {
                CredentialFiles::of_user().forget(&registry)?;
                return output::line(format_args!("Removed your credentials for {registry}"));
            }
            engine.drive(|client| async move {
                client.delete(&route(&["shoal", "v1", "registries", &registry], &[])).await?;
                output::line(format_args!("Removed the cluster's credentials for {registry}"))
            })
        }
        RegistryCommand::Ls { format } => engine.drive(|client| async move {
            let logins: Vec<RegistryLogin> = client.get("/shoal/v1/registries").await?;
            table(logins).print(&format)
        }),
    }
}

fn table(logins: Vec<RegistryLogin>) -> List {
    let columns = [("REGISTRY", "Registry"), ("USERNAME", "Username"), ("KIND", "Kind"), ("UPDATED", "Updated")];
    let mut list = List::new(&columns);
    for login in logins {
        let updated = age::ago(&login.updated_at.unwrap_or_default());
        let [registry, username, kind] = [login.registry, login.username, login.kind].map(Option::unwrap_or_default);
        list.row([registry, username, kind, updated]);
    }
    list
}

async fn login(
    client: Client,
    registry: String,
    username: Option<String>,
    password_stdin: bool,
    local: bool,
) -> Result<(), CliError> {
    let username = match username {
        Some(username) => username,
        None if password_stdin => return Err(CliError::usage("--password-stdin needs --username")),
        None => ask("Username: ", Echo::On).await?,
    };
    let password = if password_stdin { ask("", Echo::On).await? } else { ask("Password: ", Echo::Off).await? };
    if username.is_empty() || password.is_empty() {
        return Err(CliError::usage("username and password must not be empty"));
    }
    if local {
        if username == TOKEN_USER {
            return Err(CliError::usage("identity tokens are kept with the cluster only: leave out --local"));
        }
        client.post("/auth", &request(&files::key(&registry), &username, &password)).await?;
        let files = CredentialFiles::of_user();
        files.keep(&registry, &username, &password)?;
        return output::line(format_args!("Login Succeeded; your credentials are in {}", files.own.display()));
    }
    client.post("/shoal/v1/registries", &request(&registry, &username, &password)).await?;
    output::line(format_args!("Login Succeeded; the cluster keeps the credentials for {registry}"))
}

fn request(registry: &str, username: &str, password: &str) -> Value {
    match username {
        TOKEN_USER => json!({"identitytoken": password, "serveraddress": registry}),
        username => json!({"username": username, "password": password, "serveraddress": registry}),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// One line of standard input. A terminal does not show what is typed where `echo` is off.
async fn ask(prompt: &str, echo: Echo) -> Result<String, CliError> {
    let failed = |e: std::io::Error| CliError::usage(format!("cannot read standard input: {e}"));
    let stdin = std::io::stdin();
    let terminal = std::io::IsTerminal::is_terminal(&stdin);
    if terminal && !prompt.is_empty() {
        eprint_prompt(prompt);
    }
    let _silence = if terminal && echo == Echo::Off { Silence::begin() } else { None };
    let mut line = String::new();
    let mut input = BufReader::new(tokio::io::stdin());
    let mut limited = tokio::io::AsyncReadExt::take(&mut input, MAX_PASSWORD as u64);
    limited.read_line(&mut line).await.map_err(failed)?;
    if terminal && echo == Echo::Off {
        eprint_prompt("\n");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn eprint_prompt(prompt: &str) {
    // Whoever cannot be asked will not answer either.
    let _ = std::io::stderr().write_all(prompt.as_bytes());
}

/// A terminal that does not show what is typed.
struct Silence {
    before: rustix::termios::Termios,
}

impl Silence {
    fn begin() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = rustix::termios::tcgetattr(&stdin).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(rustix::termios::LocalModes::ECHO);
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_token_comes_as_a_password() {
        assert_eq!(request("r", "<token>", "t"), json!({"identitytoken": "t", "serveraddress": "r"}));
        assert_eq!(request("r", "ann", "p"), json!({"username": "ann", "password": "p", "serveraddress": "r"}));
    }
}
