//! Files in and out of a container, and what it changed of its image: tar archives, and a list.
//!
//! A container may be hostile, and running: every path is looked up by the kernel inside of its root (`openat2` with
//! `RESOLVE_IN_ROOT` and no magic links), what was found is held by a descriptor, and nothing is walked twice. Nothing
//! of the container is executed or loaded, and nobody changes their own root. An archive that comes in is bounded like
//! an image's. Each copy has a thread of its own, which may enter another mount namespace and takes it along at its end.
//!
//! * `view`: the root of a container as its processes see it, or of one that has ended
//! * `place`: paths in it
//! * `pack`, `writer`: from files to an archive; `unpack`: the other way
//! * `changes`: what was written over the image
//! * `ids`: users as the container counts them

mod changes;
mod ids;
mod pack;
mod place;
mod unpack;
mod view;
mod writer;

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use self::ids::Ids;
use self::place::{Place, Root};
use super::{Container, Inner, Runtime};
use crate::RuntimeError;
use crate::config::ContainerConfig;
use crate::image::ImageError;
use crate::sys;

/// Copies of one host at the same time. Each has a thread, and clients may be slow.
pub(super) const MAX_COPIES: usize = 64;
/// Pieces of an archive on their way to a reader.
const PIECES: usize = 16;
/// Changes on their way to a reader.
const CHANGES: usize = 256;

/// What is at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// Its last name; `/` for the root, `.` for a path that ends so.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// When its content changed.
    pub modified: SystemTime,
    /// Where a symbolic link leads in the end, as an absolute path; empty for everything else.
    pub link_target: String,
}

/// How an archive is put into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// A directory is never replaced by something else, nor something else by a directory.
    pub keep_kinds: bool,
    /// Everything belongs to the container's own user, if it has one, instead of the archive's.
    pub own: bool,
}

/// What happened to a path of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is another one, or has other contents in it.
    Modified,
    /// It was not there.
    Added,
    /// It is there no more.
    Deleted,
}

