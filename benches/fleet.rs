//! What a joined board costs and how fast it is there: join → Ready, bytes on the wire at rest, memory, and how long
//! until a board is reached again after the network was cut. Needs root. Prints a table; asserts nothing about time.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a test ends at the first surprise"
)]

#[path = "../tests/node/bed.rs"]
mod bed;

use bed::{Bed, SERVER_IP, pod};
use std::time::{Duration, Instant};

const BOARDS: [(&str, &str); 3] = [("a", "192.0.2.2"), ("b", "192.0.2.3"), ("c", "192.0.2.4")];
/// Until the interval of the pings has grown to its last, and what came with the start has been said.
const SETTLE_S: u64 = 300;
const IDLE_S: u64 = 600;
const CUT: Duration = Duration::from_secs(60);

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return; // `cargo test --benches` asks; nothing is a test here.
    }
    let mut bed = Bed::new("bench");
    let url = format!("https://{SERVER_IP}:6443");
    for (name, address) in BOARDS {
        bed.add(name, address);
        let token = bed.must(&["token", "create"]);
        let begun = Instant::now();
        bed.node(name).start(&["join", &url, "--token", token.trim(), "--foreground"]);
        bed.until("Ready", |bed| bed.ready(name) == "True");
        bed.apply(&pod(&format!("on-{name}"), name));
        row("join → Ready", &format!("{:.2} s", begun.elapsed().as_secs_f64()));
    }
    std::thread::sleep(Duration::from_secs(SETTLE_S));
    let before: Vec<u64> = BOARDS.iter().map(|(name, _)| bed.nodes[*name].wire_bytes()).collect();
    BOARDS.iter().for_each(|(name, _)| bed.count(name));
    std::thread::sleep(Duration::from_secs(IDLE_S));
    for ((name, _), before) in BOARDS.iter().zip(before) {
        let per_day = |bytes: u64| format!("{:.2} MB a day", (bytes * 86_400 / IDLE_S) as f64 / 1e6);
        row("on the wire at rest, both ways", &per_day(bed.nodes[*name].wire_bytes() - before));
        for (cause, counted) in bed.counted(name) {
            row(&format!("  {cause}, {} frames", counted.frames), &per_day(counted.bytes));
        }
        let pid = bed.nodes[*name].pid();
        row("memory of a node at rest (PSS)", &megabytes(rolled_up_bytes(pid, "Pss:")));
        // The processes of this bed share the program's pages; on a board of its own a node has them to itself.
        row("  the same alone on its board (RSS)", &megabytes(rolled_up_bytes(pid, "Rss:")));
    }
    row("memory of the server and its own node (PSS)", &megabytes(rolled_up_bytes(bed.server.pid(), "Pss:")));

    bed.cut("a", true, true);
    std::thread::sleep(CUT);
    bed.heal();
    let waited = bed.until("Ready again", |bed| bed.ready("a") == "True");
    row("network whole again after a minute → Ready", &format!("{:.2} s", waited.as_secs_f64()));
    bed.server.kill();
    bed.start_server();
    let begun = Instant::now();
    for (name, _) in BOARDS {
        bed.until("reached", |bed| bed.edgelet(&["exec", &format!("on-{name}"), "--", "echo"]).status.success());
    }
    row("server answers after kill -9 → all boards reached", &format!("{:.2} s", begun.elapsed().as_secs_f64()));
}

fn row(what: &str, value: &str) {
    println!("{what:<52} {value:>16}");
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A line of what a process maps; the holder `nsenter` has become edgelet itself.
fn rolled_up_bytes(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
