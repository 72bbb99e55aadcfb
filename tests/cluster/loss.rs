//! Nodes that are lost while things change: what is rescheduled, what waits, and what nodes give up when they return.

use super::fleet::{Board, Fleet, condition, deployment, seconds};
use edgelet::api::object::ObjectExt;
use edgelet::client::{DAEMONSETS, DEPLOYMENTS, NODES, PODDISRUPTIONBUDGETS, PODS};
use edgelet::registry::DeleteOptions;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn node(pod: &Value) -> &str {
    pod.str_at(&["spec", "nodeName"])
}

fn image(pod: &Value) -> &str {
    pod.at(&["spec", "containers"]).map_or("", |all| all[0].str_at(&["image"]))
}

fn is_running(pod: &Value) -> bool {
    condition(pod, "Ready") == "True" && pod.deletion_timestamp().is_none()
}

/// Boards and API agree: what runs is known, and runs once.
async fn agree(fleet: &Fleet, boards: &[Board]) {
    let pods = fleet.list(PODS, "").await;
    let mut seen = BTreeMap::new();
    for board in boards {
        for uid in board.pods().await {
            let other = seen.insert(uid.clone(), &board.name);
            assert!(other.is_none(), "pod {uid} runs on {} and {}", board.name, other.unwrap());
            let known = pods.iter().find(|pod| pod.uid() == uid);
            assert_eq!(known.map(node), Some(board.name.as_str()), "pod {uid} of {}", board.name);
        }
    }
    assert_eq!(seen.len(), pods.len(), "every pod runs: {pods:?}");
}

