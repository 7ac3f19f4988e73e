//! The command line that runc, crun and youki share, taken apart: pure.

use std::ffi::OsString;
use std::path::PathBuf;

/// What stands before the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Global {
    /// Where the containers' states are kept.
    pub(super) root: PathBuf,
    /// Where failures are written, beside the standard error stream.
    pub(super) log: Option<PathBuf>,
    pub(super) log_json: bool,
}

/// Where states are kept when nobody says otherwise: gone at the next boot, like the containers.
const DEFAULT_ROOT: &str = "/run/shoal/oci";

/// One command with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Create(Create),
    Run { create: Create, detach: bool },
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: String, all: bool },
    Delete { id: String, force: bool },
    Exec(Exec),
    Update(Update),
    List { json: bool, quiet: bool },
    Ps { id: String, json: bool },
    Pause { id: String },
    Resume { id: String },
    Spec { bundle: PathBuf },
    Features,
    Version,
    Help,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Exec {
    pub(super) id: String,
    /// A file with the process as JSON; else it is made of the container's own and of what follows.
    pub(super) process: Option<PathBuf>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: Option<String>,
    /// `uid[:gid]`
    pub(super) user: Option<String>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) capabilities: Vec<String>,
    pub(super) no_new_privileges: bool,
    pub(super) process_label: Option<String>,
    pub(super) apparmor: Option<String>,
    pub(super) terminal: bool,
    pub(super) detach: bool,
    /// A paused container is no error: the process begins when that goes on.
    pub(super) ignore_paused: bool,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console_socket: Option<PathBuf>,
    pub(super) preserve_fds: u32,
}

/// New limits: a file's, or single ones, by runc's options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Update {
    pub(super) id: String,
    /// `-` is the standard input.
    pub(super) resources: Option<PathBuf>,
    /// Each option's name without its dashes, and its value.
    pub(super) single: Vec<(&'static str, String)>,
}

/// The options of single limits.
const LIMITS: [&str; 14] = [
    "blkio-weight",
    "cpu-period",
    "cpu-quota",
    "cpu-burst",
    "cpu-share",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpu-idle",
    "cpuset-cpus",
    "cpuset-mems",
    "memory",
    "memory-reservation",
    "memory-swap",
    "pids-limit",
];

pub(super) const HELP: &str = "\
shoal runtime: runs containers from OCI bundles

Usage: shoal runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND [OPTIONS] ID

  create   Make a container that waits for its start
           --bundle DIR (.), --pid-file FILE, --console-socket SOCKET, --preserve-fds N
  start    Start it
  run      Create, start, wait and delete; --detach leaves out the last two; options as for create
  state    Show where it stands, as JSON
  kill     Send a signal to its first process (TERM), or with --all to all of them: kill ID [SIGNAL]
  delete   Remove a container that has stopped; --force kills it first
  exec     Run one more process in it: exec [OPTIONS] ID COMMAND..., or exec --process FILE ID
           --cwd DIR, --env NAME=VALUE, --user UID[:GID], --additional-gids GID, --cap NAME, --no-new-privs,
           --process-label LABEL, --apparmor PROFILE, --tty, --detach, --ignore-paused, --pid-file FILE,
           --console-socket SOCKET, --preserve-fds N
  update   Change its limits: those in --resources FILE (- is the standard input), or
           --memory, --memory-reservation, --memory-swap BYTES, --cpu-share N, --cpu-period, --cpu-quota, --cpu-burst,
           --cpu-rt-period, --cpu-rt-runtime MICROSECONDS, --cpu-idle 0|1, --cpuset-cpus, --cpuset-mems LIST,
           --pids-limit N, --blkio-weight N
  list     Show all containers; --format table|json, --quiet
  ps       Show the processes of one; --format table|json
  pause, resume
           Freeze it, and let it go on
  spec     Write an example config.json; --bundle DIR (.)
  features Show what this runtime can do, as JSON";

/// The words of one command line, with options before, behind and between the others.
struct Words {
    words: std::vec::IntoIter<String>,
}

/// The value of an option: behind `=`, or the next word.
struct Given<'a> {
    name: String,
    inline: Option<String>,
    words: &'a mut Words,
}

impl Given<'_> {
    fn value(self) -> Result<String, String> {
        match self.inline {
            Some(value) => Ok(value),
            None => self.words.words.next().ok_or_else(|| format!("{} needs a value", self.name)),
        }
    }

    fn path(self) -> Result<PathBuf, String> {
        let name = self.name.clone();
        let value = self.value()?;
        if value.is_empty() { Err(format!("{name} is empty")) } else { Ok(value.into()) }
    }

    fn number(self) -> Result<u32, String> {
        let name = self.name.clone();
        let value = self.value()?;
        // More than these nobody can have open.
        value.parse().ok().filter(|n| *n <= 1 << 20).ok_or_else(|| format!("{name}: {value:?} is no number"))
    }

    /// `--flag`, `--flag=true`, `--flag=false`.
    fn flag(self) -> Result<bool, String> {
        match self.inline.as_deref() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("{}={other}: true or false", self.name)),
        }
    }
}

