//! What this host forwarded before the overlay: nothing, or what its administrator wants.
//!
//! Published ports and the way out need `ip_forward`, which is one switch for all links. Where it was off, the links of
//! that moment are written down, so that the host goes on not forwarding between them; where it was on, the host is a
//! router and that is nobody's business. IPv6 has a switch of its own, and so a note of its own. The note is beside the pin
//! of the overlay's namespace: it outlives the daemon, and like the switch itself it does not outlive the host.

use std::io;
use std::path::{Path, PathBuf};

/// More links than that are not written down; names are at most 15 bytes.
const LINKS_MAX: usize = 4096;

/// The note, and what it says.
#[derive(Debug)]
pub(super) struct Forwarding {
    pub(super) path: PathBuf,
    /// The links of the moment in which forwarding was off.
    pub(super) apart: Vec<String>,
    /// There is a note.
    pub(super) noted: bool,
    /// This process has turned it on.
    pub(super) begun: bool,
}

impl Forwarding {
    /// Reads the note of this name that is there.
    pub(super) fn open(pin: &Path, name: &str) -> io::Result<Forwarding> {
        let path = pin.with_file_name(name);
        let (text, noted) = match std::fs::read_to_string(&path) {
            Ok(text) => (text, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), false),
            Err(error) => return Err(error),
        };
        // Somebody may have written into it what is no name; such a line says nothing.
        let is_name = |line: &&str| (1..16).contains(&line.len());
        let apart = text.lines().filter(is_name).take(LINKS_MAX).map(str::to_owned).collect();
        Ok(Forwarding { path, apart, noted, begun: false })
    }

    /// Writes down the links of this moment, if none were.
    pub(super) fn note(&mut self, mut links: Vec<String>) -> io::Result<()> {
        if self.noted {
            return Ok(());
        }
        links.sort();
        links.truncate(LINKS_MAX);
        let text: String = links.iter().map(|name| format!("{name}\n")).collect();
        std::fs::write(&self.path, text)?;
        (self.apart, self.noted) = (links, true);
        Ok(())
    }

    /// Removes the note.
    pub(super) fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_note_counts_and_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("overlay");
        let open = || Forwarding::open(&pin, "apart").unwrap();
        let mut first = open();
        assert!(!first.noted && first.apart.is_empty());
        first.note(vec!["eth1".into(), "eth0".into()]).unwrap();
        first.note(vec!["later".into()]).unwrap();
        let again = open();
        assert_eq!((&again.apart[..], again.noted), (&["eth0".to_owned(), "eth1".into()][..], true));
        std::fs::write(&again.path, "eth0\n\na-name-that-is-too-long\n").unwrap();
        assert_eq!(open().apart, ["eth0"]);
        again.forget().unwrap();
        again.forget().unwrap();
        assert!(!open().noted);
    }
}
