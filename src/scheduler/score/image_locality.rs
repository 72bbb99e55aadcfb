//! More for nodes that hold the pod's images already; large images that many nodes hold count most.

use super::{MAX, NodeInfo, Pending, Snapshot};

const MIN_BYTES: i64 = 23 * 1024 * 1024;
const MAX_BYTES_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

pub fn score(pod: &Pending, snapshot: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let total = count(snapshot.nodes().count()).max(1);
    let names: Vec<String> = pod.images.iter().map(|image| normalized(image)).collect();
    let spread: Vec<i64> = names
        .iter()
        .map(|image| count(snapshot.nodes().filter(|node| node.images.contains_key(image)).count()))
        .collect();
    let limit = (MAX_BYTES_PER_CONTAINER * count(names.len())).max(MIN_BYTES + 1);
    let one = |node: &&NodeInfo| {
        let held =
            names.iter().zip(&spread).map(|(image, on)| node.images.get(image).map_or(0, |size| size * on / total));
        let bytes = held.sum::<i64>().clamp(MIN_BYTES, limit);
        (bytes - MIN_BYTES) * MAX / (limit - MIN_BYTES)
    };
    nodes.iter().map(one).collect()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Nodes report names with a tag.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
