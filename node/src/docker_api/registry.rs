//! Images from registries and to them: `/images/create?fromImage=`, `/images/{name}/push`, `/auth` and
//! `/distribution`.
//!
//! Progress is a JSON object a line, as Docker's; what fails before the first of them is an answer with a status.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use runtime::image::Reference;
use runtime::image::registry::{
    Credentials, ImagePlatform, LayerStep, Progress, Pulled, Pushed, RegistryError, RegistryErrorKind,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::App;
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::registries;
use crate::engine::Engine;

/// Steps that may wait for a client; what it is too slow for, it is not told.
const STEPS_AHEAD: usize = 256;
/// Docker's command line asks `/distribution` before each `service create` and goes on with the plain tag when it is
/// told "no", so "no" has to come soon.
const INSPECT: Duration = Duration::from_secs(15);

/// A failure on the way to or from a registry.
pub(super) fn error(e: &RegistryError) -> ApiError {
    if let RegistryError::Image(image) = e {
        return super::images::error(image);
    }
    let message = crate::chain(e);
    let status = match e.kind() {
        RegistryErrorKind::NotFound => StatusCode::NOT_FOUND,
        RegistryErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        RegistryErrorKind::Denied => StatusCode::FORBIDDEN,
        RegistryErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        RegistryErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, message)
}

/// The credentials that a client sends along; nobody's where it sends none.
pub(super) struct RegistryAuth(pub(super) Credentials);

impl<S: Sync> FromRequestParts<S> for RegistryAuth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let Some(header) = parts.headers.get("x-registry-auth") else { return Ok(Self(Credentials::Anonymous)) };
        let header = header.to_str().map_err(|_| ApiError::invalid("X-Registry-Auth is not text"))?;
        Credentials::from_header(header).map(Self).map_err(|e| ApiError::invalid(e.to_string()))
    }
}

impl RegistryAuth {
    /// As services keep them; none where nobody's were sent.
    pub(super) fn to_model(&self) -> Option<deploy::model::RegistryAuth> {
        let some = self.0 != Credentials::Anonymous;
        some.then(|| deploy::model::RegistryAuth { header: self.0.to_header() })
    }

    /// What a service keeps.
    pub(super) fn from_model(kept: Option<&deploy::model::RegistryAuth>) -> Result<Option<Credentials>, ApiError> {
        let kept = kept.map(|kept| Credentials::from_header(&kept.header)).transpose();
        kept.map_err(|e| ApiError::invalid(e.to_string()))
    }
}

/// Work on a registry that is told of as it goes on. It ends with the client's connection.
struct Told<T> {
    first: Option<Progress>,
    steps: mpsc::Receiver<Progress>,
    work: AbortOnDropHandle<Result<T, RegistryError>>,
}

impl<T: Send + 'static> Told<T> {
    /// Begins, and waits until there is something to tell: a failure until then is the whole answer.
    async fn begin<F>(work: impl FnOnce(mpsc::Sender<Progress>) -> F) -> Result<Self, ApiError>
    where
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let (to, mut steps) = mpsc::channel(STEPS_AHEAD);
        let work = AbortOnDropHandle::new(tokio::spawn(work(to)));
        if let Some(first) = steps.recv().await {
            return Ok(Self { first: Some(first), steps, work });
        }
        // Without a word it has most likely failed.
        let done = joined(work.await)?;
        Ok(Self { first: None, steps, work: AbortOnDropHandle::new(tokio::spawn(async move { Ok(done) })) })
    }

    /// The answer: a line, one for each step, and what `end` says of the result.
    fn answer(
        self,
        begin: Value,
        step: impl Fn(&Progress) -> Option<Value> + Send + 'static,
        end: impl FnOnce(&T) -> Vec<Value> + Send + 'static,
    ) -> Response {
        let steps = tokio_stream::iter(self.first).chain(ReceiverStream::new(self.steps));
        let steps = steps.filter_map(move |progress| std::future::ready(step(&progress).map(|said| lines(&[said]))));
        let work = self.work;
        let end = futures_util::stream::once(async move {
            match joined(work.await) {
                Ok(done) => lines(&end(&done)),
                Err(e) => lines(&[json!({"errorDetail": {"message": e.message}, "error": e.message})]),
            }
        });
        let body = futures_util::stream::once(std::future::ready(lines(&[begin]))).chain(steps).chain(end);
        let body = Body::from_stream(body.map(Ok::<_, std::convert::Infallible>));
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    }
}

