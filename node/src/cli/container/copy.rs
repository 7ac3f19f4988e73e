//! `shoal container cp` and `shoal container export`.
//!
//! Where a copy goes follows Docker's rules: into a directory that is there, under a new name when nothing is there, and
//! what is in a directory when its path ends in `/.`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use clap::Args;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::local::{self, Owner};
use crate::cli::client::{Client, Streamed, route};
use crate::cli::error::CliError;
use crate::cli::image::{archive, to_file};
use crate::cli::streams::copy as copy_all;
use crate::cli::{output, values};

/// Docker's bits of a mode, which are Go's.
const GO_DIRECTORY: u64 = 1 << 31;
const GO_SYMLINK: u64 = 1 << 27;
/// Pieces of an archive on their way.
const PIECES: usize = 16;

/// Flags of `shoal container cp`.
#[derive(Args, Debug)]
#[command(after_help = "\
One side is CONTAINER:PATH, the other a path here, or - for a tar archive on standard input or output. Paths in containers
are read from their root. A source that ends in /. means what is in the directory. In a container new files belong to
root, here to whoever copies, unless -a is given.

Examples:
  shoal container cp web.1.x7k2:/etc/nginx/nginx.conf .
  shoal container cp nginx.conf web.1.x7k2:/etc/nginx/
  shoal container cp web.1.x7k2:/var/log - | tar -t")]
pub(super) struct CpArgs {
    /// Keep owners and groups, by their numbers
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link at the source points to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing when it is done
    #[arg(short, long)]
    quiet: bool,
    #[arg(value_name = "CONTAINER:PATH|PATH|-", value_parser = values::name)]
    source: String,
    #[arg(value_name = "CONTAINER:PATH|PATH|-", value_parser = values::name)]
    target: String,
}

/// Flags of `shoal container export`.
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    #[arg(value_name = "CONTAINER", value_parser = values::name)]
    container: String,
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn export(client: &Client, args: ExportArgs) -> Result<(), CliError> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::usage("standard output is a terminal: name the archive with -o, or pipe it on"));
    }
    let answer = client.stream(&route(&["containers", &args.container, "export"], &[])).await?;
    match &args.output {
        Some(file) => to_file(answer, file).await,
        None => copy_all(answer).await,
    }
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Container(&'a str, &'a str),
    Here(&'a str),
    Stream,
}

impl<'a> Side<'a> {
    fn parse(text: &'a str) -> Side<'a> {
        match text.split_once(':') {
            _ if text == "-" => Side::Stream,
            // A path with a colon in it begins with `/` or `.`.
            Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
                Side::Container(container, path)
            }
            _ => Side::Here(text),
        }
    }
}

pub(super) async fn run(client: &Client, args: CpArgs) -> Result<(), CliError> {
    match (Side::parse(&args.source), Side::parse(&args.target)) {
        (Side::Container(_, ""), _) | (_, Side::Container(_, "")) => {
            Err(CliError::usage("the path in the container is missing: it must look like CONTAINER:PATH"))
        }
        (Side::Container(container, path), Side::Stream) => {
            if std::io::stdout().is_terminal() {
                return Err(CliError::usage("standard output is a terminal: name a file, or pipe the archive on"));
            }
            let path = source_path(client, container, path, args.follow_link).await?;
            copy_all(client.stream(&archive_route(container, &path, &[])).await?).await
        }
        (Side::Container(container, path), Side::Here(target)) => {
            out(client, &args, container, path, target).await?;
            done(&args, "copied to", target);
            Ok(())
        }
        (Side::Stream, Side::Container(container, path)) => {
            put(client, container, path, archive(None).await?).await?;
            Ok(())
        }
        (Side::Here(source), Side::Container(container, path)) => {
            into(client, &args, source, container, path).await?;
            done(&args, "copied to", &args.target);
            Ok(())
        }
        (Side::Container(..), Side::Container(..)) => Err(CliError::usage(
            "both sides are containers: pipe one copy into another, `shoal container cp A:/x - | shoal container cp - B:/y`",
        )),
        _ => Err(CliError::usage("one side must be CONTAINER:PATH")),
    }
}

fn done(args: &CpArgs, what: &str, target: &str) {
    if !args.quiet && std::io::stderr().is_terminal() {
        output::note(format_args!("{what} {}", output::printable(target)));
    }
}

fn archive_route(container: &str, path: &str, more: &[(&str, &str)]) -> String {
    let query: Vec<(&str, &str)> = [("path", path)].iter().chain(more).copied().collect();
    route(&["containers", container, "archive"], &query)
}

/// What the engine says of a path in a container.
struct Remote {
    name: String,
    mode: u64,
    link_target: String,
}

impl Remote {
    fn is_dir(&self) -> bool {
        self.mode & GO_DIRECTORY != 0
    }

    fn is_link(&self) -> bool {
        self.mode & GO_SYMLINK != 0
    }

