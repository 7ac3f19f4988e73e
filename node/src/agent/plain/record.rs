//! What this host remembers of a plain container: one file each, replaced as a whole. Networks of this host are
//! remembered in the same way.
//!
//! What the container is made of lies beside it, with the runtime. What is here is what its user wants of it. It holds
//! the container's variables, as the runtime's file does; so it is clear, and readable by root alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use deploy::model::{NetworkAttachment, NetworkAttachmentConfig, PortConfig, Task, TaskId, TaskSpec, Timestamp};
use prost::Message;

use super::local::NetworkRecord;
use crate::stored::{self, Kind, StoredError};

/// The end of a file's name while it is written.
const BESIDE: &str = "tmp";

/// When a container that has ended is started again; Docker's restart policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Restart {
    /// Never.
    No = 0,
    /// When it has failed, or how it ended is not known.
    OnFailure = 1,
    /// Always but when its user has stopped it, until the daemon starts again.
    Always = 2,
    /// Always but when its user has stopped it.
    UnlessStopped = 3,
}

/// Whose the network of a container is. What a user calls it may be the name of another one another day: who has been on
/// one of this host is never led to one of the cluster instead, nor the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum NetworkOf {
    /// Not known before its first start.
    Anybody = 0,
    /// This host's alone.
    Host = 1,
    /// The cluster's.
    Cluster = 2,
}

/// A plain container, as its user wants it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    /// Its id: 64 hexadecimal characters.
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Its name, unique on this host.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// When it was made.
    #[prost(message, required, tag = "3")]
    pub(crate) created: Timestamp,
    /// What it runs, in the words of tasks.
    #[prost(message, required, tag = "4")]
    pub(crate) spec: TaskSpec,
    /// Its ports on the host. Those without a number get one whenever it starts.
    #[prost(message, repeated, tag = "5")]
    pub(crate) ports: Vec<PortConfig>,
    /// The numbers of those, in their order, while it runs.
    #[prost(uint32, repeated, tag = "6")]
    pub(crate) chosen_ports: Vec<u32>,
    /// When it is started again.
    #[prost(enumeration = "Restart", tag = "7")]
    pub(crate) restart: i32,
    /// After so many restarts in a row it is not; 0 for no bound. Of [`Restart::OnFailure`].
    #[prost(uint32, tag = "8")]
    pub(crate) max_restarts: u32,
    /// It is removed when it has ended.
    #[prost(bool, tag = "9")]
    pub(crate) auto_remove: bool,
    /// It is to run: it was started, and its end was not settled yet.
    #[prost(bool, tag = "10")]
    pub(crate) wanted: bool,
    /// Its user has stopped it, after the last start.
    #[prost(bool, tag = "11")]
    pub(crate) stopped: bool,
    /// How often its restart policy has started it since its user did.
    #[prost(uint32, tag = "12")]
    pub(crate) restarts: u32,
    /// Docker's `HostConfig` as it was sent, in JSON, for whoever asks.
    #[prost(string, tag = "13")]
    pub(crate) host_config: String,
    /// What holds its place on the network of its spec, while it runs or is about to run again; none otherwise.
    #[prost(message, required, tag = "14")]
    pub(crate) place: TaskId,
    /// The addresses that belong to that.
    #[prost(message, repeated, tag = "15")]
    pub(crate) attachments: Vec<NetworkAttachment>,
    /// The addresses that its user asked for on networks of this host, by what the user called these.
    #[prost(btree_map = "string, string", tag = "16")]
    pub(crate) addresses: BTreeMap<String, String>,
    /// Whose the network of its spec is.
    #[prost(enumeration = "NetworkOf", tag = "17")]
    pub(crate) network_of: i32,
}

impl Record {
    /// The network of this host that its user named, if it may be one of these.
    pub(super) fn local_wish(&self) -> Option<&NetworkAttachmentConfig> {
        self.spec.cluster_networks().next().filter(|_| self.network_of() != NetworkOf::Cluster)
    }

    /// Whether it is started again as soon as it has ended, its daemon begins, or a pause is over.
    pub(super) fn goes_on(&self) -> bool {
        self.wanted && !self.stopped && self.restart() != Restart::No
    }

    /// The address that its user asked for on a network.
    pub(super) fn asked_address(&self, network: &str) -> Option<Ipv4Addr> {
        self.addresses.get(network)?.parse().ok()
    }

    /// What the overlay knows it by: what holds its place on a network, or its own id.
    pub(crate) fn key(&self) -> TaskId {
        if self.place.is_none() { TaskId::new(self.id.clone()) } else { self.place.clone() }
    }

    /// It has no place on a network.
    pub(super) fn lose_place(&mut self) {
        self.place = TaskId::default();
        self.attachments.clear();
    }

    /// As a task, for what is done for tasks and for plain containers alike.
    pub(crate) fn task(&self) -> Task {
        Task {
            id: self.key(),
            spec: self.spec.clone(),
            ports: self.ports.clone(),
            chosen_ports: self.chosen_ports.clone(),
            attachments: self.attachments.clone(),
            ..Task::default()
        }
    }
}

/// What has a file of its own, which is called by its id.
pub(super) trait Remembered: Message + Default {
    /// What such a file holds.
    const KIND: Kind;

    /// Its id.
    fn id(&self) -> &str;
}

impl Remembered for Record {
    const KIND: Kind = Kind::PlainContainer;

    fn id(&self) -> &str {
        &self.id
    }
}

impl Remembered for NetworkRecord {
    const KIND: Kind = Kind::LocalNetwork;

