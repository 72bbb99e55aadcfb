//! Fork, signals, reaping and the few ioctls that the shim and its throw-away children need.
//! Only single-threaded processes fork here.
#![allow(unsafe_code)]

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, fork};
use rustix::process::WaitOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Exit status of a forked child that panicked.
const PANICKED: i32 = 101;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    pub code: i32,
    /// 0 = it exited by itself.
    pub signal: i32,
}

impl Death {
    /// As a shell and the CRI write it: the exit status, or 128 + signal.
    pub fn exit_code(self) -> i32 {
        if self.signal == 0 { self.code } else { 128 + self.signal }
    }
}

/// Runs `child` in a forked process, which ends with the status it returns. A panic never unwinds
/// into the caller's loop: it ends the child.
pub fn fork_child(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: callers are single-threaded, so no lock can be held by a thread that the child lacks.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Reaps one child that has ended, if any.
pub fn reap() -> Option<(i32, Death)> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let signal = status.terminating_signal().unwrap_or(0);
                if signal != 0 || status.exited() {
                    let code = status.exit_status().unwrap_or(0);
                    return Some((pid.as_raw_nonzero().get(), Death { code, signal }));
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Waits for one child; its absence is no error.
pub fn wait_for(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid);
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitpid(pid, WaitOptions::empty()) {}
}

/// Waits for all children, for ever: what PID 1 of a shared process namespace does.
pub fn reap_for_ever() -> ! {
    loop {
        // SAFETY: plain system calls without memory arguments.
        unsafe {
            if libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) < 0 {
                libc::pause();
            }
        }
    }
}

/// Sends a signal by number; real-time signals too. Gone already is success.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// All signals to their default action and none blocked: a Rust parent ignores SIGPIPE, a shim
/// blocks SIGCHLD, and both would be inherited through execve.
pub fn reset_signals() {
    // The kernel's own call: libc's refuses the two signals it keeps for itself.
    let default_action = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads a sigaction, at most these 32 bytes; zero is SIG_DFL without handler.
        // SIGKILL and SIGSTOP fail harmlessly.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default_action.as_ptr(), std::ptr::null_mut::<u64>(), 8usize);
        }
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Closes every descriptor above 2 but those in `keep`. Only for a child that ends by `_exit`:
/// the owners of the closed descriptors must never be dropped.
pub fn close_all_but(keep: &[RawFd]) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if fd > 2 && !keep.contains(&fd) {
            // SAFETY: this child never touches the descriptors it does not keep.
            unsafe { libc::close(fd) };
        }
    }
}

/// Sets a terminal's size.
pub fn set_window_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a valid winsize for the whole call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the program. Returns only when it fails.
pub fn execve(path: &std::ffi::CStr, arguments: &[std::ffi::CString], environment: &[std::ffi::CString]) -> io::Error {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => io::Error::from(errno),
    }
}

/// Installs a compiled seccomp filter on this thread. Needs CAP_SYS_ADMIN or no_new_privs.
pub fn install_seccomp(program: &[[u8; 8]]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let filters: Vec<libc::sock_filter> = program.iter().map(filter).collect();
    let header = libc::sock_fprog { len: length, filter: filters.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `length` filters, all of which live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const header) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn filter(bytes: &[u8; 8]) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

/// A descriptor number that a forked child inherited and keeps until it ends.
pub fn inherited(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the caller passes a descriptor that stays open for the child's whole life.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Whether this process may make others less likely to be killed when memory is short (`CAP_SYS_RESOURCE`).
pub fn may_spare_from_oom() -> bool {
    let capabilities = rustix::thread::capabilities(None).map(|sets| sets.effective);
    capabilities.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
}
