//! `HEAD`, `GET` and `PUT /containers/{id}/archive` (`docker cp`), `/changes` (`docker diff`) and `/export`.

use std::io;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use runtime::image::ImageErrorKind;
use runtime::{ArchivePieces, Change, ChangeKind, ContainerState, CopyError, PathStat, PutOptions};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::body_reader::{after, with_reader};
use super::super::error::ApiError;
use super::super::extract::Params;
use super::find::{self, failed};
use super::inspect::time;
use crate::engine::Engine;

const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

/// What the client asks about: the only parameter that all three have.
fn wanted(params: &Params) -> Result<&str, ApiError> {
    let path = params.get("path").filter(|path| !path.is_empty());
    path.ok_or_else(|| ApiError::invalid("bad parameter: path cannot be empty"))
}

/// A copy that failed, as Docker says it.
fn refused(error: &CopyError, state: &ContainerState) -> ApiError {
    let text = || crate::chain(error);
    match error {
        CopyError::NotFound(path) => {
            ApiError::not_found(format!("Could not find the file {path} in container {}", find::name(state)))
        }
        CopyError::ReadOnlyRoot | CopyError::ReadOnlyVolume(_) => ApiError::forbidden(text()),
        CopyError::NotADirectory(_) | CopyError::Path { .. } | CopyError::Entry { .. } => ApiError::invalid(text()),
        CopyError::Archive(cause) => match cause.kind() {
            ImageErrorKind::Internal => ApiError::internal(text()),
            _ => ApiError::invalid(text()),
        },
        CopyError::Busy => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text()),
        CopyError::Taken(_) => ApiError::conflict(text()),
        CopyError::Container(cause) => failed(cause),
        _ => ApiError::internal(text()),
    }
}

/// Go's `os.FileMode`, which is not the kernel's.
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special: u32 = special.into_iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum();
    kind | special | (mode & 0o777)
}

fn stat_header(stat: &PathStat) -> Result<HeaderValue, ApiError> {
    let object = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": go_mode(stat.mode),
        "mtime": time(Some(stat.modified)),
        "linkTarget": stat.link_target,
    });
    let text = base64::engine::general_purpose::STANDARD.encode(object.to_string());
    HeaderValue::try_from(text).map_err(|error| ApiError::internal(error.to_string()))
}

pub(in super::super) async fn head<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let path = wanted(&params)?;
    let (containers, state) = find::find(&app, &id).await?;
    let stat = containers.runtime.stat_path(&state.id, path).await.map_err(|error| refused(&error, &state))?;
    Ok([(STAT, stat_header(&stat)?)].into_response())
}

pub(in super::super) async fn get<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let path = wanted(&params)?;
    let (containers, state) = find::find(&app, &id).await?;
    let got = containers.runtime.get_archive(&state.id, path).await;
    let (stat, pieces) = got.map_err(|error| refused(&error, &state))?;
    let tar = HeaderValue::from_static("application/x-tar");
    Ok(([(CONTENT_TYPE, tar), (STAT, stat_header(&stat)?)], archive(pieces, &app.shutdown)).into_response())
}

pub(in super::super) async fn put<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let options = PutOptions { keep_kinds: params.flag("noOverwriteDirNonDir"), own: params.flag("copyUIDGID") };
    let found = async { Ok::<_, ApiError>((wanted(&params)?.to_owned(), find::find(&app, &id).await?)) };
    let (body, (path, (containers, state))) = after(body, found).await?;
    let (runtime, container) = (containers.runtime.clone(), state.id.clone());
    let put = with_reader(body, move |reader| runtime.put_archive(&container, &path, reader, options));
    match put.await {
        Ok(Ok(())) => Ok(StatusCode::OK),
        Ok(Err(CopyError::NotADirectory(_))) => Err(ApiError::invalid("extraction point is not a directory")),
        Ok(Err(error)) => Err(refused(&error, &state)),
        Err(error) => Err(ApiError::internal(format!("the copy ended early: {error}"))),
    }
}

pub(in super::super) async fn export<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (containers, state) = find::find(&app, &id).await?;
    let pieces = containers.runtime.export(&state.id).await.map_err(|error| refused(&error, &state))?;
    let octets = HeaderValue::from_static("application/octet-stream");
    Ok(([(CONTENT_TYPE, octets)], archive(pieces, &app.shutdown)).into_response())
}