    fn of(answer: &Streamed) -> Result<Remote, CliError> {
        let read = || {
            let text = answer.header("x-docker-container-path-stat")?;
            let json = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            let stat: Value = serde_json::from_slice(&json).ok()?;
            Some(Remote {
                name: stat["name"].as_str()?.to_owned(),
                mode: stat["mode"].as_u64()?,
                link_target: stat["linkTarget"].as_str().unwrap_or_default().to_owned(),
            })
        };
        read().ok_or_else(|| CliError::Failed("the engine did not tell what is at the path".to_owned()))
    }
}

/// `None`: there is nothing at the path.
async fn look(client: &Client, container: &str, path: &str) -> Result<Option<Remote>, CliError> {
    match client.head(&archive_route(container, path, &[])).await {
        Ok(answer) => Remote::of(&answer).map(Some),
        Err(CliError::Refused { status: 404, .. }) => {
            // An answer to HEAD has no text: it may be the container that is not there.
            let _: Value = client.get(&route(&["containers", container, "json"], &[])).await?;
            Ok(None)
        }
        Err(CliError::Refused { status: 400, .. }) => {
            Err(CliError::usage(format!("{container}:{path} is no path that can be copied from or to")))
        }
        Err(error) => Err(error),
    }
}

/// Where a copy begins, behind a link when that is wanted.
async fn source_path(client: &Client, container: &str, path: &str, follow: bool) -> Result<String, CliError> {
    if follow
        && let Some(found) = look(client, container, path).await?
        && found.is_link()
    {
        return Ok(found.link_target);
    }
    Ok(path.to_owned())
}

