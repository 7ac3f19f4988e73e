//! [`Volumes`]: the volumes of this host, who has them, and what is mounted for them.
//!
//! Who has a volume follows from the containers that there are, which their own records say; it is never counted on
//! disk. What is mounted is the kernel's word. So nothing can be wrong after a crash: [`Volumes::settle`] makes the
//! mounts fit the containers that live.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tracing::{info, warn};

use super::plan::{self, check_driver, check_labels, check_name};
use super::{ANONYMOUS_LABEL, Volume, VolumeError, VolumeMount, VolumeSpec, device, fill, mounted, tree};
use crate::container::storage;
use crate::events::{EventKind, Events};
use crate::remove;
use crate::stored::{self, Durability, StoredVolume, names, nanos, time_from};
use crate::{RuntimeError, disk};

/// Directory of a volume's data, in the volume's own.
const DATA: &str = "_data";
/// A directory that is being made, or removed, has this before its name. No volume's name begins with a dot.
const NEW: &str = ".new-";
const REMOVING: &str = ".removing-";

/// The volumes of this host. Cheap to clone; all clones are one. Its methods block on the disk.
#[derive(Debug, Clone)]
pub struct Volumes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    volumes: Mutex<BTreeMap<String, Entry>>,
    events: Events,
    /// Held by whatever makes, mounts, fills or removes one volume.
    locks: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// One volume.
#[derive(Debug, Clone, Default)]
struct Entry {
    record: StoredVolume,
    /// Its record cannot be read, and why.
    damaged: Option<String>,
    /// Containers that have it; true while they live.
    users: BTreeMap<String, bool>,
}

/// What a prune has removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Names.
    pub names: Vec<String>,
    /// Bytes that their files had.
    pub bytes: u64,
}

/// For whom a volume is taken, and what an empty one is filled with.
pub(crate) struct Taker<'a> {
    /// The container's id.
    pub(crate) container: &'a str,
    /// Its directory.
    pub(crate) dir: &'a Path,
    /// Layers of its image.
    pub(crate) layers: usize,
    /// What copies, see [`fill`].
    pub(crate) exe: &'a OwnedFd,
}

impl Volumes {
    /// Opens `<dir>`, which is made if it is missing, and finishes what was cut short.
    ///
    /// # Errors
    /// The directory cannot be read, or holds a volume of a later release (which is left as it is).
    pub fn open(dir: &Path) -> Result<Volumes, RuntimeError> {
        Self::open_telling(dir, Events::default())
    }

