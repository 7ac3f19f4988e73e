//! An image from hosts that are played by a script.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use runtime::image::{ImageConfig, Limits};

use super::fetch::{Claim, Peer, Pieces, Refusal};
use super::*;

/// So long is waited for what comes.
const SOON: Duration = Duration::from_secs(20);

/// What is waited for here comes at once, or never.
fn quick(help_yourself: Duration) -> Pace {
    Pace {
        idle: SOON,
        pauses: (Duration::from_micros(100), Duration::from_millis(1)),
        help_yourself,
        ..Pace::default()
    }
}

/// What a host does when it is asked.
#[derive(Clone, Debug)]
enum Does {
    Gives,
    /// Sends that many bytes, and then the connection breaks.
    Breaks(usize),
    /// Flips the byte at that place.
    Lies(usize),
    /// Sends more than there is.
    Babbles,
    /// Ends too early, as if that was all.
    Cuts(usize),
    Busy,
    Missing,
}

#[derive(Default)]
struct Script {
    /// By node id: what it does time and again; the last one for ever.
    hosts: BTreeMap<&'static str, VecDeque<Does>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    claims: VecDeque<Claim>,
    /// Who was asked, for bytes from where on.
    asked: Vec<(String, Digest, u64)>,
    /// How often the registry was asked.
    brought: u32,
    claimed: Vec<Digest>,
    released: Vec<Digest>,
}

#[derive(Clone, Default)]
struct Played(Arc<Mutex<Script>>);

impl Played {
    fn script<T>(&self, with: impl FnOnce(&mut Script) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }

    fn asked(&self, host: &str) -> Vec<u64> {
        self.script(|script| script.asked.iter().filter(|(who, _, _)| who == host).map(|(_, _, at)| *at).collect())
    }

    fn give(&self, host: &'static str, blob: Digest, offset: u64) -> Result<Pieces, Refusal> {
        self.script(|script| {
            script.asked.push((host.to_owned(), blob, offset));
            let plans = script.hosts.get_mut(host).expect("it is there");
            let does = if plans.len() > 1 { plans.pop_front().unwrap() } else { plans[0].clone() };
            let mut bytes = script.blobs.get(&blob).cloned().ok_or(Refusal::Missing)?;
            let mut broken = false;
            match does {
                Does::Gives => {}
                Does::Breaks(at) => {
                    broken = true;
                    bytes.truncate(at.max(usize::try_from(offset).unwrap()));
                }
                Does::Lies(at) => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1;
                    }
                }
                Does::Babbles => bytes.extend(vec![0; 10 << 20]),
                Does::Cuts(at) => bytes.truncate(at),
                Does::Busy => return Err(Refusal::Busy),
                Does::Missing => return Err(Refusal::Missing),
            }
            let rest = bytes.split_off(usize::try_from(offset).unwrap().min(bytes.len()));
            let mut pieces: Vec<Result<Bytes, Refusal>> =
                rest.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            if broken {
                pieces.push(Err(Refusal::Failed("the connection broke".to_owned())));
            }
            Ok(stream::iter(pieces).boxed())
        })
    }
}

impl Source for Played {
    async fn find(&self, _: Digest) -> Vec<Peer> {
        let peer = |id: &&str| Peer { node_id: (*id).to_owned(), addr: String::new() };
        self.script(|script| script.hosts.keys().map(peer).collect())
    }

    async fn open(&self, peer: &Peer, blob: Digest, offset: u64) -> Result<Pieces, Refusal> {
        let host = self.script(|script| *script.hosts.get_key_value(peer.node_id.as_str()).unwrap().0);
        self.give(host, blob, offset)
    }

    async fn claim(&self, blob: Digest) -> Claim {
        self.script(|script| {
            script.claimed.push(blob);
            script.claims.pop_front().unwrap_or(Claim::Unknown)
        })
    }

    async fn release(&self, blob: Digest) {
        self.script(|script| script.released.push(blob));
    }
}

/// Has the image as an archive.
struct Registry {
    played: Played,
    store: ImageStore,
    archive: Vec<u8>,
}

