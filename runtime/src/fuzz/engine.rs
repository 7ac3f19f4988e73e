//! What all targets share: seeds, random choices that a seed repeats, and the bounds that hold for every input.
//!
//! `cargo test` gives each target a fixed number of inputs, the same ones each time. `SHOAL_FUZZ_SECONDS=600` gives it new
//! ones for so long; `SHOAL_FUZZ_SEED=7` gives it only that one again. `docs/fuzzing.md` says more.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One input of some kilobytes takes milliseconds; machines that are busy make seconds of it.
const MAX_TIME: Duration = Duration::from_secs(20);
/// After this the process is ended, since nothing else could end what hangs.
const HANGS: Duration = Duration::from_secs(120);
/// What one input may add to the process's memory at the most. A zstd window may have 128 MiB.
const MAX_MEMORY_KIB: u64 = 400 << 10;

/// Choices that depend on a seed alone.
#[derive(Debug)]
pub(crate) struct Source(u64);

impl Source {
    pub(crate) fn new(seed: u64) -> Source {
        Source(seed)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` - 1; 0 where that is nothing.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Damages bytes here and there.
    pub(crate) fn mangle(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(6) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(64)).min(bytes.len());
            match self.below(8) {
                _ if bytes.is_empty() => bytes.push(self.next() as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = *self.pick(&[&0, &1, &0x7f, &0x80, &0xff, &b' ', &b'/', &b'0', &b'9']),
                2 => bytes[at] = self.next() as u8,
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                6 => {
                    let (length, to) = (self.below(24), self.below(bytes.len()));
                    let noise = self.bytes(length);
                    bytes.splice(to..to, noise);
                }
                _ => bytes[at..end].fill(*self.pick(&[&0, &0xff, &b'['])),
            }
        }
    }
}

/// Says which input it was when a target fails.
struct Named<'a> {
    target: &'a str,
    seed: u64,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Named { target, seed } = self;
            eprintln!("fuzz target {target}: SHOAL_FUZZ_SEED={seed} gives this input again");
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Runs a target on `inputs` inputs, or as the environment says. Each may take so much time and memory, and no more.
pub(crate) fn fuzz(target: &str, inputs: u64, mut run: impl FnMut(&mut Source)) {
    let watched = watch(target);
    let mut one = |seed: u64| {
        let named = Named { target, seed };
        watched.send(seed).unwrap();
        // Anew from here on; where the kernel has no such file, the peak of the whole process counts.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let (before, began) = (memory_kib("VmRSS:"), Instant::now());
        run(&mut Source::new(seed));
        let (took, after) = (began.elapsed(), memory_kib("VmHWM:"));
        assert!(took < MAX_TIME, "it took {took:?}");
        assert!(after < before + MAX_MEMORY_KIB, "it took {} KiB", after - before);
        drop(named);
    };
    if let Some(seed) = number("SHOAL_FUZZ_SEED") {
        return one(seed);
    }
    let Some(seconds) = number("SHOAL_FUZZ_SECONDS") else { return (0..inputs).for_each(one) };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 24;
    let mut seed = first;
    while Instant::now() < deadline {
        one(seed);
        seed += 1;
    }
    eprintln!("fuzz target {target}: {} inputs from seed {first} on in {seconds} s", seed - first);
}

fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Ends the process where nothing new is sent for too long.
fn watch(target: &str) -> Sender<u64> {
    let (sender, receiver) = channel();
    let target = target.to_owned();
    std::thread::spawn(move || {
        let mut seed = 0;
        loop {
            match receiver.recv_timeout(HANGS) {
                Ok(next) => seed = next,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("fuzz target {target} hangs: SHOAL_FUZZ_SEED={seed} gives this input again");
                    std::process::abort();
                }
            }
        }
    });
    sender
}
