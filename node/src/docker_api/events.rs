//! `/events`.

use super::error::ApiError;

pub(super) async fn events() -> ApiError {
    ApiError::not_supported("Shoal does not support events yet")
}