    /// The same, telling there what happens.
    pub(crate) fn open_telling(dir: &Path, events: Events) -> Result<Volumes, RuntimeError> {
        // 0711: users in containers reach their data by way of their own mounts, but tools on the host walk here.
        DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(storage("create", dir))?;
        let dir = fs::canonicalize(dir).map_err(storage("look at", dir))?;
        let mut volumes = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(storage("read", &dir))? {
            let entry = entry.map_err(storage("read", &dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(NEW) || name.starts_with(REMOVING) {
                if let Err(error) = remove_tree(&name, &entry.path()) {
                    warn!(volume = name, %error, "an interrupted removal could not be finished");
                }
            } else if check_name(&name).is_ok() && entry.path().join(DATA).is_dir() {
                volumes.insert(name, read(&entry.path())?);
            }
        }
        Ok(Volumes { inner: Arc::new(Inner { dir, volumes: Mutex::new(volumes), events, locks: Mutex::default() }) })
    }

    /// Makes a volume; one that is there already is left as it is, as Docker does.
    ///
    /// # Errors
    /// [`VolumeError::Invalid`], [`VolumeError::NoDriver`], or the disk.
    pub fn create(&self, spec: VolumeSpec) -> Result<Volume, RuntimeError> {
        let lock = self.lock_of(&spec.name);
        let _alone = hold(&lock);
        self.ensure(&spec, None)?;
        self.get(&spec.name)
    }

    /// One volume.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn get(&self, name: &str) -> Result<Volume, RuntimeError> {
        let volumes = self.entries();
        let entry = volumes.get(name).ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
        Ok(self.shown(name, entry))
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<Volume> {
        self.entries().iter().map(|(name, entry)| self.shown(name, entry)).collect()
    }

    /// Removes a volume with its data. What its options mount is only unmounted.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`], [`VolumeError::MountedInside`], or the disk; in the last case
    /// the volume is gone, and the next start removes the rest.
    pub fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        let lock = self.lock_of(name);
        let _alone = hold(&lock);
        self.remove_held(name)
    }

    /// Bytes of all files in a volume, each counted once; 0 when it is gone. Takes as long as looking at each file does.
    pub fn size(&self, name: &str) -> u64 {
        self.get(name).map_or(0, |volume| disk::size(&volume.mountpoint))
    }

    /// Removes those that no container has, that `wanted` approves of, and (as Docker does) that have no options.
    /// One that resists is left, and told of in the log.
    pub fn prune(&self, wanted: impl Fn(&Volume) -> bool) -> Pruned {
        let mut pruned = Pruned::default();
        for volume in self.list() {
            if !volume.containers.is_empty() || !volume.options.is_empty() || !wanted(&volume) {
                continue;
            }
            let bytes = disk::size(&volume.mountpoint);
            match self.remove(&volume.name) {
                Ok(()) => {
                    pruned.bytes += bytes;
                    pruned.names.push(volume.name);
                }
                // A container has taken it meanwhile, or somebody else has removed it.
                Err(RuntimeError::Volume(VolumeError::InUse { .. } | VolumeError::NotFound(_))) => {}
                Err(error) => warn!(volume = volume.name, %error, "prune"),
            }
        }
        pruned
    }

    /// Where a volume's data is, or will be.
    pub(crate) fn data_path(&self, name: &str) -> PathBuf {
        self.inner.dir.join(name).join(DATA)
    }

    /// Gives a volume to a container that is being made: makes it, mounts it and fills it as far as that is needed.
    pub(crate) fn take(&self, taker: &Taker<'_>, mount: &VolumeMount, target: &Path) -> Result<(), RuntimeError> {
        let name = mount.name.as_str();
        let lock = self.lock_of(name);
        let _alone = hold(&lock);
        let owned = name == plan::anonymous_name(taker.container, target.as_os_str().as_encoded_bytes());
        let spec = VolumeSpec {
            name: name.to_owned(),
            driver: mount.driver.clone(),
            options: mount.options.clone(),
            labels: mount.labels.clone(),
        };
        self.ensure(&spec, owned.then_some(taker.container))?;
        let entry = self.use_by(name, taker.container)?;
        let (container, destination) = (taker.container.to_owned(), target.display().to_string());
        self.tell("mount", name, vec![("container", container), ("destination", destination)]);
        let data = self.data_path(name);
        let options = plan::device(&entry.record.options)?;
        let own_directory = options.is_none();
        if let Some(device) = options
            && !mounted::at(&data).map_err(storage("look at the mounts of", &data))?
        {
            device::attach(device, &data)?;
        }
        self.fill(taker, name, mount.copy && mount.subpath.as_os_str().is_empty(), target, own_directory)
    }

    /// Takes note that a container which an earlier daemon made has these volumes.
    pub(crate) fn adopt<'a>(&self, container: &str, living: bool, names: impl Iterator<Item = &'a str>) {
        let mut volumes = self.entries();
        for name in names {
            if let Some(entry) = volumes.get_mut(name) {
                entry.users.insert(container.to_owned(), living);
            }
        }
    }

    /// A container has ended: what only living containers need mounted is unmounted.
    pub(crate) fn rest(&self, container: &str) {
        for name in self.volumes_of(container) {
            let lock = self.lock_of(&name);
            let _alone = hold(&lock);
            let had = match self.entries().get_mut(&name).and_then(|entry| entry.users.get_mut(container)) {
                Some(living) => std::mem::replace(living, false),
                None => false,
            };
            if had {
                self.tell("unmount", &name, vec![("container", container.to_owned())]);
            }
            if let Err(error) = self.unmount_unused(&name) {
                warn!(volume = name, %error, "a volume could not be unmounted");
            }
        }
    }

