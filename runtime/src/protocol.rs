//! What daemon and shim say to each other over the control socket: length-prefixed protobuf, one request, one answer.
//!
//! Release N of the daemon talks to shims of release N−1, so tags are never used again and new requests must be
//! refusable: a shim answers [`Refused`] to what it does not know.

use prost::Message;

/// Bytes of one message at the most; anything longer is not ours.
pub(crate) const MAX_FRAME: usize = 64 << 10;
/// File descriptors in one message at the most.
pub(crate) const MAX_FDS: usize = 16;
/// Names under which descriptors are parked, and their length.
pub(crate) const MAX_PARKED: usize = 16;
/// See [`MAX_PARKED`].
pub(crate) const MAX_NAME: usize = 64;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(oneof = "Ask", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) ask: Option<Ask>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Ask {
    /// Where does the container stand?
    #[prost(message, tag = "1")]
    State(Empty),
    /// Let it exec. Answered when it has, or could not.
    #[prost(message, tag = "2")]
    Start(Empty),
    /// Send this signal to its first process.
    #[prost(int32, tag = "3")]
    Signal(i32),
    /// Answered when it has ended and its exit is on record. Until then states may come, which say that log records are
    /// being lost. A daemon of the release before takes one for the
    /// answer: it looks, sees no exit, and asks again.
    #[prost(message, tag = "4")]
    Wait(Empty),
    /// Keep the descriptors that come along under this name, instead of those kept before.
    #[prost(string, tag = "5")]
    PutFds(String),
    /// Give copies of those kept under this name.
    #[prost(string, tag = "6")]
    GetFds(String),
    /// Kill what runs and end.
    #[prost(message, tag = "7")]
    Shutdown(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    Done(Empty),
    #[prost(message, tag = "2")]
    State(State),
    #[prost(message, tag = "3")]
    Refused(Refused),
    #[prost(message, tag = "4")]
    NotStarted(Failed),
    /// The child waits for its start (the answer to the creation itself).
    #[prost(message, tag = "5")]
    Created(State),
    #[prost(message, tag = "6")]
    NotCreated(Failed),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct State {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) started_at_nanos: Option<u64>,
    #[prost(bool, tag = "3")]
    pub(crate) exited: bool,
    /// Log records that found no room on the disk.
    #[prost(uint64, tag = "4")]
    pub(crate) dropped_log_records: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Refused {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
}

/// A failed step in the making of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Failed {
    #[prost(uint32, tag = "1")]
    pub(crate) step: u32,
    #[prost(string, tag = "2")]
    pub(crate) subject: String,
    #[prost(int32, tag = "3")]
    pub(crate) errno: i32,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
}

/// One message with its length before it.
pub(crate) fn frame<M: Message>(message: &M) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The bytes are not a message of ours; the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub(crate) struct Malformed;

/// Takes one message off the front of `buffer`; `None` until it is complete.
pub(crate) fn take<M: Message + Default>(buffer: &mut Vec<u8>) -> Result<Option<M>, Malformed> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(Malformed);
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = M::decode(body).map_err(|_| Malformed)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

/// An answer without content.
pub(crate) fn done() -> Answer {
    Answer::Done(Empty {})
}

/// A refusal.
pub(crate) fn refused(reason: impl Into<String>) -> Answer {
    Answer::Refused(Refused { reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_and_in_pieces() {
        let request = Request { ask: Some(Ask::PutFds("dns".to_owned())) };
        let bytes = [frame(&request), frame(&Request { ask: None })].concat();
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            seen.extend(take::<Request>(&mut buffer).unwrap());
        }
        assert_eq!(seen, [request, Request { ask: None }]);
        assert!(buffer.is_empty());
        assert_eq!(take::<Request>(&mut vec![255; 5]), Err(Malformed));
        assert_eq!(take::<Request>(&mut vec![1, 0, 0, 0, 255]), Err(Malformed));
    }

    /// What shims of release 0.1 send and expect, byte for byte: they outlive their daemons.
    #[test]
    fn release_0_1_is_understood() {
        let ask = |bytes: &[u8], ask: Ask| {
            let request = Request { ask: Some(ask) };
            assert_eq!(Request::decode(bytes), Ok(request.clone()));
            assert_eq!(request.encode_to_vec(), bytes);
        };
        ask(b"\x0a\0", Ask::State(Empty {}));
        ask(b"\x12\0", Ask::Start(Empty {}));
        ask(b"\x18\x09", Ask::Signal(9));
        ask(b"\x22\0", Ask::Wait(Empty {}));
        ask(b"\x2a\x03dns", Ask::PutFds("dns".to_owned()));
        ask(b"\x32\x03dns", Ask::GetFds("dns".to_owned()));
        ask(b"\x3a\0", Ask::Shutdown(Empty {}));
        // Those understand no more than these; of a later one's request they say so, and the connection goes on.
        assert_eq!(Request::decode(&b"\xaa\x06\x03new"[..]), Ok(Request { ask: None }));
        let answer = |bytes: &[u8], answer: Answer| {
            assert_eq!(Reply::decode(bytes), Ok(Reply { answer: Some(answer) }));
        };
        let state = State { pid: 7, started_at_nanos: Some(5), exited: true, dropped_log_records: 2 };
        let failed = Failed { step: 30, subject: "x".to_owned(), errno: 2, reason: "r".to_owned() };
        answer(b"\x0a\0", done());
        answer(b"\x12\x08\x08\x07\x10\x05\x18\x01\x20\x02", Answer::State(state.clone()));
        answer(b"\x1a\x04\x0a\x02no", refused("no"));
        answer(b"\x22\x0a\x08\x1e\x12\x01x\x18\x02\x22\x01r", Answer::NotStarted(failed.clone()));
        answer(b"\x2a\x08\x08\x07\x10\x05\x18\x01\x20\x02", Answer::Created(state));
        answer(b"\x32\x0a\x08\x1e\x12\x01x\x18\x02\x22\x01r", Answer::NotCreated(failed));
    }
}
