//! `/distribution`: what a registry knows of an image.

use axum::extract::Path;

use super::error::ApiError;

/// Docker's command line asks before each `service create` and goes on with the plain tag when it is told "no", so
/// "no" has to come at once.
pub(super) async fn inspect(Path(rest): Path<String>) -> ApiError {
    let name = rest.strip_suffix("/json").unwrap_or(&rest);
    ApiError::not_found(format!(
        "registries are not asked yet: nothing is known of {name} but what the hosts have loaded"
    ))
}
