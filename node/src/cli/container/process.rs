//! `shoal container exec` and `shoal container attach`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::code_of;
use super::session::{Session, check_input, window};
use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::{output, values};

/// How long a container may go on after its streams have ended before that is taken for leaving it.
const ENDS: Duration = Duration::from_secs(2);

/// Flags of `shoal container exec`.
#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    /// Let it run, and do not wait for it
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Send it what is typed here
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// A variable, KEY=VALUE, or KEY with the value that it has here; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = values::env)]
    env: Vec<String>,
    /// The user: NAME, ID, NAME:GROUP or ID:GROUP [default: the container's]
    #[arg(short, long)]
    user: Option<String>,
    /// The working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Keys that leave the terminal and let the command go on [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    #[arg(value_name = "CONTAINER", value_parser = values::name)]
    container: String,
    /// The command and its arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn request(args: &ExecArgs, window: Option<(u16, u16)>, lookup: impl Fn(&str) -> Option<String>) -> Value {
    let mut body = json!({
        "Cmd": args.command,
        "Env": values::fill_env(&args.env, lookup),
        "Tty": args.tty,
        "AttachStdin": args.interactive && !args.detach,
        "AttachStdout": !args.detach,
        "AttachStderr": !args.detach,
    });
    let optional = [("User", &args.user), ("WorkingDir", &args.workdir), ("DetachKeys", &args.detach_keys)];
    for (key, value) in optional {
        if let Some(value) = value {
            body[key] = json!(value);
        }
    }
    if let Some((rows, columns)) = window.filter(|_| args.tty) {
        body["ConsoleSize"] = json!([rows, columns]);
    }
    body
}

pub(super) async fn exec(client: &Client, args: ExecArgs) -> Result<(), CliError> {
    check_input(args.tty, args.interactive)?;
    let body = request(&args, window(), |name| std::env::var(name).ok());
    let asked: Value = client.create(&route(&["containers", &args.container, "exec"], &[]), &body).await?;
    let id = asked["Id"].as_str().unwrap_or_default();
    let start = route(&["exec", id, "start"], &[]);
    if args.detach {
        return client.post(&start, &json!({"Detach": true, "Tty": args.tty})).await.map(drop);
    }
    let hijacked = client.hijack(&start, Some(&json!({"Detach": false, "Tty": args.tty}))).await?;
    let (tty, stdin) = (args.tty, args.interactive);
    Session { client, tty, stdin, resize: ["exec", id], signals_to: None }.run(hijacked).await?;
    let ended: Value = client.get(&route(&["exec", id, "json"], &[])).await?;
    if ended["Running"] == true {
        // The keys were pressed, or the engine lets go of it.
        output::note("shoal: left it; it goes on");
        return Ok(());
    }
    exit(ended["ExitCode"].as_i64())
}

/// Ends as what ran did.
fn exit(code: Option<i64>) -> Result<(), CliError> {
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(CliError::Exit(u8::try_from(code).unwrap_or(1))),
        None => Err(CliError::Failed("the engine did not tell how it ended".to_owned())),
    }
}

/// Flags of `shoal container attach`.
#[derive(Args, Debug)]
pub(super) struct AttachArgs {
    /// Do not send what is typed here
    #[arg(long)]
    no_stdin: bool,
    /// Keys that leave the container's terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Pass signals on to a container without a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[arg(value_name = "CONTAINER", value_parser = values::name)]
    container: String,
}

pub(super) async fn attach(client: &Client, args: AttachArgs) -> Result<(), CliError> {
    let object: Value = client.get(&route(&["containers", &args.container, "json"], &[])).await?;
    let (state, config) = (&object["State"], &object["Config"]);
    if state["Running"] != true {
        return Err(CliError::usage(format!(
            "container {} does not run: there is nothing to attach to",
            args.container
        )));
    }
    if state["Paused"] == true {
        return Err(CliError::usage(format!(
            "container {0} is paused: `shoal container unpause {0}` first",
            args.container
        )));
    }
    let tty = config["Tty"] == true;
    let stdin = !args.no_stdin && (tty || config["OpenStdin"] == true);
    check_input(tty, stdin)?;
    let mut query = vec![("stream", "1"), ("stdout", "1"), ("stderr", "1")];
    if stdin {
        query.push(("stdin", "1"));
    }
    query.extend(args.detach_keys.iter().map(|keys| ("detachKeys", keys.as_str())));
    let hijacked = client.hijack(&route(&["containers", &args.container, "attach"], &query), None).await?;
    let id = object["Id"].as_str().unwrap_or_default();
    let signals_to = Some(id).filter(|_| args.sig_proxy);
    Session { client, tty, stdin, resize: ["containers", id], signals_to }.run(hijacked).await?;
    // Its streams end a moment before it does; when the keys were pressed it does not end at all.
    let wait = route(&["containers", id, "wait"], &[]);
    match tokio::time::timeout(ENDS, client.post_patiently(&wait, &json!({}))).await {
        Ok(answer) => exit(Some(code_of(&answer?)?)),
        Err(_) => {
            output::note("shoal: left it; it goes on");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExecArgs,
    }

    fn parse(line: &str) -> Result<Value, String> {
        let line =
            Line::try_parse_from(["exec"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?;
        Ok(request(&line.args, Some((24, 80)), |name| (name == "HERE").then(|| "yes".to_owned())))
    }

    #[test]
    fn requests() {
        let body = parse("-it -e A=1 -e HERE -e NOT -u web -w /srv c sh -c x").unwrap();
        let expected = json!({
            "Cmd": ["sh", "-c", "x"], "Env": ["A=1", "HERE=yes"], "Tty": true, "AttachStdin": true,
            "AttachStdout": true, "AttachStderr": true, "User": "web", "WorkingDir": "/srv", "ConsoleSize": [24, 80],
        });
        assert_eq!(body, expected);
        let body = parse("-d --detach-keys ctrl-a c true").unwrap();
        assert_eq!((&body["AttachStdout"], &body["DetachKeys"]), (&json!(false), &json!("ctrl-a")));
        assert!(body.get("ConsoleSize").is_none());
        assert!(parse("c").unwrap_err().contains("COMMAND"));
        assert!(parse("-d -t c sh").is_err());
    }

    #[test]
    fn codes_are_passed_through() {
        assert!(exit(Some(0)).is_ok());
        assert_eq!(exit(Some(137)).unwrap_err().code(), 137);
        assert_eq!(exit(Some(300)).unwrap_err().code(), 1);
        assert_eq!(exit(None).unwrap_err().code(), 1);
    }
}
