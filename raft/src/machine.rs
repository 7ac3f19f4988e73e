//! Between openraft and the caller's state machine: order, memberships, snapshots.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};

use crate::counters::Meter;
use crate::snapshot::{Image, SnapshotStore, Stored};
use crate::types::{self, CommittedLeaderId, EntryPayload, LogId, Member, SnapshotMeta, StoredMembership, Types};
use crate::{Committed, RaftId, RestoreError};

/// What the log drives. All calls come from one task, in log order.
pub trait StateMachine: Send + 'static {
    /// Applies an entry and gives the answer for whoever proposed it. It must do the same on every member,
    /// so a payload that makes no sense is an answer, not a panic.
    fn apply(&mut self, entry: Committed<'_>) -> Vec<u8>;

    /// Everything up to `index` is applied, including entries without payload. The place to publish the new
    /// state: proposers are answered after this returns.
    fn applied(&mut self, index: u64, term: u64);

    /// An immutable view of the state. The returned function encodes it, on another thread and while
    /// further entries are applied.
    fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send>;

    /// Replaces the state by an encoded one. A failure ends the member; `applied` follows a success.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError>;
}

/// Encodes a view.
type Encode = Box<dyn FnOnce() -> Vec<u8> + Send>;

type Openraft = Snapshot<CommittedLeaderId, RaftId, Member, Image>;

/// Wait this long before trying again to write a snapshot to a full disk.
const FULL_DISK_RETRY: Duration = Duration::from_secs(1);

/// The caller's machine, with what openraft wants remembered beside it.
pub(crate) struct Driver {
    // openraft wants `Sync`; nobody ever locks this, all access is through `&mut`.
    machine: Mutex<Box<dyn StateMachine>>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Arc<SnapshotStore>,
    meter: Arc<Meter>,
}

impl Driver {
    pub(crate) fn new(machine: Box<dyn StateMachine>, snapshots: Arc<SnapshotStore>, meter: Arc<Meter>) -> Self {
        let (last_applied, membership) = Default::default();
        Self { machine: Mutex::new(machine), last_applied, membership, snapshots, meter }
    }

    fn machine(&mut self) -> &mut dyn StateMachine {
        &mut **self.machine.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&mut self) {
        if let Some(last) = self.last_applied {
            self.machine().applied(last.index, types::term_of(&last));
        }
    }
}

impl RaftStateMachine<Types> for Driver {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let answer = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(id), membership);
                    Vec::new()
                }
                EntryPayload::Normal(payload) => {
                    self.meter.applied.one();
                    self.machine().apply(Committed { index: id.index, term: types::term_of(&id), payload: &payload.0 })
                }
            };
            self.last_applied = Some(id);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        // Published first, so that a proposer that was answered finds its change.
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let view = self.machine().view();
        Builder {
            view: Mutex::new(Some(view)),
            meta: SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() },
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> Result<(), io::Error> {
        self.machine().restore(&image.state).map_err(io::Error::other)?;
        if image.stored == Stored::Staged {
            let (snapshots, meta) = (self.snapshots.clone(), meta.clone());
            blocking(move || snapshots.adopt(&meta)).await??;
        }
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Openraft>, io::Error> {
        let snapshots = self.snapshots.clone();
        let found = blocking(move || snapshots.load()).await??;
        Ok(found.map(|(meta, state)| Openraft { meta, snapshot: Image { state, stored: Stored::Current } }))
    }
}

/// Encodes and stores one view.
pub(crate) struct Builder {
    view: Mutex<Option<Encode>>,
    meta: SnapshotMeta,
    snapshots: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<Openraft, io::Error> {
        let view = self.view.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let view = view.ok_or_else(|| io::Error::other("a snapshot was built twice"))?;
        let state: Bytes = blocking(view).await?.into();
        loop {
            let (snapshots, meta, bytes) = (self.snapshots.clone(), self.meta.clone(), state.clone());
            match blocking(move || snapshots.save(&meta, &bytes)).await? {
                Ok(()) => break,
                // An error would end the member; a snapshot that comes late harms nobody.
                Err(error) if error.is_full() => {
                    tracing::warn!(%error, "no room for a snapshot; will try again");
                    tokio::time::sleep(FULL_DISK_RETRY).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Openraft { meta: self.meta.clone(), snapshot: Image { state, stored: Stored::Current } })
    }
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(run).await.map_err(io::Error::other)
}
