//! Secrets and configs.

use super::{
    ControlError, CreateConfig, CreateSecret, ErrorKind, RemoveConfig, RemoveSecret, Reply, UpdateConfigLabels,
    UpdateSecret, invalid, named, not_found, out_of_sequence, validate,
};
use crate::cx::Cx;
use crate::model::{Config, ConfigId, PayloadReference, PayloadSpec, Secret, SecretId, ServiceSpec};
use crate::store::{Store, Txn};

pub(super) fn create_secret(cx: &mut Cx<'_>, txn: &mut Txn, op: &CreateSecret) -> Result<Reply, ControlError> {
    validate::payload("secret", &op.spec, validate::MAX_SECRET_BYTES)?;
    if txn.secret_by_name(&op.spec.name).is_some() {
        return Err(exists("secret", &op.spec.name));
    }
    let id: SecretId = cx.id();
    txn.put_secret(Secret { id: id.clone(), spec: op.spec.clone(), ..Secret::default() });
    Ok(named(id))
}

pub(super) fn create_config(cx: &mut Cx<'_>, txn: &mut Txn, op: &CreateConfig) -> Result<Reply, ControlError> {
    validate::payload("config", &op.spec, validate::MAX_CONFIG_BYTES)?;
    if txn.config_by_name(&op.spec.name).is_some() {
        return Err(exists("config", &op.spec.name));
    }
    let id: ConfigId = cx.id();
    txn.put_config(Config { id: id.clone(), spec: op.spec.clone(), ..Config::default() });
    Ok(named(id))
}

pub(super) fn update_secret(txn: &mut Txn, op: &UpdateSecret) -> Result<Reply, ControlError> {
    let Some(secret) = txn.secret(&op.id) else { return Err(not_found("secret", &op.id)) };
    let mut secret = (**secret).clone();
    relabel(&mut secret.spec, secret.meta.version, &op.spec, op.version)?;
    txn.put_secret(secret);
    Ok(named(&op.id))
}

pub(super) fn update_config(txn: &mut Txn, op: &UpdateConfigLabels) -> Result<Reply, ControlError> {
    let Some(config) = txn.config(&op.id) else { return Err(not_found("config", &op.id)) };
    let mut config = (**config).clone();
    relabel(&mut config.spec, config.meta.version, &op.spec, op.version)?;
    txn.put_config(config);
    Ok(named(&op.id))
}

pub(super) fn remove_secret(txn: &mut Txn, op: &RemoveSecret) -> Result<Reply, ControlError> {
    let Some(secret) = txn.secret(&op.id) else { return Err(not_found("secret", &op.id)) };
    refuse_used(txn, "secret", &secret.spec.name, op.id.as_str(), |spec| &spec.task.container.secrets)?;
    txn.remove_secret(&op.id);
    Ok(named(&op.id))
}

pub(super) fn remove_config(txn: &mut Txn, op: &RemoveConfig) -> Result<Reply, ControlError> {
    let Some(config) = txn.config(&op.id) else { return Err(not_found("config", &op.id)) };
    refuse_used(txn, "config", &config.spec.name, op.id.as_str(), |spec| &spec.task.container.configs)?;
    txn.remove_config(&op.id);
    Ok(named(&op.id))
}

fn exists(kind: &str, name: &str) -> ControlError {
    ControlError::new(ErrorKind::AlreadyExists, format!("{kind} {name} already exists"))
}

fn relabel(spec: &mut PayloadSpec, version: u64, wanted: &PayloadSpec, read: u64) -> Result<(), ControlError> {
    if version != read {
        return Err(out_of_sequence());
    }
    let renamed = !wanted.name.is_empty() && wanted.name != spec.name;
    if renamed || (!wanted.data.is_empty() && wanted.data != spec.data) {
        return Err(invalid("only updates to Labels are allowed"));
    }
    validate::labels("Labels", &wanted.labels)?;
    spec.labels.clone_from(&wanted.labels);
    Ok(())
}

fn refuse_used(
    store: &Store,
    kind: &str,
    name: &str,
    id: &str,
    references: impl Fn(&ServiceSpec) -> &Vec<PayloadReference>,
) -> Result<(), ControlError> {
    let users = store.services().filter(|service| references(&service.spec).iter().any(|used| used.id == id));
    let users: Vec<&str> = users.map(|service| service.spec.name.as_str()).collect();
    match users.len() {
        0 => Ok(()),
        1 => Err(invalid(format!("{kind} '{name}' is in use by the following service: {}", users[0]))),
        _ => Err(invalid(format!("{kind} '{name}' is in use by the following services: {}", users.join(", ")))),
    }
}
