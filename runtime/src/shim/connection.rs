//! One client of the shim's: requests in, answers out, descriptors with either. Never blocks.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::logs::LogStream;
use crate::protocol::{self, Answer, MAX_FDS, MAX_FRAME, Reply, Request};

/// What a connection waits for, besides its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    Nothing,
    Start,
    Exit,
    /// For the start of this further process, or then for its end.
    Exec(u64),
}

/// Bytes that wait for a reader of the container's output, beside what its socket holds, before it is given up.
const MAX_BEHIND: usize = 1 << 20;
/// What it is told then.
const TOO_SLOW: &[u8] = b"this client reads too slowly; some of the output was left out, and no more follows";

/// What a connection is told of the container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// One connection.
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    received: Vec<OwnedFd>,
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    pub(super) waiting: Waiting,
    /// It asks for nothing any more, and is sent the output.
    attached: Option<Attached>,
    /// Bytes in `output`.
    behind: usize,
    /// Nothing more is queued, and it is closed when the queue is empty.
    last: bool,
    closed: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Connection {
        let (input, received, output) = (Vec::new(), Vec::new(), VecDeque::new());
        let (waiting, attached) = (Waiting::Nothing, None);
        Connection { stream, input, received, output, waiting, attached, behind: 0, last: false, closed: false }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty() && !self.closed
    }

    /// Reads what is there and returns the next whole request, with the descriptors that have come so far.
    pub(super) fn receive(&mut self) -> Option<(Request, Vec<OwnedFd>)> {
        self.fill();
        if self.attached.is_some() {
            // It may only go away.
            self.closed |= !self.input.is_empty();
            return None;
        }
        match protocol::take::<Request>(&mut self.input) {
            Ok(Some(request)) => Some((request, std::mem::take(&mut self.received))),
            Ok(None) => None,
            Err(protocol::Malformed) => {
                self.closed = true;
                None
            }
        }
    }

    fn fill(&mut self) {
        let mut chunk = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags) {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => {
                self.closed = true;
                return;
            }
        };
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.received.extend(fds);
            }
        }
        // Nobody of ours sends more than fits; whoever does is cut off.
        let too_much = self.received.len() > MAX_FDS || self.input.len() > MAX_FRAME + 4;
        if message.bytes == 0 || too_much || message.flags.contains(ReturnFlags::CTRUNC) {
            self.closed = true;
            return;
        }
        self.input.extend_from_slice(chunk.get(..message.bytes).unwrap_or_default());
    }

    /// Queues an answer and sends what the peer takes now.
    pub(super) fn answer(&mut self, answer: Answer, fds: Vec<OwnedFd>) {
        self.push(protocol::frame(&Reply { answer: Some(answer) }), fds);
    }

    /// From now on it is sent the output.
    pub(super) fn attach(&mut self, wanted: Attached) {
        self.attached = Some(wanted);
    }

    /// Sends it a piece of output, when it wants this stream. One that does not read is told so and left alone.
    pub(super) fn show(&mut self, stream: LogStream, data: &[u8]) {
        let kind = match (self.attached, stream) {
            (Some(Attached { stdout: true, .. }), LogStream::Stdout) => protocol::OUTPUT_STDOUT,
            (Some(Attached { stderr: true, .. }), LogStream::Stderr) => protocol::OUTPUT_STDERR,
            _ => return,
        };
        if self.last {
            return;
        }
        if self.behind + data.len() <= MAX_BEHIND {
            self.push([&protocol::output_header(kind, data.len()), data].concat(), Vec::new());
            return;
        }
        // The first one may be on its way already, and must stay whole.
        self.output.truncate(1);
        self.behind = self.output.iter().map(|(bytes, _)| bytes.len()).sum();
        let remark = [&protocol::output_header(protocol::OUTPUT_REMARK, TOO_SLOW.len()), TOO_SLOW].concat();
        self.last = true;
        self.push(remark, Vec::new());
    }

    /// There is no more output.
    pub(super) fn end_output(&mut self) {
        if self.attached.is_some() {
            self.last = true;
            self.flush();
        }
    }

    fn push(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.behind += bytes.len();
        self.output.push_back((bytes, fds));
        self.flush();
    }

    /// Sends what the peer takes now.
    pub(super) fn flush(&mut self) {
        while let Some((bytes, fds)) = self.output.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(sent) if sent >= bytes.len() => {
                    self.behind = self.behind.saturating_sub(sent);
                    self.output.pop_front();
                }
                Ok(sent) => {
                    self.behind = self.behind.saturating_sub(sent);
                    bytes.drain(..sent);
                    fds.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        // Its memory was for a reader who was behind.
        self.output.shrink_to(8);
        self.closed |= self.last;
    }
}
