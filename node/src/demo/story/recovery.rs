//! What clients see while a host is lost: one that asks each surviving host again and again, and says when it failed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::demo::hosts::{Client, HostError};

/// A client gives a request up after this time.
const LIMIT: Duration = Duration::from_millis(500);
/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// One request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    began: Instant,
    ended: Instant,
    good: bool,
}

/// Clients that ask without a pause; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    doors: Vec<Door>,
}

/// One published port on one host.
#[derive(Debug)]
struct Door {
    host: String,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

/// What clients saw at one host since a moment.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) requests: usize,
    pub(super) failed: usize,
    /// From the moment to the end of the first good request that began after it.
    pub(super) first_good: Option<Duration>,
    /// From the moment to the end of the last failed request that began after it.
    pub(super) last_failed: Option<Duration>,
}

impl Watch {
    /// Starts a client for each host and its port.
    pub(super) fn start(client: &Client, doors: Vec<(String, SocketAddr)>) -> Result<Watch, HostError> {
        let mut watch = Watch { stop: Arc::new(AtomicBool::new(false)), doors: Vec::new() };
        for (host, address) in doors {
            let samples = Arc::new(Mutex::new(Vec::new()));
            let (stop, kept) = (Arc::clone(&watch.stop), Arc::clone(&samples));
            let client = client.try_clone().map_err(HostError::io("cannot keep a namespace"))?;
            let thread = std::thread::Builder::new().name(format!("client of {host}")).spawn(move || {
                // The thread that visits is this one's child; it ends with the loop.
                let _ = client.visit(|| {
                    ask(address, &stop, &kept);
                    Ok(())
                });
            });
            let thread = Some(thread.map_err(HostError::io("cannot start a thread"))?);
            watch.doors.push(Door { host, samples, thread });
        }
        Ok(watch)
    }

    /// What was seen of requests that began after `moment`.
    pub(super) fn since(&self, moment: Instant) -> Vec<Seen> {
        self.doors.iter().map(|door| door.since(moment)).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for door in &mut self.doors {
            if let Some(thread) = door.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Door {
    fn since(&self, moment: Instant) -> Seen {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let after: Vec<&Sample> = samples.iter().filter(|sample| sample.began >= moment).collect();
        Seen {
            host: self.host.clone(),
            requests: after.len(),
            failed: after.iter().filter(|sample| !sample.good).count(),
            first_good: after.iter().find(|sample| sample.good).map(|sample| sample.ended - moment),
            last_failed: after.iter().rev().find(|sample| !sample.good).map(|sample| sample.ended - moment),
        }
    }
}

fn ask(address: SocketAddr, stop: &AtomicBool, samples: &Mutex<Vec<Sample>>) {
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        let answer = crate::demo::http::get(address, "web", "/json", LIMIT);
        let good = answer.is_ok_and(|answer| answer.status == 200);
        let sample = Sample { began, ended: Instant::now(), good };
        samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        std::thread::sleep(PAUSE);
    }
}
