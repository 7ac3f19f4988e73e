//! What a certificate opens at a server, and what it opens no more.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::ca::{Issuer, KeyAndCsr, Role, TlsContext, new_root};

/// Answers every known caller with a stream that says one word and never ends.
struct Endless;

#[tonic::async_trait]
impl pb::logs_server::Logs for Endless {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<pb::LogChunk, Status>> + Send>>;

    async fn read(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        caller(&request)?;
        let first = futures_util::stream::once(async { Ok(pb::LogChunk::default()) });
        Ok(Response::new(Box::pin(futures_util::StreamExt::chain(first, futures_util::stream::pending()))))
    }
}

fn node(root: &(String, String), id: &str, role: Role, begins: std::time::SystemTime) -> TlsContext {
    let own = KeyAndCsr::generate().unwrap();
    let issuer = Issuer::new(&root.0, &root.1).unwrap();
    let cert = issuer.issue(&own.csr_pem, id, "cluster1", role, begins, Duration::from_secs(3600)).unwrap();
    TlsContext::new(&root.0, &cert, &own.key_pem).unwrap()
}

async fn read(channels: &Channels, addr: &str) -> Result<tonic::Streaming<pb::LogChunk>, Code> {
    let mut client = pb::logs_client::LogsClient::new(channels.to(addr, "server"));
    let asked = client.read(pb::LogsRequest::default()).await;
    asked.map(Response::into_inner).map_err(|status| status.code())
}

/// A message of up to 16 MiB, many at a time, from somebody who may not ask anything.
#[tokio::test]
async fn nobodys_message_is_not_waited_for() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = new_root().unwrap();
    let server = node(&root, "server", Role::Manager, std::time::SystemTime::now());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let logs = pb::logs_server::LogsServer::new(Endless);
    let routes = Routes::new(InterceptedService::new(logs, known));
    let serving = tokio::spawn(serve(listener, server, Connections::default(), routes, stop.clone().cancelled_owned()));

    let channel = channel_without_certificate(&root.0, &addr);
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::LogsRequest, pb::LogChunk>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/shoal.node.v1.Logs/Read");
    let never = futures_util::stream::pending::<pb::LogsRequest>();
    let asked = client.streaming(Request::new(never), path, codec);
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("the message was waited for");
    assert_eq!(answer.err().map(|status| status.code()), Some(Code::Unauthenticated));
    stop.cancel();
    drop(client);
    let _ = serving.await.unwrap();
}

#[tokio::test]
async fn a_removed_node_is_hung_up_on_and_its_certificate_opens_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (root, now) = (new_root().unwrap(), std::time::SystemTime::now());
    let server = node(&root, "server", Role::Worker, now);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (connections, stop) = (Connections::default(), CancellationToken::new());
    let routes = Routes::new(pb::logs_server::LogsServer::new(Endless));
    let serving =
        tokio::spawn(serve(listener, server.clone(), connections.clone(), routes, stop.clone().cancelled_owned()));

    let removed = Channels::new(node(&root, "removed", Role::Manager, now));
    let stays = Channels::new(node(&root, "stays", Role::Manager, now));
    let expired = Channels::new(node(&root, "expired", Role::Manager, now - Duration::from_secs(2 * 3600)));
    let mut cut = read(&removed, &addr).await.unwrap();
    let mut kept = read(&stays, &addr).await.unwrap();
    assert!(cut.message().await.unwrap().is_some() && kept.message().await.unwrap().is_some());
    assert_eq!(read(&expired, &addr).await.err(), Some(Code::Unauthenticated));

    let gone = BTreeSet::from(["removed".to_owned()]);
    server.revoke(gone.clone());
    // On the connection that it still has, too.
    assert_eq!(read(&removed, &addr).await.err(), Some(Code::PermissionDenied));
    assert_eq!(connections.close(&gone), 1);
    let end = tokio::time::timeout(Duration::from_secs(10), cut.message()).await.expect("the stream went on");
    assert!(end.is_err(), "{end:?}");
    assert_eq!(read(&removed, &addr).await.err(), Some(Code::PermissionDenied));
    assert!(read(&stays, &addr).await.is_ok(), "another node was hung up on");
    drop(kept);
    stop.cancel();
    drop((removed, stays, expired));
    let _ = serving.await.unwrap();
}
