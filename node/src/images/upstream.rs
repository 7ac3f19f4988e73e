//! The registry of one image, for what no host of the cluster has.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use runtime::image::Reference;
use runtime::image::registry::{CredentialSource, Registries};

use super::fetch::Upstream;

/// What the image's own registry has.
pub(crate) struct FromRegistry {
    pub(crate) registries: Registries,
    pub(crate) reference: Reference,
    pub(crate) credentials: Arc<dyn CredentialSource>,
}

impl Upstream for FromRegistry {
    fn bring(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            tracing::info!(image = %self.reference, "pulling an image that no host of the cluster has");
            let brought = self.registries.ensure(&self.reference, &*self.credentials).await;
            brought.map(drop).map_err(|e| crate::chain(&e))
        }
        .boxed()
    }
}
