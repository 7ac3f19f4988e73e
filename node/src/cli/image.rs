//! `shoal image`: the images of one host.

mod progress;
mod save;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use runtime::image::Reference;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::ReaderStream;

use super::client::{Client, route};
use super::error::CliError;
use super::output::{self, List, ListFormat};
use super::registry::CredentialFiles;
use super::{age, filters, values};
pub(super) use save::to_file;

/// Bytes of an archive that are read at once.
const PIECE: usize = 256 << 10;

/// `shoal image`.
#[derive(Args, Debug)]
#[command(after_help = "\
Every host has its own images. What one host of a cluster has, the others fetch from it when their tasks need it: load an
image on any of them. What none has is pulled from its registry.

Examples:
  shoal image pull registry.example/web:1
  shoal image push registry.example/web:1
  docker save web:1 | shoal image load
  shoal image load -i web.tar
  tar -C rootfs -c . | shoal image import - web:1 --change 'CMD [\"/bin/web\"]'
  shoal image ls
  shoal image tag web:1 web:stable
  shoal image save -o web.tar web:1 web:stable
  shoal image rm web:1
  shoal image prune --all --filter until=240h")]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Pull an image from a registry
    Pull {
        #[arg(value_name = "NAME[:TAG|@DIGEST]", value_parser = values::name)]
        image: String,
        /// The platform, e.g. linux/arm64 [default: this host's]
        #[arg(long, value_name = "PLATFORM")]
        platform: Option<String>,
    },
    /// Push an image to the registry that its name says
    Push {
        #[arg(value_name = "NAME[:TAG]", value_parser = values::name)]
        image: String,
    },
    /// Load images from an archive, as `docker save` or an OCI tool makes it
    Load {
        /// The archive [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Make an image of a root file system
    Import {
        /// A tar archive, or - for standard input
        file: PathBuf,
        /// Name of the image
        #[arg(value_name = "NAME[:TAG]", value_parser = values::name)]
        name: Option<String>,
        /// A line of a Dockerfile, e.g. 'ENTRYPOINT ["/app"]'; may be repeated
        #[arg(short, long, value_name = "LINE")]
        change: Vec<String>,
        /// A comment
        #[arg(short, long)]
        message: Option<String>,
    },
    /// List the images of this host
    Ls {
        /// Only those that fit, e.g. reference=web or dangling=true
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Show the digests of their manifests, which services are pinned to
        #[arg(long)]
        digests: bool,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show how an image was made
    History {
        #[arg(value_name = "IMAGE", value_parser = values::name)]
        image: String,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Write images into an archive
    Save(save::SaveArgs),
    /// Remove images that no container uses: those without a name, or all
    Prune {
        /// Also images that have names
        #[arg(short, long)]
        all: bool,
        /// Only those that fit: label=KEY[=VALUE], label!=KEY[=VALUE], until=24h
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
    /// Remove images of this host
    Rm {
        #[arg(required = true, value_name = "IMAGE", value_parser = values::name)]
        images: Vec<String>,
        /// Also where an image has several names
        #[arg(short, long)]
        force: bool,
    },
    /// Show all about images
    Inspect {
        #[arg(required = true, value_name = "IMAGE", value_parser = values::name)]
        images: Vec<String>,
    },
    /// Give an image another name
    Tag {
        #[arg(value_parser = values::name)]
        image: String,
        #[arg(value_name = "NAME[:TAG]", value_parser = values::name)]
        name: String,
    },
}

pub(super) async fn run(client: Client, args: ImageArgs) -> Result<(), CliError> {
    match args.command {
        ImageCommand::Pull { image, platform } => pull(&client, &image, platform.as_deref()).await,
        ImageCommand::Push { image } => push(&client, &image).await,
        ImageCommand::Load { input } => {
            let answer = client.upload("/images/load", archive(input).await?).await?;
            progress::show(answer).await
        }
        ImageCommand::Import { file, name, change, message } => {
            let file = Some(file).filter(|f| f.as_os_str() != "-");
            let (repo, tag) = name.as_deref().map(split_tag).unwrap_or_default();
            let mut query = vec![("fromSrc", "-"), ("repo", repo), ("tag", tag)];
            query.extend(change.iter().map(|c| ("changes", c.as_str())));
            query.extend(message.iter().map(|m| ("message", m.as_str())));
            let answer = client.upload(&route(&["images", "create"], &query), archive(file).await?).await?;
            progress::show(answer).await
        }
        ImageCommand::Ls { filter, digests, format } => list(&client, &filter, digests, &format).await,
        ImageCommand::History { image, format } => history(&client, &image, &format).await,
        ImageCommand::Save(args) => save::run(&client, args).await,
        ImageCommand::Prune { all, filter, force } => prune(&client, all, filter, force).await,
        ImageCommand::Rm { images, force } => remove(&client, &images, force).await,
        ImageCommand::Inspect { images } => inspect(&client, &images).await,
        ImageCommand::Tag { image, name } => {
            let (repo, tag) = split_tag(&name);
            client.post_empty(&route(&["images", &image, "tag"], &[("repo", repo), ("tag", tag)])).await?;
            Ok(())
        }
    }
}

async fn pull(client: &Client, image: &str, platform: Option<&str>) -> Result<(), CliError> {
    let reference = reference(image)?;
    let canonical = reference.canonical();
    let mut query = vec![("fromImage", canonical.as_str())];
    query.extend(platform.map(|platform| ("platform", platform)));
    let auth = CredentialFiles::of_user().read(reference.domain())?;
    progress::show(client.work(&route(&["images", "create"], &query), &auth.to_header()).await?).await
}

async fn push(client: &Client, image: &str) -> Result<(), CliError> {
    let reference = reference(image)?;
    let Some(tag) = reference.tag().filter(|_| reference.digest().is_none()) else {
        return Err(CliError::usage(format!("{image}: an image is pushed by its name and tag")));
    };
    let name = reference.canonical();
    let name = name.strip_suffix(tag).and_then(|name| name.strip_suffix(':')).unwrap_or(&name);
    let auth = CredentialFiles::of_user().read(reference.domain())?;
    // The name's slashes are part of the path.
    let path = format!("/images/{name}/push{}", route(&[], &[("tag", tag)]));
    progress::show(client.work(&path, &auth.to_header()).await?).await
}

fn reference(name: &str) -> Result<Reference, CliError> {
    Reference::parse(name).map_err(|e| CliError::usage(e.to_string()))
}

/// `repo` and `tag` of `repo:tag`; a colon in front of a slash belongs to a registry's port.
fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo, tag),
        _ => (name, ""),
    }
}

