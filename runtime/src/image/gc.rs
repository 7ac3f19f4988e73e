//! What goes when nobody needs it any more: by a user's order ([`ImageStore::prune`]), and by itself when
//! it came only for tasks ([`ImageStore::make_room`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::catalog::{Catalog, Origin, blob_path};
use super::digest::Digest;
use super::error::ImageError;
use super::store::{ImageId, ImageStore, ImageSummary, Inner, Removed, summary};

/// What [`ImageStore::prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What went, in Docker's words.
    pub removed: Vec<Removed>,
    /// Bytes of unpacked layers that no image needs any more.
    pub freed: u64,
}

/// When images that came only for tasks are in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How long ago a task must have used one at the least.
    pub grace: Duration,
    /// From this share of the disk in use on, in percent, they go; until it is 5 percent less.
    pub full_percent: u64,
}

/// So much less than [`Room::full_percent`] is enough.
const SLACK_PERCENT: u64 = 5;

impl ImageStore {
    /// Removes the images that `wanted` picks among those for which `in_use` does not hold and that no lease
    /// holds, with all their names.
    ///
    /// # Errors
    /// [`ImageError::Io`]; then nothing is removed, or everything but its files, which the next opening removes.
    pub fn prune(
        &self,
        wanted: &dyn Fn(&ImageSummary) -> bool,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<Pruned, ImageError> {
        let writer = self.inner.lock();
        let mut catalog = (*self.inner.catalog()).clone();
        let before = catalog.layers_size();
        let removed = self.inner.drop_images(&mut catalog, wanted, in_use);
        let freed = before.saturating_sub(catalog.layers_size());
        if removed.is_empty() {
            return Ok(Pruned::default());
        }
        self.inner.replace(&writer, catalog)?;
        let garbage = self.inner.collect(&writer)?;
        drop(writer);
        garbage.remove();
        tracing::info!(?removed, freed, "images pruned");
        for image in removed.split_inclusive(|one| matches!(one, Removed::Deleted(_))) {
            if let Some(Removed::Deleted(id)) = image.last() {
                self.inner.tell_removed(id, image, &BTreeMap::new());
            }
        }
        Ok(Pruned { removed, freed })
    }

    /// Notes that these images are in use now; see [`Room::grace`].
    pub fn note_use(&self, images: &dyn Fn(&ImageId) -> bool) {
        for id in self.inner.catalog().images.keys().filter(|id| images(&ImageId(**id))) {
            self.inner.touch(id);
        }
    }

    /// While the disk is short, removes images that came only because tasks needed them and that none has
    /// used for the grace time, the one that was used longest ago first. Answers how many.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn make_room(&self, room: Room, in_use: &dyn Fn(&ImageId) -> bool) -> Result<usize, ImageError> {
        if self.inner.disk_percent()? < room.full_percent {
            return Ok(0);
        }
        let enough = room.full_percent.saturating_sub(SLACK_PERCENT);
        let mut gone = 0;
        for (_, id) in self.inner.idle(room.grace) {
            let pruned = self.prune(&|image| image.id == id && image.origin == Origin::Task, in_use)?;
            if !pruned.removed.is_empty() {
                gone += 1;
                tracing::info!(image.id = %id, freed = pruned.freed, "an image that no task uses was removed: the disk is short");
            }
            if self.inner.disk_percent()? < enough {
                break;
            }
        }
        Ok(gone)
    }
}

impl Inner {
    /// A task uses the image now. What cannot be noted makes the image look older than it is.
    pub(crate) fn touch(&self, id: &Digest) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: unchanged, last_modification: now };
        if let Err(error) = rustix::fs::utimensat(CWD, blob_path(&self.dir, id), &times, AtFlags::empty()) {
            tracing::debug!(image.id = %id, %error, "the use of an image could not be noted");
        }
    }

    /// Images that came only for tasks and that none has used for this time, oldest first.
    fn idle(&self, grace: Duration) -> Vec<(SystemTime, ImageId)> {
        let catalog = self.catalog();
        let now = SystemTime::now();
        let mut idle: Vec<(SystemTime, ImageId)> = catalog
            .images
            .values()
            .filter(|image| image.origin == Origin::Task)
            .filter_map(|image| Some((last_use(&blob_path(&self.dir, &image.id))?, ImageId(image.id))))
            .filter(|(used, _)| now.duration_since(*used).is_ok_and(|age| age >= grace))
            .collect();
        idle.sort();
        idle
    }

    fn drop_images(
        &self,
        catalog: &mut Catalog,
        wanted: &dyn Fn(&ImageSummary) -> bool,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Vec<Removed> {
        // Before anybody asks what is in use: a lease that is let go of in between has left a container behind.
        let held = self.held().clone();
        let mut removed = Vec::new();
        catalog.images.retain(|id, image| {
            let keep = !wanted(&summary(image)) || held.has_image(id) || in_use(&ImageId(*id));
            if !keep {
                removed.extend(image.references.iter().map(|name| Removed::Untagged(name.to_string())));
                removed.push(Removed::Deleted(id.to_string()));
            }
            keep
        });
        removed
    }

    /// How much of the store's file system is in use, in percent, as `df` tells it.
    fn disk_percent(&self) -> Result<u64, ImageError> {
        let disk = rustix::fs::statvfs(&self.dir)
            .map_err(|errno| ImageError::io("ask for the room of", &self.dir)(errno.into()))?;
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        // What only root may use is in neither.
        let all = used.saturating_add(disk.f_bavail);
        Ok((used.saturating_mul(100)).div_ceil(all.max(1)))
    }
}

fn last_use(config: &Path) -> Option<SystemTime> {
    fs::metadata(config).and_then(|found| found.modified()).ok()
}
