//! TUN devices: links whose packets a process reads and writes, one IP packet at a time.
#![allow(unsafe_code)]

use rustix::fs::{CWD, Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

// The number is that of `linux/if_tun.h`, which says int where the kernel reads a `struct ifreq`.
nix::ioctl_write_ptr_bad!(
    tun_set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes a TUN link in the calling thread's namespace; it exists as long as the descriptor, which does not block.
/// Fails with `NotFound` where the kernel has none, and with `EBUSY` while another process holds a link of this name.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let fd = rustix::fs::openat(CWD, "/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: all zeroes is a valid `ifreq`: it holds numbers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "name of a link has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // Whole IP packets without a header of the kernel's own.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("flags fit the kernel's field");
    // SAFETY: the descriptor is open and `request` is the `ifreq` that the call reads and writes.
    unsafe { tun_set_interface(fd.as_raw_fd(), &raw const request) }?;
    Ok(fd)
}
