//! A cluster begins anew from a backup.
//!
//! In a running cluster the asked manager first becomes the only voter, through Raft, so that no two halves of the old
//! life can go on; then it begins a new life with the backup's wishes, as after a recovery. That takes one snapshot,
//! whatever the size of the store, where entries of 1.5 MiB would take many and could be cut in the middle. The other
//! managers see the new life, and become managers of it by themselves.
//!
//! A host that is in no cluster takes the place of the manager that wrote the backup, under its identity: so the
//! workers that are left find it, at an address that they know or by gossip, and keep their tasks.

use std::sync::Arc;
use std::time::Duration;

use deploy::model::NodeId;
use deploy::store::Others;
use raft::Found;

use super::active::{Active, internal};
use super::address;
use super::local::{LocalEngine, WORKER};
use super::recover::{NewLife, begin_anew, floor};
use crate::backup::Backup;
use crate::ca::{KeyAndCsr, Role};
use crate::datadir::MembershipRecord;
use crate::engine::{Consistency, EngineError, Recovered, RestoreRequest};
use crate::manager::{self, Survivor};

/// How far the boot generation jumps when a host takes another one's place.
const GENERATIONS: u64 = 1 << 20;

/// A life in which the other managers are managers again.
fn returning(revision_seen: u64) -> NewLife {
    NewLife { now: crate::clock::since_epoch(), revision_seen, others: Others::Return }
}

/// The boot generation after which a host may take the place of one that was seen with `seen`; another host may have had
/// that place since.
fn generation_above(seen: u64, now: Duration) -> u64 {
    seen.max(floor(now)).saturating_add(GENERATIONS)
}

impl LocalEngine {
    /// Into the cluster that this node manages.
    pub(super) async fn restore_into(&self, active: Arc<Active>, backup: Backup) -> Result<Recovered, EngineError> {
        let manager = active.manager().ok_or_else(|| EngineError::NotManager(WORKER.into()))?;
        let record = active.record();
        let foreign = || {
            EngineError::Invalid(format!(
                "the backup is of cluster {}, but this node is in cluster {}",
                backup.header.cluster_id, record.cluster_id
            ))
        };
        if backup.header.cluster_id != record.cluster_id {
            return Err(foreign());
        }
        // Without a majority nobody's vote can be taken: recover first.
        manager.store(Consistency::Linearizable).await?;
        manager.stand_alone().await?;
        let present = manager.store(Consistency::Linearizable).await?;
        let store = backup.store.restored_into(&present).ok_or_else(foreign)?;
        let survivor = Survivor { store, found: manager.end_of_log() };
        drop(manager);
        self.set_pending();
        active.shutdown().await;
        drop(active);
        let restored = begin_anew(self.data(), record, &survivor, returning(present.revision())).await;
        self.take_up_again().await;
        restored
    }

    /// Onto this host, which is in no cluster.
    pub(super) async fn restore_here(&self, backup: Backup, request: RestoreRequest) -> Result<Recovered, EngineError> {
        let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
        let failed = |e: crate::ca::CaError| internal("the backup's certificate authority")(&e);
        let Backup { header, store } = backup;
        let node_id = NodeId::new(header.node_id.clone());
        let unknown = || EngineError::Invalid("the backup does not know the manager that wrote it".into());
        let (Some(cluster), Some(node)) = (store.cluster().cloned(), store.node(&node_id).cloned()) else {
            return Err(unknown());
        };
        let host = address::host_addresses();
        let listen = address::listen(&request.listen_addr, &host).map_err(invalid)?;
        let advertise = address::advertise(&request.advertise_addr, listen, &host).map_err(invalid)?;
        let data_path = address::data_path(&request.data_path_addr, advertise, &host).map_err(invalid)?;
        // Taken for a moment, so that a port that another program has is said before anything is written.
        drop(super::ports::Ports::bind(&listen.to_string())?);

        let own = KeyAndCsr::generate().map_err(failed)?;
        // Also in the middle of a rotation of the root.
        let issued = manager::issue(&cluster, &own.csr_pem, &node_id, Role::Manager).map_err(failed)?;
        let record = MembershipRecord {
            node_id: header.node_id,
            cluster_id: header.cluster_id,
            manager: true,
            listen_addr: listen.to_string(),
            advertise_addr: advertise.to_string(),
            data_path_addr: data_path.to_string(),
            data_path_port: cluster.spec.data_path_port,
            root_pem: manager::trust(&cluster),
            cert_pem: issued.chain_pem,
            key_pem: own.key_pem,
            gossip_keys: cluster.status.gossip_keys.clone(),
            ..MembershipRecord::default()
        };
        self.data()
            .raise_generation(generation_above(node.status.generation, crate::clock::since_epoch()))
            .map_err(|e| internal("the boot generation could not be raised")(&e))?;
        let store = store.taken_over(&node_id).ok_or_else(unknown)?;
        let found = Found {
            term: header.term,
            last_index: header.index,
            last_term: header.term,
            committed: header.index,
            members: Vec::new(),
        };
        self.set_pending();
        match begin_anew(self.data(), record.clone(), &Survivor { store, found }, returning(0)).await {
            Ok(restored) => {
                self.take_up_again().await;
                Ok(restored)
            }
            Err(error) => {
                self.roll_back(&record).await;
                self.set_inactive();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_that_takes_a_place_has_a_higher_generation() {
        let taken = |seen, now_s| generation_above(seen, Duration::from_secs(now_s));
        let first = taken(7, 1_800_000_000);
        // It was started a few times; the backup knows nothing of it.
        assert!(taken(7, 1_800_000_100) > first + 50);
        // Nor does a clock that is behind take anybody back.
        assert!(taken(first, 5) > first);
    }
}
