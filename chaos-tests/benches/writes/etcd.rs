//! The peer: three members of the machine's etcd, as Debian packages it, without TLS.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::load::{self, Writes};

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; nothing of it is needed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PutResponse {}

/// Puts of 256 bytes, each client to a thousand keys of its own.
#[derive(Clone)]
pub(crate) struct Puts;

impl Writes for Puts {
    type Request = PutRequest;
    type Reply = PutResponse;
    const PATH: &'static str = "/etcdserverpb.KV/Put";

    fn request(&self, client: usize, round: u64) -> PutRequest {
        let key = format!("/bench/{client:04}/{:04}", round % 1000).into_bytes();
        PutRequest { key, value: vec![b'x'; 256] }
    }

    fn committed(_: &PutResponse) -> bool {
        true
    }
}

/// A running cluster; it ends with this.
pub(crate) struct Etcd {
    members: Vec<Child>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) version: String,
}

impl Etcd {
    /// Starts three members below `dir`. `None` when the machine has no etcd.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Option<Self>> {
        let Ok(version) = Command::new("etcd").arg("--version").output() else { return Ok(None) };
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.lines().next().unwrap_or("etcd").replace(" Version:", "");
        let ports: Vec<(String, String)> = (0..3).map(|_| Ok((free()?, free()?))).collect::<anyhow::Result<_>>()?;
        let cluster: Vec<String> = (1..).zip(&ports).map(|(at, (_, peer))| format!("e{at}=http://{peer}")).collect();
        let mut members = Vec::new();
        for (at, (client, peer)) in (1..).zip(&ports) {
            let log = std::fs::File::create(dir.join(format!("etcd{at}.log")))?;
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let member = Command::new("etcd")
                .args(["--name", &format!("e{at}"), "--log-level", "warn", "--initial-cluster-state", "new"])
                .arg("--data-dir")
                .arg(dir.join(format!("e{at}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &cluster.join(",")])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("cannot start etcd")?;
            members.push(member);
        }
        let endpoints: Vec<String> = ports.iter().map(|(client, _)| format!("http://{client}")).collect();
        let this = Self { members, endpoints, version };
        for at in 0..3 {
            this.answers(at).await.with_context(|| format!("etcd does not come up; see {}", dir.display()))?;
        }
        Ok(Some(this))
    }

    /// Waits until a member commits.
    async fn answers(&self, at: usize) -> anyhow::Result<()> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let tried = load::run(Puts, &self.endpoints[at..=at], 0, 1, Duration::from_millis(50)).await;
            match tried {
                Ok(outcome) if outcome.failed == 0 => return Ok(()),
                _ if std::time::Instant::now() > deadline => anyhow::bail!("no put was committed within 20 s"),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A port that was free a moment ago.
fn free() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
