//! How long a board takes from edgelet's start until its 20 pods are Ready, after a power cut and with no server.
//! Run: `cargo bench --bench boot`. Needs root; asserts nothing about time.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark ends at the first surprise; it uses a part of the test bed"
)]

#[path = "../tests/node/bed.rs"]
mod bed;
#[path = "../tests/node/fleet.rs"]
mod fleet;
#[path = "../tests/node/power.rs"]
mod power;

const ROUNDS: usize = 3;

fn main() {
    if std::env::args().any(|argument| argument == "--list") || !bed::can_run() {
        return; // `cargo test --benches` asks; nothing is a test here.
    }
    for _ in 0..ROUNDS {
        let took = power::boot_without_server();
        println!("{} pods Ready after the start of edgelet, with no server: {:.2} s", power::PODS, took.as_secs_f64());
    }
}