enum Word<'a> {
    Option(Given<'a>),
    Plain(String),
}

impl Words {
    fn next(&mut self) -> Option<Word<'_>> {
        let word = self.words.next()?;
        if !word.starts_with('-') || word == "-" {
            return Some(Word::Plain(word));
        }
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        // As Go's tools have it, one dash is as good as two.
        let name = if name.len() > 2 && !name.starts_with("--") { format!("-{name}") } else { name };
        Some(Word::Option(Given { name, inline, words: self }))
    }

    fn rest(&mut self) -> Vec<String> {
        self.words.by_ref().collect()
    }
}

/// In the place of a complaint: help is wanted.
const WANTS_HELP: &str = "--help";

fn unknown<T>(name: &str) -> Result<T, String> {
    match name {
        "--help" | "-h" => Err(WANTS_HELP.to_owned()),
        _ => Err(format!("unknown option {name}")),
    }
}

/// Takes a command line apart. The error is for the user.
pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Result<(Global, Command), String> {
    let words: Result<Vec<String>, OsString> = args.map(OsString::into_string).collect();
    let words = words.map_err(|word| format!("{} is not UTF-8", word.display()))?;
    let mut words = Words { words: words.into_iter() };
    let mut global = Global { root: DEFAULT_ROOT.into(), log: None, log_json: false };
    let command = loop {
        match words.next() {
            None => return Ok((global, Command::Help)),
            Some(Word::Plain(command)) => break command,
            Some(Word::Option(given)) => match given.name.as_str() {
                "--root" => global.root = given.path()?,
                "--log" => global.log = Some(given.path()?),
                "--log-format" => {
                    global.log_json = match given.value()?.as_str() {
                        "json" => true,
                        "text" => false,
                        other => return Err(format!("--log-format {other}: text or json")),
                    }
                }
                // There is no more to say than what is said anyway.
                "--debug" => _ = given.flag()?,
                "--systemd-cgroup" if given.inline.as_deref() == Some("false") => {}
                "--systemd-cgroup" => return Err("--systemd-cgroup is not supported".to_owned()),
                "--rootless" => match given.value()?.as_str() {
                    "auto" | "false" => {}
                    _ => return Err("--rootless is not supported: this runtime needs root".to_owned()),
                },
                "--version" | "-v" => return Ok((global, Command::Version)),
                "--help" | "-h" => return Ok((global, Command::Help)),
                other => return unknown(other),
            },
        }
    };
    match command_of(&command, &mut words) {
        Err(wrong) if wrong == WANTS_HELP => Ok((global, Command::Help)),
        other => Ok((global, other?)),
    }
}

fn command_of(command: &str, words: &mut Words) -> Result<Command, String> {
    match command {
        "create" | "run" => create(command == "run", words),
        "exec" => exec(words),
        "update" => update(words),
        "kill" => kill(words),
        "delete" => {
            let mut force = false;
            let id = only_id(words, |given| match given.name.as_str() {
                "--force" | "-f" => given.flag().map(|yes| force = yes),
                other => unknown(other),
            })?;
            Ok(Command::Delete { id, force })
        }
        "list" => list(words),
        "ps" => {
            let mut json = false;
            let id = only_id(words, |given| match given.name.as_str() {
                "--format" | "-f" => format(given).map(|is| json = is),
                other => unknown(other),
            })?;
            Ok(Command::Ps { id, json })
        }
        "spec" => {
            let mut bundle = PathBuf::from(".");
            while let Some(word) = words.next() {
                match word {
                    Word::Option(given) if matches!(given.name.as_str(), "--bundle" | "-b") => bundle = given.path()?,
                    Word::Option(given) => return unknown(&given.name),
                    Word::Plain(word) => return Err(format!("unexpected {word:?}")),
                }
            }
            Ok(Command::Spec { bundle })
        }
        "start" | "state" | "pause" | "resume" => {
            let id = only_id(words, |given| unknown(&given.name))?;
            Ok(match command {
                "start" => Command::Start { id },
                "state" => Command::State { id },
                "pause" => Command::Pause { id },
                _ => Command::Resume { id },
            })
        }
        "features" => Ok(Command::Features),
        "help" => Ok(Command::Help),
        "events" | "checkpoint" | "restore" => Err(format!("{command} is not supported")),
        other => Err(format!("unknown command {other:?}; see shoal runtime --help")),
    }
}