pub(in super::super) async fn changes<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (containers, state) = find::find(&app, &id).await?;
    let found = containers.runtime.changes(&state.id).await.map_err(|error| refused(&error, &state))?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(CONTENT_TYPE, json)], Body::from_stream(array(found))).into_response())
}

/// An archive as it comes. It breaks off where reading does, or when the daemon stops.
fn archive(pieces: ArchivePieces, shutdown: &CancellationToken) -> Body {
    let state = (pieces, shutdown.clone());
    Body::from_stream(futures_util::stream::unfold(state, |(mut pieces, shutdown)| async move {
        let piece = tokio::select! {
            biased;
            () = shutdown.cancelled() => Some(Err(io::Error::other("the daemon stops"))),
            piece = pieces.recv() => piece,
        };
        // Nothing is asked for after an error.
        Some((piece?, (pieces, shutdown)))
    }))
}

/// The list of changes, an element at a time.
fn array(found: mpsc::Receiver<io::Result<Change>>) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    enum At {
        Start,
        Middle,
        End,
    }
    futures_util::stream::unfold((found, At::Start), |(mut found, at)| async move {
        let before = match at {
            At::Start => "[",
            At::Middle => ",",
            At::End => return None,
        };
        Some(match found.recv().await {
            Some(Ok(change)) => (Ok(Bytes::from(format!("{before}{}", element(&change)))), (found, At::Middle)),
            Some(Err(error)) => (Err(error), (found, At::End)),
            None if before == "[" => (Ok(Bytes::from_static(b"[]\n")), (found, At::End)),
            None => (Ok(Bytes::from_static(b"]\n")), (found, At::End)),
        })
    })
}

fn element(change: &Change) -> serde_json::Value {
    let kind = match change.kind {
        ChangeKind::Modified => 0,
        ChangeKind::Added => 1,
        ChangeKind::Deleted => 2,
    };
    json!({"Path": change.path, "Kind": kind})
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn modes_are_gos() {
        for (mode, go) in [
            (0o100_644, 0o644),
            (0o040_755, 0x8000_0000 | 0o755),
            (0o041_777, 0x8010_0000 | 0o777),
            (0o120_777, 0x0800_0000 | 0o777),
            (0o104_755, 0x0080_0000 | 0o755),
            (0o102_755, 0x0040_0000 | 0o755),
            (0o020_666, 0x0420_0000 | 0o666),
            (0o060_660, 0x0400_0000 | 0o660),
            (0o010_600, 0x0200_0000 | 0o600),
            (0o140_600, 0x0100_0000 | 0o600),
        ] {
            assert_eq!(go_mode(mode), go, "{mode:o}");
        }
    }

    #[test]
    fn a_stat_is_base64_of_json() {
        let stat = PathStat {
            name: "x".into(),
            size: 3,
            mode: 0o120_777,
            modified: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1500),
            link_target: "/y".into(),
        };
        let header = stat_header(&stat).unwrap();
        let text = base64::engine::general_purpose::STANDARD.decode(header.as_bytes()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            value,
            json!({"name": "x", "size": 3, "mode": 134_218_239, "mtime": "1970-01-01T00:00:01.5Z", "linkTarget": "/y"})
        );
    }

    #[tokio::test]
    async fn changes_are_an_array() {
        use futures_util::TryStreamExt;
        for (count, expected) in [
            (0, "[]\n"),
            (1, "[{\"Kind\":0,\"Path\":\"/0\"}]\n"),
            (2, "[{\"Kind\":0,\"Path\":\"/0\"},{\"Kind\":0,\"Path\":\"/1\"}]\n"),
        ] {
            let (sender, receiver) = mpsc::channel(4);
            for number in 0..count {
                let change = Change { path: format!("/{number}"), kind: ChangeKind::Modified };
                sender.send(Ok(change)).await.unwrap();
            }
            drop(sender);
            let pieces: Vec<Bytes> = array(receiver).try_collect().await.unwrap();
            assert_eq!(pieces.concat(), expected.as_bytes());
        }
    }
}
