//! `edgelet install` and `uninstall` in a tree of their own, with a systemctl that only writes down what it is told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn edgelet(tools: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelet"));
    command.args(arguments).env("PATH", tools).output().expect("edgelet runs")
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_image_s_tree_is_installed_into_and_cleaned_again() {
    let folder = tempfile::tempdir().unwrap();
    let (tools, root) = (folder.path().join("tools"), folder.path().join("root"));
    std::fs::create_dir_all(&tools).unwrap();
    std::fs::create_dir_all(root.join("etc/systemd")).unwrap();
    let systemctl = tools.join("systemctl");
    let calls = folder.path().join("calls");
    std::fs::write(&systemctl, format!("#!/bin/sh\necho \"$*\" >>{}\n", calls.display())).unwrap();
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let there = root.to_str().unwrap();

    let installed = edgelet(&tools, &["install", "--node", "--root", there]);
    assert!(installed.status.success(), "{}", told(&installed));
    assert_eq!(
        std::fs::read_to_string(&calls).unwrap(),
        format!("--quiet --root={there} enable edgelet-node.service\n"),
        "nothing is started in another tree"
    );
    let unit = std::fs::read_to_string(root.join("etc/systemd/system/edgelet-node.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/edgelet node\n"));
    let program = std::fs::metadata(root.join("usr/local/bin/edgelet")).unwrap();
    assert_eq!(program.permissions().mode() & 0o777, 0o755);

    std::fs::write(root.join("etc/edgelet/config.yaml"), "node-name: kitchen\n").unwrap();
    let again = edgelet(&tools, &["install", "--node", "--root", there]);
    assert!(told(&again).contains("kept"), "{}", told(&again));
    assert_eq!(std::fs::read_to_string(root.join("etc/edgelet/config.yaml")).unwrap(), "node-name: kitchen\n");

    let asked = edgelet(&tools, &["uninstall", "--root", there]);
    assert!(!asked.status.success() && told(&asked).contains("--yes"), "{}", told(&asked));
    let gone = edgelet(&tools, &["uninstall", "--yes", "--root", there]);
    assert!(gone.status.success(), "{}", told(&gone));
    for path in ["usr/local/bin/edgelet", "etc/systemd/system/edgelet-node.service", "etc/edgelet"] {
        assert!(!root.join(path).exists(), "{path} is left");
    }
}
