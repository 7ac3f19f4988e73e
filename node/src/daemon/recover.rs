//! A node that was a manager becomes the only one: after a lost quorum, from what is on its disk.
//!
//! Nothing of the node runs meanwhile but its tasks. The log that begins anew is made beside the old one; the recovery
//! is done when the membership record names its raft id, and the next start puts it in place. Cut before that, nothing
//! has changed.

use std::net::SocketAddr;

use deploy::model::NodeId;
use deploy::store::{Others, Reincarnation};

use super::active::internal;
use super::address;
use crate::datadir::{DataDir, ManagerRecord, MembershipRecord};
use crate::engine::{EngineError, RecoverRequest, Recovered};
use crate::manager::{self, Survivor};
use crate::timing::Timing;

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
    let recovered = begin_anew(data, record, &survivor, 0, Others::Demoted).await?;
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
    revision_seen: u64,
    others: Others,
) -> Result<Recovered, EngineError> {
    let Survivor { store, found } = survivor;
    let node_id = NodeId::new(record.node_id.clone());
    let begin = Reincarnation {
        incarnation: rand::random(),
        node: node_id.clone(),
        addr: record.advertise_addr.clone(),
        raft_ids_seen: found.members.iter().map(|peer| peer.id).max().unwrap_or(0).max(record.raft_id),
        revision_seen,
        others,
    };
    let Some((anew, raft_id)) = store.reincarnated(&begin) else {
        return Err(EngineError::Internal(format!(
            "the state found has no cluster with the node {node_id}: it cannot become its manager"
        )));
    };
    let was_manager = |node: &&std::sync::Arc<deploy::model::Node>| node.manager.is_some() && node.id != node_id;
    let former = store.nodes().filter(was_manager).map(|node| node.id.to_string()).collect();
    manager::begin_anew(&config(data, &record, raft_id, true), &anew, found)
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
