//! Where content may come from besides a registry.

use std::fmt;
use std::io;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::super::digest::Digest;

/// Content as it comes.
pub type BlobStream = BoxStream<'static, io::Result<Bytes>>;

/// Someone who may have manifests, configurations and layers: other hosts of the cluster.
///
/// What comes is verified as a registry's content is, and a source that breaks off or lies costs no
/// more than the time: the rest, or all of it, is fetched elsewhere.
pub trait BlobSource: Send + Sync + fmt::Debug {
    /// The content of this digest from byte `offset` on. `size` is its length where that is known.
    /// `None` where the source does not have it, which it should say soon: the registry is only asked
    /// afterwards.
    fn open<'a>(&'a self, digest: &'a Digest, size: Option<u64>, offset: u64) -> BoxFuture<'a, Option<BlobStream>>;
}
