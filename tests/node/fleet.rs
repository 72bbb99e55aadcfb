//! A server and its boards: joining, what runs where, and what a bad network and power cuts do to it.

use crate::bed::{Bed, SERVER_IP, can_run, pod};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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

/// Waits until every one of these boards is Ready and reached, and checks that the network has restarted nothing.
fn come_back(bed: &Bed, boards: &[(&str, &str)], before: &BTreeMap<String, (String, u64)>) {
    for (name, _) in boards {
        let what = format!("{name} is Ready and reached again");
        let waited = bed.until(&what, |bed| bed.ready(name) == "True" && exec_reaches(bed, name));
        eprintln!("{name} reached {waited:?} after the network is whole");
    }
    assert_eq!(&running(bed), before, "nothing restarts for the network's sake\n{}", bed.scene());
    check_addresses(bed);
}

#[test]
fn boards_that_are_cut_off_in_one_direction_or_both_are_unknown_and_come_back_whole() {
    if !can_run() {
        return;
    }
    let boards = [("mute", "192.0.2.2"), ("deaf", "192.0.2.3"), ("gone", "192.0.2.4"), ("n", "router")];
    let bed = fleet("partition", &boards);
    let before = running(&bed);
    bed.cut("mute", true, false);
    bed.cut("deaf", false, true);
    bed.cut("gone", true, true);
    for name in ["mute", "deaf", "gone"] {
        let waited = bed.until(&format!("{name} is Unknown"), |bed| bed.ready(name) == "Unknown");
        eprintln!("{name} Unknown after {waited:?}");
    }
    assert_eq!(bed.ready("n"), "True", "others are told truly\n{}", bed.scene());
    bed.heal();
    come_back(&bed, &boards, &before);
}

#[test]
fn boards_that_lose_a_third_or_are_two_seconds_away_stay_ready_and_are_reached() {
    if !can_run() {
        return;
    }
    let mut bed = fleet("bad-links", &[("lossy", "192.0.2.5")]);
    let url = bed.detour();
    bed.add("far", "192.0.2.6");
    join(&mut bed, "far", &url);
    bed.until("a board on a detour is Ready", |bed| bed.ready("far") == "True");
    bed.apply(&pod("on-far", "far"));
    bed.until("its pod runs", |bed| phase(bed, "on-far") == "Running");
    let before = running(&bed);
    bed.lose("lossy", 30);
    bed.delay(2.0);
    bed.until("exec reaches a board that loses a third", |bed| exec_reaches(bed, "lossy"));
    bed.until("exec reaches a board two seconds away", |bed| exec_reaches(bed, "far"));
    assert_eq!(bed.ready("far"), "True", "{}", bed.scene());
    bed.heal();
    bed.delay(0.0);
    come_back(&bed, &[("lossy", ""), ("far", "")], &before);
}

/// Joining takes some 25 times there and back.
#[test]
fn a_board_two_seconds_away_joins_and_runs_pods() {
    if !can_run() {
        return;
    }
    if std::env::var_os("EDGELET_BAD_NETWORK").is_none() {
        eprintln!("SKIPPED: it takes two minutes; set EDGELET_BAD_NETWORK=1 to join a board over a very slow network");
        return;
    }
    let mut bed = Bed::new("slow-join");
    let url = bed.detour();
    bed.delay(2.0);
    bed.add("far", "192.0.2.6");
    join(&mut bed, "far", &url);
    let waited = bed.until_within(300, "a board two seconds away is Ready", |bed| bed.ready("far") == "True");
    eprintln!("with 2 s of delay each way Ready after {waited:?}");
    bed.apply(&pod("on-far", "far"));
    bed.until("its pod runs", |bed| phase(bed, "on-far") == "Running");
    bed.until("exec reaches it", |bed| exec_reaches(bed, "far"));
}

#[test]
fn a_server_that_was_cut_off_finds_its_boards_again() {
    if !can_run() {
        return;
    }
    let boards = [("a", "192.0.2.2"), ("n", "router")];
    let bed = fleet("lonely", &boards);
    let before = running(&bed);
    bed.cut("server", true, true);
    for (name, _) in boards {
        bed.until("the server knows nothing of its boards", |bed| bed.ready(name) == "Unknown");
    }
    bed.heal();
    come_back(&bed, &boards, &before);
}

#[test]
fn a_server_that_dies_as_soon_as_a_board_is_back_reaches_all_of_them_again() {
    if !can_run() {
        return;
    }
    let boards = [("a", "192.0.2.2"), ("b", "192.0.2.3")];
    let mut bed = fleet("dies", &boards);
    bed.cut("a", true, true);
    bed.until("its loss is noticed", |bed| bed.ready("a") != "True");
    bed.heal();
    bed.until("it is back", |bed| bed.ready("a") == "True");
    bed.server.kill();
    bed.start_server();
    for (name, _) in boards {
        bed.until("exec reaches it", |bed| exec_reaches(bed, name));
    }
}

