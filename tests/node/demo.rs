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

/// Signals from the moment at which nothing is made yet to the one at which all is, whatever that takes here; then
/// beside another's pods.
/// By its path: a busybox shell would take its own.
const ENDED_EARLY: &str = r#"
mount -t tmpfs tmpfs /run && ip link set lo up || exit 90
now() { cut -d ' ' -f 1 /proc/uptime; }
began=$(now)
"$0" demo --once --data-dir "$1" || exit 89
ended=$(now)
for part in 3 12 25 37 50 62 75 87 100 112; do
    after=$(awk "BEGIN { print ($ended - $began) * $part / 100 }")
    /usr/bin/timeout --preserve-status -k 30 -s INT $after "$0" demo --data-dir "$1"
    # 130: on a busy machine the signal may come before the program has begun, and the kernel ends it.
    case $? in 0|130) ;; *) exit 91 ;; esac
    [ -e "$1" ] && exit 92
    [ -e /run/edgelet-demo ] && exit 93
    ip link show edgedemo0 && exit 94
    nft list tables | grep edge && exit 95
    ls -d /sys/fs/cgroup/edgelet-demo /sys/fs/cgroup/*/edgelet-demo && exit 96
done
ip link add edge0 type bridge && ip addr add 10.42.0.1/24 dev edge0 && ip link set edge0 up || exit 97
timeout 30 "$0" demo --data-dir "$1" && exit 98
[ -e "$1" ] && exit 99
exit 0
"#;

#[test]
fn the_first_signal_walks_a_demo_back_wherever_it_arrives_and_it_refuses_a_taken_network() {
    let said = tell(ENDED_EARLY);
    assert!(said.contains("walking the steps back"), "{said}");
    assert!(said.contains("device edge0 has 10.42.0.0/24 on this machine"), "{said}");
}

#[test]
fn a_demo_whose_node_fails_half_way_takes_bridge_and_rules_back() {
    let said = tell(STORY);
    assert!(said.contains("/pods") || said.contains("File exists") || said.contains("Not a directory"), "{said}");
}

/// Runs a story with the program and a folder that is not there yet; what it said.
fn tell(story: &str) -> String {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", story])
        .arg(env!("CARGO_BIN_EXE_edgelet"))
        .arg(data.path().join("data"))
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}
