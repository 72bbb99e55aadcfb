//! A server and its boards: joining, what runs where, and what a bad network and power cuts do to it.

use crate::bed::{Bed, SERVER_IP, can_run, pod};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub fn server_url() -> String {
    format!("https://{SERVER_IP}:6443")
}

/// Makes a board a node, as its owner would, with a token of its own; it runs when this returns.
pub fn join(bed: &mut Bed, name: &str, server: &str) {
    let token = bed.must(&["token", "create", "--uses", "1"]);
    bed.node(name).start(&["join", server, "--token", token.trim(), "--foreground"]);
}

/// A fleet with a pod `on-NODE` on every board.
fn fleet(name: &str, boards: &[(&str, &str)]) -> Bed {
    let mut bed = Bed::new(name);
    for (name, address) in boards {
        match *address {
            "router" => bed.add_behind_router(name),
            address => bed.add(name, address),
        }
        join(&mut bed, name, &server_url());
    }
    for (name, _) in boards {
        let waited = bed.until(&format!("{name} is Ready"), |bed| bed.ready(name) == "True");
        eprintln!("{name} Ready after {waited:?}");
        bed.apply(&pod(&format!("on-{name}"), name));
    }
    for (name, _) in boards {
        bed.until(&format!("the pod on {name} runs"), |bed| phase(bed, &format!("on-{name}")) == "Running");
    }
    bed
}

