//! The descriptor of a TPM: one command is written, one response read, neither waited for without a limit.

use super::TpmError;
use super::command::{Transport, announced_bytes};
use crate::clock::monotonic;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, inotify};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// What one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// The kernel's own buffer for a TPM has this size.
const RESPONSE_LIMIT_BYTES: usize = 4096;

pub struct Device(OwnedFd);

impl Device {
    pub fn open(path: &Path) -> Result<Self, TpmError> {
        match path.metadata() {
            Ok(metadata) if metadata.file_type().is_socket() => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Self(stream.into()))
            }
            // Only without blocking does the kernel answer later what is written now.
            Ok(_) => {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TpmError::Absent(path.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, deadline: Instant) -> Result<Vec<u8>, TpmError> {
        let (mut response, mut filled) = (vec![0; RESPONSE_LIMIT_BYTES], 0);
        loop {
            if !readable(&self.0, deadline)? {
                return Err(TpmError::Silent(COMMAND_LIMIT));
            }
            match rustix::io::read(&self.0, &mut response[filled..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => filled += read,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            }
            match announced_bytes(&response[..filled])? {
                Some(size) if size > RESPONSE_LIMIT_BYTES => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the response is too long").into());
                }
                Some(size) if filled >= size => {
                    response.truncate(filled);
                    return Ok(response);
                }
                _ => {}
            }
        }
    }
}

impl Transport for Device {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        let deadline = monotonic() + COMMAND_LIMIT;
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, command)).map_err(io::Error::from)?;
        if written != command.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        self.read(deadline)
    }
}

/// False: the time is over.
fn readable(fd: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(monotonic());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the file is there. False: it did not come, or its folder cannot be watched.
pub fn wait(path: &Path, limit: Duration) -> bool {
    path.exists() || wait_for_making(path, limit).unwrap_or(false) || path.exists()
}

fn wait_for_making(path: &Path, limit: Duration) -> io::Result<bool> {
    let deadline = monotonic() + limit;
    let made = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    inotify::add_watch(&made, folder, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
    let mut events = [0; 4096];
    while !path.exists() {
        if !readable(&made, deadline)? {
            return Ok(false);
        }
        rustix::io::read(&made, &mut events[..])?;
    }
    Ok(true)
}
