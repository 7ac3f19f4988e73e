//! Executables of any size that do not compress: an executable with noise behind its end, which no loader looks at.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::sim::Rng;

/// Writes `executable` to `to`, followed by noise up to `size` bytes; the same noise each time.
///
/// # Errors
/// Those of the file system.
pub fn write_noise(to: &Path, executable: &Path, size: u64) -> io::Result<()> {
    let written = fs::copy(executable, to)?;
    let mut file = File::options().append(true).open(to)?;
    let mut rng = Rng::new(size);
    let mut left = size.saturating_sub(written);
    let mut piece = vec![0; 64 << 10];
    while left > 0 {
        for word in piece.chunks_mut(8) {
            word.copy_from_slice(&rng.next().to_le_bytes());
        }
        let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&piece[..length])?;
        left -= length as u64;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}
