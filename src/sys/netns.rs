//! Network namespaces: made, pinned under a path, entered, released.
//! A namespace is entered on a throw-away thread only: runtime threads are reused and must stay where they are.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::runtime::Handle;

/// What the kernel reports as the file system type of a pinned namespace.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Enough to drive a netlink socket; touched only as far as used.
const STACK_BYTES: usize = 512 << 10;

/// Moves the calling thread, for good, into a new namespace and pins that at `path`. See `on_thread`.
pub fn unshare_and_pin(path: &Path) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    File::create(path)?;
    // Follows the thread, where /proc/self would name the process' main thread.
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(OwnedFd::from(File::open(path)?))
}

/// Runs `inside` in the namespace pinned at `path`: sockets opened there, tokio's too, stay there.
pub async fn enter<T, F>(path: &Path, inside: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let path = path.to_owned();
    let runtime = Handle::current();
    let work = move || {
        setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
        let _runtime = runtime.enter();
        inside()
    };
    on_thread(work).await?
}

/// Moves the calling thread, for good, into the namespace pinned at `path`. See `on_thread`.
pub fn join(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Moves the calling thread, for good, into a new namespace. For threads that a test owns.
pub fn unshare_thread() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Writes a sysctl below `/proc/sys/net`, which follows the calling thread's namespace.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(Path::new("/proc/sys/net").join(name), value)
}

/// Whether a namespace is pinned at `path`; a plain file left by a crash is not one.
pub fn is_pinned(path: &Path) -> bool {
    // The field is as wide as a register: not everywhere an i64.
    #[allow(clippy::useless_conversion)]
    rustix::fs::statfs(path).is_ok_and(|status| i64::from(status.f_type) == NSFS_MAGIC)
}

/// Unpins; the namespace ends with its last process. Already gone is success.
pub fn release(path: &Path) -> io::Result<()> {
    // A crash between two mounts may have stacked them.
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work`, which may block, on a thread that dies afterwards.
pub async fn on_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        // The receiver is gone when the caller was cancelled; what was made is found again by path.
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("network namespace thread panicked"))
}
