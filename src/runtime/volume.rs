//! Makes a pod's volumes on the host: empty directories, sets of files that change atomically, host paths.
//! Blocking; callers run it off the event loop. Nothing a container did to a volume can lead it elsewhere.

use super::{Reason, RuntimeError, VolumeContent, VolumeFile};
use crate::clock::Clock;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
const EMPTY_DIR_MODE: u32 = 0o777;
const SET_GROUP_ID: u32 = 0o2000;
/// What a group may do with read-only files, and with directories beside it.
const GROUP_READ: u32 = 0o440;
const GROUP_SEARCH: u32 = 0o110;
const HOST_DIRECTORY_MODE: u32 = 0o755;
const SUB_DIRECTORY_MODE: u32 = 0o755;

type Result<T> = std::result::Result<T, RuntimeError>;

/// The volumes of every pod of a node, each under its pod's uid.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// Survives a reboot: empty directories.
    disk: PathBuf,
    /// On a tmpfs, so that Secrets never reach a disk and updates do not wear it: files, sub-path mounts.
    memory: PathBuf,
    clock: Clock,
}

impl Volumes {
    pub fn new(disk: impl Into<PathBuf>, memory: impl Into<PathBuf>, clock: Clock) -> Self {
        Self { disk: disk.into(), memory: memory.into(), clock }
    }

    /// Makes or updates a volume; the host path to mount. Same content = no write.
    pub fn publish(&self, pod_uid: &str, name: &str, content: &VolumeContent) -> Result<PathBuf> {
        let what = |error: io::Error| failure(format!("publish volume {name}"), &error);
        match content {
            VolumeContent::EmptyDir { memory, size_limit_bytes, fs_group } => {
                let root = if *memory { &self.memory } else { &self.disk };
                let path = volume_path(root, pod_uid, name);
                empty_directory(&path, memory.then_some(*size_limit_bytes), *fs_group).map_err(what)?;
                Ok(path)
            }
            VolumeContent::Files { files, fs_group } => {
                let path = volume_path(&self.memory, pod_uid, name);
                self.write_files(&path, files, *fs_group).map_err(what)?;
                Ok(path)
            }
            VolumeContent::HostPath { path, kind } => {
                host_path(path, kind)?;
                self.remember_host_path(pod_uid, name, path).map_err(what)?;
                Ok(path.clone())
            }
        }
    }

    /// A file or directory inside a published volume, bound to a path of its own, so that a container
    /// which swaps a component for a symlink afterwards gains nothing.
    pub fn sub_path(&self, pod_uid: &str, volume: &str, container: &str, sub_path: &str) -> Result<PathBuf> {
        let what = |error: io::Error| failure(format!("prepare subPath {sub_path} of volume {volume}"), &error);
        let base = self.published(pod_uid, volume).ok_or_else(|| {
            RuntimeError::new(Reason::CreateContainerConfigError, format!("volume {volume} is not published"))
        })?;
        let inside = open_beneath(&base, sub_path).map_err(what)?;
        let target = self.memory.join(pod_uid).join("subpaths").join(volume).join(container);
        let target = target.join(hex_digest(sub_path));
        bind(&inside, &target).map_err(what)?;
        Ok(target)
    }