    /// A container is gone, or could not be made: it has no volume any more, and its own ones are removed.
    pub(crate) fn release(&self, container: &str) -> Result<(), RuntimeError> {
        let mut failed = Vec::new();
        for name in self.volumes_of(container) {
            let lock = self.lock_of(&name);
            let _alone = hold(&lock);
            let (had, owned) = match self.entries().get_mut(&name) {
                Some(entry) => {
                    let had = entry.users.remove(container).unwrap_or(false);
                    (had, entry.record.owner == container && entry.users.is_empty())
                }
                None => continue,
            };
            // Who removes it just after its end may be here before `rest` is.
            if had {
                self.tell("unmount", &name, vec![("container", container.to_owned())]);
            }
            let done = if owned { self.remove_held(&name) } else { self.unmount_unused(&name) };
            failed.extend(done.err().map(|error| crate::error::with_causes(&error)));
        }
        if failed.is_empty() { Ok(()) } else { Err(RuntimeError::Leftovers(failed.join("; "))) }
    }

    /// What was made for a container alone is its user's from now on, and stays when it goes.
    pub(crate) fn keep(&self, container: &str) -> Result<(), RuntimeError> {
        for name in self.volumes_of(container) {
            let lock = self.lock_of(&name);
            let _alone = hold(&lock);
            let record = match self.entries().get(&name) {
                Some(entry) if entry.record.owner == container => {
                    StoredVolume { owner: String::new(), ..entry.record.clone() }
                }
                _ => continue,
            };
            stored::write(&self.inner.dir.join(&name), names::VOLUME, &record, Durability::Synced)?;
            if let Some(entry) = self.entries().get_mut(&name) {
                entry.record.owner.clear();
            }
        }
        Ok(())
    }

    /// Once all containers are adopted: removes what belonged to those that are gone, and makes the mounts fit those
    /// that live.
    pub(crate) fn settle(&self, known: impl Fn(&str) -> bool) {
        let names: Vec<String> = self.entries().keys().cloned().collect();
        for name in names {
            let lock = self.lock_of(&name);
            let _alone = hold(&lock);
            let Some(entry) = self.entries().get(&name).cloned() else { continue };
            let owner = &entry.record.owner;
            let settled = if !owner.is_empty() && entry.users.is_empty() && !known(owner) {
                info!(volume = name, container.id = owner, "removing the volume of a container that is no more");
                self.remove_held(&name)
            } else if entry.users.values().any(|living| *living) {
                self.mount_again(&name, &entry)
            } else {
                self.unmount_unused(&name)
            };
            if let Err(error) = settled {
                warn!(volume = name, error = crate::error::with_causes(&error), "a volume could not be set right");
            }
        }
    }

    fn tell(&self, action: &str, name: &str, mut attributes: Vec<(&'static str, String)>) {
        attributes.push(("driver", "local".to_owned()));
        self.inner.events.tell(EventKind::Volume, action, name, &Arc::default(), attributes);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Nothing panics while it is held, and each change of it is one insertion or removal.
        self.inner.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_of(&self, name: &str) -> Arc<Mutex<()>> {
        let mut locks = self.inner.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.to_owned()).or_default())
    }

    fn shown(&self, name: &str, entry: &Entry) -> Volume {
        Volume {
            name: name.to_owned(),
            options: entry.record.options.clone(),
            labels: entry.record.labels.clone(),
            created_at: time_from(entry.record.created_at_nanos),
            mountpoint: self.data_path(name),
            containers: entry.users.keys().cloned().collect(),
        }
    }

    /// Volumes that a container has, or that were made for it alone.
    fn volumes_of(&self, container: &str) -> BTreeSet<String> {
        let volumes = self.entries();
        let of = |entry: &Entry| entry.users.contains_key(container) || entry.record.owner == container;
        volumes.iter().filter(|(_, entry)| of(entry)).map(|(name, _)| name.clone()).collect()
    }

