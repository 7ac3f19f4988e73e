//! Accepts connections on port 2377, does TLS itself (tonic's own cannot renew certificates) and tells each service
//! who calls.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::Connected;

use super::connections::{Admitted, Connections};
use super::handshakes::Handshakes;
use crate::ca::{Caller, PeerIdentity, TlsContext};

/// Handshakes under way at once; more wait in the kernel's queue. Four times what one source may have.
const HANDSHAKES: usize = 1024;

/// Requests that one connection has under way at most. Far more than a follower passes on at a time, or than tasks of one
/// host have their logs followed; a further one waits at the caller.
const MAX_STREAMS: u32 = 1024;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Who calls; an extension of each request.
#[derive(Clone)]
pub struct Peer {
    caller: Caller,
    tls: TlsContext,
}

/// The caller of a request, if it showed a certificate of this cluster that is good now and not revoked.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<PeerIdentity, Status> {
    match shown(request)? {
        Caller::Known(shown) => Ok(shown.identity),
        Caller::Stale(_, reason) => Err(Status::unauthenticated(reason)),
        Caller::Nobody => Err(Status::unauthenticated("a certificate of this cluster is needed")),
    }
}

/// Lets through who shows a good certificate. Before a service, as an interceptor: a service reads the whole message
/// before it can look who sends it.
pub fn known(request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
    caller(&request)?;
    Ok(request)
}

/// What the caller of a request showed, whatever it is worth: for those that look at it themselves. The certificate of
/// a node that was removed is worth nothing.
pub fn shown<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let Some(peer) = request.extensions().get::<Peer>() else { return Ok(Caller::Nobody) };
    match &peer.caller {
        Caller::Known(shown) | Caller::Stale(shown, _) if peer.tls.is_revoked(&shown.identity.node_id) => {
            Err(Status::permission_denied("this node was removed from the cluster"))
        }
        caller => Ok(caller.clone()),
    }
}

/// Serves until `shutdown` completes. A failing handshake ends only its own connection.
pub async fn serve(
    listener: TcpListener,
    tls: TlsContext,
    connections: Connections,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let handshakes = Handshakes::default();
    let incoming = TcpListenerStream::new(listener)
        .map(move |stream| {
            let (tls, connections, handshakes) = (tls.clone(), connections.clone(), handshakes.clone());
            async move {
                match stream {
                    Ok(stream) => {
                        let _underway = handshakes.begin(stream.peer_addr().ok()?.ip())?;
                        handshake(tls, &connections, stream).await
                    }
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
        .max_concurrent_streams(Some(MAX_STREAMS))
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(5)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
}

async fn handshake(tls: TlsContext, connections: &Connections, stream: TcpStream) -> Option<Connection> {
    let addr = stream.peer_addr().ok();
    super::tune(&stream);
    let (stream, caller) = match tls.accept(stream).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(?addr, %error, "a TLS handshake failed");
            return None;
        }
    };
    let node_id = match &caller {
        Caller::Known(shown) if shown.identity.cluster_id != tls.identity().cluster_id => {
            tracing::warn!(?addr, "a node of another cluster was turned away");
            return None;
        }
        Caller::Known(shown) => shown.identity.node_id.clone(),
        Caller::Stale(_, reason) => {
            tracing::info!(?addr, reason, "a caller's certificate is good for nothing but a renewal");
            String::new()
        }
        Caller::Nobody => String::new(),
    };
    let admitted = connections.admit(node_id);
    let ended = Box::pin(admitted.end.clone().cancelled_owned());
    Some(Connection { stream, peer: Peer { caller, tls }, _admitted: admitted, ended })
}

/// A connection after its handshake.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _admitted: Admitted,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// An error once this node has hung up.
    fn check(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(std::io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
