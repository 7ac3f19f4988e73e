//! Accepts connections on port 2377, does TLS itself (tonic's own cannot renew certificates) and tells each service
//! who calls.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::Connected;

use crate::ca::{PeerIdentity, TlsContext};

/// Handshakes under way at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 64;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Who calls; an extension of each request. `None` inside: no certificate was shown.
#[derive(Clone, Debug)]
pub struct Peer(Option<PeerIdentity>);

/// The caller of a request, if it showed a certificate of this cluster.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<PeerIdentity, Status> {
    match request.extensions().get::<Peer>() {
        Some(Peer(Some(identity))) => Ok(identity.clone()),
        _ => Err(Status::unauthenticated("a certificate of this cluster is needed")),
    }
}

/// Serves until `shutdown` completes. A failing handshake ends only its own connection.
pub async fn serve(
    listener: TcpListener,
    tls: TlsContext,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpListenerStream::new(listener)
        .map(move |stream| {
            let tls = tls.clone();
            async move {
                match stream {
                    Ok(stream) => handshake(tls, stream).await,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        // Most often there is no descriptor left; trying again at once would only spin.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        None
                    }
                }
            }
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(|connection| async move { connection.map(Ok::<_, std::io::Error>) });
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(5)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
}

async fn handshake(tls: TlsContext, stream: TcpStream) -> Option<Connection> {
    let addr = stream.peer_addr().ok();
    let _ = stream.set_nodelay(true);
    match tls.accept(stream).await {
        Ok((stream, peer)) => {
            let own = tls.identity().cluster_id;
            if peer.as_ref().is_some_and(|p| p.cluster_id != own) {
                tracing::warn!(?addr, "a node of another cluster was turned away");
                return None;
            }
            Some(Connection { stream, peer: Peer(peer) })
        }
        Err(error) => {
            tracing::debug!(?addr, %error, "a TLS handshake failed");
            None
        }
    }
}

/// A connection after its handshake.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
