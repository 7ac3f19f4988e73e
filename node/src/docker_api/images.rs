//! `/images`: those that this host has.
//!
//! The image store blocks on the disk, so every call to it runs on the blocking pool; an archive is handed to it as
//! it comes in, never held as a whole.

use std::collections::BTreeSet;
use std::io::Read;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use runtime::image::registry::Credentials;
use runtime::image::{Image, ImageError, ImageErrorKind, ImageStore, ImageSummary, ImportChanges, Reference, Removed};
use serde_json::{Value, json};

use super::App;
use super::body_reader::with_reader;
use super::containers::not_built;
use super::error::ApiError;
use super::extract::{ApiVersion, Params};
use super::registry::{self, RegistryAuth};
use super::{image_prune, image_save};
use crate::engine::Engine;
use crate::images::gc::used;

/// A failure of the image store.
pub(super) fn error(e: &ImageError) -> ApiError {
    let status = match e.kind() {
        ImageErrorKind::NotFound => StatusCode::NOT_FOUND,
        ImageErrorKind::Conflict => StatusCode::CONFLICT,
        ImageErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        ImageErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let message = match e {
        // Docker names the tag that it looked for, also where the user left it out.
        ImageError::NotFound { name } => match Reference::parse(name) {
            Ok(reference) => format!("No such image: {reference}"),
            Err(_) => format!("No such image: {name}"),
        },
        _ => crate::chain(e),
    };
    ApiError::new(status, message)
}

/// Runs something on the image store where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    images: ImageStore,
    work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(move || work(&images))
        .await
        .map_err(|e| ApiError::internal(format!("the image store's thread failed: {e}")))?
        .map_err(|e| error(&e))
}

/// Hands a request's body to the image store as it comes in.
async fn consume<T: Send + 'static>(
    images: ImageStore,
    body: Body,
    work: impl FnOnce(&ImageStore, &mut dyn Read) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ApiError> {
    with_reader(body, move |reader| work(&images, reader))
        .await
        .map_err(|e| ApiError::internal(format!("the image store's thread failed: {e}")))?
        .map_err(|e| error(&e))
}

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    version: ApiVersion,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&["dangling", "label", "reference", "before", "since", "until"])?;
    let dangling = filters.flag("dangling")?;
    let until = image_prune::until(&filters)?;
    let bounds = filters.clone();
    let (images, before, since) = blocking(app.engine.images(), move |images| {
        // When the images were made that others must be older or newer than.
        let of = |key: &str| match bounds.values(key).and_then(|names| names.first()) {
            Some(name) => images.resolve(name).map(|image| Some(image.config.created_unix())),
            None => Ok(None),
        };
        Ok((images.list(), of("before")?, of("since")?))
    })
    .await?;
    let wanted = |image: &ImageSummary| {
        dangling.is_none_or(|yes| yes == image.references.is_empty())
            && filters.labels("label", &image.labels)
            && filters.any("reference", |pattern| image.references.iter().any(|r| matches_reference(pattern, r)))
            && before.is_none_or(|before| image.created < before)
            && since.is_none_or(|since| image.created > since)
            && until.is_none_or(|until| image.created < until)
    };
    Ok(Json(images.iter().filter(|i| wanted(i)).map(|i| summary(i, version)).collect()))
}

pub(super) fn summary(image: &ImageSummary, version: ApiVersion) -> Value {
    let mut w = json!({
        "Id": image.id.to_string(),
        "ParentId": "",
        "RepoTags": tags(&image.references),
        "RepoDigests": digests(&image.references, image.manifest_digest.as_deref()),
        "Created": image.created,
        "Size": image.size,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": image.labels,
    });
    if version < ApiVersion(1, 44) {
        w["VirtualSize"] = image.size.into();
    }
    w
}

fn tags(references: &[Reference]) -> Vec<String> {
    references.iter().map(Reference::to_string).collect()
}

/// `repository@digest`, once for each repository.
fn digests(references: &[Reference], digest: Option<&str>) -> BTreeSet<String> {
    references.iter().flat_map(|r| digest.map(|d| format!("{}@{d}", r.familiar_name()))).collect()
}

/// Whether a reference fits a pattern such as `web`, `web:1.*` or `quay.io/*/web`.
fn matches_reference(pattern: &str, reference: &Reference) -> bool {
    [reference.to_string(), reference.familiar_name(), reference.canonical()]
        .iter()
        .any(|name| glob(pattern.as_bytes(), name.as_bytes()))
}

/// `*` stands for anything but a slash, `?` for one character that is none. Takes time linear in the product of the
/// lengths, however many stars there are.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') if text[t] != b'/' => (p, t) = (p + 1, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                // The last star takes one more character. (An earlier one never has to: it stops at the same slash.)
                Some((at, from)) if text[from] != b'/' => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