#[test]
fn a_board_with_a_new_address_is_found_there() {
    if !can_run() {
        return;
    }
    let boards = [("a", "192.0.2.2"), ("b", "192.0.2.3")];
    let bed = fleet("moving", &boards);
    let before = running(&bed);
    let machine = &bed.nodes["a"];
    // In this order: the kernel takes a second address of a network away with the first.
    machine.namespace.ip("addr del 192.0.2.2/24 dev eth0");
    machine.namespace.ip("addr add 192.0.2.44/24 dev eth0");
    let waited = bed.until("the board is found at its new address", |bed| {
        let node = bed.get(&["node", "a"]);
        node["status"]["addresses"][0]["address"] == "192.0.2.44" && exec_reaches(bed, "a")
    });
    eprintln!("reached {waited:?} after its address changed");
    bed.until("its peer sends packets of pods there", |bed| {
        bed.nodes["b"].paths().contains("192.0.2.44") && bed.nodes["b"].way("a") == ("route".into(), "works".into())
    });
    come_back(&bed, &boards, &before);
}

/// What must hold once everything has settled.
fn check_fleet(bed: &Bed, what: &str) {
    check_addresses(bed);
    let pods = bed.get(&["pods"]);
    let items = pods["items"].as_array().unwrap();
    // No pod on two nodes: each board's own list holds what the API says of it, and nothing else.
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for machine in std::iter::once(&bed.server).chain(bed.nodes.values()) {
        let list: Value = serde_json::from_slice(&machine.local(&["get", "pods", "-A", "-o", "json"]).stdout)
            .unwrap_or_else(|_| serde_json::json!({"items": []}));
        for pod in list["items"].as_array().unwrap() {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            let other = places.insert(name.clone(), machine.name.clone());
            assert_eq!(other, None, "{name} is on {} too: {what}\n{}", machine.name, bed.scene());
            let known = items.iter().find(|one| one["metadata"]["uid"] == pod["metadata"]["uid"]);
            assert_eq!(known.map(|one| &one["spec"]["nodeName"]), Some(&Value::from(machine.name.clone())), "{name}");
        }
    }
    assert_eq!(places.len(), items.len(), "{places:?}: {what}\n{}", bed.scene());
    // Endpoints are those of the pods that are ready, each once.
    let slices = || bed.get(&["endpointslices", "-l", "kubernetes.io/service-name=all"]);
    let addresses = |list: &Value| -> BTreeSet<String> {
        let slices = list["items"].as_array().unwrap().iter().flat_map(|slice| slice["endpoints"].as_array().cloned());
        let ready = slices.flatten().filter(|endpoint| endpoint["conditions"]["ready"] == true);
        ready.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
    };
    let wanted: BTreeSet<String> =
        items.iter().filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect();
    let settled = |_: &Bed| addresses(&slices()) == wanted;
    bed.until(&format!("endpoints are those of the living pods: {what}"), settled);
}

/// Whether a pod on each board reaches the pods of all others.
fn pods_talk(bed: &Bed, boards: &[(&str, &str)]) -> bool {
    let ip_of = |name: &str| bed.get(&["pod", &format!("on-{name}")])["status"]["podIP"].as_str().unwrap().to_owned();
    let ips: Vec<(&str, String)> = boards.iter().map(|(name, _)| (*name, ip_of(name))).collect();
    boards.iter().all(|(from, _)| {
        ips.iter().filter(|(to, _)| to != from).all(|(_, ip)| {
            bed.edgelet(&["exec", &format!("on-{from}"), "--", "ping", "-c", "1", "-W", "2", ip]).status.success()
        })
    })
}

const ALL: &str = "
apiVersion: v1
kind: Service
metadata: {name: all}
spec: {selector: {fleet: storm}, ports: [{port: 80}]}
";

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
    bed.apply(ALL);
    let before = running(&bed);
    for round in 0..5 {
        let server = random.bool();
        let mut killed: Vec<&str> = boards.iter().map(|(name, _)| *name).filter(|_| random.bool()).collect();
        random.shuffle(&mut killed);
        // What leaves a board, what reaches it, or both, from before the kills until some time after.
        let mut cut: Vec<(&str, bool, bool)> = Vec::new();
        for (name, _) in boards.iter().filter(|(_, address)| *address != "router").chain(&[("server", "")]) {
            if random.u8(..) < 90 {
                let sent = random.bool();
                cut.push((name, sent, !sent || random.bool()));
            }
        }
        eprintln!("round {round}: killing {killed:?}{}, cutting {cut:?}", if server { " and the server" } else { "" });
        cut.iter().for_each(|(name, sent, received)| bed.cut(name, *sent, *received));
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
        if !cut.is_empty() {
            std::thread::sleep(Duration::from_millis(random.u64(0..15_000)));
            bed.heal();
        }
        let (what, healed) = (format!("round {round} of EDGELET_SEED={seed}"), Instant::now());
        for (name, _) in boards {
            bed.until(&format!("{name} is reached: {what}"), |bed| {
                bed.ready(name) == "True" && exec_reaches(bed, name)
            });
        }
        assert_eq!(running(&bed), before, "{what}\n{}", bed.scene());
        check_fleet(&bed, &what);
        bed.until(&format!("pods talk: {what}"), |bed| pods_talk(bed, &boards));
        eprintln!("round {round}: all is well after {:?}", healed.elapsed());
    }
}