fn joined<T>(done: Result<Result<T, RegistryError>, tokio::task::JoinError>) -> Result<T, ApiError> {
    done.map_err(|e| ApiError::internal(format!("the work on the registry failed: {e}")))?.map_err(|e| error(&e))
}

fn lines(said: &[Value]) -> Bytes {
    said.iter().map(|line| format!("{line}\r\n")).collect::<String>().into()
}

/// A step of one layer.
fn status(id: &str, status: &str) -> Value {
    json!({"status": status, "progressDetail": {}, "id": id})
}

fn moving(id: &str, status: &str, current: u64, total: u64) -> Value {
    let progress = format!("{}/{}", bytesize::ByteSize(current), bytesize::ByteSize(total));
    json!({"status": status, "progressDetail": {"current": current, "total": total}, "progress": progress, "id": id})
}

/// What Docker says of a step of a pull.
fn pull_line(progress: &Progress) -> Option<Value> {
    let Progress::Layer { id, step } = progress else { return None };
    Some(match step {
        LayerStep::Waiting => status(id, "Pulling fs layer"),
        LayerStep::Exists => status(id, "Already exists"),
        LayerStep::Mounted(_) => return None,
        LayerStep::Moving { current, total } => moving(id, "Downloading", *current, *total),
        LayerStep::Verified => status(id, "Download complete"),
        LayerStep::Done => status(id, "Pull complete"),
    })
}

/// What Docker says of a step of a push.
fn push_line(progress: &Progress) -> Option<Value> {
    let Progress::Layer { id, step } = progress else { return None };
    Some(match step {
        LayerStep::Waiting => status(id, "Preparing"),
        LayerStep::Exists => status(id, "Layer already exists"),
        LayerStep::Mounted(from) => status(id, &format!("Mounted from {from}")),
        LayerStep::Moving { current, total } => moving(id, "Pushing", *current, *total),
        LayerStep::Verified => return None,
        LayerStep::Done => status(id, "Pushed"),
    })
}

/// Pulls what `fromImage` names.
pub(super) async fn pull<E: Engine>(
    app: &App<E>,
    params: &Params,
    image: &str,
    RegistryAuth(credentials): RegistryAuth,
) -> Result<Response, ApiError> {
    let tag = params.get("tag").filter(|tag| !tag.is_empty());
    let name = image.rsplit('/').next().unwrap_or_default();
    if tag.is_none() && !name.contains([':', '@']) {
        return Err(ApiError::not_supported("pulling all tags is not supported yet: name one"));
    }
    let reference = super::images::reference(image, tag)?;
    let platform = match params.get("platform").filter(|platform| !platform.is_empty()) {
        Some(text) => Some(platform(text)?),
        None => None,
    };
    let credentials = registries::credentials(app, &reference, credentials).await;
    let (registries, name) = (app.engine.registries(), reference.clone());
    let told =
        Told::begin(move |to| async move { registries.pull(&name, platform, &credentials, Some(to)).await }).await?;
    let version = reference.tag().or(reference.digest()).unwrap_or_default();
    let begin = json!({"status": format!("Pulling from {}", reference.path()), "id": version});
    Ok(told.answer(begin, pull_line, move |pulled: &Pulled| {
        let outcome = if pulled.changed { "Downloaded newer image for" } else { "Image is up to date for" };
        vec![
            json!({"status": format!("Digest: {}", pulled.digest)}),
            json!({"status": format!("Status: {outcome} {reference}")}),
        ]
    }))
}

/// `linux/arm64/v8`, `linux/arm64` or `arm64`.
fn platform(text: &str) -> Result<ImagePlatform, ApiError> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts[..] {
        [os, architecture, variant] => (os, architecture, Some(variant)),
        [os, architecture] => (os, architecture, None),
        [architecture] => ("linux", architecture, None),
        _ => return Err(ApiError::invalid(format!("invalid platform {text:?}"))),
    };
    let fits = |part: &str| {
        !part.is_empty() && part.len() <= 50 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if !fits(os) || !fits(architecture) || !variant.is_none_or(fits) {
        return Err(ApiError::invalid(format!("invalid platform {text:?}")));
    }
    let lower = str::to_ascii_lowercase;
    Ok(ImagePlatform { os: lower(os), architecture: lower(architecture), variant: variant.map(lower) })
}