    /// Unmounts and removes all volumes of a pod. Host paths stay as they are.
    pub fn remove(&self, pod_uid: &str) -> Result<()> {
        for root in [&self.memory, &self.disk] {
            let directory = root.join(pod_uid);
            let removed = unmount_below(&directory).and_then(|()| match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            });
            removed.map_err(|error| failure(format!("remove volumes of pod {pod_uid}"), &error))?;
        }
        Ok(())
    }

    /// Removes the volumes of all pods but these: those a pod left that went before its sandbox was made.
    /// Goes on after errors and returns the first.
    pub fn retain(&self, pod_uids: &[String]) -> Result<()> {
        let mut result = Ok(());
        for root in [&self.memory, &self.disk] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if !pod_uids.contains(&name) {
                    result = result.and(self.remove(&name));
                }
            }
        }
        result
    }

    fn published(&self, pod_uid: &str, volume: &str) -> Option<PathBuf> {
        if let Ok(path) = fs::read_link(self.host_link(pod_uid, volume)) {
            return Some(path);
        }
        [&self.disk, &self.memory].iter().map(|root| volume_path(root, pod_uid, volume)).find(|path| path.is_dir())
    }

    fn host_link(&self, pod_uid: &str, name: &str) -> PathBuf {
        self.memory.join(pod_uid).join("hostpaths").join(name)
    }

    fn remember_host_path(&self, pod_uid: &str, name: &str, path: &Path) -> io::Result<()> {
        let link = self.host_link(pod_uid, name);
        fs::create_dir_all(link.parent().unwrap_or(&self.memory))?;
        replace_link(path, &link)
    }

    /// Readers see either all old or all new files: they go through `..data`, which is renamed over.
    fn write_files(&self, path: &Path, files: &BTreeMap<String, VolumeFile>, fs_group: Option<i64>) -> io::Result<()> {
        fs::create_dir_all(path)?;
        set_mode(path, EMPTY_DIR_MODE, fs_group)?;
        if let Some(bad) = files.keys().find(|name| !is_safe_name(name)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {bad}")));
        }
        let old = fs::read_link(path.join(DATA)).ok();
        if old.as_ref().is_some_and(|old| holds(&path.join(old), files, fs_group)) {
            return make_links(path, files);
        }
        let stamp = self.clock.now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
        let fresh = format!("{stamp}.{:09}", fastrand::u32(..1_000_000_000));
        write_all(&path.join(&fresh), files, fs_group)?;
        symlink(&fresh, path.join(DATA_NEW)).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => replace_link(Path::new(&fresh), &path.join(DATA_NEW)),
            _ => Err(error),
        })?;
        fs::rename(path.join(DATA_NEW), path.join(DATA))?;
        make_links(path, files)?;
        remove_old(path, &fresh)
    }
}

fn failure(what: String, error: &io::Error) -> RuntimeError {
    RuntimeError::new(Reason::Other, format!("{what}: {error}"))
}

fn volume_path(root: &Path, pod_uid: &str, name: &str) -> PathBuf {
    root.join(pod_uid).join("volumes").join(name)
}

fn empty_directory(path: &Path, tmpfs_limit: Option<u64>, fs_group: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if let Some(limit_bytes) = tmpfs_limit
        && !is_mount_point(path)?
    {
        let size = if limit_bytes > 0 { format!("size={limit_bytes}") } else { "size=50%".to_owned() };
        let options = std::ffi::CString::new(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
    }
    set_mode(path, EMPTY_DIR_MODE, fs_group)
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Sets mode and group; with a group the directory hands it on.
fn set_mode(path: &Path, mode: u32, fs_group: Option<i64>) -> io::Result<()> {
    let mode = if fs_group.is_some() { mode | SET_GROUP_ID } else { mode };
    own(path, fs_group)?;
    let now = fs::metadata(path)?.mode() & 0o7777;
    if now != mode { fs::set_permissions(path, fs::Permissions::from_mode(mode)) } else { Ok(()) }
}

fn own(path: &Path, fs_group: Option<i64>) -> io::Result<()> {
    let Some(group) = fs_group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    rustix::fs::chown(path, None, Some(Gid::from_raw(group))).map_err(io::Error::from)
}

/// `a/b`, never `..`, an absolute path or one of our own names.
fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
        && !name.starts_with("..")
}

fn file_mode(file: &VolumeFile, fs_group: Option<i64>) -> u32 {
    (if fs_group.is_some() { file.mode | GROUP_READ } else { file.mode }) & 0o777
}

fn write_all(directory: &Path, files: &BTreeMap<String, VolumeFile>, fs_group: Option<i64>) -> io::Result<()> {
    make_directory(directory, fs_group)?;
    for (name, file) in files {
        let path = directory.join(name);
        let mut parent = directory.to_owned();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            make_directory(&parent, fs_group)?;
        }
        fs::write(&path, &file.bytes)?;
        own(&path, fs_group)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file_mode(file, fs_group)))?;
    }
    Ok(())
}

fn make_directory(path: &Path, fs_group: Option<i64>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mode = if fs_group.is_some() { 0o755 | GROUP_READ | GROUP_SEARCH } else { 0o755 };
    set_mode(path, mode, fs_group)
}

