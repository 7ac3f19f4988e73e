//! Requests to a shim. Blocking, with a deadline; a connection a request.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::through_fd;
use crate::protocol::{self, Answer, Ask, MAX_FDS, Reply, Request};

/// How long a shim may take. It answers in microseconds, unless the machine or its disk stands still.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to the control socket.
pub(super) fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (dir, name) = (socket.parent().unwrap_or(Path::new("/")), socket.file_name().unwrap_or(OsStr::new("")));
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    let stream = UnixStream::connect(through_fd(&dir, name))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Asks once. Returns the answer and the descriptors that came with it.
pub(super) fn ask(socket: &Path, ask: Ask, fds: &[OwnedFd]) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let stream = connect(socket)?;
    send(&stream, ask, fds)?;
    receive(&stream)
}

/// Sends one request.
pub(super) fn send(stream: &UnixStream, ask: Ask, fds: &[OwnedFd]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MAX_FDS} descriptors")));
    }
    let mut bytes = protocol::frame(&Request { ask: Some(ask) });
    let mut borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        let sent = match sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        bytes.drain(..sent);
        borrowed.clear();
    }
    Ok(())
}

/// Receives one answer.
pub(super) fn receive(stream: &UnixStream) -> io::Result<(Answer, Vec<OwnedFd>)> {
    receive_more(stream, &mut Vec::new())
}

/// Receives one answer; what came behind it stays in `buffer`.
pub(super) fn receive_more(stream: &UnixStream, buffer: &mut Vec<u8>) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    loop {
        let mut chunk = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = match recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        {
            Err(rustix::io::Errno::INTR) => continue,
            // A socket's own timeout.
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            other => other?,
        };
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                fds.extend(received);
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend_from_slice(chunk.get(..message.bytes).unwrap_or_default());
        if let Some(answer) = complete(buffer)? {
            return Ok((answer, fds));
        }
    }
}

/// Takes the master of a terminal that a process has made before it executed its command.
pub(crate) fn receive_terminal(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0u8; 64])], &mut ancillary, flags)?;
    let master = ancillary.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    master.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the answer to a creation from the socket that the shim was given.
pub(super) fn receive_created(mut stream: &UnixStream) -> io::Result<Answer> {
    let (mut buffer, mut chunk) = (Vec::new(), [0u8; 4096]);
    loop {
        // The runtime's SIGCHLD handler interrupts reads with a timeout, restarting or not.
        let count = match stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if let Some(answer) = complete(&mut buffer)? {
            return Ok(answer);
        }
    }
}

fn complete(buffer: &mut Vec<u8>) -> io::Result<Option<Answer>> {
    let reply = protocol::take::<Reply>(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match reply {
        Some(Reply { answer: Some(answer) }) => Ok(Some(answer)),
        Some(Reply { answer: None }) => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of a later release")),
        None => Ok(None),
    }
}
