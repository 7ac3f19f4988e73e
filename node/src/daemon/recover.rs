//! A node that was a manager becomes the only one: after a lost quorum, from what is on its disk.
//!
//! Nothing of the node runs meanwhile but its tasks. The log that begins anew is made beside the old one; the recovery
//! is done when the membership record names its raft id, and the next start puts it in place. Cut before that, nothing
//! has changed.

use std::net::SocketAddr;
use std::time::Duration;

use deploy::model::NodeId;
use deploy::store::{Others, Reincarnation};

use raft::Found;

use super::active::internal;
use super::address;
use crate::datadir::{DataDir, ManagerRecord, MembershipRecord};
use crate::engine::{EngineError, RecoverRequest, Recovered};
use crate::manager::{self, Survivor};
use crate::timing::Timing;

/// Bits that each second has for what happens in it. Nobody writes 2^20 times in a second, for years on end.
const SECOND_BITS: u32 = 20;

/// How a cluster goes on in another life.
pub(super) struct NewLife {
    /// The wall clock, since 1970.
    pub(super) now: Duration,
    /// The highest revision that was seen of the cluster, besides that of the survivor's store; 0 for none.
    pub(super) revision_seen: u64,
    /// What becomes of the other managers.
    pub(super) others: Others,
}

/// What the numbers of a life that begins now are above at the least: its revision, raft ids, terms, indexes and, on
/// another host, its boot generation. What they begin from (a backup, one survivor) need not know of the lives that came
/// after it, but those began at an earlier time: so the clock orders them, where what was found cannot. A clock that is
/// wrong, up to the year 2106, costs no more than that; numbers stay below 2^53, which JSON holds exactly.
pub(super) fn floor(now: Duration) -> u64 {
    now.as_secs().min(u32::MAX.into()) << SECOND_BITS
}

/// Makes the node of this data directory the only manager of its cluster. The node must not run.
pub async fn recover(data: &DataDir, request: &RecoverRequest) -> Result<Recovered, EngineError> {
    let failed = |e: crate::datadir::DataDirError| internal("the data directory")(&e);
    if data.is_locked() {
        return Err(EngineError::Locked);
    }
    let Some(mut record) = data.membership().map_err(failed)? else {
        return Err(EngineError::NotManager(
            "This node is not part of a swarm: there is nothing to recover from.".into(),
        ));
    };
    if !record.manager || record.raft_id == 0 {
        return Err(EngineError::NotManager(
            "This node is a worker, which has no copy of the cluster's state. Recover on a node that was a manager, or \
             restore a backup."
                .into(),
        ));
    }
    data.finish_recovery(record.raft_id).map_err(failed)?;
    set_addresses(&mut record, request)?;

    let survivor = manager::read_survivor(&config(data, &record, record.raft_id, false))
        .await
        .map_err(|e| internal("the cluster's state on this node cannot be used")(&e))?;
    let life = NewLife { now: crate::clock::since_epoch(), revision_seen: 0, others: Others::Demoted };
    let recovered = begin_anew(data, record, &survivor, life).await?;
    tracing::warn!(
        raft.index = recovered.index,
        raft.term = recovered.term,
        uncommitted = recovered.uncommitted,
        "recovered from what this node had: anything after that entry is lost"
    );
    Ok(recovered)
}

/// Makes the log of a manager that is alone with the survivor's store, and has the record name it.
pub(super) async fn begin_anew(
    data: &DataDir,
    mut record: MembershipRecord,
    survivor: &Survivor,
    life: NewLife,
) -> Result<Recovered, EngineError> {
    let Survivor { store, found } = survivor;
    let floor = floor(life.now);
    let node_id = NodeId::new(record.node_id.clone());
    let begin = Reincarnation {
        incarnation: rand::random(),
        node: node_id.clone(),
        addr: record.advertise_addr.clone(),
        raft_ids_seen: found.members.iter().map(|peer| peer.id).max().unwrap_or(0).max(record.raft_id).max(floor),
        revision_seen: life.revision_seen.max(floor),
        others: life.others,
    };
    let Some((anew, raft_id)) = store.reincarnated(&begin) else {
        return Err(EngineError::Internal(format!(
            "the state found has no cluster with the node {node_id}: it cannot become its manager"
        )));
    };
    let was_manager = |node: &&std::sync::Arc<deploy::model::Node>| node.manager.is_some() && node.id != node_id;
    let former = store.nodes().filter(was_manager).map(|node| node.id.to_string()).collect();
    let above = Found { term: found.term.max(floor), last_index: found.last_index.max(floor), ..found.clone() };
    manager::begin_anew(&config(data, &record, raft_id, true), &anew, &above)
        .await
        .map_err(|e| internal("the new log could not be written")(&e))?;

    record.manager = true;
    record.raft_id = raft_id;
    record.raft_opened = raft_id;
    record.managers = vec![ManagerRecord { node_id: record.node_id.clone(), addr: record.advertise_addr.clone() }];
    let failed = |e: crate::datadir::DataDirError| internal("the membership could not be saved")(&e);
    data.save_membership(&record).map_err(failed)?;
    data.finish_recovery(raft_id).map_err(failed)?;
    Ok(Recovered {
        node_id: node_id.to_string(),
        addr: record.advertise_addr,
        index: found.last_index,
        term: found.last_term,
        uncommitted: found.last_index.saturating_sub(found.committed),
        revision: anew.revision(),
        former_managers: former,
    })
}

