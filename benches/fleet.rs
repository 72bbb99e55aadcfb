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
/// Time to settle before, and length of, the measurement at rest.
const SETTLE_S: u64 = 60;
const IDLE_S: u64 = 300;
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
    std::thread::sleep(Duration::from_secs(IDLE_S));
    for ((name, _), before) in BOARDS.iter().zip(before) {
        let day = (bed.nodes[*name].wire_bytes() - before) * 86_400 / IDLE_S;
        row("on the wire at rest, both ways", &format!("{:.2} MB a day", day as f64 / 1e6));
        row("memory of a node at rest (PSS)", &format!("{:.1} MB", pss_bytes(bed.nodes[*name].pid()) as f64 / 1e6));
    }
    row("memory of the server and its own node (PSS)", &format!("{:.1} MB", pss_bytes(bed.server.pid()) as f64 / 1e6));

    bed.cut("a", true, true);
    std::thread::sleep(CUT);
    bed.heal();
    let waited = bed.until("Ready again", |bed| bed.ready("a") == "True");
    row("network whole again after a minute → Ready", &format!("{:.2} s", waited.as_secs_f64()));
    bed.server.kill();
    bed.start_server();
    let begun = Instant::now();
    for (name, _) in BOARDS {
        bed.until("reached", |bed| bed.edgelet(&["exec", &format!("on-{name}"), "--", "true"]).status.success());
    }
    row("server answers after kill -9 → all boards reached", &format!("{:.2} s", begun.elapsed().as_secs_f64()));
}

fn row(what: &str, value: &str) {
    println!("{what:<52} {value:>16}");
}

/// Of a process; the holder `nsenter` has become edgelet itself.
fn pss_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
