//! Mounts of containers' root file systems, and file operations that stay inside one.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Layers that one overlay can have.
pub const LAYERS_LIMIT: usize = 500;

/// Mounts an overlay of `lower` (top first) with its writable layer at `target`.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let kernel = rustix::system::uname();
    // Linux before 6.5 does not know `lowerdir+`; asked, it complains in its log, once a container.
    if version(&kernel.release().to_string_lossy()) < (6, 5) {
        return Ok(overlay_by_options(lower, upper, work, target)?);
    }
    match overlay_by_layer(lower, upper, work, target) {
        Err(Errno::INVAL | Errno::NOSYS) => Ok(overlay_by_options(lower, upper, work, target)?),
        result => Ok(result?),
    }
}

/// `6.1.0-56-cloud-amd64` is (6, 1).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|digit: char| !digit.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn overlay_by_layer(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> rustix::io::Result<()> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    rustix::mount::fsconfig_set_string(context, "source", "overlay")?;
    for layer in lower {
        rustix::mount::fsconfig_set_string(context, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(context, "upperdir", upper)?;
    rustix::mount::fsconfig_set_string(context, "workdir", work)?;
    // The writable layer never outlives its container, so nothing of it need reach the disk at
    // unmount: without this each removed container would sync the whole SD card.
    rustix::mount::fsconfig_set_flag(context, "volatile")?;
    rustix::mount::fsconfig_create(context)?;
    let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The options of mount(2) must fit one page, so layers are named by descriptors: `/proc/self/fd/9`.
fn overlay_by_options(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> rustix::io::Result<()> {
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let layers = lower.iter().map(|path| open(path)).collect::<rustix::io::Result<Vec<OwnedFd>>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower: Vec<String> = layers.iter().map(name).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), name(&upper), name(&work));
    let volatile = format!("{options},volatile");
    let mount = |options: &str| {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
    };
    mount(&volatile).or_else(|_| mount(&options))
}

/// A file system in memory, `size_bytes` at most, listed as `name`, whose root has `mode`.
pub fn tmpfs(name: &str, target: &Path, mode: u32, size_bytes: u64) -> io::Result<()> {
    let options = format!("mode={mode:o},size={size_bytes}");
    let options = std::ffi::CString::new(options).expect("digits have no zero byte");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount(name, target, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Unmounts everything stacked at `target`. Nothing there is success.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn open_root(root: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a directory and its parents inside `root`, whose symlinks cannot lead out of it.
pub fn make_directory_in(root: &Path, path: &str) -> io::Result<()> {
    let root = open_root(root)?;
    let mut walked = PathBuf::new();
    for part in Path::new(path).components() {
        let Component::Normal(name) = part else {
            // `..` is resolved by the kernel, inside the root.
            if part == Component::ParentDir {
                walked.push("..");
            }
            continue;
        };
        let parent = open_in(&root, &walked, OFlags::PATH | OFlags::DIRECTORY)?;
        walked.push(name);
        match open_in(&root, &walked, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(Errno::NOENT) => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads a file inside `root`, at most `limit_bytes` of it; `None` when there is none.
pub fn read_in(root: &Path, path: &str, limit_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let root = open_root(root)?;
    // Never a device or a pipe of the image's choosing: those would block.
    let file = match open_in(&root, Path::new(path.trim_start_matches('/')), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(limit_bytes).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn versions_compare_as_numbers() {
        let cases = [("6.1.0-56-cloud-amd64", (6, 1)), ("6.18.44", (6, 18)), ("5.10-rc1", (5, 10)), ("7", (7, 0))];
        for (release, expected) in cases {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("6.18.44") > (6, 5) && version("6.1.0") < (6, 5));
    }

    #[test]
    fn paths_stay_inside_the_root() {
        let outer = tempfile::tempdir().expect("directory");
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("create");
        std::fs::write(outer.path().join("secret"), "secret").expect("write");
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("write");
        symlink("../../secret", root.join("etc/escape")).expect("link");
        symlink(outer.path(), root.join("out")).expect("link");
        assert_eq!(read_in(&root, "/etc/escape", 100).expect("read"), None);
        assert!(read_in(&root, "/etc/passwd", 4).expect("read").is_some_and(|bytes| bytes == b"root"));
        assert_eq!(read_in(&root, "/etc", 4).expect("read"), None);
        make_directory_in(&root, "/srv/app//data").expect("make");
        make_directory_in(&root, "/srv/app").expect("again");
        assert!(root.join("srv/app/data").is_dir());
        let escape = make_directory_in(&root, "/out/made");
        assert!(escape.is_err() || !outer.path().join("made").exists());
    }
}