    fn id(&self) -> &str {
        &self.id
    }
}

/// What is remembered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found<R> {
    pub(super) records: Vec<R>,
    /// Ids of those whose records are there and cannot be read.
    pub(super) unreadable: BTreeSet<String>,
}

/// Where the records are.
#[derive(Clone, Debug)]
pub(super) struct Records<R> {
    dir: PathBuf,
    of: PhantomData<R>,
}

impl<R: Remembered> Records<R> {
    /// Those in a directory, which is made if it is not there. Nobody else has it open.
    pub(super) fn open(dir: &Path) -> Result<Self, StoredError> {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|source| StoredError::Io { action: "create", path: dir.to_owned(), source })?;
        // What cut writes have left: nobody else removes it, since no two records have one id.
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.filter(|path| path.extension() == Some(BESIDE.as_ref())) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "what a cut write has left could not be removed");
            }
        }
        Ok(Self::at(dir))
    }

    /// Those in a directory that need not be there.
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), of: PhantomData }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// All of them. One that is damaged is left where it is, and told.
    pub(super) fn read(&self) -> Result<Found<R>, StoredError> {
        let failed = |source| StoredError::Io { action: "read", path: self.dir.clone(), source };
        let mut found = Found { records: Vec::new(), unreadable: BTreeSet::new() };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // What a cut write has left.
            if path.extension().is_some() {
                continue;
            }
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else { continue };
            match stored::read(&path, R::KIND) {
                Ok(Some(bytes)) => match R::decode(bytes.as_slice()) {
                    Ok(record) if record.id() == id => {
                        found.records.push(record);
                        continue;
                    }
                    Ok(_) => tracing::error!(path = %path.display(), "a record is another's"),
                    Err(error) => tracing::error!(path = %path.display(), %error, "a record makes no sense"),
                },
                Ok(None) => continue,
                Err(error @ StoredError::Damaged { .. }) => {
                    tracing::error!(error = crate::chain(&error), "a record is lost");
                }
                Err(error) => return Err(error),
            }
            found.unreadable.insert(id.to_owned());
        }
        Ok(found)
    }

    /// Durably.
    pub(super) fn write(&self, record: &R) -> Result<(), StoredError> {
        stored::write(&self.path(record.id()), R::KIND, &record.encode_to_vec())
    }

    /// As [`Records::write`], for one that is not there yet: when that fails, nothing of it is left, as far as the disk
    /// lets that be done.
    pub(super) fn write_first(&self, record: &R) -> Result<(), StoredError> {
        self.write(record).inspect_err(|_| {
            let path = self.path(record.id());
            for path in [path.with_extension(BESIDE), path] {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(path = %path.display(), %error, "a record could not be taken back");
                    }
                    _ => {}
                }
            }
        })
    }

    /// Durably. One that is not there is fine.
    pub(super) fn remove(&self, id: &str) -> Result<(), StoredError> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoredError::Io { action: "remove", path, source: error });
            }
            _ => {}
        }
        // Also of one that was removed before: that may have failed here.
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| StoredError::Io { action: "fsync", path: self.dir.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("containers")).unwrap();
        assert_eq!(records.read().unwrap(), Found::<Record>::default());
        let mut record = Record { id: "a".repeat(64), name: "web".into(), wanted: true, ..Record::default() };
        record.set_restart(Restart::UnlessStopped);
        records.write(&record).unwrap();
        record.restarts = 3;
        records.write(&record).unwrap();
        std::fs::write(records.path("b.tmp"), b"cut").unwrap();
        std::fs::write(records.path("c"), b"nothing that was written here").unwrap();
        std::fs::copy(records.path(&record.id), records.path("d")).unwrap();
        // What is whole, and of something else.
        let network = NetworkRecord { id: "e".into(), ..NetworkRecord::default() };
        Records::at(&dir.path().join("containers")).write(&network).unwrap();
        let unreadable = BTreeSet::from(["c", "d", "e"].map(str::to_owned));
        let expected = Found { records: vec![record.clone()], unreadable: unreadable.clone() };
        assert_eq!(records.read().unwrap(), expected);
        records.remove(&record.id).unwrap();
        records.remove(&record.id).unwrap();
        assert_eq!(records.read().unwrap(), Found { records: Vec::new(), unreadable });
        assert!(records.path("c").exists() && records.path("b.tmp").exists());
        Records::<Record>::open(&dir.path().join("containers")).unwrap();
        assert!(records.path("c").exists() && !records.path("b.tmp").exists());
    }

    #[test]
    fn of_a_first_write_that_fails_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = Record { id: "a".into(), ..Record::default() };
        // What is in the way of the last step.
        std::fs::create_dir_all(records.path("a").join("b")).unwrap();
        records.write_first(&record).unwrap_err();
        assert!(!records.path("a.tmp").exists());
        std::fs::remove_dir_all(records.path("a")).unwrap();
        records.write_first(&record).unwrap();
        assert_eq!(records.read().unwrap().records, [record]);
    }

    #[test]
    fn who_is_started_again_by_itself() {
        let record = |restart, wanted, stopped| {
            let mut record = Record { wanted, stopped, ..Record::default() };
            record.set_restart(restart);
            record.goes_on()
        };
        assert!(record(Restart::Always, true, false) && record(Restart::OnFailure, true, false));
        assert!(!record(Restart::No, true, false) && !record(Restart::Always, false, false));
        assert!(!record(Restart::Always, true, true), "its user has just stopped it");
    }
}
