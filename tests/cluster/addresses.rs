//! Every node has its part of the pod network.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::client::{EVENTS, NODES};
use edgelet::registry::DeleteOptions;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn part(node: &Value) -> String {
    node.str_at(&["spec", "podCIDR"]).to_owned()
}

async fn parts(world: &World) -> BTreeSet<String> {
    world.until("every node has a part", NODES, |nodes| nodes.iter().all(|node| !part(node).is_empty())).await;
    let nodes = world.list(NODES, "").await;
    let parts: BTreeSet<String> = nodes.iter().map(part).collect();
    assert_eq!(parts.len(), nodes.len(), "no part is given twice: {parts:?}");
    parts
}

#[tokio::test(start_paused = true)]
async fn nodes_get_parts_of_the_pod_network_and_give_them_back() {
    let mut names: Vec<String> = (0..20).map(|n| format!("board-{n}")).collect();
    let world = World::new(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let expected: BTreeSet<String> = (0..20).map(|n| format!("10.42.{n}.0/24")).collect();
    assert_eq!(parts(&world).await, expected);
    let before = part(&world.get(NODES, "", "board-7").await.unwrap());

    // One that was given its part elsewhere keeps it, and a wish is heard.
    world.create(NODES, "", json!({"metadata": {"name": "old"}, "spec": {"podCIDR": "10.42.99.0/24"}})).await;
    let wish = json!({"edgelet.io/pod-cidr": "10.42.77.0/24"});
    world.create(NODES, "", json!({"metadata": {"name": "wish", "annotations": wish}})).await;
    let now = parts(&world).await;
    assert!(now.contains("10.42.99.0/24") && now.contains("10.42.77.0/24"), "{now:?}");

    world.delete(NODES, "", "board-7", DeleteOptions::default()).await;
    world.add_node("another").await;
    parts(&world).await;
    assert_eq!(part(&world.get(NODES, "", "another").await.unwrap()), before, "what was given back is used again");

    // Two hundred and fifty-six is all there are; the next waits until one goes.
    names = (0..235).map(|n| format!("more-{n}")).collect();
    for name in &names {
        world.add_node(name).await;
    }
    let without = |nodes: &[Value]| nodes.iter().filter(|node| part(node).is_empty()).count();
    world.until("all parts are given", NODES, |nodes| nodes.len() == 257 && without(nodes) == 1).await;
    let told = |events: &[Value]| events.iter().any(|event| event.str_at(&["reason"]) == "CIDRNotAvailable");
    world.until("an Event says so", EVENTS, told).await;
    world.delete(NODES, "", "old", DeleteOptions::default()).await;
    parts(&world).await;
}