/// One difference between a container's root and its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// A failed copy from or to a container. What was written before a failure stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// There is nothing at this path.
    #[error("no such file or directory: {0}")]
    NotFound(String),
    /// The path must be one of a directory.
    #[error("not a directory: {0}")]
    NotADirectory(String),
    /// The container's root is read-only.
    #[error("container rootfs is marked read-only")]
    ReadOnlyRoot,
    /// What is mounted there is read-only.
    #[error("container volume is marked read-only: {0}")]
    ReadOnlyVolume(String),
    /// The path makes no sense, or leads nowhere.
    #[error("{path}: {reason}")]
    Path {
        /// As it was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive holds what cannot be put there.
    #[error("{entry:?}: {reason}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive is damaged, too large, or did not come.
    #[error(transparent)]
    Archive(#[from] ImageError),
    /// Too many copies are under way; a later try helps.
    #[error("too many copies to and from containers are under way: try again when one has ended")]
    Busy,
    /// Something is being copied into this container, which has ended; a later try helps.
    #[error("another copy into container {0}, which does not run, is under way")]
    Taken(String),
    /// It could not be written or read.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The container is not there, or not in a state for it.
    #[error(transparent)]
    Container(#[from] RuntimeError),
}

impl CopyError {
    fn io(operation: &'static str, path: impl Into<String>, source: impl Into<io::Error>) -> CopyError {
        CopyError::Io { operation, path: path.into(), source: source.into() }
    }
}

/// The pieces of an archive. It ends with the archive, or after the error that cut it off.
pub type ArchivePieces = mpsc::Receiver<io::Result<Bytes>>;

impl Runtime {
    /// What is at a path. A link at its end is told, not followed, unless the path ends in `/` or `/.`.
    ///
    /// # Errors
    /// [`CopyError::NotFound`], [`CopyError::NotADirectory`], [`CopyError::Path`].
    pub async fn stat_path(&self, id: &str, path: &str) -> Result<PathStat, CopyError> {
        let (source, path) = (self.source(id)?, path.to_owned());
        source
            .on_thread(move |source, tell| {
                let found = source.root().and_then(|root| Place::find(&root, &path)?.stat(&root));
                let _ = tell.send(found);
            })
            .await
    }

    /// What is at a path, as a tar archive with that name at its top.
    ///
    /// # Errors
    /// As [`Runtime::stat_path`], and [`CopyError::Busy`].
    pub async fn get_archive(&self, id: &str, path: &str) -> Result<(PathStat, ArchivePieces), CopyError> {
        let (source, path) = (self.source(id)?, path.to_owned());
        let (pieces, receiver) = mpsc::channel(PIECES);
        let stat = source.on_thread(move |source, tell| {
            let found = source.root().and_then(|root| {
                let place = Place::find(&root, &path)?;
                let stat = place.stat(&root)?;
                Ok((stat, place, root))
            });
            match found {
                Ok((stat, place, root)) => {
                    if tell.send(Ok(stat)).is_ok() {
                        pack::place(&place, &source.ids, pieces);
                    }
                    // What is mounted there stays so until now.
                    drop(root);
                }
                // Without a reader there is nobody to tell.
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        Ok((stat.await?, receiver))
    }

    /// The container's root without what is mounted in it, as a tar archive.
    ///
    /// # Errors
    /// [`CopyError::Container`], [`CopyError::Busy`].
    pub async fn export(&self, id: &str) -> Result<ArchivePieces, CopyError> {
        let source = self.source(id)?;
        let (pieces, receiver) = mpsc::channel(PIECES);
        let begun = source.on_thread(move |source, tell| match source.bare_root() {
            Ok(root) => {
                if tell.send(Ok(())).is_ok() {
                    pack::whole(&root, &source.ids, pieces);
                }
            }
            Err(error) => drop(tell.send(Err(error))),
        });
        begun.await?;
        Ok(receiver)
    }

    /// What is different from the image, each directory before what is in it. The channel ends with the list, or after
    /// the error that cut it off.
    ///
    /// # Errors
    /// [`CopyError::Container`], [`CopyError::Busy`].
    pub async fn changes(&self, id: &str) -> Result<mpsc::Receiver<io::Result<Change>>, CopyError> {
        let source = self.source(id)?;
        let (found, receiver) = mpsc::channel(CHANGES);
        let begun = source.on_thread(move |source, tell| match source.image_root() {
            Ok(root) => {
                if tell.send(Ok(())).is_ok() {
                    changes::find(&source.dir().join("upper"), &root, &source.ids, &found);
                }
            }
            Err(error) => drop(tell.send(Err(error))),
        });
        begun.await?;
        Ok(receiver)
    }

    /// Puts an archive (plain, or compressed as images are) into a directory of a container. Blocking: for a thread
    /// that may wait.
    ///
    /// # Errors
    /// As [`Runtime::get_archive`], and [`CopyError::ReadOnlyRoot`], [`CopyError::ReadOnlyVolume`],
    /// [`CopyError::Entry`], [`CopyError::Archive`], [`CopyError::Taken`].
    pub fn put_archive(
        &self,
        id: &str,
        path: &str,
        archive: &mut (dyn Read + Send),
        options: PutOptions,
    ) -> Result<(), CopyError> {
        let source = self.source(id)?;
        std::thread::scope(|scope| {
            let put = std::thread::Builder::new().name("copy".to_owned()).spawn_scoped(scope, || {
                let _alone = source.ended.then(|| source.alone()).transpose()?;
                let root = source.writable_root()?;
                let owner = match options.own && !source.config.user.is_empty() {
                    true => Some(unpack::owner(&root, &source.config.user)?),
                    false => None,
                };
                if let Some((uid, gid)) = source.ids.maker() {
                    sys::make_files_as(uid, gid)
                        .map_err(|errno| CopyError::io("act for", id, io::Error::from_raw_os_error(errno)))?;
                }
                unpack::unpack(&root, path, archive, &source.ids, options.keep_kinds, owner)
            });
            let put = put.map_err(|error| CopyError::io("start a thread for", path, error))?;
            put.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn source(&self, id: &str) -> Result<Source, CopyError> {
        let container = self.inner.get(id)?;
        let permit = Arc::clone(&self.inner.copies).try_acquire_owned().map_err(|_| CopyError::Busy)?;
        let config = container.config()?;
        let ended = container.exit().is_some();
        let ids = Ids::of(&config, ended);
        Ok(Source { inner: Arc::clone(&self.inner), container, config, ids, ended, _permit: permit })
    }
}

/// A container that is copied from or to.
struct Source {
    inner: Arc<Inner>,
    container: Arc<Container>,
    config: ContainerConfig,
    ids: Ids,
    /// It had ended when the copy began: looked at once, as all that is done with it depends on that. One that ends later
    /// has no root any more.
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Source {
    /// Only one at a time writes into a root that it mounts for that.
    fn alone(&self) -> Result<MutexGuard<'_, ()>, CopyError> {
        match self.container.copying.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(CopyError::Taken(self.container.id.clone())),
        }
    }

    /// The container's directory on this host.
    fn dir(&self) -> PathBuf {
        self.container.dir.clone()
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> CopyError {
        let id = self.container.id.clone();
        move |error| CopyError::io(operation, id, error)
    }

    /// All that can be read: as its processes see it, or, when it has ended, its layers with its volumes.
    fn root(&self) -> Result<Root, CopyError> {
        if self.ended {
            let mounts = self.lasting_mounts();
            return view::ended(&self.dir(), self.config.layers.len(), &mounts)
                .map_err(self.failed("mount the root of"));
        }
        self.living_root()
    }

    fn writable_root(&self) -> Result<Root, CopyError> {
        if self.ended {
            if self.config.readonly_root {
                return Err(CopyError::ReadOnlyRoot);
            }
            let mounts = self.lasting_mounts();
            return view::ended_writable(&self.dir(), self.config.layers.len(), &mounts)
                .map_err(self.failed("mount the root of"));
        }
        self.living_root()
    }

    fn living_root(&self) -> Result<Root, CopyError> {
        let view = self.container.view.borrow().clone();
        view::living(view.pid, view.pid_start).map_err(|error| match error.kind() {
            // It has just ended.
            io::ErrorKind::NotFound => self.container.wrong_state().into(),
            _ => self.failed("open the root of")(error),
        })
    }

    /// Without anything that is mounted in it.
    fn bare_root(&self) -> Result<Root, CopyError> {
        if self.ended {
            return view::ended(&self.dir(), self.config.layers.len(), &[]).map_err(self.failed("mount the root of"));
        }
        view::without_mounts(self.living_root()?).map_err(self.failed("look below the mounts of"))
    }

    /// What the container began with.
    fn image_root(&self) -> Result<Root, CopyError> {
        view::image(&self.dir(), self.config.layers.len()).map_err(self.failed("mount the image of"))
    }

    /// Mounts whose content outlives the container, except for what only its memory may hold.
    fn lasting_mounts(&self) -> Vec<view::Lasting<'_>> {
        let private = self.inner.private.dir();
        self.config.mounts.iter().filter_map(|mount| view::Lasting::of(mount, private)).collect()
    }

    /// Runs `work` on a thread of its own, and waits for what it tells.
    async fn on_thread<T: Send + 'static>(
        self,
        work: impl FnOnce(&Source, oneshot::Sender<Result<T, CopyError>>) + Send + 'static,
    ) -> Result<T, CopyError> {
        let (tell, told) = oneshot::channel();
        std::thread::Builder::new()
            .name("copy".to_owned())
            .spawn(move || work(&self, tell))
            .map_err(|error| CopyError::io("start a thread for", "a copy", error))?;
        // It told nothing: it panicked, and has said so itself.
        told.await.unwrap_or_else(|_| Err(RuntimeError::Closing.into()))
    }
}
