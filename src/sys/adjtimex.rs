//! Whether something keeps the kernel's clock right.

#![allow(unsafe_code)]

use std::io;

/// As the kernel sees it: an NTP client disciplines the clock, and its error is within bounds (adjtimex(2)).
pub fn clock_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is a plain C structure, for which zeros are valid; no mode is set, so nothing is changed.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes into `clock` alone, which lives until the call returns.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(clock.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::clock_synchronised().expect("reading the clock's state needs no privilege");
    }
}
