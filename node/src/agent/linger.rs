//! The last bytes of a container that was stopped: what it wrote before it ended may still be on its way, and is lost
//! when its links are taken down.
//!
//! The kernel goes on with what a process has closed: it sends the rest and waits until the other side has it. Asked by the
//! executor between a container's end and the end of its network; reads the namespace's own list of TCP connections.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use overlay_net::kernel::NetNs;

/// A client that takes nothing any more keeps nothing up for longer than this.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at first, and at the most: each walks through all connections of the machine.
const LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Waits until the other sides have everything that was sent from the namespace, or the time is over. Blocks.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not tell.
pub(super) fn last_bytes(netns: OwnedFd) -> io::Result<()> {
    NetNs::from_fd(netns)?.visit(|| {
        let deadline = Instant::now() + LIMIT;
        let mut wait = LOOK;
        loop {
            let mut table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
            match std::fs::read_to_string("/proc/thread-self/net/tcp6") {
                Ok(more) => table.push_str(&more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            if !is_sending(&table) || Instant::now() >= deadline {
                return Ok(());
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(LAST_LOOK);
        }
    })
}

/// Whether a list of connections, as `/proc/net/tcp` has it, has one whose other side may miss something.
fn is_sending(table: &str) -> bool {
    table.lines().any(|line| {
        // Numbers of include/net/tcp_states.h: ESTABLISHED, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING. In all others
        // nothing was sent yet, or the other side has said that it has the end of it.
        matches!(line.split_ascii_whitespace().nth(3), Some("01" | "04" | "08" | "09" | "0B"))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn states() {
        let line = |state: &str| {
            format!("   1: 0100007F:0050 0100007F:9C40 {state} 00000000:00000000 00:00000000 00000000 0 0 0 1 0 10 0\n")
        };
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        assert!(!is_sending(head) && !is_sending(""));
        for (state, sends) in [("0A", false), ("06", false), ("05", false), ("07", false), ("04", true), ("09", true)] {
            assert_eq!(is_sending(&format!("{head}{}", line(state))), sends, "{state}");
        }
        assert!(is_sending(&format!("{head}{}{}", line("0A"), line("01"))));
    }

    #[test]
    fn it_ends_with_the_last_byte_and_not_before() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: network namespaces need root");
        }
        let netns = NetNs::anonymous().unwrap();
        let wait = || {
            let began = Instant::now();
            last_bytes(netns.fd().try_clone_to_owned().unwrap()).unwrap();
            began.elapsed()
        };
        assert!(wait() < LIMIT, "an empty namespace was waited for");
        overlay_net::kernel::Links::open(&netns).unwrap().set_up("lo").unwrap();
        let (mut near, mut far) = netns
            .visit(|| {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let near = TcpStream::connect(listener.local_addr()?)?;
                Ok((near, listener.accept()?.0))
            })
            .unwrap();
        // More than the other side has room for, so that some of it is still here when this side is closed.
        near.set_nonblocking(true).unwrap();
        while near.write(&[7; 65_536]).is_ok() {}
        drop(near);
        assert!(wait() >= LIMIT, "bytes were under way");
        let mut taken = Vec::new();
        far.read_to_end(&mut taken).unwrap();
        assert!(taken.len() > 65_536);
        drop(far);
        assert!(wait() < LIMIT);
    }
}
