//! Streams through the tunnel of a board that nothing reaches: more bytes than any window, both ways, at once.

use crate::bed::{Bed, IMAGE, SERVER_IP, can_run};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const MEGABYTE: usize = 1 << 20;

fn pod() -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: far}}
spec:
  nodeName: n
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: "{IMAGE}", command: [sh, -c, "exec nc -ll -p 7000 -e cat"]}}
"#
    )
}

/// A program in the background that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

/// All that comes back while this goes in, and ends.
fn through(mut running: Running, sent: &[u8]) -> Vec<u8> {
    let mut received = Vec::with_capacity(sent.len());
    let mut input = running.0.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(sent).unwrap());
        running.0.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    });
    received
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

#[test]
fn a_board_behind_a_router_is_reached_by_streams_larger_than_any_window() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("streams");
    bed.add_behind_router("n");
    let token = bed.must(&["token", "create"]);
    let server = format!("https://{SERVER_IP}:6443");
    bed.node("n").start(&["join", &server, "--token", token.trim(), "--foreground"]);
    bed.until("n is Ready", |bed| bed.ready("n") == "True");
    bed.apply(&pod());
    bed.until("the pod runs", |bed| bed.get(&["pod", "far"])["status"]["phase"] == "Running");

    let edgelet = |arguments: &[&str]| {
        let mut command = bed.server.namespace.run("timeout");
        // Killed, `timeout` leaves its child alone; the kernel does not.
        command.args(["60", "setpriv", "--pdeathsig", "KILL"]).arg(env!("CARGO_BIN_EXE_edgelet")).args(arguments);
        command.env("KUBECONFIG", bed.server.data().join("kubeconfig"));
        started(&mut command)
    };
    let sent = bytes(1, 3 * MEGABYTE);
    assert!(through(edgelet(&["exec", "-i", "far", "--", "cat"]), &sent) == sent, "the bytes differ");

    let mut forwarding = edgelet(&["port-forward", "far", ":7000"]);
    let mut line = String::new();
    BufReader::new(forwarding.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" -> "));
    let port = port.unwrap_or_else(|| panic!("{line:?}")).0.to_owned();
    let echo = |seed, length| {
        let client = started(bed.server.namespace.run("busybox").args(["nc", "127.0.0.1", &port]));
        let sent = bytes(seed, length);
        let begun = Instant::now();
        assert!(through(client, &sent) == sent, "the bytes differ");
        begun.elapsed()
    };
    eprintln!("10 MB there and back through the tunnel in {:?}", echo(2, 10 * MEGABYTE));
    let echo = &echo;
    std::thread::scope(|scope| {
        for seed in 10..16 {
            scope.spawn(move || echo(seed, MEGABYTE));
        }
    });
}