    /// Makes the volume if it is not there. Its lock is held.
    fn ensure(&self, spec: &VolumeSpec, owner: Option<&str>) -> Result<(), RuntimeError> {
        check_name(&spec.name)?;
        check_driver(&spec.driver)?;
        if self.entries().contains_key(&spec.name) {
            return Ok(());
        }
        check_labels(&spec.labels)?;
        plan::device(&spec.options)?;
        let mut labels = spec.labels.clone();
        if owner.is_some() {
            labels.entry(ANONYMOUS_LABEL.to_owned()).or_default();
        }
        let record = StoredVolume {
            created_at_nanos: nanos(SystemTime::now()),
            options: spec.options.clone(),
            labels,
            owner: owner.unwrap_or_default().to_owned(),
            filling: false,
        };
        let dir = self.inner.dir.join(&spec.name);
        let new = self.inner.dir.join(format!("{NEW}{}", spec.name));
        let make = |path: &Path, mode: u32| {
            DirBuilder::new().mode(mode).create(path).map_err(storage("create", path))?;
            // Whatever the daemon's umask is.
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(storage("set the permissions of", path))
        };
        let made = || {
            remove_tree(&spec.name, &new)?;
            make(&new, 0o701)?;
            make(&new.join(DATA), 0o755)?;
            stored::write(&new, names::VOLUME, &record, Durability::Synced)?;
            fs::rename(&new, &dir).map_err(storage("rename", &new))?;
            let parent = &self.inner.dir;
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(storage("sync", parent))
        };
        made().inspect_err(|_| drop(remove::remove_tree(&new)))?;
        self.entries().insert(spec.name.clone(), Entry { record, ..Entry::default() });
        self.tell("create", &spec.name, Vec::new());
        Ok(())
    }

    /// Puts the container among the volume's users.
    fn use_by(&self, name: &str, container: &str) -> Result<Entry, RuntimeError> {
        let mut volumes = self.entries();
        let entry = volumes.get_mut(name).ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
        if let Some(reason) = &entry.damaged {
            return Err(VolumeError::Damaged { name: name.to_owned(), reason: reason.clone() }.into());
        }
        entry.users.insert(container.to_owned(), true);
        Ok(entry.clone())
    }

    fn fill(
        &self,
        taker: &Taker<'_>,
        name: &str,
        wanted: bool,
        target: &Path,
        own_directory: bool,
    ) -> Result<(), RuntimeError> {
        let data = self.data_path(name);
        let open = || File::open(&data).map_err(storage("open", &data));
        let cut_short = self.entries().get(name).is_some_and(|entry| entry.record.filling);
        if cut_short {
            // The host failed in the middle of it. No container has ever started with what is there.
            tree::clear(open()?.as_fd()).map_err(storage("clear", &data))?;
        }
        let read = |errno: rustix::io::Errno| storage("read", &data)(errno.into());
        if !wanted || !tree::is_empty(open()?.as_fd()).map_err(read)? {
            return if cut_short { self.note_filling(name, false) } else { Ok(()) };
        }
        // On a file system that others may use as well, nobody could know whose the files are.
        if own_directory {
            self.note_filling(name, true)?;
        }
        let filled = fill::fill(taker.exe, taker.dir, taker.layers, target, name, &data);
        if own_directory && filled.is_err() {
            // Half of it would be taken for the user's own next time.
            tree::clear(open()?.as_fd()).map_err(storage("clear", &data))?;
        }
        filled?;
        if own_directory {
            // What is said to be complete must be on the disk.
            let synced = rustix::fs::syncfs(open()?);
            synced.map_err(|errno| storage("sync", &data)(errno.into()))?;
            self.note_filling(name, false)?;
        }
        Ok(())
    }

    fn note_filling(&self, name: &str, filling: bool) -> Result<(), RuntimeError> {
        let record = match self.entries().get_mut(name) {
            Some(entry) => {
                entry.record.filling = filling;
                entry.record.clone()
            }
            None => return Err(VolumeError::NotFound(name.to_owned()).into()),
        };
        stored::write(&self.inner.dir.join(name), names::VOLUME, &record, Durability::Synced)
    }

    fn mount_again(&self, name: &str, entry: &Entry) -> Result<(), RuntimeError> {
        let Some(device) = plan::device(&entry.record.options)? else { return Ok(()) };
        let data = self.data_path(name);
        if mounted::at(&data).map_err(storage("look at the mounts of", &data))? {
            return Ok(());
        }
        Ok(device::attach(device, &data)?)
    }