type Archive = ReaderStream<Box<dyn AsyncRead + Send + Sync + Unpin>>;

/// A file, or standard input.
pub(super) async fn archive(file: Option<PathBuf>) -> Result<Archive, CliError> {
    let reader: Box<dyn AsyncRead + Send + Sync + Unpin> = match file {
        Some(path) => {
            let failed = |e: std::io::Error| CliError::usage(format!("cannot read {}: {e}", path.display()));
            let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
            if file.metadata().await.map_err(failed)?.is_dir() {
                return Err(CliError::usage(format!("{} is a directory, not an archive", path.display())));
            }
            // What cannot be read at all is said before the engine is asked.
            let mut first = vec![0; 512];
            let n = file.read(&mut first).await.map_err(failed)?;
            first.truncate(n);
            Box::new(std::io::Cursor::new(first).chain(file))
        }
        None if std::io::IsTerminal::is_terminal(&std::io::stdin()) => {
            return Err(CliError::usage("standard input is a terminal: name the archive with -i, or pipe it in"));
        }
        None => Box::new(tokio::io::stdin()),
    };
    Ok(ReaderStream::with_capacity(reader, PIECE))
}

async fn list(client: &Client, filter: &[String], digests: bool, format: &ListFormat) -> Result<(), CliError> {
    let filters = filters(filter)?;
    let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
    let mut images: Vec<Value> = client.get(&route(&["images", "json"], &query)).await?;
    images.sort_by_key(|image| std::cmp::Reverse(image["Created"].as_i64()));
    table(&images, digests, format).print(format)
}

