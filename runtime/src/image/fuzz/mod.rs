//! Fuzzing of what archives hold, from single layers to whole images, against oracles that ask for more than an answer
//! without a panic.

mod archives;
mod differential;
mod layers;
mod tar;

#[path = "../../../tests/images/archives.rs"]
#[allow(dead_code, clippy::print_stdout)]
mod images;
#[path = "../../../tests/images/tree.rs"]
mod tree;

/// A directory in memory where there is such a place: nothing here is about disks.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let dir = tempfile::Builder::new().prefix("shoal-fuzz-").tempdir_in(memory);
    dir.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Why layers cannot be unpacked here.
fn not_root() -> bool {
    let not_root = !rustix::process::geteuid().is_root();
    if not_root {
        eprintln!("skipped: unpacking layers needs root");
    }
    not_root
}
