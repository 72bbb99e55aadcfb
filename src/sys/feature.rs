//! Which features the kernel has: loaded, built in or loadable modules.

use std::path::Path;

/// `feature` is a module's name, spelt with underscores. A kernel without lists of its modules is taken for one
/// that has everything built in. Reads the lists of modules: not to be asked periodically.
pub fn present(root: &Path, feature: &str) -> bool {
    if root.join("sys/module").join(feature).exists() {
        return true;
    }
    let release = std::fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let folder = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place).join(release.trim()));
    let Some(folder) = folder.into_iter().find(|folder| folder.exists()) else { return true };
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        let list = std::fs::read_to_string(folder.join(list)).unwrap_or_default();
        list.lines().any(|line| line.split(':').next().is_some_and(|path| names(path, feature)))
    })
}

/// `kernel/net/ipv4/nf-tables.ko.xz` is the module `nf_tables`.
fn names(path: &str, feature: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next().is_some_and(|module| module.replace('-', "_") == feature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn modules_are_loaded_built_in_or_listed() {
        let root = tempfile::tempdir().expect("folder");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("inside")).expect("folder");
            fs::write(path, text).expect("file");
        };
        assert!(present(root.path(), "vxlan"), "no lists: everything may be built in");
        put("proc/sys/kernel/osrelease", "6.12.1-v8\n");
        put("lib/modules/6.12.1-v8/modules.builtin", "kernel/net/bridge/bridge.ko\n");
        put(
            "lib/modules/6.12.1-v8/modules.dep",
            "kernel/fs/overlayfs/overlay.ko.xz:\nkernel/drivers/net/my-vxlan.ko: a\n",
        );
        put("sys/module/veth/refcnt", "0");
        for (feature, have) in [("bridge", true), ("overlay", true), ("veth", true), ("vxlan", false)] {
            assert_eq!(present(root.path(), feature), have, "{feature}");
        }
    }
}