async fn converged(fleet: &Fleet, count: usize, wanted_image: &str) -> Vec<Value> {
    for _ in 0..1200 {
        let pods = fleet.list(PODS, "").await;
        if pods.len() == count && pods.iter().all(|pod| is_running(pod) && image(pod) == wanted_image) {
            return pods;
        }
        seconds(1).await;
    }
    let pods = fleet.list(PODS, "").await;
    let shown = pods.iter().map(|pod| format!("{} {} {} {}", pod.name(), node(pod), image(pod), is_running(pod)));
    panic!("not {count} pods of {wanted_image} within twenty minutes: {:?}", shown.collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_rolled_over_while_a_node_is_lost_and_the_node_gives_up_its_pods() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    fleet.create(DEPLOYMENTS, "default", deployment("web", 6)).await;
    let old = converged(&fleet, 6, "app:1").await;
    assert!(old.iter().any(|pod| node(pod) == "two"));
    let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "app:2"}]}}}});
    fleet.patch(DEPLOYMENTS, "default", "web", "", new).await;
    boards[1].line.cut();
    // At every moment enough pods serve, as far as the server can know: 6 - 25 %, and two of them may be on the node.
    let mut gone = false;
    for _ in 0..900 {
        seconds(1).await;
        let pods = fleet.list(PODS, "").await;
        let ready = pods.iter().filter(|pod| is_running(pod)).count();
        assert!(ready >= 2, "{ready} ready");
        let elsewhere = pods.iter().filter(|pod| is_running(pod) && node(pod) != "two" && image(pod) == "app:2");
        gone = elsewhere.count() == 6;
        if gone {
            break;
        }
    }
    assert!(gone, "rolled out without the lost node");
    let left: Vec<Value> = fleet.list(PODS, "").await.into_iter().filter(|pod| node(pod) == "two").collect();
    assert!(left.iter().all(|pod| pod.deletion_timestamp().is_some()), "shown as ending, not as gone");
    assert!(!boards[1].pods().await.is_empty(), "and so it is: the node runs them on");

    boards[1].line.mend();
    boards[1].connected().await;
    converged(&fleet, 6, "app:2").await;
    assert!(boards[1].pods().await.is_empty(), "given up");
    fleet.ready("two").await;
    agree(&fleet, &boards).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_is_rolled_over_while_a_node_is_lost_and_when_it_returns() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    let mut daemon = deployment("agent", 0);
    daemon["spec"].as_object_mut().unwrap().remove("replicas");
    fleet.create(DAEMONSETS, "default", daemon).await;
    let old = converged(&fleet, 3, "app:1").await;
    boards[1].line.cut();
    seconds(60).await;
    let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "app:2"}]}}}});
    fleet.patch(DAEMONSETS, "default", "agent", "", new).await;
    seconds(1200).await;
    let pods = fleet.list(PODS, "").await;
    let lost = old.iter().find(|pod| node(pod) == "two").unwrap();
    assert_eq!(boards[1].pods().await, [lost.uid()], "a daemon is not evicted from a lost node");
    for name in ["one", "three"] {
        let there = pods.iter().filter(|pod| node(pod) == name && pod.deletion_timestamp().is_none()).count();
        assert_eq!(there, 1, "{name}");
    }
    boards[1].line.mend();
    boards[1].connected().await;
    converged(&fleet, 3, "app:2").await;
    agree(&fleet, &boards).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_evicted_when_their_toleration_ends_and_a_name_is_not_given_twice() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    let pod = |name: &str, seconds: Value| {
        let mut toleration =
            json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"});
        if !seconds.is_null() {
            toleration["tolerationSeconds"] = seconds;
        }
        json!({"metadata": {"name": name}, "spec": {"nodeName": "one", "tolerations": [toleration],
            "containers": [{"name": "c", "image": "app:1"}]}})
    };
    for (name, tolerates) in [("brief", json!(30)), ("patient", json!(600)), ("loyal", Value::Null)] {
        fleet.create(PODS, "default", pod(name, tolerates)).await;
        fleet.ready_pod(name).await;
    }
    boards[0].line.cut();
    let deleting = async || -> Vec<String> {
        let pods = fleet.list(PODS, "").await;
        let going = pods.iter().filter(|pod| pod.deletion_timestamp().is_some());
        going.map(|pod| pod.name().to_owned()).collect()
    };
    let begun = tokio::time::Instant::now();
    let mut evicted = BTreeMap::new();
    while begun.elapsed().as_secs() < 1000 {
        for name in deleting().await {
            evicted.entry(name).or_insert(begun.elapsed().as_secs());
        }
        seconds(1).await;
    }
    // The last sign of life may be a ping's interval and a Lease's pause before the cut.
    assert!((25..=90).contains(&evicted["brief"]), "{evicted:?}");
    assert!((600..=660).contains(&evicted["patient"]), "{evicted:?}");
    assert!(!evicted.contains_key("loyal"), "{evicted:?}");
    assert_eq!(boards[0].pods().await.len(), 3, "the node cannot know, and runs on");
    let again = json!({"metadata": {"name": "brief"}, "spec": {"containers": [{"name": "c", "image": "app:1"}]}});
    let refused = fleet.client.create(PODS, "default", again.clone()).await.err().unwrap();
    assert!(refused.is_already_exists(), "{refused}");

    boards[0].line.mend();
    boards[0].connected().await;
    fleet.until("the evicted are gone", PODS, |pods| pods.len() == 1 && pods[0].name() == "loyal").await;
    let loyal = fleet.ready_pod("loyal").await;
    assert_eq!((boards[0].pods().await, boards[0].starts(&loyal)), (vec![loyal.uid().to_owned()], 1));
    fleet.create(PODS, "default", again).await;
    fleet.ready_pod("brief").await;
    agree(&fleet, &boards).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_budget_and_moves_everything() {
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    fleet.create(DEPLOYMENTS, "default", deployment("web", 4)).await;
    converged(&fleet, 4, "app:1").await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 3,
        "selector": {"matchLabels": {"app": "web"}}}});
    fleet.create(PODDISRUPTIONBUDGETS, "default", budget).await;
    let allows = |budgets: &[Value]| budgets.iter().any(|one| one["status"]["disruptionsAllowed"] == 1);
    fleet.until("the budget is counted", PODDISRUPTIONBUDGETS, allows).await;
    fleet.patch(NODES, "", "one", "", json!({"spec": {"unschedulable": true}})).await;
    let (mut refusals, mut least) = (0, usize::MAX);
    for _ in 0..600 {
        let pods = fleet.list(PODS, "").await;
        least = least.min(pods.iter().filter(|pod| is_running(pod)).count());
        let there: Vec<&Value> = pods.iter().filter(|pod| node(pod) == "one").collect();
        if there.is_empty() {
            break;
        }
        for pod in there.iter().filter(|pod| pod.deletion_timestamp().is_none()) {
            let eviction = json!({"metadata": {"name": pod.name()}});
            match fleet.client.create_subresource(PODS, "default", pod.name(), "eviction", eviction).await {
                Ok(_) => {}
                Err(error) if error.code == 429 => refusals += 1,
                Err(error) => panic!("evict {}: {error}", pod.name()),
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert!(refusals > 0, "the budget has held back");
    assert!(least >= 3, "{least} ready at the least");
    let pods = converged(&fleet, 4, "app:1").await;
    assert!(pods.iter().all(|pod| node(pod) == "two"));
    assert!(boards[0].pods().await.is_empty());
    agree(&fleet, &boards).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_while_its_node_is_away_ends_when_it_returns_and_a_deleted_nodes_pods_do_too() {
    let (fleet, mut boards) = Fleet::of(&["one", "two"]).await;
    for (name, node) in [("a", "one"), ("b", "one"), ("c", "two")] {
        let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "app:1"}]});
        fleet.create(PODS, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
        fleet.ready_pod(name).await;
    }
    boards[0].line.cut();
    seconds(60).await;
    fleet.delete(PODS, "default", "a", DeleteOptions::default()).await;
    seconds(60).await;
    assert!(fleet.get(PODS, "default", "a").await.is_some(), "nobody has confirmed its end");
    // edgelet is restarted meanwhile, from its replica.
    boards[0].stop().await;
    boards[0].start().await;
    seconds(60).await;
    assert_eq!(boards[0].pods().await.len(), 2);
    boards[0].line.mend();
    boards[0].connected().await;
    fleet.until("a is gone", PODS, |pods| pods.iter().all(|pod| pod.name() != "a")).await;
    let b = fleet.ready_pod("b").await;
    assert_eq!((boards[0].pods().await, boards[0].starts(&b)), (vec![b.uid().to_owned()], 1));

    // The node is deleted while it is away: its pods are given up, and end there when it is back.
    boards[0].line.cut();
    seconds(60).await;
    fleet.delete(NODES, "", "one", DeleteOptions::default()).await;
    seconds(120).await;
    assert!(fleet.get(PODS, "default", "b").await.is_none());
    boards[0].line.mend();
    boards[0].connected().await;
    fleet.ready("one").await;
    for _ in 0..120 {
        if boards[0].pods().await.is_empty() {
            break;
        }
        seconds(1).await;
    }
    assert!(boards[0].pods().await.is_empty());
    agree(&fleet, &boards).await;
}
