//! From a task that runs to the answers that it gives everywhere: through the virtual address and by name from a task on
//! each host, and through the published port of each host from outside.
//!
//! A service is scaled from 0 to 1, so that nobody else can answer. The time begins with the leader's transaction that
//! says Running (the task's `Status.Timestamp`, by the same clock as all hosts of one machine have), before it is
//! committed, and before the task itself has come to listen; it ends with the answer that comes last of all, asked for
//! every 4 ms.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::{self, Report, Samples};
use chaos_tests::hosts::{Api, Binaries, Client, Cluster, SOON};
use tokio::task::JoinSet;

use crate::service::{on_network, one_task, virtual_address};
use crate::{MANAGERS, Options};

/// Where the service is published.
const DOOR: u16 = 8080;
/// Each task's resolver.
const RESOLVER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53));
/// Between two questions.
const LOOK: Duration = Duration::from_millis(4);
/// One answer takes so long at the most; the next question follows then.
const ANSWER: Duration = Duration::from_millis(200);
/// Everything is over after this time, or never will be.
const LIMIT: Duration = Duration::from_secs(30);

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Vip,
    Name,
    Mesh,
}

const WAYS: [(Way, &str); 3] = [(Way::Vip, "VIP"), (Way::Name, "DNS"), (Way::Mesh, "mesh")];

/// Somebody who asks.
struct Asker {
    way: Way,
    place: Client,
    door: SocketAddr,
}

impl Asker {
    /// Whether the service is there.
    fn answered(&self) -> bool {
        let asked = match self.way {
            Way::Name => has_address(self.door, &["tasks", "web"]),
            Way::Vip | Way::Mesh => greeted(self.door),
        };
        asked.unwrap_or(false)
    }

    /// Asks until the service is there, or is not, as is wanted; answers when that was.
    fn wait(&self, there: bool, stop: &AtomicBool) -> io::Result<SystemTime> {
        self.place.visit(|| {
            let began = Instant::now();
            while self.answered() != there {
                if began.elapsed() > LIMIT || stop.load(Ordering::SeqCst) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{:?} at {}", self.way, self.door)));
                }
                std::thread::sleep(LOOK);
            }
            Ok(SystemTime::now())
        })
    }
}

/// Whether a service answers at all.
fn greeted(door: SocketAddr) -> io::Result<bool> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&door, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /json HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}

/// Whether a name has an IPv4 address (RFC 1035, 4.1).
fn has_address(resolver: SocketAddr, labels: &[&str]) -> io::Result<bool> {
    // An id, recursion desired, one question.
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        query.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        query.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(resolver)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    // No error, and answers.
    Ok(length >= 12 && answer[..2] == query[..2] && answer[3] & 0x0f == 0 && answer[6..8] != [0, 0])
}

/// All of them ask until each has seen what is wanted; answers when each had, in their order.
async fn all(askers: &Arc<Vec<Asker>>, there: bool) -> Result<Vec<SystemTime>> {
    let stop = Arc::new(AtomicBool::new(false));
    // Nobody goes on when this is dropped.
    let _end = Ending(stop.clone());
    let mut waiting = JoinSet::new();
    for index in 0..askers.len() {
        let (askers, stop) = (askers.clone(), stop.clone());
        waiting.spawn_blocking(move || Ok::<_, io::Error>((index, askers[index].wait(there, &stop)?)));
    }
    let mut seen = Vec::new();
    while let Some(done) = waiting.join_next().await {
        seen.push(done??);
    }
    seen.sort_unstable_by_key(|(index, _)| *index);
    Ok(seen.into_iter().map(|(_, at)| at).collect())
}

struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// When the leader noted that the service's task runs, since the epoch.
async fn noted(api: &Api) -> Result<SystemTime> {
    let tasks = api.wait_running("web", 1, &[], SOON).await?;
    let task = api.get(&format!("/tasks/{}", tasks[0].id)).await?;
    let at = task["Status"]["Timestamp"].as_str().and_then(bench::since_epoch).context("when it runs")?;
    Ok(SystemTime::UNIX_EPOCH + at)
}

pub(crate) async fn measure(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, MANAGERS, options.hosts - MANAGERS).await?;
    let api = cluster.api(0);
    let network = api.create_overlay("net").await?;
    api.create_service(&on_network("web", 0).publish(DOOR, 80).build()).await?;
    let vip = SocketAddr::new(virtual_address(&api, "web", &network).await?, 80);
    let mut askers = Vec::new();
    for host in cluster.hosts() {
        let probe = one_task(&api, on_network(&format!("on-{}", host.name()), 1), host.name()).await?;
        let (inside, also, outside) = (Client::beside(probe.pid)?, Client::beside(probe.pid)?, cluster.client()?);
        askers.push(Asker { way: Way::Vip, place: inside, door: vip });
        askers.push(Asker { way: Way::Name, place: also, door: RESOLVER });
        askers.push(Asker { way: Way::Mesh, place: outside, door: host.at(DOOR) });
    }
    let askers = Arc::new(askers);
    let (mut everywhere, mut by_way) = (Samples::default(), <[Samples; WAYS.len()]>::default());
    for sample in 0..options.samples {
        all(&askers, false).await.context("it still answers")?;
        let (seen, scaled) = tokio::join!(all(&askers, true), api.scale("web", 1));
        let (seen, _) = (seen.context("it does not answer")?, scaled?);
        let began = noted(&api).await?;
        // Who asked successfully before the leader noted anything waited for nothing.
        let took = |at: &SystemTime| at.duration_since(began).unwrap_or_default();
        for (asker, at) in askers.iter().zip(&seen) {
            by_way[asker.way as usize].push(took(at));
        }
        let last = seen.iter().map(took).max().unwrap_or_default();
        everywhere.push(last);
        if sample % 10 == 0 {
            bench::say(format_args!("convergence, sample {sample}: {} ms", last.as_millis()));
        }
        api.scale("web", 0).await?;
    }
    ensure!(!everywhere.is_empty(), "no samples");
    let met = everywhere.percentile(99) <= Duration::from_millis(250);
    let told = millis(&everywhere);
    report.target(
        &format!("task Running → answers through VIP, DNS and mesh from all of {} hosts", options.hosts),
        "p99 ≤ 250 ms",
        told,
        "-",
        met,
    );
    for (way, name) in WAYS {
        report.note(&format!("of these, {name}, each host"), millis(&by_way[way as usize]), "-");
    }
    cluster.clean_up()
}

fn millis(samples: &Samples) -> String {
    let at = |percent| samples.percentile(percent).as_millis();
    format!("p50 {} ms, p99 {} ms, max {} ms ({} samples)", at(50), at(99), at(100), samples.len())
}
