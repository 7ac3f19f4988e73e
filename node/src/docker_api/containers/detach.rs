//! The keys with which a user leaves a terminal that goes on: Docker's `detachKeys`.

use super::super::error::ApiError;

/// Docker's default, ctrl-p ctrl-q.
const DEFAULT: [u8; 2] = [16, 17];
/// A longer sequence is a mistake.
const MAX_KEYS: usize = 16;

/// Looks for the keys in what a user types.
#[derive(Debug)]
pub(super) struct DetachKeys {
    /// Empty: there are none.
    keys: Vec<u8>,
    /// How many of them have come, one behind the other.
    matched: usize,
}

impl DetachKeys {
    /// None at all.
    pub(super) fn none() -> DetachKeys {
        DetachKeys { keys: Vec::new(), matched: 0 }
    }

    /// Reads `ctrl-p,ctrl-q`, `a,ctrl-@`; empty means the default.
    pub(super) fn parse(text: &str) -> Result<DetachKeys, ApiError> {
        if text.is_empty() {
            return Ok(DetachKeys { keys: DEFAULT.to_vec(), matched: 0 });
        }
        let invalid = || ApiError::invalid(format!("Invalid detach keys ({text}) provided"));
        let key = |word: &str| match word.as_bytes() {
            [key] => Ok(*key),
            [b'c', b't', b'r', b'l', b'-', key] => match key {
                b'a'..=b'z' => Ok(key - b'a' + 1),
                b'@' => Ok(0),
                b'[' | b'\\' | b']' | b'^' | b'_' => Ok(key - b'@'),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        };
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, _>>()?;
        if keys.len() > MAX_KEYS { Err(invalid()) } else { Ok(DetachKeys { keys, matched: 0 }) }
    }

    /// What of this goes on to the process, and whether the keys were all typed. Keys that began a sequence which then
    /// was not finished go on late, in their order.
    pub(super) fn filter(&mut self, data: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (data.to_vec(), false);
        }
        let mut out = Vec::with_capacity(data.len() + self.matched);
        for byte in data {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(self.keys.get(..self.matched).unwrap_or_default());
            self.matched = 0;
            if self.keys.first() == Some(byte) && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(keys: &str, typed: &[&[u8]], expected: &[u8], detached: bool) {
        let mut keys = DetachKeys::parse(keys).unwrap();
        let (mut out, mut left) = (Vec::new(), false);
        for piece in typed {
            let (more, done) = keys.filter(piece);
            out.extend(more);
            left |= done;
        }
        assert_eq!((out.as_slice(), left), (expected, detached));
    }

    #[test]
    fn keys_may_come_in_pieces() {
        check("", &[b"ls\r"], b"ls\r", false);
        check("", &[b"a\x10\x11b"], b"a", true);
        check("", &[b"a\x10", b"\x11"], b"a", true);
        check("", &[b"\x10", b"x"], b"\x10x", false);
        check("", &[b"\x10\x10\x11"], b"\x10", true);
        check("ctrl-a,x", &[b"\x01y\x01x"], b"\x01y", true);
        check("ctrl-@", &[b"ab\0c"], b"ab", true);
        let (all, done) = DetachKeys::none().filter(b"\x10\x11");
        assert_eq!((all.as_slice(), done), (&b"\x10\x11"[..], false));
    }

    #[test]
    fn keys_that_are_none() {
        for bad in ["ctrl-", "ctrl-1", "xx", "a,,b", &"a,".repeat(20)] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }
}
