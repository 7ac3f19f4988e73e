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
    #[prost(oneof = "Ask", tags = "1, 2, 3, 4, 5, 6, 7, 140, 141, 142, 143, 144")]
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
    /// Run one more process in the container. With it come its standard streams, or for one with a terminal a socket
    /// to which the terminal's master goes. Answered when it has executed its command, or could not, and then a second
    /// time when it has ended.
    #[prost(message, tag = "140")]
    Exec(Exec),
    /// Send a signal to such a process.
    #[prost(message, tag = "141")]
    SignalExec(SignalExec),
    /// From the answer on, this connection carries what the container writes, in the form of [`output_header`]. It ends
    /// with the container, or with a remark when its reader is too slow.
    #[prost(message, tag = "142")]
    Attach(Attach),
    /// Give a copy of the write end of the container's standard input, or of its terminal's master.
    #[prost(message, tag = "143")]
    Stdin(Empty),
    /// Close the shim's own write end of the standard input, so that it ends when the copies are closed as well.
    #[prost(message, tag = "144")]
    CloseStdin(Empty),
}

/// A process to run beside the container's own. What is not said here is as in the container's configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Exec {
    #[prost(string, repeated, tag = "1")]
    pub(crate) args: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) env: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) cwd: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) user: Option<String>,
    #[prost(bool, tag = "5")]
    pub(crate) tty: bool,
    #[prost(uint32, tag = "6")]
    pub(crate) rows: u32,
    #[prost(uint32, tag = "7")]
    pub(crate) columns: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SignalExec {
    /// As in [`ExecStarted`].
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(int32, tag = "2")]
    pub(crate) signal: i32,
    /// Also to the processes that it has started and that are still in its group.
    #[prost(bool, tag = "3")]
    pub(crate) group: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Attach {
    #[prost(bool, tag = "1")]
    pub(crate) stdout: bool,
    #[prost(bool, tag = "2")]
    pub(crate) stderr: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 140, 141")]
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
    #[prost(message, tag = "140")]
    ExecStarted(ExecStarted),
    #[prost(message, tag = "141")]
    ExecEnded(ExecEnded),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExecStarted {
    /// Names it towards this shim.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    /// As the host numbers it.
    #[prost(uint32, tag = "2")]
    pub(crate) pid: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExecEnded {
    /// The exit code, or 128 + the signal.
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(int32, optional, tag = "2")]
    pub(crate) signal: Option<i32>,
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

/// Bytes in front of each piece of an attached container's output.
pub(crate) const OUTPUT_HEADER: usize = 5;
/// Kinds of pieces: standard output, standard error, and the shim's remark that it gives up on this reader.
pub(crate) const OUTPUT_STDOUT: u8 = 1;
/// See [`OUTPUT_STDOUT`].
pub(crate) const OUTPUT_STDERR: u8 = 2;
/// See [`OUTPUT_STDOUT`].
pub(crate) const OUTPUT_REMARK: u8 = 3;

/// Kind and length of a piece of output.
pub(crate) fn output_header(kind: u8, length: usize) -> [u8; OUTPUT_HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind, a, b, c, d]
}

/// The next piece of output off the front of `buffer`; `None` until it is complete.
pub(crate) fn take_output(buffer: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, Malformed> {
    let Some((&[kind, a, b, c, d], rest)) = buffer.split_first_chunk::<OUTPUT_HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME || !(OUTPUT_STDOUT..=OUTPUT_REMARK).contains(&kind) {
        return Err(Malformed);
    }
    let Some(data) = rest.get(..length) else { return Ok(None) };
    let data = data.to_vec();
    buffer.drain(..OUTPUT_HEADER + length);
    Ok(Some((kind, data)))
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
        let mut output = [&output_header(OUTPUT_STDERR, 3)[..], b"oops", &output_header(9, 0)].concat();
        assert_eq!(take_output(&mut output[..7].to_vec()), Ok(None));
        assert_eq!(take_output(&mut output), Ok(Some((OUTPUT_STDERR, b"oop".to_vec()))));
        output.remove(0);
        assert_eq!(take_output(&mut output), Err(Malformed));
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
