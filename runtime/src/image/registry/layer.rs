//! One layer on its way in: hashed, written down as it came, decompressed, hashed again and unpacked,
//! all in one pass over its bytes. Runs where it may block, with a bounded amount of memory.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::super::archive::{Capped, drain};
use super::super::build::Tee;
use super::super::compression::Decoder;
use super::super::digest::{Digest, HashReader, HashWriter};
use super::super::error::ImageError;
use super::super::limits::Budget;
use super::super::pins::Pins;
use super::super::settle::Unsettled;
use super::super::tarball::{EndMarker, TarReader};
use super::super::unpack::LayerWriter;
use super::document::{check_digest, check_size};
use crate::remove::Scratch;

/// What is decompressed at once.
const BUFFER_BYTES: usize = 128 << 10;
/// What is still read of a blob that cannot be unpacked, to see whether it is the right one.
const MAX_POST_MORTEM_BYTES: u64 = 64 << 20;

/// Where a pull puts what is not verified yet, and its hold on what is. Both end with the last of its
/// threads.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) dir: Scratch,
    pub(super) pins: Pins,
    pub(super) budget: Budget,
}

/// A layer to be taken in.
#[derive(Debug)]
pub(super) struct LayerJob {
    pub(super) workspace: Arc<Workspace>,
    /// For messages.
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff: Digest,
    /// Whether the compressed bytes are written down.
    pub(super) keep_blob: bool,
    /// Whether the layer is unpacked, and not only verified.
    pub(super) unpack: bool,
    /// Distinguishes its files in the workspace.
    pub(super) nth: usize,
}

/// A layer that is what it should be.
#[derive(Debug)]
pub(super) struct TakenLayer {
    /// Its directory, the sum of its files' sizes, and what is left to do.
    pub(super) layer: Option<(PathBuf, u64, Unsettled)>,
    /// The compressed bytes.
    pub(super) blob: Option<PathBuf>,
}

impl LayerJob {
    /// Reads the layer to its end. What it leaves on an error goes with the workspace.
    pub(super) fn run(self, reader: impl Read) -> Result<TakenLayer, ImageError> {
        let blob = self.keep_blob.then(|| self.workspace.dir.path().join(format!("blob-{}", self.nth)));
        let to: Box<dyn io::Write> = match &blob {
            Some(path) => Box::new(File::create_new(path).map_err(ImageError::io("create", path))?),
            None => Box::new(io::sink()),
        };
        let mut tee = Tee { from: reader, to: HashWriter::new(to) };
        let taken = self.take(&mut tee);
        match &taken {
            Ok(_) => drain(&mut tee, &self.name)?,
            Err(ImageError::Io { .. } | ImageError::LimitExceeded { .. }) => {}
            // A damaged blob is told by its digest, whatever its damage did further on.
            Err(_) => {
                let _ = io::copy(&mut (&mut tee).take(MAX_POST_MORTEM_BYTES), &mut io::sink());
            }
        }
        let (_, digest, size) = tee.to.finish();
        if size == self.size || taken.is_ok() {
            check_size(&self.name, self.size, size)?;
            check_digest(&self.name, &self.digest, &digest)?;
        }
        let (layer, diff) = taken?;
        check_digest(&format!("{} (unpacked)", self.name), &self.diff, &diff)?;
        Ok(TakenLayer { layer, blob })
    }

    #[allow(clippy::type_complexity)]
    fn take(&self, from: impl Read) -> Result<(Option<(PathBuf, u64, Unsettled)>, Digest), ImageError> {
        let budget = &self.workspace.budget;
        let decoder = Decoder::new(from, &self.name)?;
        let capped = Capped::new(decoder, "the uncompressed layer", budget.max_stream_bytes());
        // Headers are small and many: they are taken out of large pieces.
        let mut content = BufReader::with_capacity(BUFFER_BYTES, HashReader::new(capped));
        let layer = if self.unpack {
            let path = self.workspace.dir.path().join(format!("layer-{}", self.nth));
            make_root(&path)?;
            let mut tar = TarReader::new(&mut content, &self.name, &budget.limits, EndMarker::Optional);
            let (bytes, unsettled) = LayerWriter::new(&path, &self.name, budget)?.unpack(&mut tar)?;
            Some((path, bytes, unsettled))
        } else {
            None
        };
        drain(&mut content, &self.name)?;
        let (_, diff) = content.into_inner().finish();
        Ok((layer, diff))
    }
}

/// What the archive does not say about its root is what Docker's root has.
fn make_root(path: &PathBuf) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .map_err(ImageError::io("create", path))
}