    /// Unmounts what the options have mounted, unless a living container needs it. The volume's lock is held.
    fn unmount_unused(&self, name: &str) -> Result<(), RuntimeError> {
        let needed = match self.entries().get(name) {
            Some(entry) => entry.record.options.is_empty() || entry.users.values().any(|living| *living),
            None => return Ok(()),
        };
        let data = self.data_path(name);
        if needed || !mounted::at(&data).map_err(storage("look at the mounts of", &data))? {
            return Ok(());
        }
        device::detach(&data).map_err(storage("unmount", &data))
    }

    fn remove_held(&self, name: &str) -> Result<(), RuntimeError> {
        {
            let volumes = self.entries();
            let entry = volumes.get(name).ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
            if !entry.users.is_empty() {
                let containers = entry.users.keys().cloned().collect();
                return Err(VolumeError::InUse { name: name.to_owned(), containers }.into());
            }
        }
        self.unmount_unused(name)?;
        let dir = self.inner.dir.join(name);
        let removing = self.inner.dir.join(format!("{REMOVING}{name}"));
        nothing_mounted(name, &dir)?;
        remove_tree(name, &removing)?;
        match fs::rename(&dir, &removing) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage("rename", &dir)(error)),
            _ => {}
        }
        self.entries().remove(name);
        self.tell("destroy", name, Vec::new());
        remove_tree(name, &removing)
    }
}

