//! How long a manager takes from its start until it serves, with 100 000 objects in the store: the process starts, and
//! the clock stops when it answers a linearizable list of nodes.
//!
//! The data directory is made with the crates' own code, without a daemon: nodes, services, tasks, secrets and configs
//! go through Raft into the log of a stopped manager, which takes its snapshot on the way; single changes follow, so
//! that a snapshot is decoded *and* a log is replayed. All tasks have ended for good and all those nodes are Down, so that
//! nobody has anything to do but to hold them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::bench::{self, Argument, Report, Samples};
use chaos_tests::hosts::{Api, Binaries, Cluster, Freshness, Host};
use deploy::model::{
    Config, ConfigId, DesiredState, Meta, Node, NodeId, NodeState, Replicated, RestartCondition, RestartPolicy, Secret,
    SecretId, Service, ServiceId, ServiceMode, Task, TaskId, TaskSpec, TaskState, Timestamp,
};
use deploy::store::{Entry, Store, Txn};
use node::datadir::DataDir;
use raft::{Committed, Dial, Peer, Raft, RestoreError, Role, StateMachine};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::transport::Channel;

const HELP: &str = "\
cargo bench -p chaos-tests --bench restart -- [--objects N] [--runs N] [--changes N]

  --objects 100000   objects in the store: 1 % nodes, 2 % services, 10 % secrets, 10 % configs, the rest tasks
  --changes 5000     log entries behind the snapshot
  --runs 5           restarts of each kind

Needs root. Beside it an etcd with as many keys of 512 bytes is started again, if etcd is installed.";

const TARGET: Duration = Duration::from_secs(3);
/// Nothing here takes longer, or it is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Writes whose time is taken.
const WRITES: usize = 200;

struct Options {
    objects: usize,
    changes: usize,
    runs: usize,
}

fn main() -> ExitCode {
    let defaults = Options { objects: 100_000, changes: 5000, runs: 5 };
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--objects" => options.objects = argument.count()?.max(100),
            "--changes" => options.changes = argument.number()?,
            "--runs" => options.runs = argument.count()?,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run_async(HELP, defaults, take, measure)
}

async fn measure(options: &Options) -> Result<Report> {
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let mut report = Report::new(format!("start of a manager with {} objects, to its first answer", options.objects));
    let etcd = Etcd::measure(options).await?;
    let mut cluster = Cluster::hosts_only(&binaries, 3).await?;
    cluster.init().await?;
    let empty = writes(&cluster.api(0), "before").await?;
    cluster.host(0).stop_daemon().await?;
    let filled = fill(&cluster.host(0).data_dir(), options).await?;

    let alone = restarts(&cluster, &[0], 0, options.runs).await?;
    line(&mut report, "one manager", &alone, &etcd);
    let full = writes(&cluster.api(0), "after").await?;

    let began = Instant::now();
    cluster.join(1, true).await?;
    let joined = began.elapsed();
    cluster.join(2, true).await?;
    let leader = cluster.leader(0).await?;
    let follower = (leader + 1) % 3;
    let one = restarts(&cluster, &[follower], follower, options.runs).await?;
    line(&mut report, "a follower of three", &one, "-");
    let all = restarts(&cluster, &[0, 1, 2], 0, options.runs).await?;
    line(&mut report, "all three at once (an election is in it)", &all, "-");

    report.note("objects in the store", filled.objects, format!("{} keys", options.objects));
    report.note("log and snapshot", format!("{:.0} MiB", filled.bytes as f64 / 1_048_576.0), "-");
    report.note("one config created, empty store", millis(&empty), "-");
    report.note("one config created, full store", millis(&full), "-");
    report.note("a second manager joins", format!("{:.2} s", joined.as_secs_f64()), "-");
    cluster.clean_up()?;
    Ok(report)
}

fn line(report: &mut Report, what: &str, samples: &Samples, peer: &str) {
    report.target(what, "≤ 3 s", samples, peer, samples.percentile(100) <= TARGET);
}

fn millis(samples: &Samples) -> String {
    let ms = |percent| samples.percentile(percent).as_secs_f64() * 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms ({} writes)", ms(50), ms(99), samples.len())
}

/// Kills these daemons, starts them, and waits for the answer of one of them; again and again.
async fn restarts(cluster: &Cluster, hosts: &[usize], asked: usize, runs: usize) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..runs {
        for host in hosts {
            cluster.host(*host).kill_daemon()?;
        }
        let began = Instant::now();
        for host in hosts {
            cluster.host(*host).start_daemon()?;
        }
        serving(cluster.host(asked)).await.with_context(|| cluster.logs())?;
        samples.push(began.elapsed());
        for host in hosts {
            serving(cluster.host(*host)).await?;
        }
    }
    Ok(samples)
}

/// Waits until a manager answers what it can only answer with the whole store.
async fn serving(host: &Host) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match host.api().nodes(Freshness::Linearizable).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Creates configs, one after the other.
async fn writes(api: &Api, prefix: &str) -> Result<Samples> {
    let mut samples = Samples::default();
    for number in 0..WRITES {
        let body = json!({"Name": format!("{prefix}-{number}"), "Data": "eA=="});
        let began = Instant::now();
        api.post("/configs/create", &body).await?;
        samples.push(began.elapsed());
    }
    Ok(samples)
}

