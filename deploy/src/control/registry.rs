//! Credentials for registries.

use super::{ControlError, ErrorKind, RemoveRegistry, Reply, SetRegistry, invalid, named, not_found, validate};
use crate::model::{Registry, RegistryId};
use crate::store::{KeyKind, Txn};

/// Registries that the cluster has credentials for.
const MAX_REGISTRIES: usize = 1000;
/// Bytes of a registry's name; those of a host's name and its port.
const MAX_NAME: usize = 261;

/// Puts credentials; those that were there before are gone.
pub(super) fn set(txn: &mut Txn, op: &SetRegistry) -> Result<Reply, ControlError> {
    let name = op.id.as_str();
    // What no image's name leads to would never be used.
    if name.is_empty() || name.len() > MAX_NAME || RegistryId::of_image(&format!("{name}/x")) != op.id {
        return Err(invalid(format!("invalid registry {:?}, it must look like host:port", validate::shorten(name))));
    }
    if op.auth.header.is_empty() {
        return Err(invalid("the credentials are empty"));
    }
    validate::registry_auth(&op.auth)?;
    if txn.registry(&op.id).is_none() && txn.count(KeyKind::Registry) >= MAX_REGISTRIES {
        let text = format!("the cluster has credentials for {MAX_REGISTRIES} registries already");
        return Err(ControlError::new(ErrorKind::Exhausted, text));
    }
    txn.put_registry(Registry { id: op.id.clone(), auth: op.auth.clone(), ..Registry::default() });
    Ok(named(&op.id))
}

pub(super) fn remove(txn: &mut Txn, op: &RemoveRegistry) -> Result<Reply, ControlError> {
    if txn.registry(&op.id).is_none() {
        return Err(not_found("credentials for registry", validate::shorten(op.id.as_str())));
    }
    txn.remove_registry(&op.id);
    Ok(named(&op.id))
}