pub(super) async fn load<E: Engine>(State(app): State<App<E>>, body: Body) -> Result<Response, ApiError> {
    let loaded = consume(app.engine.images(), body, |images, reader| images.load(reader)).await?;
    let mut lines = String::new();
    for image in loaded {
        let names = match &image.references[..] {
            [] => vec![format!("Loaded image ID: {}\n", image.id)],
            names => names.iter().map(|name| format!("Loaded image: {name}\n")).collect(),
        };
        for name in names {
            lines.push_str(&json!({ "stream": name }).to_string());
            lines.push_str("\r\n");
        }
    }
    Ok(([(CONTENT_TYPE, "application/json")], lines).into_response())
}

/// Import (`fromSrc=-`, the root file system as body) or pull (`fromImage`).
pub(super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
    auth: Result<RegistryAuth, ApiError>,
    body: Body,
) -> Result<Response, ApiError> {
    if let Some(image) = params.get("fromImage").filter(|i| !i.is_empty()) {
        // As Docker: whoever sends something else than credentials may be nobody, for a pull.
        let auth = auth.unwrap_or(RegistryAuth(Credentials::Anonymous));
        return registry::pull(&app, &params, image, auth).await;
    }
    match params.get("fromSrc") {
        Some("-") => {}
        Some(url) if !url.is_empty() => {
            return Err(ApiError::not_supported(format!(
                "importing from {url} is not supported yet: send the archive"
            )));
        }
        _ => return Err(ApiError::invalid("either fromImage or fromSrc must be given")),
    }
    if params.get("platform").is_some_and(|p| !p.is_empty()) {
        return Err(ApiError::not_supported("platform is not supported yet for an import"));
    }
    let reference = match params.get("repo").filter(|r| !r.is_empty()) {
        Some(repo) => Some(reference(repo, params.get("tag"))?),
        None => None,
    };
    let changes: Vec<&str> = params.all("changes").collect();
    let changes = ImportChanges::parse(&changes).map_err(|e| error(&e))?;
    let message = match params.get("message").unwrap_or_default() {
        "" => "Imported from -".to_owned(),
        given => given.to_owned(),
    };
    let id =
        consume(app.engine.images(), body, move |images, reader| images.import(reader, reference, changes, &message))
            .await?;
    let line = format!("{}\r\n", json!({ "status": id.to_string() }));
    Ok(([(CONTENT_TYPE, "application/json")], line).into_response())
}

pub(super) fn reference(repo: &str, tag: Option<&str>) -> Result<Reference, ApiError> {
    let name = match tag.filter(|t| !t.is_empty()) {
        Some(digest) if digest.contains(':') => format!("{repo}@{digest}"),
        Some(tag) => format!("{repo}:{tag}"),
        None => repo.to_owned(),
    };
    Reference::parse(&name).map_err(|e| ApiError::invalid(e.to_string()))
}

/// What is asked of an image stands behind its name, which has slashes of its own.
fn split_name<'a>(rest: &'a str, verbs: &[&'static str]) -> Option<(&'a str, &'static str)> {
    verbs.iter().find_map(|verb| {
        let name = rest.strip_suffix(verb)?.strip_suffix('/')?;
        (!name.is_empty()).then_some((name, *verb))
    })
}