fn config(data: &DataDir, record: &MembershipRecord, raft_id: u64, anew: bool) -> manager::Config {
    manager::Config {
        node_id: NodeId::new(record.node_id.clone()),
        cluster_id: record.cluster_id.clone(),
        raft_id,
        addr: record.advertise_addr.clone(),
        raft_dir: if anew { data.raft_of(raft_id) } else { data.raft() },
        keys: data.vault().ring(),
        had_log: !anew && record.raft_opened == raft_id,
        // Files are read and written; nobody is waited for.
        timing: Timing::default(),
    }
}

/// Gives the node other addresses, where the request names some. One that this host does not have any more must be
/// replaced: others would be sent to where nobody is.
fn set_addresses(record: &mut MembershipRecord, request: &RecoverRequest) -> Result<(), EngineError> {
    let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
    let host = address::host_addresses();
    if !request.listen_addr.is_empty() {
        record.listen_addr = address::listen(&request.listen_addr, &host).map_err(invalid)?.to_string();
    }
    let unreadable = |_| EngineError::Internal(format!("{:?} is not an address to listen at", record.listen_addr));
    let listen: SocketAddr = record.listen_addr.parse().map_err(unreadable)?;
    let wanted = match request.advertise_addr.as_str() {
        "" => record.advertise_addr.clone(),
        given => given.to_owned(),
    };
    let advertise = address::advertise(&wanted, listen, &host).map_err(invalid)?;
    let ip_of = |addr: &str| addr.rsplit_once(':').map(|(ip, _)| ip.to_owned());
    // VXLAN follows, unless it has an address of its own.
    let followed = ip_of(&record.advertise_addr).is_some_and(|ip| ip == record.data_path_addr);
    let data_path = match request.data_path_addr.as_str() {
        "" if followed => String::new(),
        "" => record.data_path_addr.clone(),
        given => given.to_owned(),
    };
    record.data_path_addr = address::data_path(&data_path, advertise, &host).map_err(invalid)?.to_string();
    record.advertise_addr = advertise.to_string();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::applied;
    use crate::engine::AppliedStore;
    use deploy::model::ClusterId;

    /// What a backup of a cluster of one manager holds.
    fn backup(feature_level: u32) -> Survivor {
        let AppliedStore { store, index, term } = applied(feature_level);
        let found = Found { term, last_index: index, last_term: term, committed: index, members: Vec::new() };
        Survivor { store, found }
    }

    fn record() -> MembershipRecord {
        MembershipRecord {
            node_id: NodeId::from(9u128).to_string(),
            cluster_id: ClusterId::from(7u128).to_string(),
            manager: true,
            advertise_addr: "10.0.0.1:2377".into(),
            ..MembershipRecord::default()
        }
    }

    fn life(now_s: u64) -> NewLife {
        NewLife { now: Duration::from_secs(now_s), revision_seen: 0, others: Others::Return }
    }

    async fn survivor_of(data: &DataDir) -> (MembershipRecord, Survivor) {
        let record = data.membership().unwrap().unwrap();
        let survivor = manager::read_survivor(&config(data, &record, record.raft_id, false)).await.unwrap();
        (record, survivor)
    }

    /// The second host that takes the place of the same lost manager knows nothing of the life that the first one led.
    #[tokio::test]
    async fn a_backup_that_is_restored_twice_fences_the_life_in_between() {
        let backup = backup(1);
        let (temp, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (DataDir::open(temp.path()).unwrap(), DataDir::open(again.path()).unwrap());
        let begun = 1_800_000_000;
        begin_anew(&first, record(), &backup, life(begun)).await.unwrap();
        // The life in between was recovered once more.
        let (middle, survivor) = survivor_of(&first).await;
        begin_anew(&first, middle, &survivor, life(begun + 1)).await.unwrap();
        let (middle, old) = survivor_of(&first).await;

        let restored = begin_anew(&second, record(), &backup, life(begun + 3600)).await.unwrap();
        assert_eq!((restored.index, restored.term, restored.uncommitted), (12, 3, 0), "what was kept is the backup's");
        let (last, new) = survivor_of(&second).await;
        assert!(new.store.revision() > old.store.revision());
        assert!(last.raft_id > middle.raft_id);
        assert!(new.found.term > old.found.term && new.found.last_index > old.found.last_index);
        assert!(new.store.revision() < 1 << 53, "JSON must hold it");
    }

    /// An older release would drop what it cannot read, and make a life of the rest.
    #[tokio::test]
    async fn a_state_of_a_newer_release_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        let has = crate::release::Release::current().feature_level;
        begin_anew(&data, record(), &backup(has + 1), life(1_800_000_000)).await.unwrap();
        let before = data.membership().unwrap().unwrap();
        let request =
            RecoverRequest { advertise_addr: "127.0.0.1:2377".into(), force: true, ..RecoverRequest::default() };
        let mut own = before.clone();
        own.listen_addr = "127.0.0.1:2377".into();
        data.save_membership(&own).unwrap();
        let error = recover(&data, &request).await.unwrap_err().to_string();
        assert!(error.contains(&format!("feature level {}", has + 1)), "{error}");
        assert_eq!(data.membership().unwrap().unwrap(), own);
        assert!(!temp.path().join("raft.before-recovery").exists(), "something was set aside for it");
    }

    #[test]
    fn the_clock_orders_lives_and_stays_in_its_bounds() {
        let at = |seconds| floor(Duration::from_secs(seconds));
        assert!(at(1_800_000_001) >= at(1_800_000_000) + raft::JUMP);
        assert!(at(u64::MAX) < 1 << 52);
    }
}
