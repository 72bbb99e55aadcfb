//! Whether a wireless interface saves power: then it sleeps between beacons and answers late or not at all.

#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

/// Of the wireless extensions, which every driver of a board's own chip still answers (linux/wireless.h).
const SIOCGIWPOWER: libc::Ioctl = 0x8B2D;
const NAME_LIMIT_BYTES: usize = 16;

/// `struct iwreq` with its `struct iw_param`; the union is 16 bytes.
#[repr(C)]
struct Request {
    name: [u8; NAME_LIMIT_BYTES],
    value: i32,
    fixed: u8,
    disabled: u8,
    flags: u16,
    rest: [u64; 1],
}

/// False where the kernel does not tell.
pub fn saves_power(interface: &str) -> bool {
    let mut request = Request { name: [0; NAME_LIMIT_BYTES], value: 0, fixed: 0, disabled: 1, flags: 0, rest: [0] };
    if interface.len() >= NAME_LIMIT_BYTES {
        return false;
    }
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());
    let Ok(socket) = std::net::UdpSocket::bind(("127.0.0.1", 0)) else { return false };
    // SAFETY: the kernel reads and writes one iwreq, whose layout `Request` has, and which outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIWPOWER, &raw mut request) };
    outcome == 0 && request.disabled == 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_wireless_interface_saves_no_power() {
        assert_eq!(size_of::<super::Request>(), 32);
        assert!(!super::saves_power("lo"));
        assert!(!super::saves_power("no-interface-has-such-a-name"));
    }
}
