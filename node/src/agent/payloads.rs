//! Secrets and configs of this host's tasks, and the cluster's credentials for the registries of their images: they come
//! with the assignments, live in memory, and outlive the daemon in memory only.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use deploy::dispatcher::{AssignmentSet, Body, Item, PayloadInfo, RegistryInfo};
use deploy::model::{RegistryAuth, RegistryId};
use prost::Message;
use runtime::Runtime;
use runtime::image::registry::{CredentialSource, Credentials};
use tokio::sync::watch;

/// Under which the runtime keeps them.
const KEPT: &str = "payloads";
/// Pause before those that could not be kept are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The bytes of each, by id.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Payloads {
    pub(super) secrets: BTreeMap<String, Vec<u8>>,
    pub(super) configs: BTreeMap<String, Vec<u8>>,
    pub(super) registries: BTreeMap<RegistryId, RegistryAuth>,
}

impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        f.debug_struct("Payloads")
            .field("secrets", &ids(&self.secrets))
            .field("configs", &ids(&self.configs))
            .field("registries", &self.registries.keys())
            .finish_non_exhaustive()
    }
}

/// What is kept.
#[derive(Clone, PartialEq, prost::Message)]
struct Kept {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

impl Payloads {
    /// Those in a set.
    pub(super) fn of(set: &AssignmentSet) -> Self {
        let all = |items: &mut dyn Iterator<Item = &PayloadInfo>| {
            items.map(|payload| (payload.id.clone(), payload.data.clone())).collect()
        };
        let registries = set.registries().map(|registry| (registry.id.clone(), registry.auth.clone()));
        Self { secrets: all(&mut set.secrets()), configs: all(&mut set.configs()), registries: registries.collect() }
    }

    /// Whether they are those in a set.
    pub(super) fn are_of(&self, set: &AssignmentSet) -> bool {
        fn same<'a>(known: &BTreeMap<String, Vec<u8>>, mut items: impl Iterator<Item = &'a PayloadInfo>) -> bool {
            let mut count = 0;
            let equal = items.all(|payload| {
                count += 1;
                known.get(&payload.id) == Some(&payload.data)
            });
            equal && count == known.len()
        }
        let registries = || self.registries.iter().zip(set.registries());
        same(&self.secrets, set.secrets())
            && same(&self.configs, set.configs())
            && self.registries.len() == set.registries().count()
            // Both are in the order of their ids.
            && registries().all(|((id, auth), other)| *id == other.id && *auth == other.auth)
    }

    fn items(&self) -> Vec<Item> {
        let info = |(id, data): (&String, &Vec<u8>)| PayloadInfo { id: id.clone(), data: data.clone() };
        let secrets = self.secrets.iter().map(|payload| Body::Secret(info(payload)).into());
        let registry = |(id, auth): (&RegistryId, &RegistryAuth)| RegistryInfo { id: id.clone(), auth: auth.clone() };
        let registries = self.registries.iter().map(|one| Body::Registry(registry(one)).into());
        let configs = self.configs.iter().map(|payload| Body::Config(info(payload)).into());
        secrets.chain(configs).chain(registries).collect()
    }
}

/// Credentials for one task's image: its service's own; then the cluster's, as they are at the moment.
#[derive(Debug)]
pub(super) struct TaskCredentials {
    pub(super) own: Option<Credentials>,
    pub(super) registry: RegistryId,
    pub(super) payloads: watch::Receiver<Payloads>,
}

impl TaskCredentials {
    fn of_cluster(&self) -> Option<Credentials> {
        let payloads = self.payloads.borrow();
        let kept = payloads.registries.get(&self.registry)?;
        // The API lets nothing else in.
        Credentials::from_header(&kept.header).ok()
    }
}

impl CredentialSource for TaskCredentials {
    fn first(&self) -> Credentials {
        self.own.clone().or_else(|| self.of_cluster()).unwrap_or_default()
    }

    fn after(&self, refused: &Credentials) -> Option<Credentials> {
        self.of_cluster().filter(|present| present != refused)
    }
}