fn table(images: &[Value], digests: bool, format: &ListFormat) -> List {
    let mut columns = vec![("IMAGE ID", "ID"), ("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([("CREATED", "CreatedSince"), ("SIZE", "Size")]);
    let mut list = List::new(&columns);
    for image in images {
        let id = image["Id"].as_str().unwrap_or_default();
        let id = if format.no_trunc { id.to_owned() } else { format.id(id.trim_start_matches("sha256:")) };
        let names: Vec<&str> = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let names = if names.is_empty() { vec!["<none>:<none>"] } else { names };
        let digest = image["RepoDigests"][0].as_str().and_then(|name| name.split_once('@'));
        for name in names {
            let (repository, tag) = split_tag(name);
            let mut row = vec![id.clone(), repository.to_owned(), tag.to_owned()];
            if digests {
                row.push(digest.map_or("<none>", |(_, digest)| digest).to_owned());
            }
            row.push(age::ago_unix(image["Created"].as_i64().unwrap_or_default()));
            row.push(values::bytes(image["Size"].as_u64().unwrap_or_default()));
            list.row(row);
        }
    }
    list
}

async fn history(client: &Client, image: &str, format: &ListFormat) -> Result<(), CliError> {
    let steps: Vec<Value> = client.get(&route(&["images", image, "history"], &[])).await?;
    let mut list = List::new(&[
        ("IMAGE", "ID"),
        ("CREATED", "CreatedSince"),
        ("CREATED BY", "CreatedBy"),
        ("SIZE", "Size"),
        ("COMMENT", "Comment"),
    ]);
    for step in &steps {
        let text = |key: &str| step[key].as_str().unwrap_or_default();
        let id =
            if format.no_trunc { text("Id").to_owned() } else { format.id(text("Id").trim_start_matches("sha256:")) };
        list.row([
            id,
            age::ago_unix(step["Created"].as_i64().unwrap_or_default()),
            if format.no_trunc { text("CreatedBy").to_owned() } else { shortened(text("CreatedBy")) },
            values::bytes(step["Size"].as_u64().unwrap_or_default()),
            text("Comment").to_owned(),
        ]);
    }
    list.print(format)
}

/// As long as Docker shows it.
fn shortened(text: &str) -> String {
    const MOST: usize = 45;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST - 1).chain(['…']).collect()
}

async fn prune(client: &Client, all: bool, mut filter: Vec<String>, force: bool) -> Result<(), CliError> {
    if !force {
        let which = if all { "all images that no container uses" } else { "all images that have no name" };
        if !confirmed(&format!("This removes {which} from this host. Go on? [y/N]"))? {
            return Ok(());
        }
    }
    filter.push(format!("dangling={}", !all));
    let filters = filters(&filter)?;
    let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
    let answer = client.post_empty(&route(&["images", "prune"], &query)).await?;
    let pruned: Value = serde_json::from_slice(&answer)
        .map_err(|e| CliError::Failed(format!("the engine's answer has bad JSON: {e}")))?;
    say_removed(pruned["ImagesDeleted"].as_array().map(Vec::as_slice).unwrap_or_default())?;
    let freed = values::bytes(pruned["SpaceReclaimed"].as_u64().unwrap_or_default());
    output::line(format_args!("Total reclaimed space: {freed}"))
}

/// Asks a person. Who is none has to say it with a flag.
pub(super) fn confirmed(question: &str) -> Result<bool, CliError> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("standard input is no terminal to ask at: say --force"));
    }
    output::note(question);
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| CliError::usage(format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn remove(client: &Client, images: &[String], force: bool) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for image in images {
        match client.delete(&route(&["images", image], if force { &[("force", "1")] } else { &[] })).await {
            Ok(answer) => {
                let removed: Vec<Value> = serde_json::from_slice(&answer)
                    .map_err(|e| CliError::Failed(format!("the engine's answer has bad JSON: {e}")))?;
                say_removed(&removed)?;
            }
            Err(e) => errors.push(e),
        }
    }
    CliError::all(errors)
}

fn say_removed(removed: &[Value]) -> Result<(), CliError> {
    for line in removed {
        for what in ["Untagged", "Deleted"] {
            if let Some(name) = line[what].as_str() {
                output::line(format_args!("{what}: {name}"))?;
            }
        }
    }
    Ok(())
}

async fn inspect(client: &Client, images: &[String]) -> Result<(), CliError> {
    let (mut found, mut errors) = (Vec::<Value>::new(), Vec::new());
    for image in images {
        match client.get(&route(&["images", image, "json"], &[])).await {
            Ok(object) => found.push(object),
            Err(e) => errors.push(e),
        }
    }
    output::json(&found)?;
    CliError::all(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_split_off() {
        for (name, expected) in [
            ("web", ("web", "")),
            ("web:1", ("web", "1")),
            ("host:5000/web", ("host:5000/web", "")),
            ("host:5000/web:1", ("host:5000/web", "1")),
        ] {
            assert_eq!(split_tag(name), expected, "{name}");
        }
    }
}
