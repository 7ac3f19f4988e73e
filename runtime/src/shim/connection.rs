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

use crate::protocol::{self, Answer, MAX_FDS, MAX_FRAME, Reply, Request};

/// What a connection waits for, besides its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    Nothing,
    Start,
    Exit,
}

/// One connection.
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    received: Vec<OwnedFd>,
    output: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    pub(super) waiting: Waiting,
    closed: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Connection {
        let (input, received, output) = (Vec::new(), Vec::new(), VecDeque::new());
        Connection { stream, input, received, output, waiting: Waiting::Nothing, closed: false }
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
        self.output.push_back((protocol::frame(&Reply { answer: Some(answer) }), fds));
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
                    self.output.pop_front();
                }
                Ok(sent) => {
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
    }
}
