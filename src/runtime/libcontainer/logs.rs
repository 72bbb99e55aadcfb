//! Folders of pods' logs. They outlive a reboot, which the records of sandboxes do not; and they lie where other
//! programs may have theirs.

use super::sandbox::remove_tree;
use std::io;
use std::path::Path;

/// A file in each folder that is ours.
const MARK: &str = ".edgelet";

/// Made already is success.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::File::create(folder.join(MARK)).map(drop)
}

/// Removes ours of all pods but these. Goes on after errors and returns the first.
pub(super) fn retain(directory: &Path, pod_uids: &[String]) -> io::Result<()> {
    let mut result = Ok(());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kept = name.rsplit('_').next().is_some_and(|uid| pod_uids.iter().any(|kept| kept == uid));
        if !kept && entry.path().join(MARK).exists() {
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
        for name in ["default_web_1", "default_web_2"] {
            make(&folder(name)).expect("made");
            make(&folder(name)).expect("made again");
            std::fs::create_dir(folder(name).join("main")).expect("container");
        }
        std::fs::create_dir(folder("default_other_3")).expect("another program's");
        retain(directory.path(), &["1".to_owned()]).expect("retained");
        let there = ["default_web_1", "default_web_2", "default_other_3"].map(|name| folder(name).exists());
        assert_eq!(there, [true, false, true]);
        retain(&folder("none"), &[]).expect("no logs yet");
    }
}