pub(super) async fn get<E: Engine>(
    State(app): State<App<E>>,
    Path(rest): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, ApiError> {
    let Some((name, verb)) = split_name(&rest, &["json", "history", "get"]) else {
        return match rest.as_str() {
            "get" => image_save::save(app.engine.images(), params.all("names").map(str::to_owned).collect()).await,
            "search" => Err(not_built(&Method::GET, "/images/search")),
            _ => Err(ApiError::not_found("page not found")),
        };
    };
    let name = name.to_owned();
    if verb == "get" {
        return image_save::save(app.engine.images(), vec![name]).await;
    }
    blocking(app.engine.images(), move |images| {
        let image = images.resolve(&name)?;
        Ok(Json(if verb == "json" { inspect(&image, version) } else { history(&image) }).into_response())
    })
    .await
}

/// Docker writes null for a list that was not given.
fn list_or_null(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// Docker writes sets as objects with empty values.
fn set_or_null(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { list.iter().map(|k| (k.clone(), json!({}))).collect() }
}

fn inspect(image: &Image, version: ApiVersion) -> Value {
    let c = &image.config;
    let mut config = json!({
        "User": c.user,
        "ExposedPorts": set_or_null(&c.exposed_ports),
        "Env": list_or_null(&c.env),
        "Cmd": list_or_null(&c.cmd),
        "Volumes": set_or_null(&c.volumes),
        "WorkingDir": c.working_dir,
        "Entrypoint": list_or_null(&c.entrypoint),
        "OnBuild": null,
        "Labels": if c.labels.is_empty() { Value::Null } else { json!(c.labels) },
    });
    if let Some(signal) = &c.stop_signal {
        config["StopSignal"] = signal.as_str().into();
    }
    if let Some(check) = &c.healthcheck {
        config["Healthcheck"] = check.clone();
    }
    if !c.shell.is_empty() {
        config["Shell"] = json!(c.shell);
    }
    let comment = image.history.iter().rev().find_map(|h| h.comment.clone()).unwrap_or_default();
    let mut w = json!({
        "Id": image.id.to_string(),
        "RepoTags": tags(&image.references),
        "RepoDigests": digests(&image.references, image.manifest_digest.as_deref()),
        "Parent": "",
        "Comment": comment,
        "Created": c.created,
        "DockerVersion": "",
        "Author": c.author.clone().unwrap_or_default(),
        "Config": config,
        "Architecture": c.architecture,
        "Os": c.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": graph(&image.layers)},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    });
    if version < ApiVersion(1, 44) {
        w["VirtualSize"] = image.size.into();
    }
    w
}

/// Where the layers are: the uppermost, and below it the others from the top down, as overlayfs takes them.
fn graph(layers: &[std::path::PathBuf]) -> Value {
    let mut from_the_top = layers.iter().rev().map(|layer| layer.display().to_string());
    let mut data = json!({ "UpperDir": from_the_top.next() });
    let below: Vec<String> = from_the_top.collect();
    if !below.is_empty() {
        data["LowerDir"] = below.join(":").into();
    }
    data
}

/// The steps of an image's making, newest first.
fn history(image: &Image) -> Value {
    // Steps and layers are counted from the top: a layer that hides all below it may have been cut off from them.
    let mut layers = image.layer_bytes.iter().rev();
    let mut lines: Vec<Value> = Vec::new();
    for step in image.history.iter().rev() {
        let bytes = if step.empty_layer { 0 } else { layers.next().copied().unwrap_or(0) };
        lines.push(json!({
            "Id": "<missing>",
            "Created": step.created.as_deref().map_or(0, unix_seconds),
            "CreatedBy": step.created_by.clone().unwrap_or_default(),
            "Tags": null,
            "Size": bytes,
            "Comment": step.comment.clone().unwrap_or_default(),
        }));
    }
    if lines.is_empty() {
        // An image that says nothing of its making still has itself to show.
        lines.push(json!({"Created": image.config.created_unix(), "CreatedBy": "", "Size": image.size, "Comment": ""}));
    }
    lines[0]["Id"] = image.id.to_string().into();
    lines[0]["Tags"] = json!(tags(&image.references));
    lines.into()
}

fn unix_seconds(rfc3339: &str) -> i64 {
    time::OffsetDateTime::parse(rfc3339, &time::format_description::well_known::Rfc3339)
        .map_or(0, time::OffsetDateTime::unix_timestamp)
}

pub(super) async fn post<E: Engine>(
    State(app): State<App<E>>,
    Path(rest): Path<String>,
    params: Params,
    auth: RegistryAuth,
) -> Result<Response, ApiError> {
    let Some((name, verb)) = split_name(&rest, &["tag", "push"]) else {
        return match rest.as_str() {
            "prune" => image_prune::prune(&app, &params).await.map(IntoResponse::into_response),
            _ => Err(ApiError::not_found("page not found")),
        };
    };
    if verb == "push" {
        return registry::push(&app, &params, name, auth).await;
    }
    let repo = params.get("repo").unwrap_or_default();
    let target = reference(repo, params.get("tag"))?;
    if target.digest().is_some() {
        return Err(ApiError::invalid("refusing to create a tag with a digest reference"));
    }
    let name = name.to_owned();
    blocking(app.engine.images(), move |images| images.tag(&name, &target)).await?;
    Ok(StatusCode::CREATED.into_response())
}

pub(super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let force = params.flag("force");
    let ask = ask_in_use(&app);
    let removed = blocking(app.engine.images(), move |images| images.remove(&name, force, &used(ask))).await?;
    Ok(Json(removed.iter().map(removed_line).collect()))
}

/// Asks from a thread that may block which images containers are made of.
pub(super) fn ask_in_use<E: Engine>(app: &App<E>) -> impl Fn() -> BTreeSet<String> + use<E> {
    let (engine, handle) = (app.engine.clone(), tokio::runtime::Handle::current());
    move || handle.block_on(engine.images_in_use()).into_iter().collect()
}

pub(super) fn removed_line(removed: &Removed) -> Value {
    match removed {
        Removed::Untagged(name) => json!({ "Untagged": name }),
        Removed::Deleted(id) => json!({ "Deleted": id }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(matches_reference(pattern, &Reference::parse(name).unwrap()), expected, "{pattern} {name}");
    }

    #[test]
    fn reference_patterns() {
        check("web", "web:1", true);
        check("web:1", "web:1", true);
        check("web:2", "web:1", false);
        check("w*", "web:1", true);
        check("*", "web:1", true);
        check("*", "a/web:1", false);
        check("*/web", "a/web:1", true);
        check("*/web:?", "a/web:1", true);
        check("docker.io/library/web:1", "web:1", true);
        check("", "web:1", false);
        check(&"*a".repeat(2000), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", false);
    }

    #[test]
    fn names_of_images_have_slashes() {
        assert_eq!(split_name("a/b:1/json", &["json"]), Some(("a/b:1", "json")));
        assert_eq!(split_name("json", &["json"]), None);
        assert_eq!(split_name("/json", &["json"]), None);
        assert_eq!(split_name("a/history", &["json", "history"]), Some(("a", "history")));
    }
}
