//! The C library's look-ups of hosts and users, taken out. In a static binary they load plug-ins of the machine's own
//! C library when they are called (nsswitch.conf(5)), which may be of another version, or not there. Names are looked
//! up by hickory, users are numbers: who calls these nevertheless is told that there is nothing.

#![allow(unsafe_code)]

use libc::{addrinfo, c_char, c_int, passwd, size_t, uid_t};

/// getaddrinfo(3): fails, for good.
// SAFETY: has the signature of the C library's function, whose place it takes; it touches none of its arguments.
#[unsafe(no_mangle)]
extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const addrinfo,
    _found: *mut *mut addrinfo,
) -> c_int {
    libc::EAI_FAIL
}

/// There is never anything to free.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn freeaddrinfo(_found: *mut addrinfo) {}

// SAFETY: as above; the text is static and ends with a zero.
#[unsafe(no_mangle)]
extern "C" fn gai_strerror(_error: c_int) -> *const c_char {
    c"names are not looked up by the C library here".as_ptr()
}

/// getpwuid_r(3): no such user.
// SAFETY: as above; of its arguments it writes to `result` alone.
#[unsafe(no_mangle)]
unsafe extern "C" fn getpwuid_r(
    _uid: uid_t,
    _entry: *mut passwd,
    _buffer: *mut c_char,
    _length: size_t,
    result: *mut *mut passwd,
) -> c_int {
    // SAFETY: the caller's, by the function's contract.
    unsafe { *result = std::ptr::null_mut() };
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_c_library_loads_no_plugins_for_names() {
        let mut found = std::ptr::null_mut();
        // SAFETY: the arguments outlive the call.
        let code = unsafe { libc::getaddrinfo(c"localhost".as_ptr(), std::ptr::null(), std::ptr::null(), &mut found) };
        assert_eq!((code, found.is_null()), (libc::EAI_FAIL, true));
    }
}
