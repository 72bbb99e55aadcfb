//! The shim's program: edgelet's own binary under a name of its own, so that an upgrade neither
//! breaks running shims nor fails with "text file busy". A hard link shares its pages with edgelet.

use rustix::fs::{AtFlags, CWD};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes this version's copy, unless it exists, and returns it.
pub fn install(directory: &Path, source: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let metadata = std::fs::metadata(source)?;
    let stamp = format!("{:x}-{:x}-{:x}", metadata.ino(), metadata.mtime(), metadata.len());
    let target = directory.join(format!("edgelet-{}-{stamp}", env!("CARGO_PKG_VERSION")));
    if target.exists() {
        return Ok(target);
    }
    match rustix::fs::linkat(CWD, source, CWD, &target, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => return Ok(target),
        // Another file system, or one without links: a copy, which shares blocks where it can.
        Err(_) => {}
    }
    let temporary = target.with_extension("tmp");
    std::fs::copy(source, &temporary)?;
    std::fs::rename(&temporary, &target)?;
    Ok(target)
}

/// Removes the copies that no running shim was started from.
pub fn sweep(directory: &Path, used: &[PathBuf]) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| !used.contains(path)) {
        let _ = std::fs::remove_file(path);
    }
}

/// Starts a shim that listens on `listener`. It detaches itself, so this returns at once. Blocking.
pub fn start_shim(
    binary: &Path,
    uid: &str,
    log: &Path,
    listener: OwnedFd,
    cgroup_processes: &[PathBuf],
) -> io::Result<()> {
    let log = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
    let mut command = Command::new(binary);
    command.arg("shim").arg("--pod").arg(uid);
    for file in cgroup_processes {
        command.arg("--cgroup-processes").arg(file);
    }
    command.env_clear().current_dir("/").stdin(Stdio::from(listener)).stdout(Stdio::null()).stderr(log);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("shim ended with {status}"))) }
}

/// Ends a shim that does not answer. The pid may be somebody else's by now, so its arguments are checked.
pub fn kill_shim(pid: i32, uid: &str) {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = arguments.split(|byte| *byte == 0);
    if words.any(|word| word == b"shim") && words.any(|word| word == uid.as_bytes()) {
        let _ = crate::sys::process::kill(pid, libc::SIGKILL);
    }
}
