//! Secrets and configs: bytes that tasks may be given.

use super::{ConfigId, Labels, Meta, SecretId};

/// Bytes that only tasks which name them are given.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Secret {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: SecretId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// Name, labels, bytes.
    #[prost(message, required, tag = "3")]
    pub spec: PayloadSpec,
}

/// Bytes that tasks may be given and that anyone may read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Config {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: ConfigId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// Name, labels, bytes.
    #[prost(message, required, tag = "3")]
    pub spec: PayloadSpec,
}

/// What a user stores.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct PayloadSpec {
    /// Unique name among its kind.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels; the only part that may change.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// The bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
}

impl std::fmt::Debug for PayloadSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A secret's bytes must not reach a log through somebody's `{:?}`.
        f.debug_struct("PayloadSpec").field("name", &self.name).field("len", &self.data.len()).finish_non_exhaustive()
    }
}