/// Whether a directory holds exactly these files.
fn holds(directory: &Path, files: &BTreeMap<String, VolumeFile>, fs_group: Option<i64>) -> bool {
    let same = |(name, file): (&String, &VolumeFile)| {
        let path = directory.join(name);
        let mode = fs::metadata(&path).map(|meta| meta.mode() & 0o777);
        matches!(mode, Ok(mode) if mode == file_mode(file, fs_group))
            && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
    };
    files.iter().all(same) && count_files(directory).is_some_and(|count| count == files.len())
}

fn count_files(directory: &Path) -> Option<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory).ok()? {
        let entry = entry.ok()?;
        count += if entry.file_type().ok()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Some(count)
}

/// What the container sees: `name -> ..data/name`, by first path component.
fn make_links(path: &Path, files: &BTreeMap<String, VolumeFile>) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|name| name.split('/').next()).collect();
    for name in &wanted {
        let target = Path::new(DATA).join(name);
        let link = path.join(name);
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            replace_link(&target, &link)?;
        }
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let stale = name.to_str().is_none_or(|name| !name.starts_with("..") && !wanted.contains(name));
        if stale {
            fs::remove_file(path.join(name))?;
        }
    }
    Ok(())
}

fn replace_link(target: &Path, link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, link)
}

/// Removes every timestamped directory but the present one.
fn remove_old(path: &Path, present: &str) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name.to_str().is_some_and(|name| name.starts_with("..") && name != present);
        if old && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Checks a host path, or makes it where its type (or the lack of one) says so.
fn host_path(path: &Path, kind: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(RuntimeError::new(Reason::Other, format!("hostPath type check failed: {} {why}", path.display())))
    };
    let what = |error: io::Error| failure(format!("make hostPath {}", path.display()), &error);
    let meta = fs::metadata(path).ok();
    let file_type = meta.as_ref().map(fs::Metadata::file_type);
    match (kind, file_type) {
        ("", Some(_)) => Ok(()),
        ("" | "DirectoryOrCreate", None) => make_host_directory(path).map_err(what),
        ("FileOrCreate", None) => fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .map_err(what),
        ("Directory" | "DirectoryOrCreate", Some(found)) if found.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(found)) if found.is_file() => Ok(()),
        ("Socket", Some(found)) if found.is_socket() => Ok(()),
        ("CharDevice", Some(found)) if found.is_char_device() => Ok(()),
        ("BlockDevice", Some(found)) if found.is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => refuse("is not a directory"),
        ("File" | "FileOrCreate", _) => refuse("is not a file"),
        ("Socket", _) => refuse("is not a socket file"),
        ("CharDevice", _) => refuse("is not a character device"),
        ("BlockDevice", _) => refuse("is not a block device"),
        (other, _) => refuse(&format!("has the unknown type {other}")),
    }
}

fn make_host_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(HOST_DIRECTORY_MODE).create(path)
}