/// The rest of a command that takes one id beside its options.
fn only_id(words: &mut Words, mut option: impl FnMut(Given<'_>) -> Result<(), String>) -> Result<String, String> {
    let mut id = None;
    while let Some(word) = words.next() {
        match word {
            Word::Option(given) => option(given)?,
            Word::Plain(word) if id.is_none() => id = Some(word),
            Word::Plain(word) => return Err(format!("unexpected {word:?}")),
        }
    }
    id.ok_or_else(|| "the container's id is missing".to_owned())
}

fn create(run: bool, words: &mut Words) -> Result<Command, String> {
    let mut create =
        Create { id: String::new(), bundle: ".".into(), pid_file: None, console_socket: None, preserve_fds: 0 };
    let mut detach = false;
    create.id = only_id(words, |given| {
        match given.name.as_str() {
            "--bundle" | "-b" => create.bundle = given.path()?,
            "--pid-file" => create.pid_file = Some(given.path()?),
            "--console-socket" => create.console_socket = Some(given.path()?),
            "--preserve-fds" => create.preserve_fds = given.number()?,
            "--detach" | "-d" if run => detach = given.flag()?,
            // What it asks for is what happens, or what cannot matter here.
            "--no-subreaper" => _ = given.flag()?,
            "--no-pivot" | "--no-new-keyring" => {
                if given.flag()? {
                    return Err("--no-pivot and --no-new-keyring are not supported".to_owned());
                }
            }
            other => return unknown(other),
        }
        Ok(())
    })?;
    Ok(if run { Command::Run { create, detach } } else { Command::Create(create) })
}

fn kill(words: &mut Words) -> Result<Command, String> {
    let (mut id, mut signal, mut all) = (None, None, false);
    while let Some(word) = words.next() {
        match word {
            Word::Option(given) => match given.name.as_str() {
                "--all" | "-a" => all = given.flag()?,
                "--signal" | "-s" => signal = Some(given.value()?),
                other => return unknown(other),
            },
            Word::Plain(word) if id.is_none() => id = Some(word),
            Word::Plain(word) if signal.is_none() => signal = Some(word),
            Word::Plain(word) => return Err(format!("unexpected {word:?}")),
        }
    }
    let id = id.ok_or("the container's id is missing")?;
    Ok(Command::Kill { id, signal: signal.unwrap_or_else(|| "TERM".to_owned()), all })
}

fn format(given: Given<'_>) -> Result<bool, String> {
    match given.value()?.as_str() {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(format!("--format {other}: table or json")),
    }
}

fn list(words: &mut Words) -> Result<Command, String> {
    let (mut json, mut quiet) = (false, false);
    while let Some(word) = words.next() {
        match word {
            Word::Option(given) => match given.name.as_str() {
                "--format" | "-f" => json = format(given)?,
                "--quiet" | "-q" => quiet = given.flag()?,
                other => return unknown(other),
            },
            Word::Plain(word) => return Err(format!("unexpected {word:?}")),
        }
    }
    Ok(Command::List { json, quiet })
}

/// Here everything behind the id belongs to the command.
fn exec(words: &mut Words) -> Result<Command, String> {
    let mut exec = Exec::default();
    while let Some(word) = words.next() {
        match word {
            Word::Plain(id) => {
                exec.id = id;
                break;
            }
            Word::Option(given) => match given.name.as_str() {
                "--process" | "-p" => exec.process = Some(given.path()?),
                "--cwd" => exec.cwd = Some(given.value()?),
                "--env" | "-e" => exec.env.push(given.value()?),
                "--user" | "-u" => exec.user = Some(given.value()?),
                "--additional-gids" | "-g" => exec.additional_gids.push(given.number()?),
                "--cap" | "-c" => exec.capabilities.push(given.value()?),
                "--no-new-privs" => exec.no_new_privileges = given.flag()?,
                "--process-label" => exec.process_label = Some(given.value()?),
                "--apparmor" => exec.apparmor = Some(given.value()?),
                "--ignore-paused" => exec.ignore_paused = given.flag()?,
                // What it asks for is what happens.
                "--no-subreaper" => _ = given.flag()?,
                "--cgroup" => return Err("--cgroup is not supported".to_owned()),
                "--tty" | "-t" => exec.terminal = given.flag()?,
                "--detach" | "-d" => exec.detach = given.flag()?,
                "--pid-file" => exec.pid_file = Some(given.path()?),
                "--console-socket" => exec.console_socket = Some(given.path()?),
                "--preserve-fds" => exec.preserve_fds = given.number()?,
                other => return unknown(other),
            },
        }
    }
    exec.args = words.rest();
    if exec.args.first().is_some_and(|first| first == "--") {
        exec.args.remove(0);
    }
    match (exec.id.is_empty(), exec.process.is_some(), exec.args.is_empty()) {
        (true, ..) => Err("the container's id is missing".to_owned()),
        (_, false, true) => Err("the command is missing".to_owned()),
        (_, true, false) => Err("--process and a command exclude each other".to_owned()),
        _ => Ok(Command::Exec(exec)),
    }
}

fn update(words: &mut Words) -> Result<Command, String> {
    let mut update = Update::default();
    update.id = only_id(words, |given| {
        match given.name.as_str() {
            "--resources" | "-r" => update.resources = Some(given.path()?),
            // crun's and older names.
            "--cpu-shares" => update.single.push(("cpu-share", given.value()?)),
            "--l3-cache-schema" | "--mem-bw-schema" | "--kernel-memory" | "--kernel-memory-tcp" => {
                return Err(format!("{} is not supported", given.name));
            }
            name => match LIMITS.iter().find(|limit| name.strip_prefix("--") == Some(**limit)) {
                Some(limit) => update.single.push((*limit, given.value()?)),
                None => return unknown(name),
            },
        }
        Ok(())
    })?;
    match (update.resources.is_some(), update.single.is_empty()) {
        (true, false) => Err("--resources and single limits exclude each other".to_owned()),
        (false, true) => Err("no limit is named".to_owned()),
        _ => Ok(Command::Update(update)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<(Global, Command), String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_commands_of_the_field() {
        let (global, command) = of("--root /r --log /l --log-format=json create --bundle /b --pid-file=/p c1").unwrap();
        assert_eq!(global, Global { root: "/r".into(), log: Some("/l".into()), log_json: true });
        let create = Create {
            id: "c1".into(),
            bundle: "/b".into(),
            pid_file: Some("/p".into()),
            console_socket: None,
            preserve_fds: 0,
        };
        assert_eq!(command, Command::Create(create.clone()));
        let run = Create { pid_file: None, preserve_fds: 2, bundle: ".".into(), ..create };
        assert_eq!(of("run -d --preserve-fds 2 c1").unwrap().1, Command::Run { create: run, detach: true });
        let kill = |all, signal: &str| Command::Kill { id: "c".into(), signal: signal.into(), all };
        assert_eq!(of("kill c").unwrap().1, kill(false, "TERM"));
        assert_eq!(of("kill --all c 9").unwrap().1, kill(true, "9"));
        assert_eq!(of("kill c KILL --all").unwrap().1, kill(true, "KILL"));
        assert_eq!(of("delete --force c").unwrap().1, Command::Delete { id: "c".into(), force: true });
        for help in ["", "--help", "exec --help", "create -h", "delete --force --help c"] {
            assert_eq!(of(help).unwrap().1, Command::Help, "{help}");
        }
        match of("exec --tty -e A=1 --cwd /w c sh -c --tty").unwrap().1 {
            Command::Exec(exec) => {
                assert_eq!((exec.id.as_str(), exec.terminal, exec.cwd.as_deref()), ("c", true, Some("/w")));
                assert_eq!((exec.args.join(" ").as_str(), exec.env.join(" ").as_str()), ("sh -c --tty", "A=1"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn new_limits() {
        let single = vec![("memory", "9000000".to_owned()), ("cpu-share", "512".to_owned())];
        let update = Update { id: "c".into(), resources: None, single };
        assert_eq!(of("update --memory 9000000 --cpu-shares=512 c").unwrap().1, Command::Update(update));
        let update = Update { id: "c".into(), resources: Some("-".into()), single: Vec::new() };
        assert_eq!(of("update --resources=- c").unwrap().1, Command::Update(update.clone()));
        assert_eq!(of("update -r - c").unwrap().1, Command::Update(update));
    }

    #[track_caller]
    fn refused(line: &str, expected: &str) {
        let error = of(line).unwrap_err();
        assert!(error.contains(expected), "{error} has no {expected:?}");
    }

    #[test]
    fn refusals() {
        refused("create", "id is missing");
        refused("start a b", "unexpected");
        refused("create --frob c", "unknown option --frob");
        refused("create --bundle", "needs a value");
        refused("create --preserve-fds x c", "no number");
        refused("--systemd-cgroup create c", "not supported");
        refused("--rootless true create c", "needs root");
        refused("frob", "unknown command");
        refused("checkpoint c", "not supported");
        refused("exec c", "command is missing");
        refused("exec --process /p c sh", "exclude");
        refused("exec --cgroup x c sh", "--cgroup is not supported");
        refused("update c", "no limit is named");
        refused("update --resources - --memory 1 c", "exclude");
        refused("update --kernel-memory 1 c", "not supported");
        refused("update --frob 1 c", "unknown option --frob");
        assert!(of("--systemd-cgroup=false state c").is_ok());
    }
}
