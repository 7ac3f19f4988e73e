//! Images: where they are kept, how they come in, what they are called.
//!
//! `node` opens one [`ImageStore`] in the data directory and asks it for everything. Archives come
//! in through [`ImageStore::load`] and [`ImageStore::import`], which trust nothing in them: sizes
//! are bounded ([`Limits`]), digests verified as the bytes stream by, and no name or link leaves a
//! layer's directory. Nothing here mounts or runs, and only `registry` talks to a network.
//!
//! * `tarball`, `compression`: from a stream to entries
//! * `root`, `unpack`, `settle`: from entries to a layer's directory
//! * `archive`, `oci`: which images an archive holds; `platform`: which of them runs here
//! * `ingest`, `store`, `catalog`: from tmp to the store, and what is in it
//! * `build`: images made here
//! * `registry`: images from registries and to them
//! * `pins`: what is kept while an image comes in
//! * `lease`: what is kept though nothing names it, and content on its way from other hosts
//! * `save`: from the store to an archive
//! * `gc`: what goes when nobody needs it any more

mod archive;
mod build;
mod catalog;
mod changes;
mod compression;
mod config;
mod digest;
mod error;
#[cfg(test)]
mod fuzz;
mod gc;
mod ingest;
mod lease;
mod limits;
mod oci;
mod pins;
mod platform;
mod reference;
pub mod registry;
mod root;
mod save;
mod settle;
mod sparse;
mod stall;
mod store;
mod tarball;
mod unpack;

pub use catalog::Origin;
pub use changes::ImportChanges;
pub(crate) use compression::Decoder;
pub use config::{History, ImageConfig};
pub use digest::{Digest, DigestError};
pub use error::{ImageError, ImageErrorKind};
pub use gc::{Pruned, Room};
pub use lease::{BlobWriter, Lease};
pub(crate) use limits::Budget;
pub use limits::Limits;
pub use reference::{Reference, ReferenceError};
pub use save::Saving;
pub use stall::{StallDetector, Stalled};
pub use store::{Image, ImageId, ImageStore, ImageSummary, Loaded, Removed};
pub(crate) use tarball::{EndMarker, TarEntry, TarKind, TarReader};
