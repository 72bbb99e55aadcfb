//! From a token to pods that run: a board joins, works, and is reached through the tunnel that it opened.

use super::fleet::{Fleet, condition, deployment, seconds};
use edgelet::api::object::ObjectExt;
use edgelet::client::{CERTIFICATESIGNINGREQUESTS, DEPLOYMENTS, LEASES, PODS};
use edgelet::node::joining::Step;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::collections::BTreeMap;
use tokio_tungstenite::tungstenite::Message;

fn spread(pods: &[Value]) -> BTreeMap<String, usize> {
    let mut nodes = BTreeMap::new();
    for pod in pods.iter().filter(|pod| condition(pod, "Ready") == "True") {
        *nodes.entry(pod.str_at(&["spec", "nodeName"]).to_owned()).or_default() += 1;
    }
    nodes
}

#[tokio::test(start_paused = true)]
async fn boards_join_with_a_token_and_a_deployment_spreads_over_them() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    for board in &boards {
        let steps = board.steps.lock().unwrap().clone();
        assert!(
            matches!(steps[..], [Step::Trusted, Step::ClockAgrees, Step::Certified { .. }, Step::Informed]),
            "{steps:?}"
        );
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(board.folder.path().join("node/node.key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
    let cidrs: Vec<String> = {
        let nodes = fleet.list(edgelet::client::NODES, "").await;
        nodes.iter().map(|node| node.str_at(&["spec", "podCIDR"]).to_owned()).collect()
    };
    assert_eq!(cidrs.len(), 3);
    assert!(cidrs.iter().all(|cidr| cidrs.iter().filter(|other| *other == cidr).count() == 1), "{cidrs:?}");
    let requests = fleet.list(CERTIFICATESIGNINGREQUESTS, "").await;
    assert_eq!(requests.len(), 3, "one each");

    fleet.create(DEPLOYMENTS, "default", deployment("web", 6)).await;
    let pods = fleet.until("six pods are ready", PODS, |pods| spread(pods).values().sum::<usize>() == 6).await;
    assert!(spread(&pods).values().all(|count| *count == 2), "{:?}", spread(&pods));
    let mut addresses: Vec<&str> = pods.iter().map(|pod| pod.str_at(&["status", "podIP"])).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 6, "{addresses:?}");
    for board in &boards {
        let theirs = pods.iter().filter(|pod| pod.str_at(&["spec", "nodeName"]) == board.name);
        assert!(theirs.clone().all(|pod| board.starts(pod) == 1));
        assert_eq!(board.pods().await.len(), theirs.count());
    }

    // An hour of peace: the tunnels' pings keep the nodes, and nothing else is said.
    let calls: Vec<u64> = boards.iter().map(|board| board.line.calls()).collect();
    seconds(3600).await;
    assert_eq!(spread(&fleet.list(PODS, "").await).values().sum::<usize>(), 6);
    assert!(boards.iter().zip(calls).all(|(board, calls)| board.line.calls() <= calls + 3), "connections are kept");
    for lease in fleet.list(LEASES, "kube-node-lease").await {
        let renewed: jiff::Timestamp = lease.str_at(&["spec", "renewTime"]).parse().unwrap();
        assert!(fleet.clock.now().duration_since(renewed).as_secs() <= 40, "{lease}");
    }
}

#[tokio::test(start_paused = true)]
async fn logs_and_commands_come_through_the_tunnel() {
    let (fleet, boards) = Fleet::of(&["one"]).await;
    fleet.create(DEPLOYMENTS, "default", deployment("web", 1)).await;
    let pods = fleet.until("the pod is ready", PODS, |pods| spread(pods).len() == 1).await;
    let pod = format!("/api/v1/namespaces/default/pods/{}", pods[0].name());
    let log = fleet.remote.stream(&format!("{pod}/log")).await.unwrap().bytes().await.unwrap();
    assert_eq!(&log[..], b"c started\n");

    let exec = format!("{pod}/exec?command=echo&command=hello&stdin=true&stdout=true");
    let mut socket = fleet.remote.websocket(&exec, "v5.channel.k8s.io").await.unwrap();
    let mut said = Vec::new();
    socket.send(Message::binary(b"\0more".to_vec())).await.unwrap();
    while !said.ends_with(b"more") {
        let message = socket.next().await.unwrap().unwrap().into_data();
        if message.first() == Some(&1) {
            said.extend_from_slice(&message[1..]);
        }
    }
    assert_eq!(said, b"echo hello\nmore");

    // Without its tunnel the node cannot be reached, and that is what is said.
    boards[0].line.cut();
    boards[0].line.tear();
    seconds(70).await;
    let error = fleet.remote.stream(&format!("{pod}/log")).await.err().unwrap();
    assert!(error.message.contains("node one is not connected"), "{error}");
    boards[0].line.mend();
    boards[0].connected().await;
    seconds(1).await;
    let log = fleet.remote.stream(&format!("{pod}/log")).await.unwrap().bytes().await.unwrap();
    assert_eq!(&log[..], b"c started\n");
    assert_eq!(boards[0].starts(&pods[0]), 1);
}

#[tokio::test(start_paused = true)]
async fn a_board_without_a_clock_joins_by_the_servers_time() {
    let fleet = Fleet::new().await;
    let token = fleet.token(|token| token.uses = Some(1)).await;
    let mut board = fleet.board_with_clock("one", jiff::Timestamp::UNIX_EPOCH);
    board.join(&token).await.unwrap();
    assert!(board.steps.lock().unwrap().iter().any(|step| matches!(step, Step::ClockCorrected { .. })));
    board.start().await;
    let node = fleet.ready("one").await;
    let heartbeat = node.at(&["status", "conditions"]).unwrap()[0].str_at(&["lastHeartbeatTime"]).to_owned();
    assert!(heartbeat.starts_with("2026-11-23"), "{heartbeat}");

    let error = fleet.board("two").join(&token).await.unwrap_err().to_string();
    assert!(error.contains("no uses left"), "{error}");
}
