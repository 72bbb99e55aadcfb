//! The process of the hollow nodes: one thread, a command a line.

use edgelet::api::object::ObjectExt;
use edgelet::client::informer::Scope;
use edgelet::client::uplink::State;
use edgelet::client::{ENDPOINTSLICES, Item, NODES};
use edgelet::node::hollow::{HollowConfig, HollowNode};
use futures_util::future::join_all;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Where the nodes keep their state; set, it makes this program that process.
pub const DIRECTORY: &str = "EDGELET_SCALE_DIRECTORY";
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);
/// The address that is added on the loopback of the namespace.
const SERVER: &str = "https://192.0.2.1:6443";

pub async fn run(directory: PathBuf) {
    edgelet::telemetry::init("warn");
    let token = std::fs::read_to_string(directory.join("token")).unwrap();
    let mut nodes: Vec<HollowNode> = Vec::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut output = tokio::io::stdout();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["join", from, to] => {
                let range = from.parse().unwrap()..to.parse().unwrap();
                join(range, &token, &directory, &mut nodes).await
            }
            ["endpoints", count] => {
                let count: usize = count.parse().unwrap();
                seen(&nodes, |slices| slices.iter().map(ready_endpoints).sum::<usize>() == count).await
            }
            ["gone", name] => {
                let name = name.as_bytes();
                let names = |item: &Item| item.0.windows(name.len()).any(|window| window == name);
                seen(&nodes, |slices| !slices.iter().any(names)).await
            }
            ["connected"] => {
                let connected = nodes.iter().filter(|node| matches!(*node.state.borrow(), State::Connected));
                format!("{} tunnels stand", connected.count())
            }
            _ => panic!("unknown command {line:?}"),
        };
        output.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        output.flush().await.unwrap();
    }
}

async fn join(range: std::ops::Range<u32>, token: &str, directory: &Path, nodes: &mut Vec<HollowNode>) -> String {
    let begun = Instant::now();
    let joining = range.map(|number| {
        let hollow = HollowConfig {
            server: SERVER.into(),
            name: format!("hollow-{number}"),
            ip: Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number),
            labels: vec!["hollow=true".into()],
        };
        async move {
            let node = loop {
                match HollowNode::join(&hollow, token, &directory.join("nodes").join(&hollow.name)).await {
                    Ok(node) => break node,
                    Err(error) => eprintln!("{}: join: {error:#}; again", hollow.name),
                }
                tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(500..1500))).await;
            };
            until_ready(&node).await;
            (node, begun.elapsed())
        }
    });
    let joined = join_all(joining).await;
    let mut times: Vec<f64> = joined.iter().map(|(_, took)| took.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    nodes.extend(joined.into_iter().map(|(node, _)| node));
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!("all {:.2} s, p50 {:.2} s, p99 {:.2} s", at(1.0), at(0.5), at(0.99))
}

async fn until_ready(node: &HollowNode) {
    let own = Scope { field_selector: format!("metadata.name={}", node.name), ..Scope::default() };
    let mut changes = node.informers.get(NODES, own).subscribe();
    loop {
        let Some(item) = changes.next().await.new else { continue };
        let object = item.object().unwrap();
        let conditions =
            object.at(&["status", "conditions"]).and_then(|all| all.as_array().cloned()).unwrap_or_default();
        if conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True") {
            return;
        }
    }
}

/// Waits until every node sees slices that fit.
async fn seen(nodes: &[HollowNode], fits: impl Fn(&[Item]) -> bool) -> String {
    for node in nodes {
        let slices = node.informers.all(ENDPOINTSLICES);
        let mut changes = slices.subscribe();
        while !fits(&slices.list()) {
            changes.next().await;
            // A burst of changes is looked at once: what costs here is the look.
            tokio::time::sleep(LOOK_AGAIN).await;
            while changes.try_next().is_some() {}
        }
    }
    "seen".to_owned()
}

/// Of the Service that is measured.
fn ready_endpoints(item: &Item) -> usize {
    let slice = item.object().unwrap();
    if slice.label("kubernetes.io/service-name") != Some("web") {
        return 0;
    }
    let endpoints = slice["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
}
