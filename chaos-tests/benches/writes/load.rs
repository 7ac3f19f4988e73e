//! The closed-loop load, the same for every peer: clients that each keep one gRPC call outstanding, on at most 16
//! connections, spread over the members.

use std::time::{Duration, Instant};

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// More clients than this share connections.
const CONNECTIONS: usize = 16;

/// Runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);

/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is written and how.
pub(crate) trait Writes: Clone + Send + Sync + 'static {
    /// The request message.
    type Request: Message + 'static;
    /// The reply message.
    type Reply: Message + Default + 'static;
    /// The gRPC method.
    const PATH: &'static str;
    /// One write of 256 bytes.
    fn request(&self, client: usize, round: u64) -> Self::Request;
    /// Whether the reply says that it is committed.
    fn committed(reply: &Self::Reply) -> bool;
}

/// Writes one after the other.
pub(crate) trait Client: Send + 'static {
    /// Writes once, and says whether it is committed.
    fn write(&mut self, round: u64) -> impl Future<Output = bool> + Send;
}

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) committed: u64,
    pub(crate) failed: u64,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        write!(f, "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms", self.per_second, ms(self.p50), ms(self.p99))?;
        if self.failed > 0 {
            write!(f, ", {} FAILED", self.failed)?;
        }
        Ok(())
    }
}

/// Writes for `measured` with `clients`. Connection `n` goes to member `first + n`, so that runs that begin at
/// different members are alike to leaders and followers.
pub(crate) async fn run<W: Writes>(
    writes: W,
    members: &[String],
    first: usize,
    clients: usize,
    measured: Duration,
) -> anyhow::Result<Outcome> {
    let mut channels = Vec::new();
    for at in 0..clients.min(CONNECTIONS) {
        let member = members[(first + at) % members.len()].clone();
        let endpoint = Endpoint::from_shared(member)?.connect_timeout(PATIENCE).tcp_nodelay(true);
        channels.push(endpoint.connect().await?);
    }
    let callers = (0..clients).map(|number| {
        let grpc = Grpc::new(channels[number % channels.len()].clone());
        Caller { writes: writes.clone(), grpc, number }
    });
    closed_loop(callers, measured).await
}

/// Has all clients write for `measured`, after a moment that does not count.
pub(crate) async fn closed_loop<C: Client>(
    clients: impl IntoIterator<Item = C>,
    measured: Duration,
) -> anyhow::Result<Outcome> {
    let warm = Instant::now() + WARM_UP;
    let end = warm + measured;
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        tasks.spawn(client_loop(client, warm, end));
    }
    let (mut taken, mut outcome) = (Vec::new(), Outcome::default());
    while let Some(done) = tasks.join_next().await {
        let (latencies, committed, failed) = done?;
        taken.extend(latencies);
        outcome.committed += committed;
        outcome.failed += failed;
    }
    taken.sort_unstable();
    let rank = |percent: usize| taken.get((taken.len() * percent).div_ceil(100).saturating_sub(1));
    outcome.per_second = taken.len() as f64 / measured.as_secs_f64();
    outcome.p50 = rank(50).copied().unwrap_or_default();
    outcome.p99 = rank(99).copied().unwrap_or_default();
    Ok(outcome)
}

/// Makes gRPC calls.
struct Caller<W> {
    writes: W,
    grpc: Grpc<Channel>,
    number: usize,
}

impl<W: Writes> Client for Caller<W> {
    async fn write(&mut self, round: u64) -> bool {
        let request = tonic::Request::new(self.writes.request(self.number, round));
        if self.grpc.ready().await.is_err() {
            return false;
        }
        let codec = tonic_prost::ProstCodec::<W::Request, W::Reply>::default();
        let reply = self.grpc.unary(request, PathAndQuery::from_static(W::PATH), codec).await;
        reply.is_ok_and(|reply| W::committed(reply.get_ref()))
    }
}

/// One client: the latencies of what began after `warm` and ended before `end`, and how many were committed and
/// failed in all.
async fn client_loop(mut client: impl Client, warm: Instant, end: Instant) -> (Vec<Duration>, u64, u64) {
    let (mut latencies, mut committed, mut failed) = (Vec::new(), 0, 0);
    for round in 0.. {
        let begun = Instant::now();
        if begun >= end {
            break;
        }
        match tokio::time::timeout(PATIENCE, client.write(round)).await {
            Ok(true) => {
                committed += 1;
                let now = Instant::now();
                if begun >= warm && now <= end {
                    latencies.push(now - begun);
                }
            }
            _ => failed += 1,
        }
    }
    (latencies, committed, failed)
}