impl Upstream for Registry {
    fn bring(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            self.played.script(|script| script.brought += 1);
            self.store.load(&self.archive[..]).map_err(|e| e.to_string())?;
            Ok(())
        }
        .boxed()
    }
}

/// A store that is empty, and the content of an image.
struct Stage {
    _dir: tempfile::TempDir,
    store: ImageStore,
    played: Played,
    /// `name:tag@digest`
    name: String,
    layer: Digest,
    archive: Vec<u8>,
}

impl Stage {
    fn new(hosts: &[(&'static str, &[Does])]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: unpacking layers needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("app");
        std::fs::write(&file, vec![7; 50_000]).unwrap();
        let origin = ImageStore::open(dir.path().join("origin"), Limits::default()).unwrap();
        let files = vec![(PathBuf::from("/app"), 0o755, file)];
        origin.install_root(&Reference::parse("web:1").unwrap(), files, ImageConfig::default()).unwrap();
        let manifest = origin.resolve("web:1").unwrap().manifest_digest.unwrap();
        let read = |blob: &Digest| {
            use std::io::Read;
            let mut bytes = Vec::new();
            origin.open_blob(blob).unwrap().unwrap().0.read_to_end(&mut bytes).unwrap();
            (*blob, bytes)
        };
        let blobs: BTreeMap<Digest, Vec<u8>> = origin.blobs().iter().map(read).collect();
        let layer = *blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
        let mut archive = Vec::new();
        origin.save(&["web:1".to_owned()]).unwrap().write(&mut archive).unwrap();
        let hosts = hosts.iter().map(|(host, does)| (*host, does.iter().cloned().collect())).collect();
        let script = Script { hosts, blobs, ..Script::default() };
        let store = ImageStore::open(dir.path().join("here"), Limits::default()).unwrap();
        let played = Played(Arc::new(Mutex::new(script)));
        Some(Self { _dir: dir, store, played, name: format!("web:1@{manifest}"), layer, archive })
    }

    fn images(&self) -> Images<Played> {
        Images { pace: quick(SOON), ..Images::new(self.store.clone(), Arc::new(self.played.clone())) }
    }

    async fn provide(&self) -> Result<HeldImage, ProvideError> {
        self.images().provide(&self.name, None).await
    }

    async fn provide_from_registry(&self, help_yourself: Duration) -> Result<HeldImage, ProvideError> {
        let images = Images { pace: quick(help_yourself), ..self.images() };
        let (played, store, archive) = (self.played.clone(), self.store.clone(), self.archive.clone());
        images.provide(&self.name, Some(Arc::new(Registry { played, store, archive }))).await
    }

    async fn fetch_layer(&self, size: Size) -> Result<(), FetchError> {
        let lease = Arc::new(self.store.lease());
        let pace = quick(SOON);
        let errand = Errand { peers: &self.played, upstream: None, image: self.layer, lease: &lease, pace: &pace };
        fetch::blob(&errand, self.layer, size).await?;
        assert!(self.store.has_blob(&self.layer));
        Ok(())
    }

    /// Nothing of a fetch that failed is here once its lease has ended, which it does on another thread.
    async fn assert_empty(&self) {
        let mut changes = self.store.changes();
        let empty = changes.wait_for(|_| self.store.blobs().is_empty());
        tokio::time::timeout(SOON, empty).await.unwrap().unwrap();
        assert!(self.store.list().is_empty());
    }
}

#[tokio::test]
async fn any_host_will_do() {
    let Some(stage) = Stage::new(&[("a", &[Does::Gives]), ("b", &[Does::Missing]), ("c", &[Does::Busy])]) else {
        return;
    };
    let held = stage.provide().await.unwrap();
    assert_eq!(held.image.manifest_digest.as_deref(), stage.name.strip_prefix("web:1@"));
    assert!(held.image.references.is_empty());
    assert_eq!(stage.store.list()[0].origin, Origin::Task);
    assert_eq!(std::fs::read(held.image.layers[0].join("app")).unwrap(), vec![7; 50_000]);
    // It is held, and it is asked of nobody again.
    assert!(stage.store.remove(&held.image.id.to_string(), true, &|_| false).is_err());
    let before = stage.played.script(|script| script.asked.len());
    stage.provide().await.unwrap();
    assert_eq!(stage.played.script(|script| script.asked.len()), before);
    // A name without a digest says nothing about other hosts' images.
    let unpinned = stage.images().provide("other:1", None).await;
    assert!(matches!(unpinned, Err(ProvideError::Unpinned(name)) if name == "other:1"));
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_broke() {
    let breaks: &[Does] = &[Does::Breaks(20_000), Does::Breaks(40_000), Does::Gives];
    let Some(stage) = Stage::new(&[("a", breaks)]) else { return };
    stage.fetch_layer(Size::AtMost(MAX_MANIFEST)).await.unwrap();
    assert_eq!(stage.played.asked("a"), [0, 20_000, 40_000]);
}

#[tokio::test]
async fn who_gives_wrong_bytes_is_not_asked_again() {
    for lie in [Does::Lies(100), Does::Babbles, Does::Cuts(100)] {
        let Some(stage) = Stage::new(&[("a", &[Does::Gives]), ("liar", std::slice::from_ref(&lie))]) else { return };
        let held = stage.provide().await.unwrap();
        assert_eq!(std::fs::read(held.image.layers[0].join("app")).unwrap(), vec![7; 50_000]);
        // Three blobs: once for each at the most.
        let asked = stage.played.asked("liar");
        assert!(asked.len() <= 3 && asked.iter().all(|at| *at == 0), "{lie:?}: {asked:?}");
    }
}

#[tokio::test]
async fn nobody_is_blamed_for_the_bytes_of_others() {
    // The first gives wrong bytes and breaks off, the second adds right ones: together they are wrong, and it takes whole
    // transfers to find out whose fault it was.
    let liar: &[Does] = &[Does::Lies(3)];
    let Some(stage) = Stage::new(&[("liar", liar), ("a", &[Does::Breaks(30_000), Does::Gives])]) else { return };
    let size = stage.played.script(|script| script.blobs[&stage.layer].len() as u64);
    stage.fetch_layer(Size::Exactly(size)).await.unwrap();
}

#[tokio::test]
async fn only_liars_are_no_source() {
    let Some(stage) = Stage::new(&[("liar", &[Does::Lies(3)])]) else { return };
    let error = stage.provide().await.err().unwrap();
    assert!(crate::chain(&error).starts_with(&format!("No such image: {}", stage.name)), "{}", crate::chain(&error));
    assert!(crate::chain(&error).contains("node liar"), "{}", crate::chain(&error));
    assert_eq!(stage.played.asked("liar"), [0]);
    stage.assert_empty().await;
}

#[tokio::test]
async fn what_nobody_has_is_said_and_nothing_stays() {
    let Some(stage) = Stage::new(&[]) else { return };
    let error = stage.provide().await.err().unwrap();
    assert!(crate::chain(&error).contains("no host of the cluster has sha256:"), "{}", crate::chain(&error));
    stage.assert_empty().await;

    let Some(stage) = Stage::new(&[("a", &[Does::Gives])]) else { return };
    stage.played.script(|script| script.blobs.remove(&stage.layer));
    let error = stage.provide().await.err().unwrap();
    assert!(crate::chain(&error).contains("it has it not"), "{}", crate::chain(&error));
    stage.assert_empty().await;
}

#[tokio::test]
async fn the_busy_are_waited_for() {
    let busy: Vec<Does> = std::iter::repeat_n(Does::Busy, 200).chain([Does::Gives]).collect();
    let Some(stage) = Stage::new(&[("a", &busy)]) else { return };
    stage.provide().await.unwrap();
}

#[tokio::test]
async fn the_registry_is_asked_for_what_no_host_has_and_by_one() {
    let brought = |stage: &Stage| stage.played.script(|script| script.brought);
    let Some(stage) = Stage::new(&[]) else { return };
    stage.played.script(|script| script.claims = [Claim::Granted(Duration::from_secs(3))].into());
    let held = stage.provide_from_registry(SOON).await.unwrap();
    assert_eq!(held.image.references.len(), 1, "it is what the registry brought");
    let (claimed, released) = stage.played.script(|script| (script.claimed.clone(), script.released.clone()));
    // It runs out: until then the managers hear who has it.
    assert_eq!((brought(&stage), claimed.len(), released), (1, 1, vec![]));

    // Another host asks: this one waits, and finds it there.
    let Some(stage) = Stage::new(&[]) else { return };
    stage.played.script(|script| script.claims = std::iter::repeat_n(Claim::Taken, 1_000_000).collect());
    let arrives = async {
        while stage.played.script(|script| script.claimed.len()) < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stage.played.script(|script| script.hosts.insert("a", [Does::Gives].into()));
    };
    let (provided, ()) = tokio::join!(stage.provide_from_registry(SOON), arrives);
    provided.unwrap();
    assert_eq!(brought(&stage), 0);

    // It never comes: it helps itself.
    let Some(stage) = Stage::new(&[]) else { return };
    stage.played.script(|script| script.claims = std::iter::repeat_n(Claim::Taken, 1_000_000).collect());
    stage.provide_from_registry(Duration::from_millis(20)).await.unwrap();
    assert_eq!(brought(&stage), 1);

    // A part of it is on a host, and the registry does not have it.
    let Some(mut stage) = Stage::new(&[("a", &[Does::Gives])]) else { return };
    stage.archive = b"no archive".to_vec();
    stage.provide_from_registry(SOON).await.unwrap();
    assert_eq!(brought(&stage), 0);
    let Some(mut stage) = Stage::new(&[]) else { return };
    stage.archive = b"no archive".to_vec();
    stage.played.script(|script| script.claims = [Claim::Granted(Duration::from_secs(3))].into());
    assert!(stage.provide_from_registry(SOON).await.is_err());
    let (claimed, released) = stage.played.script(|script| (script.claimed.clone(), script.released.clone()));
    assert_eq!(claimed, released, "another host may have more luck");
}

/// Brings an image for an index that, for us, leads to another one, as a registry's mirror may have it.
struct Elsewhere {
    store: ImageStore,
    archive: Vec<u8>,
    index: Vec<u8>,
    manifest: Digest,
}

impl Upstream for Elsewhere {
    fn bring(&self) -> BoxFuture<'_, Result<(), String>> {
        let bring = || -> Result<(), ImageError> {
            let lease = self.store.lease();
            self.store.load(&self.archive[..])?;
            let index = Digest::of(&self.index);
            let mut writer = lease.writer(index, self.index.len() as u64)?;
            writer.write(&self.index)?;
            lease.keep(writer)?;
            lease.assemble(&self.manifest, Some(index), Origin::User).map(drop)
        };
        std::future::ready(bring().map_err(|e| e.to_string())).boxed()
    }
}

#[tokio::test]
async fn what_the_registry_brought_for_an_index_is_taken() {
    let Some(stage) = Stage::new(&[]) else { return };
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":7}}]}}"#,
        Digest::of(b"a manifest that nobody has")
    );
    let manifest = stage.name.strip_prefix("web:1@").unwrap().parse().unwrap();
    let (store, archive, index) = (stage.store.clone(), stage.archive.clone(), index.into_bytes());
    let name = format!("web@{}", Digest::of(&index));
    let upstream = Elsewhere { store, archive, index, manifest };
    let held = stage.images().provide(&name, Some(Arc::new(upstream))).await.unwrap();
    assert_eq!(held.image.manifest_digest, Some(manifest.to_string()));
}

#[tokio::test]
async fn a_second_task_waits_for_the_first_ones_fetch() {
    let Some(stage) = Stage::new(&[("a", &[Does::Busy, Does::Busy, Does::Gives])]) else { return };
    let images = stage.images();
    let (one, two) = tokio::join!(images.provide(&stage.name, None), images.provide(&stage.name, None));
    assert_eq!(one.unwrap().image.id, two.unwrap().image.id);
    let given = stage.played.script(|script| script.asked.len());
    assert_eq!(given, 5, "three blobs, and two refusals");
}