pub fn phase(bed: &Bed, pod: &str) -> String {
    bed.get(&["pod", pod])["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// What must stay as it is while the network is bad: pod → container and restarts.
fn running(bed: &Bed) -> BTreeMap<String, (String, u64)> {
    let pods = bed.get(&["pods"]);
    let one = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let id = container["containerID"].as_str().unwrap_or_default().to_owned();
        (pod["metadata"]["name"].as_str().unwrap().to_owned(), (id, container["restartCount"].as_u64().unwrap_or(99)))
    };
    pods["items"].as_array().unwrap().iter().map(one).collect()
}

/// No address twice.
fn check_addresses(bed: &Bed) {
    let pods = bed.get(&["pods"]);
    let mut seen = BTreeSet::new();
    for pod in pods["items"].as_array().unwrap() {
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        assert!(ip.is_empty() || seen.insert(ip.to_owned()), "{ip} is given twice\n{}", bed.scene());
    }
    let nodes = bed.get(&["nodes"]);
    let ranges: Vec<&str> =
        nodes["items"].as_array().unwrap().iter().filter_map(|n| n["spec"]["podCIDR"].as_str()).collect();
    assert_eq!(ranges.len(), ranges.iter().collect::<BTreeSet<_>>().len(), "{ranges:?}");
}

fn exec_reaches(bed: &Bed, node: &str) -> bool {
    let output = bed.edgelet(&["exec", &format!("on-{node}"), "--", "echo", "inside"]);
    output.stdout == b"inside\n"
}

#[test]
fn boards_on_the_lan_and_behind_a_router_run_pods_that_logs_and_exec_reach() {
    if !can_run() {
        return;
    }
    let bed = fleet("fleet", &[("a", "192.0.2.2"), ("n", "router")]);
    for name in ["a", "n"] {
        let pod = format!("on-{name}");
        bed.until("its log is there", |bed| !bed.must(&["logs", &pod]).is_empty());
        assert_eq!(bed.must(&["logs", &pod]), format!("hello from {name}\n"));
        assert!(exec_reaches(&bed, name), "{}", bed.scene());
        let output = bed.edgelet(&["exec", &pod, "--", "sh", "-c", "exit 7"]);
        assert_eq!(output.status.code(), Some(7));
    }
    check_addresses(&bed);
}

#[test]
fn boards_in_a_bad_network_are_told_truly_and_come_back_without_restarting_anything() {
    if !can_run() {
        return;
    }
    // Several minutes long: not part of every run.
    if std::env::var_os("EDGELET_BAD_NETWORK").is_none() {
        eprintln!("SKIPPED: set EDGELET_BAD_NETWORK=1 to try a fleet in a bad network");
        return;
    }
    let boards =
        [("mute", "192.0.2.2"), ("deaf", "192.0.2.3"), ("gone", "192.0.2.4"), ("lossy", "192.0.2.5"), ("n", "router")];
    let mut bed = fleet("trouble", &boards);
    let url = bed.detour(2.0);
    bed.add("far", "192.0.2.6");
    join(&mut bed, "far", &url);
    let waited = bed.until("a board two seconds away is Ready", |bed| bed.ready("far") == "True");
    eprintln!("with 2 s of delay each way Ready after {waited:?}");
    bed.apply(&pod("on-far", "far"));
    bed.until("its pod runs", |bed| phase(bed, "on-far") == "Running");
    let before = running(&bed);

    bed.cut("mute", true, false);
    bed.cut("deaf", false, true);
    bed.cut("gone", true, true);
    bed.lose("lossy", 30);
    for name in ["mute", "deaf", "gone"] {
        let waited = bed.until(&format!("{name} is Unknown"), |bed| bed.ready(name) == "Unknown");
        eprintln!("{name} Unknown after {waited:?}");
    }
    for name in ["n", "far"] {
        assert_eq!(bed.ready(name), "True", "{name}\n{}", bed.scene());
    }
    bed.until("exec reaches a board two seconds away", |bed| exec_reaches(bed, "far"));
    bed.until("exec reaches a board that loses a third", |bed| exec_reaches(bed, "lossy"));

    bed.heal();
    for (name, _) in boards {
        let waited = bed.until(&format!("{name} is Ready again"), |bed| bed.ready(name) == "True");
        eprintln!("{name} Ready {waited:?} after the network is whole");
        bed.until("exec reaches it", |bed| exec_reaches(bed, name));
    }

    bed.cut("server", true, true);
    std::thread::sleep(Duration::from_secs(50));
    bed.heal();
    for name in ["mute", "n", "far"] {
        let waited =
            bed.until(&format!("{name} is Ready again"), |bed| bed.ready(name) == "True" && exec_reaches(bed, name));
        eprintln!("{name} reached {waited:?} after the server is back");
    }

    let machine = &bed.nodes["gone"];
    machine.namespace.ip("addr add 192.0.2.44/24 dev eth0");
    machine.namespace.ip("addr del 192.0.2.4/24 dev eth0");
    let waited = bed.until("the board is found at its new address", |bed| {
        let node = bed.get(&["node", "gone"]);
        node["status"]["addresses"][0]["address"] == "192.0.2.44" && exec_reaches(bed, "gone")
    });
    eprintln!("reached {waited:?} after its address changed");
    assert_eq!(running(&bed), before, "nothing restarts for the network's sake\n{}", bed.scene());
    check_addresses(&bed);
}

#[test]
fn killed_servers_and_nodes_come_back_in_any_order() {
    if !can_run() {
        return;
    }
    let seed =
        std::env::var("EDGELET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("EDGELET_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let boards = [("a", "192.0.2.2"), ("b", "192.0.2.3"), ("n", "router")];
    let mut bed = fleet("storm", &boards);
    let before = running(&bed);
    for round in 0..6 {
        let server = random.bool();
        let mut killed: Vec<&str> = boards.iter().map(|(name, _)| *name).filter(|_| random.bool()).collect();
        random.shuffle(&mut killed);
        eprintln!("round {round}: killing {killed:?}{}", if server { " and the server" } else { "" });
        let server_first = random.bool();
        if server && server_first {
            bed.server.kill();
        }
        for name in &killed {
            bed.node(name).kill();
        }
        if server && !server_first {
            bed.server.kill();
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..3000)));
        random.shuffle(&mut killed);
        let nodes_first = random.bool();
        if nodes_first {
            killed.iter().for_each(|name| bed.node(name).start(&["node"]));
        }
        if server {
            bed.start_server();
        }
        if !nodes_first {
            killed.iter().for_each(|name| bed.node(name).start(&["node"]));
        }
        for (name, _) in boards {
            let what = format!("{name} is reached in round {round} of EDGELET_SEED={seed}");
            bed.until(&what, |bed| bed.ready(name) == "True" && exec_reaches(bed, name));
        }
        assert_eq!(running(&bed), before, "round {round} of EDGELET_SEED={seed}\n{}", bed.scene());
        check_addresses(&bed);
    }
}
