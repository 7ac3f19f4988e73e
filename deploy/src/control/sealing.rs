//! What hosts say of their part in encrypted networks: whether they can carry them, and with which keys.
//!
//! A host says it of itself, in its session. Others seal packets for it with the key that is here, so what is taken down must
//! be its own.

use super::attachment::refuse_others;
use super::node::refuse_left;
use super::{ControlError, NodeSealed, Reply, invalid, named, not_found, precondition, validate};
use crate::model::{ENCRYPTION_LEVEL, MAX_SEALING_KEYS, Node, NodeSealing, SealingKey};
use crate::store::Txn;

/// Bytes that a host may use to say why it cannot.
const MAX_OBSTACLE: usize = 256;

pub(super) fn announce(txn: &mut Txn, op: &NodeSealed) -> Result<Reply, ControlError> {
    refuse_old_managers(txn, "encrypted networks")?;
    refuse_left(txn, &op.node_id)?;
    refuse_others(txn, &op.node_id, op.generation, op.boot)?;
    check(&op.sealing)?;
    let node = txn.node(&op.node_id).ok_or_else(|| not_found("node", &op.node_id))?;
    let epoch = txn.cluster().map_or(0, |cluster| cluster.status.sealing_epoch);
    let (mut sealing, mut warnings) = (op.sealing.clone(), Vec::new());
    // Only those are left out: a host that is lied about, or that lies, goes on with its others.
    sealing.keys.retain(|key| {
        let why = match owner(txn, node, key) {
            _ if key.epoch > epoch => format!("is of rotation {}, and there were {epoch}", key.epoch),
            Some(other) => format!("is one of node '{}' ({})", other.description.hostname, other.id),
            None => return true,
        };
        warnings.push(format!("a public key that node {} names {why}: it is not taken", op.node_id));
        false
    });
    if node.sealing.as_ref() != Some(&sealing) {
        txn.put_node(Node { sealing: Some(sealing), ..Node::clone(node) });
    }
    Ok(Reply { warnings, ..named(&op.node_id) })
}

/// Another host that has a key, be it there or not. Whose key it is, only that host's kernel could prove; a host never has the
/// key of another one by accident, nor that of a node that it was before, and shows it to nobody before it is here.
fn owner<'a>(txn: &'a Txn, node: &Node, key: &SealingKey) -> Option<&'a Node> {
    let mut others = txn.nodes().filter(|other| other.id != node.id);
    others.find(|other| other.sealing_keys().iter().any(|has| has.key == key.key)).map(|other| &**other)
}

fn check(sealing: &NodeSealing) -> Result<(), ControlError> {
    validate::text("Obstacle", &sealing.obstacle, MAX_OBSTACLE)?;
    let sound = |key: &SealingKey| key.epoch != 0 && key.key.len() == 32 && key.key.iter().any(|byte| *byte != 0);
    let alike = |one: &SealingKey, other: &SealingKey| one.epoch == other.epoch || one.key == other.key;
    let keys = &sealing.keys;
    if keys.len() > MAX_SEALING_KEYS || !keys.iter().all(sound) || matches!(&keys[..], [a, b] if alike(a, b)) {
        return Err(invalid(format!(
            "keys: at most {MAX_SEALING_KEYS} different public keys of 32 bytes, of different rotations"
        )));
    }
    Ok(())
}

/// An older manager would forget it.
pub(super) fn refuse_old_managers(txn: &Txn, what: &str) -> Result<(), ControlError> {
    let level = txn.cluster().map_or(0, |cluster| cluster.status.feature_level);
    if level >= ENCRYPTION_LEVEL {
        return Ok(());
    }
    Err(precondition(format!(
        "{what}: the managers of this cluster are at feature level {level}, and level {ENCRYPTION_LEVEL} is needed: install \
         the newer release on all managers first"
    )))
}
