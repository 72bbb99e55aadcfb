//! Unix sockets that keep message boundaries and carry descriptors: one message, one send.
//! Paths of any length work, by going through the directory's descriptor.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Result;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Descriptors one message may carry.
pub const DESCRIPTORS_LIMIT: usize = 4;

fn socket(flags: SocketFlags) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)
}

/// The address of `path`, short whatever the path's length; valid while the returned directory is open.
fn address(path: &Path) -> Result<(OwnedFd, SocketAddrUnix)> {
    let parent = path.parent().ok_or(rustix::io::Errno::INVAL)?;
    let name = path.file_name().ok_or(rustix::io::Errno::INVAL)?;
    let directory = rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, SocketAddrUnix::new(short)?))
}

/// A listener at `path`, which replaces a stale one.
pub fn listen(path: &Path) -> Result<OwnedFd> {
    let _ = std::fs::remove_file(path);
    let listener = socket(SocketFlags::empty())?;
    let (_directory, address) = address(path)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, 16)?;
    Ok(listener)
}

/// A non-blocking connection to the listener at `path`.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let connection = socket(SocketFlags::NONBLOCK)?;
    let (_directory, address) = address(path)?;
    rustix::net::connect(&connection, &address)?;
    Ok(connection)
}

/// A non-blocking connection somebody made.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// Two connected ends, both blocking.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message with its descriptors.
pub fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(rustix::io::Errno::INVAL);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The length of the message that waits; 0 = the other end is gone.
pub fn next_length(socket: impl AsFd) -> Result<usize> {
    let nothing: &mut [u8] = &mut [];
    Ok(rustix::net::recv(socket, nothing, RecvFlags::PEEK | RecvFlags::TRUNC)?.1)
}

/// Receives one message into `buffer`: its length (0 = the other end is gone) and its descriptors.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_boundaries_and_descriptors() {
        let (a, b) = pair().expect("pair");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        send(&a, b"one", &[writer.as_fd()]).expect("send");
        send(&a, b"two", &[]).expect("send");
        drop(writer);
        let mut buffer = [0; 64];
        let (length, descriptors) = receive(&b, &mut buffer).expect("receive");
        assert_eq!(&buffer[..length], b"one");
        rustix::io::write(&descriptors[0], b"x").expect("write to the pipe that was sent");
        assert_eq!(rustix::io::read(&reader, &mut buffer).expect("read"), 1);
        assert_eq!(receive(&b, &mut buffer).expect("receive").0, 3);
        drop(a);
        assert_eq!(receive(&b, &mut buffer).expect("receive").0, 0);
    }

    #[test]
    fn long_paths_work() {
        let directory = tempfile::tempdir().expect("directory");
        let long = directory.path().join("d".repeat(120));
        std::fs::create_dir(&long).expect("create");
        let listener = listen(&long.join("socket")).expect("listen");
        let client = connect(&long.join("socket")).expect("connect");
        let server = accept(&listener).expect("accept");
        send(&client, b"hello", &[]).expect("send");
        let mut buffer = [0; 16];
        assert_eq!(receive(&server, &mut buffer).expect("receive").0, 5);
    }
}
