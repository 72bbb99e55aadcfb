//! Folders of pods' logs. They outlive a reboot, which the records of sandboxes do not; and they lie where other
//! programs may have theirs.

use super::sandbox::remove_tree;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A file in each folder that names the run directory of the node whose pod it is: several nodes may share a machine.
const MARK: &str = ".edgelet";

/// Made already is success.
pub(super) fn make(folder: &Path, run_directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(MARK), run_directory.as_os_str().as_bytes())
}

/// Removes those of one pod.
pub(super) fn remove(directory: &Path, run_directory: &Path, pod_uid: &str) -> io::Result<()> {
    remove_where(directory, run_directory, |uid| uid == pod_uid)
}

/// Removes those of all pods but these.
pub(super) fn retain(directory: &Path, run_directory: &Path, pod_uids: &[String]) -> io::Result<()> {
    remove_where(directory, run_directory, |uid| !pod_uids.iter().any(|kept| kept == uid))
}

/// Goes on after errors and returns the first.
fn remove_where(directory: &Path, run_directory: &Path, goes: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut result = Ok(());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours =
            || std::fs::read(entry.path().join(MARK)).is_ok_and(|mark| mark == run_directory.as_os_str().as_bytes());
        if name.rsplit('_').next().is_some_and(&goes) && is_ours() {
            result = result.and(remove_tree(&entry.path()));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_pods_that_a_reboot_forgot_go_and_those_of_others_stay() {
        let directory = tempfile::tempdir().expect("folder");
        let folder = |name: &str| directory.path().join(name);
        let (here, elsewhere) = (Path::new("/run/edgelet"), Path::new("/run/other"));
        for (name, owner) in [("web_1", here), ("web_2", here), ("web_4", here), ("web_5", elsewhere)] {
            make(&folder(name), owner).expect("made");
            make(&folder(name), owner).expect("made again");
            std::fs::create_dir(folder(name).join("main")).expect("container");
        }
        std::fs::create_dir(folder("other_3")).expect("another program's");
        let there = || ["web_1", "web_2", "web_4", "web_5", "other_3"].map(|name| folder(name).exists());
        remove(directory.path(), here, "4").expect("removed");
        assert_eq!(there(), [true, true, false, true, true]);
        for uid in ["3", "5"] {
            remove(directory.path(), here, uid).expect("not ours");
        }
        retain(directory.path(), here, &["1".to_owned()]).expect("retained");
        assert_eq!(there(), [true, false, false, true, true]);
        retain(&folder("none"), here, &[]).expect("no logs yet");
    }
}
