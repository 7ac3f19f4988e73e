//! Why a configuration cannot be carried out.

use std::ffi::CString;

/// A configuration that is wrong or asks for what is not there. Nothing has been made; retrying does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A field has a value that cannot work.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// The field of [`crate::ContainerConfig`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A field asks for something that this runtime does not do.
    #[error("{field} is not supported")]
    Unsupported {
        /// The field of [`crate::ContainerConfig`].
        field: &'static str,
    },
}

impl PlanError {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> PlanError {
        PlanError::Invalid { field, reason: reason.into() }
    }
}

/// The bytes as the kernel takes them; a NUL inside would silently cut them.
pub(crate) fn c_string(field: &'static str, bytes: impl Into<Vec<u8>>) -> Result<CString, PlanError> {
    CString::new(bytes).map_err(|_| PlanError::invalid(field, "contains a NUL byte"))
}
