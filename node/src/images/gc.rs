//! Removes images that came only because tasks needed them, when none does any more and the disk is short.

use std::collections::BTreeSet;
use std::time::Duration;

use runtime::Runtime;
use runtime::image::{ImageId, ImageStore, Room};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::blocking;
use crate::agent::IMAGE_LABEL;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(60);

/// Ids of the images that containers of this host are made of.
pub(crate) async fn in_use(runtime: &Runtime) -> Vec<String> {
    let containers = runtime.list().await;
    containers.into_iter().filter_map(|container| container.labels.get(IMAGE_LABEL).cloned()).collect()
}

/// Looks every minute until `stop`.
pub(crate) async fn run(store: ImageStore, runtime: Runtime, room: Room, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let (store, runtime, handle) = (store.clone(), runtime.clone(), Handle::current());
        let outcome = blocking(move || {
            let ask = move || handle.block_on(in_use(&runtime)).into_iter().collect::<BTreeSet<String>>();
            // Those that are used now were used lately, whenever they stop.
            let now = ask();
            store.note_use(&|id| now.contains(&id.to_string()));
            // It asks anew for each one.
            store.make_room(room, &|id| ask().contains(&id.to_string()))
        });
        if let Err(error) = outcome.await {
            tracing::warn!(error = crate::chain(&error), "unused images could not be removed");
        }
    }
}

/// Whether an image is in use, asked when the first one is looked at: by then the store lets nobody take another one.
pub(crate) fn used(ask: impl Fn() -> BTreeSet<String>) -> impl Fn(&ImageId) -> bool {
    let known = std::cell::OnceCell::new();
    move |id| {
        let known = known.get_or_init(&ask);
        known.contains(&id.to_string()) || known.contains(&id.hex())
    }
}