/// What was put into the log.
struct Filled {
    objects: usize,
    bytes: u64,
}

/// Fills the log of a stopped manager.
async fn fill(data_dir: &Path, options: &Options) -> Result<Filled> {
    let data = DataDir::open(data_dir)?;
    let record = data.membership()?.context("the host is in no cluster")?;
    let (published, mut applied) = watch::channel((Store::default(), 0));
    let config = |snapshot_every| raft::Config {
        dir: data.raft(),
        id: record.raft_id,
        cluster_id: record.cluster_id.clone(),
        timing: raft::Timing::default(),
        snapshot_every,
        keys: data.vault().ring(),
        had_log: true,
    };
    // A snapshot on the way, and none behind it: the changes stay in the log.
    let entries = options.objects.div_ceil(BATCH) as u64;
    let raft = Raft::start(config(entries.max(1)), Machine::new(published.clone()), Alone).await?;
    let mut store = lead(&raft, &mut applied).await?;
    let mut objects = Objects::new(options.objects);
    while objects.left() {
        let mut txn = Txn::new(&store, store.now());
        for _ in 0..BATCH {
            objects.put_next(&mut txn);
        }
        store = propose(&raft, txn).await?;
    }
    raft.shutdown().await;

    let raft = Raft::start(config(1 << 40), Machine::new(published), Alone).await?;
    let mut store = lead(&raft, &mut applied).await?;
    let ids: Vec<ConfigId> = store.configs().map(|config| config.id.clone()).collect();
    for change in 0..options.changes {
        let mut txn = Txn::new(&store, store.now());
        if let Some(config) = ids.get(change % ids.len().max(1)).and_then(|id| store.config(id)) {
            let mut config = Config::clone(config);
            config.spec.labels.insert("change".into(), change.to_string());
            txn.put_config(config);
        }
        store = propose(&raft, txn).await?;
    }
    let found = store.changed(&Store::default()).len();
    ensure!(found >= options.objects, "{found} objects instead of {}", options.objects);
    raft.shutdown().await;
    let sizes = std::fs::read_dir(data.raft())?.flatten().filter_map(|file| file.metadata().ok());
    Ok(Filled { objects: found, bytes: sizes.map(|file| file.len()).sum() })
}

/// Waits until the only member leads; answers the store as it is then.
async fn lead(raft: &Raft, applied: &mut watch::Receiver<(Store, u64)>) -> Result<Store> {
    let mut status = raft.watch();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.role == Role::Leader)).await??;
    let index = raft.linearizable().await?;
    Ok(applied.wait_for(|(_, at)| *at >= index).await?.0.clone())
}

async fn propose(raft: &Raft, txn: Txn) -> Result<Store> {
    if let Some(entry) = txn.finish(raft.status().term) {
        let answer = raft.propose(entry.to_bytes()).await?;
        ensure!(answer.response.is_empty(), "refused: {}", String::from_utf8_lossy(&answer.response));
    }
    Ok(txn.into_store())
}

/// Objects in one entry, which then has some 500 KiB.
const BATCH: usize = 500;

/// Makes the objects, one after the other.
struct Objects {
    next: usize,
    all: usize,
}

impl Objects {
    fn new(all: usize) -> Self {
        Self { next: 0, all }
    }

    fn left(&self) -> bool {
        self.next < self.all
    }

    fn put_next(&mut self, txn: &mut Txn) {
        if !self.left() {
            return;
        }
        let (nodes, services, payloads) = (self.all / 100, self.all / 50, self.all / 10);
        let at = self.next;
        self.next += 1;
        let id = |kind: char, number: usize| format!("{kind}{number:024}");
        let meta = Meta::default();
        let now = Timestamp::from_millis(1_800_000_000_000);
        let (first, every) = (nodes + services + 2 * payloads, services.max(1));
        // How many of the tasks are a service's.
        let slots = |number: usize| (self.all.saturating_sub(first + number)).div_ceil(every) as u64;
        if at < nodes {
            let mut node = Node { id: NodeId::new(id('n', at)), meta, ..Default::default() };
            node.description.hostname = format!("host-{at}");
            node.status.set_state(NodeState::Down);
            node.status.since = now;
            txn.put_node(node);
        } else if at < nodes + services {
            let number = at - nodes;
            let mut service = Service { id: ServiceId::new(id('s', number)), meta, ..Default::default() };
            service.spec.name = format!("service-{number}");
            service.spec.mode = Some(ServiceMode::Replicated(Replicated { replicas: Some(slots(number)) }));
            service.spec.task = done_once();
            txn.put_service(service);
        } else if at < nodes + services + payloads {
            let mut secret = Secret { id: SecretId::new(id('e', at)), meta, ..Default::default() };
            secret.spec.name = format!("secret-{at}");
            secret.spec.data = vec![b's'; 512];
            txn.put_secret(secret);
        } else if at < nodes + services + 2 * payloads {
            let mut config = Config { id: ConfigId::new(id('c', at)), meta, ..Default::default() };
            config.spec.name = format!("config-{at}");
            config.spec.data = vec![b'c'; 512];
            txn.put_config(config);
        } else {
            let number = (at - first) % every;
            let mut task = Task { id: TaskId::new(id('t', at)), meta, ..Default::default() };
            task.service_id = ServiceId::new(id('s', number));
            task.service_name = format!("service-{number}");
            task.slot = ((at - first) / every) as u64 + 1;
            task.ordinal = 1;
            task.node_id = NodeId::new(id('n', at % nodes.max(1)));
            task.spec = done_once();
            task.set_desired(DesiredState::Shutdown);
            task.status.set_state(TaskState::Complete);
            task.status.at = now;
            task.status.message = "finished".into();
            txn.put_task(task);
        }
    }
}

