//! `GET /metrics`, and nothing else: a small HTTP server whose clients cost it a bounded amount, whatever they do.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::page;
use super::readings::Readings;
use super::text;

/// Scrapes at a time; a further one is closed at once.
const CONNECTIONS: usize = 16;
/// A connection is for one scrape, which has to be over within this time.
const SCRAPE: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Pause after a failed accept (out of descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes the port.
pub(crate) async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Serves what `read` says at each scrape, until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    read: impl Fn() -> Readings + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let read = Arc::new(read);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut scrapes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = scrapes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let read = read.clone();
                scrapes.spawn(async move {
                    let _ = tokio::time::timeout(SCRAPE, scrape(stream, &*read)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a scrape failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn scrape(stream: TcpStream, read: &(impl Fn() -> Readings + Sync)) {
    let service = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(&request, read)) });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SCRAPE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape ended early");
    }
}

fn answer<B>(request: &Request<B>, read: impl Fn() -> Readings) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, page::render(&read())),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn served() -> (SocketAddr, tokio_util::sync::DropGuard) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Readings::default, stop.clone()));
        (addr, stop.drop_guard())
    }

    async fn exchange(addr: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        // The server may cut off a client that is still talking.
        let _ = stream.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn only_one_page_is_served() {
        let (addr, _stop) = served().await;
        let page = exchange(addr, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
        assert!(page.contains("\nshoal_build_info{version="), "{page}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 "),
            ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405 "),
            ("\x16\x03\x01", ""),
        ] {
            let answer = exchange(addr, request.as_bytes()).await;
            assert!(answer.starts_with(status), "{request:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (addr, _stop) = served().await;
        let mut request = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        request.resize(HEAD * 2, b'a');
        let answer = exchange(addr, &request).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_do_not_add_up() {
        let (addr, _stop) = served().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut last = TcpStream::connect(addr).await.unwrap();
        assert_eq!(last.read(&mut [0]).await.unwrap(), 0, "closed without an answer");
        drop(silent);
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error() {
        let (addr, _stop) = served().await;
        assert_eq!(bind(addr).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