/// Pushes an image to the registry that its name says.
pub(super) async fn push<E: Engine>(
    app: &App<E>,
    params: &Params,
    name: &str,
    RegistryAuth(credentials): RegistryAuth,
) -> Result<Response, ApiError> {
    let tag = params.get("tag").filter(|tag| !tag.is_empty());
    if tag.is_none() && !name.rsplit('/').next().unwrap_or_default().contains(':') {
        return Err(ApiError::not_supported("pushing all tags is not supported yet: name one"));
    }
    let reference = super::images::reference(name, tag)?;
    let Some(tag) = reference.tag().filter(|_| reference.digest().is_none()).map(str::to_owned) else {
        return Err(ApiError::invalid("cannot push a digest reference"));
    };
    let credentials = registries::credentials(app, &reference, credentials).await;
    let (registries, name) = (app.engine.registries(), reference.clone());
    let told = Told::begin(move |to| async move { registries.push(&name, &credentials, Some(to)).await }).await?;
    let place = format!("{}/{}", reference.domain(), reference.path());
    let begin = json!({"status": format!("The push refers to repository [{place}]")});
    Ok(told.answer(begin, push_line, move |pushed: &Pushed| {
        let (digest, size) = (pushed.digest.to_string(), pushed.size);
        vec![
            json!({"status": format!("{tag}: digest: {digest} size: {size}")}),
            json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}}),
        ]
    }))
}

/// The registry that an `AuthConfig` is for; like its other fields, in any case.
pub(super) fn server_address(config: &Value) -> &str {
    let mut fields = config.as_object().into_iter().flatten();
    let found = fields.find(|(name, value)| name.eq_ignore_ascii_case("serveraddress") && value.is_string());
    found.and_then(|(_, value)| value.as_str()).unwrap_or_default()
}

/// Whether a registry takes the credentials in the body. They are not kept: whoever has them sends them along.
pub(super) async fn auth<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(body): JsonBody<Value>,
) -> Result<Json<Value>, ApiError> {
    let credentials =
        Credentials::from_json(body.to_string().as_bytes()).map_err(|e| ApiError::invalid(e.to_string()))?;
    app.engine.registries().login(server_address(&body), &credentials).await.map_err(|e| error(&e))?;
    Ok(Json(json!({"IdentityToken": "", "Status": "Login Succeeded"})))
}

/// What a registry knows of an image; with the credentials that are sent along, or the cluster's.
pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(rest): Path<String>,
    RegistryAuth(credentials): RegistryAuth,
) -> Result<Json<Value>, ApiError> {
    let name = rest.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let reference = Reference::parse(name).map_err(|e| ApiError::invalid(e.to_string()))?;
    let credentials = registries::credentials(&app, &reference, credentials).await;
    let registries = app.engine.registries();
    let asked = tokio::time::timeout(INSPECT, registries.inspect(&reference, &credentials)).await;
    let found = asked.map_err(|_| ApiError::internal(format!("the registry of {reference} does not answer")))?;
    let found = found.map_err(|e| error(&e))?;
    let platforms = found.platforms.iter().map(|platform| {
        let mut w = json!({"architecture": platform.architecture, "os": platform.os});
        if let Some(variant) = &platform.variant {
            w["variant"] = variant.as_str().into();
        }
        w
    });
    Ok(Json(json!({
        "Descriptor": {"mediaType": found.media_type, "digest": found.digest.to_string(), "size": found.size},
        "Platforms": platforms.collect::<Vec<_>>(),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let read = |text: &str| platform(text).map(|p| p.to_string()).map_err(|e| e.status.as_u16());
        assert_eq!(read("linux/arm64/v8"), Ok("linux/arm64/v8".into()));
        assert_eq!(read("Linux/amd64"), Ok("linux/amd64".into()));
        assert_eq!(read("arm64"), Ok("linux/arm64".into()));
        for bad in ["a/b/c/d", "linux/", "linux/amd 64", "{}"] {
            assert_eq!(read(bad), Err(400), "{bad}");
        }
    }
}
