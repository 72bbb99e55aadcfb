//! `edgelet demo` in a network namespace and below a `/run` of its own.

use std::process::Command;

/// A file where the runtime wants a folder makes the node's start fail after the network is there.
const STORY: &str = r#"
mount -t tmpfs tmpfs /run && mkdir /run/edgelet-demo && touch /run/edgelet-demo/pods || exit 90
timeout 60 "$0" demo --once --data-dir "$1" && exit 91
ip link show edgedemo0 && exit 92
nft list tables | grep edge && exit 93
exit 0
"#;

#[test]
fn a_demo_whose_node_fails_half_way_takes_bridge_and_rules_back() {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", STORY])
        .arg(env!("CARGO_BIN_EXE_edgelet"))
        .arg(data.path().join("data"))
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("/pods") || said.contains("File exists") || said.contains("Not a directory"), "{said}");
}
