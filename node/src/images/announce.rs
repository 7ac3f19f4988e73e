//! What a manager was told of this host's image content in one session, and what is news to it.

use std::collections::{BTreeMap, BTreeSet};

use runtime::image::{Digest, ImageStore, Reference};
use tokio::sync::watch;

use crate::rpc::pb;

/// One session's view of the store.
pub(crate) struct Announcer {
    store: ImageStore,
    changes: watch::Receiver<u64>,
    blobs: BTreeSet<Digest>,
    names: BTreeMap<Reference, Digest>,
}

impl Announcer {
    /// A manager that was told nothing yet.
    pub(crate) fn new(store: ImageStore) -> Self {
        let mut changes = store.changes();
        changes.mark_changed();
        Self { changes, store, blobs: BTreeSet::new(), names: BTreeMap::new() }
    }

    /// Waits until there may be news.
    pub(crate) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The store has gone, and with it what could change.
            std::future::pending::<()>().await;
        }
    }

    /// Hands the news to `send`, which says whether it took them; if not, they are news again next time.
    pub(crate) fn tell(&mut self, send: impl FnOnce(pb::ContentHeld) -> bool) {
        let (blobs, names) = (self.store.blobs(), self.store.named());
        let bytes = |digest: &Digest| digest.as_bytes().to_vec();
        let news = pb::ContentHeld {
            added: blobs.difference(&self.blobs).map(bytes).collect(),
            removed: self.blobs.difference(&blobs).map(bytes).collect(),
            named: names
                .iter()
                .filter(|(name, manifest)| self.names.get(name) != Some(manifest))
                .map(|(name, manifest)| pb::ImageName { name: name.canonical(), manifest: bytes(manifest) })
                .collect(),
            unnamed: self.names.keys().filter(|name| !names.contains_key(name)).map(Reference::canonical).collect(),
        };
        if news == pb::ContentHeld::default() {
            return;
        }
        if send(news) {
            (self.blobs, self.names) = (blobs, names);
        } else {
            self.changes.mark_changed();
        }
    }
}