async fn out(client: &Client, args: &CpArgs, container: &str, path: &str, target: &str) -> Result<(), CliError> {
    let source = source_path(client, container, path, args.follow_link).await?;
    let mut answer = client.stream(&archive_route(container, &source, &[])).await?;
    let remote = Remote::of(&answer)?;
    // What was asked for gives the name, not where its link led.
    let name = last_name(path).unwrap_or(&remote.name).to_owned();
    let whole = matches!(remote.name.as_str(), "." | "/");
    let place = local_place(Path::new(target), target.ends_with('/'), remote.is_dir(), whole, &name)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let owner = if args.archive { Owner::Kept } else { Owner::Mine };
    let unpacking = tokio::task::spawn_blocking(move || local::unpack(receiver, &remote.name, &place, owner));
    let mut broken = None;
    loop {
        match answer.next().await {
            Ok(Some(piece)) => {
                if sender.send(piece).await.is_err() {
                    // It has failed, and says why below.
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let left_out = unpacking.await.map_err(|e| CliError::Failed(format!("the copy ended early: {e}")))?;
    if let Some(error) = broken {
        return Err(error);
    }
    for name in left_out? {
        output::note(format_args!("shoal: {} is a device or a pipe, and left out", output::printable(&name)));
    }
    Ok(())
}

/// The last name of a path; none of `/`, `.` and `..`.
fn last_name(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    (!matches!(name, "" | "." | "..")).then_some(name)
}

/// Where something from a container goes here. `whole`: what is in a directory, not the directory.
fn local_place(target: &Path, slash: bool, from_dir: bool, whole: bool, name: &str) -> Result<local::Place, CliError> {
    let shown = target.display();
    let wrong = |text: String| Err(CliError::usage(text));
    let into = |dir: &Path, name: &str| local::Place { dir: dir.to_owned(), name: name.to_owned() };
    match std::fs::metadata(target) {
        Ok(found) if found.is_dir() && whole => Ok(into(target, "")),
        Ok(found) if found.is_dir() => Ok(into(target, name)),
        Ok(_) if from_dir => wrong(format!("{shown} is a file: a directory cannot be copied over it")),
        Ok(_) if slash => wrong(format!("{shown} is no directory")),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::Failed(format!("cannot look at {shown}: {e}")))
        }
        Err(_) if slash && !from_dir => wrong(format!("there is no directory {shown}: make it first")),
        // A new name, or a file that is replaced.
        _ => {
            let parent = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
                return wrong(format!("{shown} is no name for a copy"));
            };
            if !parent.is_dir() {
                return wrong(format!("there is no directory {}: make it first", parent.display()));
            }
            Ok(into(parent, name))
        }
    }
}

async fn into(client: &Client, args: &CpArgs, source: &str, container: &str, path: &str) -> Result<(), CliError> {
    let whole = source == "." || source.ends_with("/.");
    let from = Path::new(source);
    let found =
        if args.follow_link || source.ends_with('/') { std::fs::metadata(from) } else { from.symlink_metadata() };
    let found = found.map_err(|e| CliError::usage(format!("cannot copy {source}: {e}")))?;
    let is_dir = found.is_dir() || whole;
    let mut target = path.to_owned();
    let mut remote = look(client, container, &target).await?;
    if let Some(link) = remote.as_ref().filter(|remote| remote.is_link()) {
        target.clone_from(&link.link_target);
        remote = look(client, container, &target).await?;
    }
    let name = last_name(source).map(str::to_owned).or_else(|| {
        let real = from.canonicalize().ok()?;
        Some(real.file_name()?.to_str()?.to_owned())
    });
    let name = name.unwrap_or_default();
    let (dir, top) = remote_place(&target, remote.as_ref().map(Remote::is_dir), is_dir, whole, &name)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let owner = if args.archive { Owner::Kept } else { Owner::Mine };
    let (from, follow) = (from.to_owned(), args.follow_link || source.ends_with('/'));
    let packing = tokio::task::spawn_blocking(move || local::pack(&from, &top, follow, owner, &sender));
    let sent = put(client, container, &dir, ReceiverStream::new(receiver)).await;
    let packed = packing.await.map_err(|e| CliError::Failed(format!("the copy ended early: {e}")))?;
    match packed {
        // The engine has refused it before, and that is the reason.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => sent,
        Err(error) => Err(CliError::Failed(format!("cannot read {source}: {error}"))),
        Ok(()) => sent,
    }
}

/// The directory of a container that something goes to, and its name there; empty for what is in a directory.
/// `there`: whether the target is a directory, if it is anything.
fn remote_place(
    target: &str,
    there: Option<bool>,
    is_dir: bool,
    whole: bool,
    name: &str,
) -> Result<(String, String), CliError> {
    let wrong = |text: String| Err(CliError::usage(text));
    match there {
        Some(true) if whole => Ok((target.to_owned(), String::new())),
        Some(true) => Ok((target.to_owned(), name.to_owned())),
        Some(false) if is_dir => wrong(format!("{target} is a file: a directory cannot be copied over it")),
        None if target.ends_with('/') && !is_dir => {
            wrong(format!("there is no directory {target} in the container: make it first"))
        }
        _ => {
            let plain = target.trim_end_matches('/');
            let (dir, name) = plain.rsplit_once('/').unwrap_or(("", plain));
            if matches!(name, "" | "." | "..") {
                return wrong(format!("{target} is no name for a copy"));
            }
            Ok((format!("{dir}/"), name.to_owned()))
        }
    }
}

async fn put<S>(client: &Client, container: &str, path: &str, archive: S) -> Result<(), CliError>
where
    S: futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send + Sync + 'static,
{
    client.put(&archive_route(container, path, &[("noOverwriteDirNonDir", "1")]), archive).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        assert_eq!(Side::parse("web.1:/etc"), Side::Container("web.1", "/etc"));
        assert_eq!(Side::parse("web:etc:x"), Side::Container("web", "etc:x"));
        assert_eq!(Side::parse("-"), Side::Stream);
        for here in ["./a:b", "/a:b", "file", ":x"] {
            assert_eq!(Side::parse(here), Side::Here(here));
        }
    }

    #[test]
    fn places_here() {
        let dir = tempfile::tempdir().unwrap();
        let (there, file, new) = (dir.path().join("dir"), dir.path().join("file"), dir.path().join("new"));
        std::fs::create_dir(&there).unwrap();
        std::fs::write(&file, "").unwrap();
        let place = |target: &Path, slash, from_dir, whole| {
            local_place(target, slash, from_dir, whole, "x").map(|place| (place.dir, place.name)).ok()
        };
        let top = dir.path().to_owned();
        assert_eq!(place(&there, false, true, false), Some((there.clone(), "x".to_owned())));
        assert_eq!(place(&there, false, true, true), Some((there.clone(), String::new())));
        assert_eq!(place(&there, true, false, false), Some((there.clone(), "x".to_owned())));
        assert_eq!(place(&new, false, false, false), Some((top.clone(), "new".to_owned())));
        assert_eq!(place(&new, true, true, false), Some((top.clone(), "new".to_owned())));
        assert_eq!(place(&file, false, false, false), Some((top, "file".to_owned())));
        assert_eq!(place(&file, false, true, false), None);
        assert_eq!(place(&new, true, false, false), None);
        assert_eq!(place(&new.join("deeper"), false, false, false), None);
    }

    #[test]
    fn places_there() {
        let place = |target: &str, there, is_dir, whole| remote_place(target, there, is_dir, whole, "x").ok();
        let some = |dir: &str, name: &str| Some((dir.to_owned(), name.to_owned()));
        assert_eq!(place("/srv", Some(true), false, false), some("/srv", "x"));
        assert_eq!(place("/srv", Some(true), true, true), some("/srv", ""));
        assert_eq!(place("/srv/new", None, true, true), some("/srv/", "new"));
        assert_eq!(place("/new/", None, true, false), some("/", "new"));
        assert_eq!(place("new", None, false, false), some("/", "new"));
        assert_eq!(place("/f", Some(false), false, false), some("/", "f"));
        assert_eq!(place("/f", Some(false), true, false), None);
        assert_eq!(place("/new/", None, false, false), None);
    }
}
