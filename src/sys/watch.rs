//! Descriptors that tokio watches.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor that is ours alone. It must be non-blocking.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open file until it is dropped, and AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