/// What an earlier daemon of this boot had. What cannot be read is not there: the managers have all of it.
pub(super) async fn kept(runtime: &Runtime) -> Vec<Item> {
    match runtime.kept(KEPT).await {
        Ok(bytes) => Kept::decode(bytes.unwrap_or_default().as_slice()).unwrap_or_default().items,
        Err(error) => {
            tracing::warn!(error = crate::chain(&error), "secrets and configs from before could not be read");
            Vec::new()
        }
    }
}

/// Keeps the newest for the next daemon of this boot. Ends when no more can come.
pub(super) async fn keep(runtime: Runtime, mut payloads: watch::Receiver<Payloads>) {
    loop {
        let items = payloads.borrow_and_update().items();
        let bytes = if items.is_empty() { Vec::new() } else { Kept { items }.encode_to_vec() };
        let failed = runtime.keep(KEPT, bytes).await.inspect_err(|error| {
            tracing::warn!(error = crate::chain(error), "secrets and configs could not be kept; trying again");
        });
        tokio::select! {
            biased;
            changed = payloads.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed.is_err() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_the_set_has() {
        let payload = |id: &str| PayloadInfo { id: id.into(), data: id.as_bytes().to_vec() };
        let auth = RegistryAuth { header: "aGlkZGVu".into() };
        let registry =
            Item::from(Body::Registry(RegistryInfo { id: RegistryId::new("r.example"), auth: auth.clone() }));
        let items = vec![Item::from(Body::Secret(payload("s"))), Item::from(Body::Config(payload("c"))), registry];
        assert!(items.iter().all(deploy::agent::is_payload));
        let payloads = Payloads::of(&AssignmentSet::new(items.clone()));
        assert_eq!(payloads.items(), items);
        assert!(payloads.are_of(&AssignmentSet::new(items.clone())));
        let other_auth = RegistryInfo { id: RegistryId::new("r.example"), auth: RegistryAuth::default() };
        let changed = [&items[..2], &[Item::from(Body::Registry(other_auth))]].concat();
        for other in [&items[..1], &items[1..], &items[..2], &changed, &[][..]] {
            assert!(!payloads.are_of(&AssignmentSet::new(other.to_vec())));
        }
        let shown = format!("{payloads:?}");
        assert_eq!(shown, r#"Payloads { secrets: ["s"], configs: ["c"], registries: [r.example], .. }"#);
        let kept = Kept { items };
        assert_eq!(Kept::decode(kept.encode_to_vec().as_slice()), Ok(kept));
    }

    #[test]
    fn a_services_own_credentials_come_first_and_the_clusters_are_those_of_the_moment() {
        let user = |password: &str| {
            Credentials::from_json(format!(r#"{{"username":"u","password":"{password}"}}"#).as_bytes())
        };
        let user = |password: &str| user(password).unwrap();
        let kept = |password: &str| {
            let auth = RegistryAuth { header: user(password).to_header() };
            Payloads { registries: [(RegistryId::new("r.example"), auth)].into(), ..Payloads::default() }
        };
        let (payloads, out) = watch::channel(Payloads::default());
        let of = |own: Option<Credentials>, registry: &str| TaskCredentials {
            own,
            registry: RegistryId::new(registry),
            payloads: out.clone(),
        };
        let plain = of(None, "r.example");
        assert_eq!((plain.first(), plain.after(&Credentials::Anonymous)), (Credentials::Anonymous, None));
        payloads.send_replace(kept("one"));
        assert_eq!(plain.first(), user("one"));
        assert_eq!(of(None, "other.example").first(), Credentials::Anonymous);
        let own = of(Some(user("own")), "r.example");
        assert_eq!((own.first(), own.after(&user("own"))), (user("own"), Some(user("one"))));
        assert_eq!(own.after(&user("one")), None);
        payloads.send_replace(kept("two"));
        assert_eq!(own.after(&user("one")), Some(user("two")));
    }
}