fn hold(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The volume in a directory. One without a record was made by hand, and is a volume all the same.
fn read(dir: &Path) -> Result<Entry, RuntimeError> {
    match stored::read::<StoredVolume>(dir, names::VOLUME) {
        Ok(Some(record)) => Ok(Entry { record, ..Entry::default() }),
        Ok(None) => {
            let made = fs::metadata(dir).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let record = StoredVolume { created_at_nanos: nanos(made), ..StoredVolume::default() };
            Ok(Entry { record, ..Entry::default() })
        }
        Err(RuntimeError::Stored { reason, foreign: false, .. }) => {
            Ok(Entry { damaged: Some(reason), ..Entry::default() })
        }
        Err(error) => Err(error),
    }
}

fn nothing_mounted(name: &str, dir: &Path) -> Result<(), RuntimeError> {
    let mounts = mounted::all().map_err(storage("look at the mounts of", dir))?;
    match mounts.into_iter().find(|mount| mount.point.starts_with(dir)) {
        Some(mount) => Err(VolumeError::MountedInside { name: name.to_owned(), mount: mount.point }.into()),
        None => Ok(()),
    }
}

/// Removes a directory in which nothing is mounted. One that is not there is fine.
fn remove_tree(name: &str, dir: &Path) -> Result<(), RuntimeError> {
    nothing_mounted(name, dir)?;
    match remove::remove_tree(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(storage("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> VolumeSpec {
        VolumeSpec { name: name.to_owned(), ..VolumeSpec::default() }
    }

    #[test]
    fn volumes_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes.create(VolumeSpec { labels: labels.clone(), ..spec("data") }).unwrap();
        fs::write(made.mountpoint.join("x"), "kept").unwrap();
        // Once more, with other labels: it is there, and stays what it is.
        assert_eq!(volumes.create(spec("data")).unwrap(), made);
        drop(volumes);
        // A creation and a removal that were cut short leave nothing.
        fs::create_dir_all(dir.path().join(".new-half/_data")).unwrap();
        fs::create_dir_all(dir.path().join(".removing-old/_data")).unwrap();
        fs::create_dir_all(dir.path().join("by-hand/_data")).unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        let names: Vec<String> = volumes.list().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["by-hand", "data"]);
        assert_eq!(volumes.get("data").unwrap(), made);
        assert_eq!((made.labels, fs::read_to_string(made.mountpoint.join("x")).unwrap().as_str()), (labels, "kept"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_container_has_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        for name in ["used", "free", "labelled"] {
            volumes.create(spec(name)).unwrap();
        }
        volumes.adopt("c2", false, ["used"].into_iter());
        volumes.adopt("c1", true, ["used"].into_iter());
        let refused = volumes.remove("used").unwrap_err().to_string();
        assert_eq!(refused, "remove used: volume is in use - [c1, c2]");
        fs::write(volumes.data_path("free").join("x"), "12345").unwrap();
        fs::hard_link(volumes.data_path("free").join("x"), volumes.data_path("free").join("y")).unwrap();
        let pruned = volumes.prune(|volume| volume.name != "labelled");
        assert_eq!(pruned, Pruned { names: vec!["free".to_owned()], bytes: 5 });
        volumes.rest("c1");
        assert!(volumes.remove("used").is_err(), "one that has ended still has it");
        volumes.release("c1").unwrap();
        volumes.release("c2").unwrap();
        volumes.remove("used").unwrap();
        let missing = volumes.remove("used").unwrap_err();
        assert!(matches!(missing, RuntimeError::Volume(VolumeError::NotFound(name)) if name == "used"));
    }

    #[test]
    fn what_a_container_has_to_itself_goes_with_it_or_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        for (name, owner) in [("goes", "c1"), ("stays", "c2")] {
            volumes.ensure(&spec(name), Some(owner)).unwrap();
            volumes.adopt(owner, false, [name].into_iter());
        }
        volumes.keep("c2").unwrap();
        volumes.keep("nobody").unwrap();
        assert!(volumes.remove("stays").is_err(), "it still has it");
        volumes.release("c1").unwrap();
        volumes.release("c2").unwrap();
        drop(volumes);
        let volumes = Volumes::open(dir.path()).unwrap();
        volumes.settle(|_| false);
        let left: Vec<Volume> = volumes.list();
        assert_eq!(left.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["stays"]);
        assert!(left[0].is_anonymous(), "a prune takes it");
    }

    #[test]
    fn a_damaged_record_gives_no_volume_to_a_container_and_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        Volumes::open(dir.path()).unwrap().create(spec("data")).unwrap();
        fs::write(dir.path().join("data").join(names::VOLUME), "SHRT and nonsense").unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        assert!(matches!(volumes.use_by("data", "c"), Err(RuntimeError::Volume(VolumeError::Damaged { .. }))));
        volumes.remove("data").unwrap();
        assert_eq!(volumes.list(), []);
    }

    #[test]
    fn what_was_half_filled_is_emptied_first() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        let data = volumes.create(spec("data")).unwrap().mountpoint;
        volumes.note_filling("data", true).unwrap();
        fs::create_dir(data.join("half")).unwrap();
        drop(volumes);
        let volumes = Volumes::open(dir.path()).unwrap();
        let exe = OwnedFd::from(File::open("/dev/null").unwrap());
        let taker = Taker { container: "c", dir: dir.path(), layers: 1, exe: &exe };
        volumes.fill(&taker, "data", false, Path::new("/t"), true).unwrap();
        assert!(!data.join("half").exists());
        fs::create_dir(data.join("own")).unwrap();
        drop(volumes);
        let volumes = Volumes::open(dir.path()).unwrap();
        volumes.fill(&taker, "data", false, Path::new("/t"), true).unwrap();
        assert!(data.join("own").exists(), "what containers have written is never touched");
        // A copy that fails leaves the volume empty, and says so.
        fs::remove_dir(data.join("own")).unwrap();
        let error = volumes.fill(&taker, "data", true, Path::new("/t"), true).unwrap_err().to_string();
        assert!(error.starts_with("failed to copy the image's files into volume data: "), "{error}");
        assert!(!volumes.entries()["data"].record.filling || fs::read_dir(&data).unwrap().next().is_none());
    }

    #[test]
    fn hostile_names_make_no_directories() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(&dir.path().join("volumes")).unwrap();
        for name in ["../escape", "/abs", "..", ".new-x", "a", ""] {
            assert!(volumes.create(spec(name)).is_err(), "{name}");
            assert!(volumes.remove(name).is_err(), "{name}");
        }
        assert!(volumes.create(VolumeSpec { driver: "nfs".into(), ..spec("good") }).is_err());
        let bad = BTreeMap::from([("type".to_owned(), "nfs".to_owned())]);
        assert!(volumes.create(VolumeSpec { options: bad, ..spec("good") }).is_err());
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 0);
    }
}