/// What tasks run that are not started again when they have ended.
fn done_once() -> TaskSpec {
    let mut spec = TaskSpec::default();
    spec.container.image = "registry.example/team/application:1.2.3".into();
    spec.container.env = (0..4).map(|n| format!("SETTING_{n}=a value of some length")).collect();
    let mut policy = RestartPolicy::default();
    policy.set_condition(RestartCondition::None);
    spec.restart = Some(policy);
    spec
}

/// The store as Raft's state machine, as the manager has it.
struct Machine {
    store: Store,
    published: watch::Sender<(Store, u64)>,
}

impl Machine {
    fn new(published: watch::Sender<(Store, u64)>) -> Self {
        Self { store: Store::default(), published }
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, entry: Committed<'_>) -> Vec<u8> {
        let decoded = Entry::from_bytes(entry.payload).map_err(|error| error.to_string());
        let applied = decoded.and_then(|decoded| self.store.apply(entry.term, &decoded).map_err(|c| c.to_string()));
        applied.err().unwrap_or_default().into_bytes()
    }

    fn applied(&mut self, index: u64, _term: u64) {
        self.published.send_replace((self.store.clone(), index));
    }

    fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let store = self.store.clone();
        Box::new(move || store.encode_snapshot())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.store = Store::decode_snapshot(snapshot).map_err(|error| RestoreError(error.to_string()))?;
        Ok(())
    }
}

/// The only member talks to nobody.
struct Alone;

impl Dial for Alone {
    fn channel(&self, _peer: &Peer) -> Channel {
        Channel::from_static("http://127.0.0.1:1").connect_lazy()
    }
}

/// An etcd of one member with as many keys.
struct Etcd {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Etcd {
    async fn measure(options: &Options) -> Result<String> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok("etcd is not installed".into());
        }
        // Free a moment ago; if somebody takes it now, etcd says so and ends.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = std::env::temp_dir().join(format!("shoal-restart-etcd-{}", std::process::id()));
        let mut etcd = Etcd { child: spawn(&dir, port)?, dir, port };
        etcd.serving().await?;
        etcd.fill(options.objects)?;
        let mut samples = Samples::default();
        for _ in 0..options.runs {
            etcd.child.kill()?;
            etcd.child.wait()?;
            let began = Instant::now();
            etcd.child = spawn(&etcd.dir, port)?;
            etcd.serving().await?;
            samples.push(began.elapsed());
        }
        Ok(format!("etcd, 1 member: {samples}"))
    }

    async fn serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("etcd has ended: {status}");
            }
            if self.healthy().await.unwrap_or(false) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("etcd does not answer")
    }

    /// Its health is a linearizable read.
    async fn healthy(&self) -> Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\nHost: etcd\r\n\r\n").await?;
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await??;
        Ok(answer.contains("\"health\":\"true\""))
    }

    fn fill(&self, keys: usize) -> Result<()> {
        let value = "v".repeat(512);
        for first in (0..keys).step_by(ETCD_BATCH) {
            let puts: String =
                (first..keys.min(first + ETCD_BATCH)).map(|n| format!("put k{n:08} {value}\n")).collect();
            let mut ctl = Command::new("etcdctl")
                .args(["txn", "-i=false", "--endpoints", &format!("http://127.0.0.1:{}", self.port)])
                .env("ETCDCTL_API", "3")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .context("cannot run etcdctl")?;
            // No condition; what is done; what would be done otherwise.
            let mut input = ctl.stdin.take().context("no input")?;
            std::io::Write::write_all(&mut input, format!("\n{puts}\n\n").as_bytes())?;
            drop(input);
            ensure!(ctl.wait()?.success(), "etcdctl failed");
        }
        Ok(())
    }
}

const ETCD_BATCH: usize = 1000;

fn spawn(dir: &Path, port: u16) -> Result<Child> {
    let peer = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let client = format!("http://127.0.0.1:{port}");
    let log = std::fs::File::create(dir.with_extension("log"))?;
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}"), "--max-txn-ops", "2000"])
        .args(["--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start etcd")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_file(self.dir.with_extension("log"));
    }
}
