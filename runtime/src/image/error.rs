//! What can go wrong with images. Whatever the variant, the store is as it was before the call.

use std::io;
use std::path::{Path, PathBuf};

use super::archive::CapReached;
use super::reference::ReferenceError;

/// Why an image operation was refused or failed.
///
/// No variant leaves anything behind: a failed ingest is removed before the error is returned (or,
/// after a crash, when the store is opened again). A retry helps only for [`ImageError::Io`].
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host's file system refused an operation of the store itself.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb ("create", "rename").
        operation: &'static str,
        /// The object that it was tried on.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The caller's stream failed, or its compression is damaged.
    #[error("cannot read {what}")]
    Read {
        /// Which archive, layer or blob was being read.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The input ends in the middle of something.
    #[error("{what} is truncated")]
    Truncated {
        /// Which archive or layer.
        what: String,
    },
    /// The input is neither a `docker save` archive nor an OCI layout.
    #[error(
        "not an image archive: it holds neither index.json nor manifest.json (a plain root file system is imported, not loaded)"
    )]
    NotAnImageArchive,
    /// A compression that is recognized but not read.
    #[error("{what} is compressed with {format}, which is not supported; gzip, zstd and none are")]
    UnsupportedCompression {
        /// Which archive or layer.
        what: String,
        /// Name of the format.
        format: &'static str,
    },
    /// A tar header that no tar program writes.
    #[error("{what} is not a valid tar archive at byte {offset}: {reason}")]
    BadTar {
        /// Which archive or layer.
        what: String,
        /// Offset of the header in the uncompressed archive, in bytes.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry whose name holds `..`.
    #[error("{what}: entry {entry:?} leaves the archive's root")]
    Traversal {
        /// Which archive or layer.
        what: String,
        /// The entry's name.
        entry: String,
    },
    /// An entry or hard link that reaches outside of the root through a symbolic link.
    #[error("{what}: entry {entry:?} leaves the layer's root through the symbolic link {link:?}")]
    Escape {
        /// Which layer.
        what: String,
        /// The entry's name.
        entry: String,
        /// The link that was followed.
        link: String,
    },
    /// An entry of a type that has no meaning in an image (volume labels, files of several volumes, ...).
    #[error("{what}: entry {entry:?} has the unsupported type {kind:?}")]
    UnknownEntryType {
        /// Which archive or layer.
        what: String,
        /// The entry's name.
        entry: String,
        /// The type flag of its header.
        kind: char,
    },
    /// An entry that cannot be unpacked.
    #[error("{what}: entry {entry:?}: {reason}")]
    BadEntry {
        /// Which archive or layer.
        what: String,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content that is not what its digest says.
    #[error("{what} does not have the digest that the image states: expected {expected}, found {actual}")]
    DigestMismatch {
        /// Which blob or layer.
        what: String,
        /// The digest that was stated.
        expected: String,
        /// The digest of what was found.
        actual: String,
    },
    /// A blob with another length than its descriptor says.
    #[error("{what} has {actual} bytes, its descriptor says {expected}")]
    SizeMismatch {
        /// Which blob.
        what: String,
        /// Stated length in bytes.
        expected: u64,
        /// Found length in bytes.
        actual: u64,
    },
    /// The archive refers to a file that it does not hold.
    #[error("the archive lacks {what}, which {needed_by} refers to")]
    Missing {
        /// The file or blob.
        what: String,
        /// The file that names it.
        needed_by: String,
    },
    /// A metadata file that is not the JSON that it should be.
    #[error("{what} is not valid JSON of its kind")]
    BadJson {
        /// Which file or blob.
        what: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A metadata file that is JSON and makes no sense.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which file or blob.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the store's limits.
    #[error("{what} exceeds the limit of {limit}")]
    LimitExceeded {
        /// What was counted, and where.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// No image in a multi-platform archive runs here.
    #[error("the archive holds no image for {wanted}; it holds {found}")]
    NoPlatform {
        /// This host's platform.
        wanted: String,
        /// What there is, separated by commas.
        found: String,
    },
    /// There is no such image on this host.
    #[error("No such image: {name}")]
    NotFound {
        /// As it was asked for.
        name: String,
    },
    /// A short id that several images begin with.
    #[error("image id {name} is ambiguous: {count} images begin with it")]
    Ambiguous {
        /// As it was asked for.
        name: String,
        /// How many images match.
        count: usize,
    },
    /// A name that is not in Docker's grammar.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The image cannot be removed because a container uses it.
    #[error("conflict: unable to remove image {name} ({}): a container is using it", if *forceable { "must force" } else { "cannot be forced" })]
    InUse {
        /// As it was asked for.
        name: String,
        /// Whether `force` would untag it.
        forceable: bool,
    },
    /// The image cannot be removed by id because it has several names.
    #[error("conflict: unable to delete {name} (must be forced) - image is referenced by {references}")]
    ManyReferences {
        /// As it was asked for.
        name: String,
        /// The names, separated by commas.
        references: String,
    },
    /// A Dockerfile line of an import that is not understood.
    #[error("invalid change {line:?}: {reason}")]
    BadChange {
        /// The line.
        line: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store's own files are damaged; someone has to look.
    #[error("the image store is damaged: {}: {reason}", path.display())]
    DamagedStore {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What sort of answer an [`ImageError`] deserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// There is no such image (HTTP 404).
    NotFound,
    /// The image is in use, or the name is ambiguous (HTTP 409).
    Conflict,
    /// The caller's archive, name or parameter is bad (HTTP 400).
    InvalidInput,
    /// This host's trouble (HTTP 500).
    Internal,
}

impl ImageError {
    /// Groups the variants by who has to act.
    #[must_use]
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            ImageError::NotFound { .. } => ImageErrorKind::NotFound,
            ImageError::Ambiguous { .. } | ImageError::InUse { .. } | ImageError::ManyReferences { .. } => {
                ImageErrorKind::Conflict
            }
            ImageError::Io { .. } | ImageError::DamagedStore { .. } => ImageErrorKind::Internal,
            _ => ImageErrorKind::InvalidInput,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.to_owned();
        move |source| ImageError::Io { operation, path, source }
    }

    pub(crate) fn malformed(what: impl Into<String>, reason: impl Into<String>) -> ImageError {
        ImageError::Malformed { what: what.into(), reason: reason.into() }
    }

    /// A failure of reading `what`: an early end is told apart from damage.
    pub(crate) fn reading(what: &str, source: io::Error) -> ImageError {
        let cap = source.get_ref().and_then(|inner| inner.downcast_ref::<CapReached>());
        if let Some(cap) = cap {
            return ImageError::LimitExceeded { what: cap.what.to_owned(), limit: format!("{} bytes", cap.limit) };
        }
        match source.kind() {
            io::ErrorKind::UnexpectedEof => ImageError::Truncated { what: what.to_owned() },
            _ => ImageError::Read { what: what.to_owned(), source },
        }
    }
}
