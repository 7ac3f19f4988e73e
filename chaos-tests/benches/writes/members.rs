//! Three processes with a raft member each: this benchmark's own executable, started again as `member`.
//!
//! They talk through their pipes: a member says its address, is told everyone's, says `ready` when the cluster is
//! whole, and at the end what it has applied. It ends when its input does, so none outlives the benchmark.

use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use raft::{Committed, Config, Dial, Keyring, Peer, Raft, RestoreError, StateMachine, Timing};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

use crate::load::Writes;

const CLUSTER: &str = "writes-benchmark-cluster";

/// As in the node.
const SNAPSHOT_EVERY: u64 = 10_000;

/// `shoal.raft.v1.ProposeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProposeRequest {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// `shoal.raft.v1.ProposeResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProposeResponse {
    #[prost(message, optional, tag = "1")]
    accepted: Option<Accepted>,
}

/// `shoal.raft.v1.Accepted`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Accepted {
    #[prost(uint64, tag = "1")]
    index: u64,
}

/// Opaque proposals of 256 bytes.
#[derive(Clone)]
pub(crate) struct Proposals;

impl Writes for Proposals {
    type Request = ProposeRequest;
    type Reply = ProposeResponse;
    const PATH: &'static str = "/shoal.raft.v1.Proposals/Propose";

    fn request(&self, client: usize, round: u64) -> ProposeRequest {
        let mut payload = vec![b'x'; 256];
        payload[..8].copy_from_slice(&(client as u64).to_le_bytes());
        payload[8..16].copy_from_slice(&round.to_le_bytes());
        ProposeRequest { cluster_id: CLUSTER.into(), payload }
    }

    fn committed(reply: &ProposeResponse) -> bool {
        reply.accepted.as_ref().is_some_and(|accepted| accepted.index > 0)
    }
}

/// Running members; they end with this.
pub(crate) struct Members {
    members: Vec<Member>,
    pub(crate) endpoints: Vec<String>,
}

struct Member {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Member {
    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the member was told to end")?;
        Ok(writeln!(input, "{line}")?)
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a member has ended early");
        }
        Ok(line.trim().to_owned())
    }
}

impl Members {
    /// Starts three below `dir`, and waits until all are voters.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        let mut this = Self { members: Vec::new(), endpoints: Vec::new() };
        for id in 1..=3 {
            let mut process = Command::new(std::env::current_exe()?)
                .args(["member", &id.to_string()])
                .arg(dir.join(format!("m{id}")))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start a member")?;
            let (input, output) = (process.stdin.take(), process.stdout.take().context("no output")?);
            this.members.push(Member { process, input, output: BufReader::new(output) });
        }
        let addrs: Vec<String> = this.members.iter_mut().map(Member::hear).collect::<anyhow::Result<_>>()?;
        // The first one last: it adds the others.
        for member in this.members.iter_mut().rev() {
            member.tell(&addrs.join(","))?;
        }
        for member in &mut this.members {
            let ready = member.hear()?;
            anyhow::ensure!(ready == "ready", "a member said {ready}");
        }
        this.endpoints = addrs.iter().map(|addr| format!("http://{addr}")).collect();
        Ok(this)
    }

    /// Makes sure that all have applied the same, and no less than was acknowledged. Gives what each counted.
    pub(crate) fn check(&mut self, acknowledged: u64) -> anyhow::Result<Vec<String>> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let mut said = Vec::new();
            for member in &mut self.members {
                member.tell("report")?;
                said.push((member.hear()?, member.hear()?));
            }
            let applied = |state: &str| state.split_whitespace().next().and_then(|count| count.parse::<u64>().ok());
            let same = said.iter().all(|(state, _)| *state == said[0].0);
            if same && applied(&said[0].0).is_some_and(|applied| applied >= acknowledged) {
                return Ok(said.into_iter().map(|(_, counted)| counted).collect());
            }
            if std::time::Instant::now() > deadline {
                bail!("{acknowledged} writes were acknowledged, and the members have applied: {said:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.input = None;
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

/// The state: how many, and a digest of all in order.
#[derive(Default)]
struct Digest {
    count: u64,
    digest: u64,
    published: Arc<Mutex<(u64, u64)>>,
}

impl StateMachine for Digest {
    fn apply(&mut self, entry: Committed<'_>) -> Vec<u8> {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.digest);
        hasher.write(entry.payload);
        self.digest = hasher.finish();
        self.count += 1;
        Vec::new()
    }

    fn applied(&mut self, _: u64, _: u64) {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = (self.count, self.digest);
    }

    fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let state = [self.count.to_le_bytes(), self.digest.to_le_bytes()].concat();
        Box::new(|| state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let (numbers, []) = snapshot.as_chunks::<8>() else { return Err(RestoreError("cut short".into())) };
        let [count, digest] = numbers else { return Err(RestoreError("cut short".into())) };
        (self.count, self.digest) = (u64::from_le_bytes(*count), u64::from_le_bytes(*digest));
        Ok(())
    }
}

struct Plain;

impl Dial for Plain {
    fn channel(&self, peer: &Peer) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.addr));
        endpoint.expect("addresses come from the members themselves").tcp_nodelay(true).connect_lazy()
    }
}

/// The life of a member, on the runtime that the daemon has too.
#[expect(clippy::print_stdout, reason = "it is how members speak")]
pub(crate) async fn member(id: u64, dir: &Path) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let (lines, mut heard) = tokio::sync::mpsc::channel::<String>(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let addrs = heard.recv().await.context("no addresses")?;
    let peers: Vec<Peer> = (1..)
        .zip(addrs.split(','))
        .map(|(id, addr)| Peer { id, node_id: format!("n{id}"), addr: addr.into() })
        .collect();

    let machine = Digest::default();
    let published = machine.published.clone();
    let config = Config {
        dir: dir.to_owned(),
        id,
        cluster_id: CLUSTER.into(),
        timing: Timing::lan(),
        snapshot_every: SNAPSHOT_EVERY,
        // Sealed, as the disk of a manager is.
        keys: Keyring::new(&[(1, [7; 32])]),
        had_log: false,
    };
    let raft = Raft::start(config, machine, Plain).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(raft.service()).add_service(raft.proposals());
    tokio::spawn(server.serve_with_incoming(incoming));

    if id == 1 {
        raft.bootstrap(peers[0].clone()).await?;
        for peer in &peers[1..] {
            raft.add_learner(peer.clone()).await?;
            raft.promote(peer.id).await?;
        }
    }
    raft.watch().wait_for(|status| status.voters.len() == peers.len() && status.leader.is_some()).await?;
    println!("ready");
    while heard.recv().await.is_some() {
        let (count, digest) = *published.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{count} {digest:016x}");
        println!("{}", counted(&raft));
    }
    raft.shutdown().await;
    Ok(())
}

fn counted(raft: &Raft) -> String {
    let counters = raft.counters();
    let syncs = counters.sync.count().max(1);
    format!(
        "applied {}, syncs {} of {:.2} ms, {:.1} MiB written; appends out {} and in {}, failed calls {}, leader changes {}",
        counters.applied,
        counters.sync.count(),
        counters.sync.sum.as_secs_f64() * 1000.0 / syncs as f64,
        counters.log_bytes as f64 / f64::from(1 << 20),
        counters.appends_sent,
        counters.appends_received,
        counters.calls_failed,
        counters.leader_changes,
    )
}
