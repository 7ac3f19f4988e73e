//! Bounds on what an archive may ask of this host.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ImageError;

/// Bounds on one load or import. What exceeds them is refused with
/// [`ImageError::LimitExceeded`], and nothing of it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive as it comes, and again of its content once the outer compression is off.
    pub max_archive_bytes: u64,
    /// Bytes of all layers of one call, uncompressed.
    pub max_unpacked_bytes: u64,
    /// Entries of all layers of one call.
    pub max_entries: u64,
    /// Files in the archive itself (blobs and metadata).
    pub max_archive_files: u64,
    /// Bytes of one metadata file: index, manifest, configuration.
    pub max_metadata_bytes: u64,
    /// Bytes of one entry's extended tar headers (long names, extended attributes, the map of a sparse file).
    pub max_header_bytes: u64,
    /// Bytes of one path, or of one link's target.
    pub max_path_bytes: usize,
    /// Nesting of JSON metadata.
    pub max_json_depth: usize,
    /// Values in one metadata file, counted by its brackets and commas. A byte or two of JSON can claim a hundred bytes
    /// of memory; the largest index that is used somewhere has some tens of thousands.
    pub max_json_values: usize,
    /// Names that one archive gives to its images.
    pub max_names: usize,
    /// Layers of one image. Overlayfs stacks at most 500 directories; Docker allows 127 layers.
    pub max_layers: usize,
    /// Images in one archive.
    pub max_images: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        const GIB: u64 = 1 << 30;
        Limits {
            max_archive_bytes: 64 * GIB,
            max_unpacked_bytes: 128 * GIB,
            max_entries: 4_000_000,
            max_archive_files: 20_000,
            max_metadata_bytes: 8 << 20,
            max_header_bytes: 1 << 20,
            max_path_bytes: 4096,
            max_json_depth: 64,
            max_json_values: 250_000,
            max_names: 10_000,
            max_layers: 127,
            max_images: 256,
        }
    }
}

/// What one load, import or pull has used up so far. Layers that are unpacked at the same time share it.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) limits: Limits,
    unpacked_bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Budget {
        Budget { limits, unpacked_bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    /// The most that a layer's uncompressed stream may have: content, and headers and padding for
    /// each entry.
    pub(crate) fn max_stream_bytes(&self) -> u64 {
        const HEADER_BYTES: u64 = 4096;
        let headers = self.limits.max_entries.saturating_mul(HEADER_BYTES);
        self.limits.max_unpacked_bytes.saturating_add(headers)
    }

    /// Counts one entry of a layer.
    pub(crate) fn take_entry(&self, layer: &str) -> Result<(), ImageError> {
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.limits.max_entries {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of entries, reached in {layer},"),
                limit: format!("{} entries", self.limits.max_entries),
            });
        }
        Ok(())
    }

    /// Counts the content of one entry before it is written.
    pub(crate) fn take_bytes(&self, layer: &str, bytes: u64) -> Result<(), ImageError> {
        let most = self.limits.max_unpacked_bytes;
        let taken = self.unpacked_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(bytes).filter(|taken| *taken <= most)
        });
        if taken.is_err() {
            return Err(ImageError::LimitExceeded {
                what: format!("the unpacked size, reached in {layer},"),
                limit: format!("{} bytes", self.limits.max_unpacked_bytes),
            });
        }
        Ok(())
    }
}
