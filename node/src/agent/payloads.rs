//! Secrets and configs of this host's tasks: they come with the assignments, live in memory, and outlive the daemon in
//! memory only.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use deploy::dispatcher::{AssignmentSet, Body, Item, PayloadInfo};
use prost::Message;
use runtime::Runtime;
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
}

impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        f.debug_struct("Payloads")
            .field("secrets", &ids(&self.secrets))
            .field("configs", &ids(&self.configs))
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
        Self { secrets: all(&mut set.secrets()), configs: all(&mut set.configs()) }
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
        same(&self.secrets, set.secrets()) && same(&self.configs, set.configs())
    }

    fn items(&self) -> Vec<Item> {
        let info = |(id, data): (&String, &Vec<u8>)| PayloadInfo { id: id.clone(), data: data.clone() };
        let secrets = self.secrets.iter().map(|payload| Body::Secret(info(payload)).into());
        secrets.chain(self.configs.iter().map(|payload| Body::Config(info(payload)).into())).collect()
    }
}

/// Whether an item must not be written to a disk.
pub(super) fn is_payload(item: &Item) -> bool {
    matches!(item.body, Some(Body::Secret(_) | Body::Config(_)))
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
        let items = vec![Item::from(Body::Secret(payload("s"))), Item::from(Body::Config(payload("c")))];
        assert!(items.iter().all(is_payload));
        let payloads = Payloads::of(&AssignmentSet::new(items.clone()));
        assert_eq!(payloads.items(), items);
        assert!(payloads.are_of(&AssignmentSet::new(items.clone())));
        for other in [&items[..1], &items[1..], &[][..]] {
            assert!(!payloads.are_of(&AssignmentSet::new(other.to_vec())));
        }
        assert_eq!(format!("{payloads:?}"), "Payloads { secrets: [\"s\"], configs: [\"c\"], .. }");
        let kept = Kept { items };
        assert_eq!(Kept::decode(kept.encode_to_vec().as_slice()), Ok(kept));
    }
}