/// Opens `sub_path` below `base` without leaving it, and makes the directories that are missing.
fn open_beneath(base: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    if Path::new(sub_path).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it must be a relative path without '..'"));
    }
    let root = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let look = |path: &Path| rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut walked = PathBuf::new();
    for part in Path::new(sub_path).components() {
        let parent = if walked.as_os_str().is_empty() { PathBuf::from(".") } else { walked.clone() };
        walked.push(part);
        match look(&walked) {
            Err(Errno::NOENT) => {
                let parent = look(&parent)?;
                match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(SUB_DIRECTORY_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it leads out of its volume"));
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    Ok(look(if walked.as_os_str().is_empty() { Path::new(".") } else { &walked })?)
}

/// A file name of its own for each sub-path.
fn hex_digest(sub_path: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(sub_path).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Binds what the descriptor names to `target`, in the place of an older bind.
fn bind(inside: &OwnedFd, target: &Path) -> io::Result<()> {
    let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(inside)?.st_mode).is_dir();
    unmount_below(target)?;
    if is_directory {
        let _ = fs::remove_file(target);
        fs::create_dir_all(target)?;
    } else {
        let _ = fs::remove_dir(target);
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    Ok(mount_bind(format!("/proc/self/fd/{}", inside.as_raw_fd()), target)?)
}

/// Unmounts everything at and below a directory, innermost first.
fn unmount_below(directory: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        match unmount(&point, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The kernel writes blanks in mount points as `\040`.
fn unescape(point: &str) -> PathBuf {
    PathBuf::from(point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn volumes(root: &Path) -> Volumes {
        Volumes::new(root.join("disk"), root.join("memory"), Clock::real())
    }

    fn files(list: &[(&str, &str, u32)]) -> VolumeContent {
        let file = |(name, text, mode): &(&str, &str, u32)| {
            (name.to_string(), VolumeFile { bytes: Bytes::from(text.to_string()), mode: *mode })
        };
        VolumeContent::Files { files: list.iter().map(file).collect(), fs_group: None }
    }

    fn data(path: &Path) -> PathBuf {
        fs::read_link(path.join(DATA)).expect("the data link")
    }

    #[test]
    fn files_change_atomically_and_only_when_they_differ() {
        let root = tempfile::tempdir().expect("a directory");
        let volumes = volumes(root.path());
        let first = files(&[("a", "1", 0o644), ("d/b", "2", 0o400)]);
        let path = volumes.publish("u", "v", &first).expect("published");
        assert_eq!(fs::read_to_string(path.join("a")).expect("a"), "1");
        assert_eq!(fs::metadata(path.join("d/b")).expect("d/b").mode() & 0o777, 0o400);
        let old = data(&path);
        volumes.publish("u", "v", &first).expect("published again");
        assert_eq!(data(&path), old, "same content, no write");
        volumes.publish("u", "v", &files(&[("a", "3", 0o644)])).expect("updated");
        assert_ne!(data(&path), old);
        assert!(!path.join(old).exists() && !path.join("d").exists());
        assert_eq!(fs::read_to_string(path.join("a")).expect("a"), "3");
        volumes.remove("u").expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn names_that_leave_the_volume_are_refused() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["../x", "/x", "", "..data", "a/../../x"] {
            let outcome = volumes(root.path()).publish("u", "v", &files(&[(name, "1", 0o644)]));
            assert!(outcome.is_err(), "{name}");
        }
    }

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let root = tempfile::tempdir().expect("a directory");
        let base = root.path().join("base");
        fs::create_dir(&base).expect("base");
        symlink("/etc", base.join("out")).expect("a link out");
        symlink("in", base.join("link")).expect("a link inside");
        fs::create_dir(base.join("in")).expect("in");
        for (sub_path, allowed) in [
            ("in", true),
            ("link", true),
            ("new/deep", true),
            ("out", false),
            ("out/passwd", false),
            ("../x", false),
            ("/x", false),
        ] {
            assert_eq!(open_beneath(&base, sub_path).is_ok(), allowed, "{sub_path}");
        }
        assert!(base.join("new/deep").is_dir());
    }

    #[test]
    fn host_paths_are_checked_by_their_type() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name);
        fs::write(path("f"), "").expect("a file");
        for (name, kind, fine) in [
            ("f", "", true),
            ("f", "File", true),
            ("f", "Directory", false),
            ("f", "Socket", false),
            ("g", "File", false),
            ("g", "FileOrCreate", true),
            ("g", "File", true),
            ("d", "Directory", false),
            ("d/e", "DirectoryOrCreate", true),
            ("d/e", "Directory", true),
            ("n", "", true),
        ] {
            assert_eq!(host_path(&path(name), kind).is_ok(), fine, "{name} {kind}");
        }
        let error = host_path(&path("f"), "Directory").expect_err("a file");
        assert!(error.message.ends_with("f is not a directory"), "{error}");
    }

    #[test]
    fn empty_directories_are_for_everyone() {
        let root = tempfile::tempdir().expect("a directory");
        let content = VolumeContent::EmptyDir { memory: false, size_limit_bytes: 0, fs_group: None };
        let path = volumes(root.path()).publish("u", "v", &content).expect("published");
        assert_eq!(fs::metadata(path).expect("there").mode() & 0o7777, 0o777);
    }
}
