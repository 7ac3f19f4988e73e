//! Proposals over gRPC, to any member.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use raft::{MAX_PAYLOAD, RaftId};
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{Cluster, PATIENCE, until};
use crate::items;

/// `ProposeRequest`, as a client of another make would have it.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// `ProposeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    #[prost(oneof = "Outcome", tags = "1, 2, 3, 4, 5, 6")]
    outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Outcome {
    #[prost(message, tag = "1")]
    Accepted(Accepted),
    #[prost(message, tag = "2")]
    NotLeader(()),
    #[prost(message, tag = "3")]
    Unknown(()),
    #[prost(uint64, tag = "4")]
    TooLarge(u64),
    #[prost(message, tag = "5")]
    StorageFull(()),
    #[prost(message, tag = "6")]
    Stopped(()),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Accepted {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(bytes = "vec", tag = "3")]
    response: Vec<u8>,
}

async fn channel(cluster: &Cluster, id: RaftId) -> Channel {
    Endpoint::from_shared(format!("http://{}", cluster.addr(id))).unwrap().connect().await.unwrap()
}

async fn propose(channel: Channel, cluster_id: &str, payload: Vec<u8>) -> Result<Outcome, tonic::Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/shoal.raft.v1.Proposals/Propose");
    let codec = tonic_prost::ProstCodec::<Request, Reply>::default();
    let request = Request { cluster_id: cluster_id.into(), payload };
    let reply = grpc.unary(tonic::Request::new(request), path, codec).await?;
    Ok(reply.into_inner().outcome.expect("an outcome"))
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_takes_proposals_and_refuses_strangers() {
    let cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let mut indexes = BTreeSet::new();
    let mut written = Vec::new();
    for (round, item) in items(0..30).into_iter().enumerate() {
        let to = channel(&cluster, 1 + round as u64 % 3).await;
        let outcome = propose(to, "cluster-1", item.clone().into_bytes()).await.unwrap();
        let Outcome::Accepted(accepted) = outcome else { panic!("{item}: {outcome:?}") };
        written.push(item);
        assert_eq!(accepted.response, (written.len() as u64).to_le_bytes(), "the machine's answer");
        assert_eq!(accepted.term, cluster.status(leader).term);
        assert!(indexes.insert(accepted.index));
    }
    for id in 1..=3 {
        cluster.has(id, &written).await;
    }
    for id in 1..=3 {
        let to = channel(&cluster, id).await;
        let refused = propose(to.clone(), "cluster-2", b"x".to_vec()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let refused = propose(to.clone(), "cluster-1", vec![0; MAX_PAYLOAD + 1]).await.unwrap();
        assert_eq!(refused, Outcome::TooLarge(MAX_PAYLOAD as u64));
        // The largest that there may be.
        let largest = propose(to, "cluster-1", vec![b'y'; MAX_PAYLOAD]).await.unwrap();
        assert!(matches!(largest, Outcome::Accepted(_)), "{largest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_outlive_a_leader_and_none_is_applied_twice() {
    let mut cluster = Cluster::with_voters(3).await;
    let leader = cluster.leader().await;
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let accepted = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut clients = tokio::task::JoinSet::new();
    // Through the followers, which lose their way to the leader and find another.
    for id in (1..=3).filter(|id| *id != leader) {
        let channel = channel(&cluster, id).await;
        for _ in 0..8 {
            let (stop, next, accepted, channel) = (stop.clone(), next.clone(), accepted.clone(), channel.clone());
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let item = format!("item {}", next.fetch_add(1, Ordering::Relaxed));
                    let call = propose(channel.clone(), "cluster-1", item.clone().into_bytes());
                    match tokio::time::timeout(PATIENCE, call).await.expect("an answer").unwrap() {
                        Outcome::Accepted(_) => accepted.lock().unwrap().push(item),
                        Outcome::Unknown(()) => {}
                        other => panic!("{item}: {other:?}"),
                    }
                }
            });
        }
    }
    let count = || accepted.lock().unwrap().len();
    until("writes", || (count() > 100).then_some(())).await;
    cluster.kill(leader).await;
    let before = count();
    until("writes through the next leader", || (count() > before + 100).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    cluster.start(leader).await;
    cluster.write("last").await;
    let successor = cluster.leader().await;
    let state: Vec<String> =
        cluster.applied(successor).into_iter().map(|item| String::from_utf8(item).unwrap()).collect();
    let kept: BTreeSet<&String> = state.iter().collect();
    assert_eq!(kept.len(), state.len(), "nothing is applied twice");
    assert!(accepted.lock().unwrap().iter().all(|item| kept.contains(item)), "what was accepted is kept");
    for id in 1..=3 {
        cluster.has(id, &state).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_proposal_is_not_called_committed() {
    let mut cluster = Cluster::with_voters(2).await;
    let leader = cluster.leader().await;
    cluster.kill(3 - leader).await;
    let to = channel(&cluster, leader).await;
    let waiting = propose(to, "cluster-1", b"x".to_vec());
    let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await;
    assert!(!matches!(answer, Ok(Ok(Outcome::Accepted(_)))), "{answer:?}");
    assert!(!cluster.applied(leader).contains(&b"x".to_vec()));
}
