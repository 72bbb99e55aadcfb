//! A node whose server is away: pods run on, begin again after a power cut, and all is told when it returns.

use super::*;
use crate::client::{ENDPOINTSLICES, SECRETS, SERVICES};
use crate::pki::Pki;
use crate::runtime::VolumeContent;

impl World {
    async fn with_replica() -> Self {
        let mut world = Self::new().await;
        world.kill().await;
        world.replica = Some(tempfile::tempdir().expect("a folder"));
        world.start();
        world
    }

    /// Power is cut and the board boots again.
    async fn power_cut(&mut self) {
        self.clock.sleep(Duration::from_secs(2)).await; // what has changed just before may be lost
        self.off().await;
        self.runtime.reboot();
        self.start();
    }

    /// What is on the disk at this moment stays; what is written after it is lost.
    async fn off(&mut self) {
        let before = self.replica.take().expect("a replica");
        let after = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(before.path()).expect("a folder").flatten() {
            std::fs::copy(entry.path(), after.path().join(entry.file_name())).expect("a copy");
        }
        self.replica = Some(after);
        self.kubelet = None;
        drop(std::mem::take(&mut self.tree));
        self.end_informers().await;
    }

    async fn starts(&self, pod: &Value) -> u32 {
        self.runtime.starts(pod.uid(), "c")
    }

    async fn running(&self, pod: &Value) -> bool {
        let status = self.runtime.status(pod.uid()).await;
        let running = |one: &crate::runtime::ContainerStatus| matches!(one.state, ContainerState::Running { .. });
        status.is_ok_and(|status| status.containers.iter().any(running))
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn pods_run_on_without_the_server_and_all_is_told_when_it_returns() {
    let world = World::with_replica().await;
    for name in ["fails", "stays", "goes"] {
        world.pod(name, json!({}), json!({})).await;
    }
    let (fails, stays, goes) = (world.ready("fails").await, world.ready("stays").await, world.ready("goes").await);
    let written = || world.informers.as_ref().and_then(Informers::replica).expect("a replica").written_bytes();
    world.clock.sleep(seconds(10)).await;
    let settled = written();
    world.clock.sleep(seconds(3600)).await;
    assert_eq!(written(), settled, "an idle node writes nothing");
    world.line.cut();
    world.clock.sleep(seconds(5)).await;
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    world.client.delete(PODS, "default", "goes", &options).await.expect("deleted while the node is away");
    world.runtime.exit(fails.uid(), "c", 3);
    world.clock.sleep(seconds(3600)).await;
    assert_eq!(world.starts(&fails).await, 2, "it is started again without the server");
    assert!(world.running(&goes).await, "nobody could tell the node");
    let told = world.get("fails").await.expect("a pod");
    assert_eq!(container(&told)["restartCount"].as_i64(), Some(0));

    world.line.mend();
    let fails = world
        .until("told", "fails", |pod| {
            pod.is_some_and(|pod| container(pod)["restartCount"].as_i64() == Some(1) && is_ready(pod))
        })
        .await
        .expect("a pod");
    assert_eq!(container(&fails)["lastState"]["terminated"]["exitCode"].as_i64(), Some(3));
    world.clock.sleep(seconds(60)).await;
    assert!(!world.running(&goes).await, "it was removed meanwhile");
    let now = world.get("stays").await.expect("a pod");
    assert_eq!((now.resource_version(), world.starts(&stays).await), (stays.resource_version(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_board_boots_its_pods_with_no_server() {
    let mut world = World::with_replica().await;
    let data = json!({"metadata": {"name": "settings"}, "data": {"KEY": "value"}});
    world.create(CONFIGMAPS, "default", data).await;
    world.create(SECRETS, "default", json!({"metadata": {"name": "word"}, "stringData": {"w": "x"}})).await;
    let containers = json!([{"name": "c", "image": "img:1", "imagePullPolicy": "Always",
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "none", "optional": true}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
    let volumes = json!([{"name": "v", "secret": {"secretName": "word"}}]);
    let mut pods = Vec::new();
    for number in 0..20 {
        let name = format!("p{number}");
        world.pod(&name, json!({}), json!({"containers": containers, "volumes": volumes})).await;
        pods.push(world.ready(&name).await);
    }
    world.line.cut();
    world.runtime.set_registry_away(true);
    world.power_cut().await;
    let booted = world.clock.now();
    for pod in &pods {
        while !world.running(pod).await {
            world.clock.sleep(Duration::from_millis(10)).await;
            assert!(world.clock.now().duration_since(booted).as_secs() < 3, "{} does not run", pod.name());
        }
        let status = world.runtime.status(pod.uid()).await.expect("a sandbox");
        let ips: Vec<String> = status.ips.iter().map(ToString::to_string).collect();
        assert_eq!(json!(ips), json!([pod["status"]["podIP"]]), "it has its address again");
        assert!(world.runtime.volume(pod.uid(), "v").is_some());
    }

    world.line.mend();
    let first = world
        .until("told", "p0", |pod| pod.is_some_and(|pod| container(pod)["restartCount"].as_i64() == Some(1)))
        .await
        .expect("a pod");
    assert!(is_ready(&first));
    world.clock.sleep(seconds(120)).await;
    for pod in &pods {
        assert_eq!(world.starts(pod).await, 2, "nothing healthy is started again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_board_that_reaches_its_server_but_no_registry_boots_what_has_run_there() {
    let mut world = World::with_replica().await;
    let containers = json!([{"name": "c", "image": "img:1", "imagePullPolicy": "Always"}]);
    let mut pods = Vec::new();
    for name in ["p0", "p1", "p2"] {
        world.pod(name, json!({}), json!({"containers": containers})).await;
        pods.push(world.ready(name).await);
    }
    // As the server's own board: nothing answers beyond it, not even with a refusal.
    world.runtime.set_registry_silent(true);
    world.power_cut().await;
    let booted = world.clock.now();
    for pod in &pods {
        while !world.running(pod).await {
            world.clock.sleep(Duration::from_millis(10)).await;
            assert!(world.clock.now().duration_since(booted).as_secs() < 3, "{} does not run", pod.name());
        }
    }
    // What never ran here waits for the registry, as upstream has it.
    world.pod("new", json!({}), json!({"containers": containers})).await;
    world.clock.sleep(seconds(60)).await;
    let new = world.get("new").await.expect("a pod");
    assert_eq!(container(&new)["state"]["waiting"]["reason"], "ContainerCreating");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ended_while_the_server_was_away_does_not_run_again() {
    for server_is_back_first in [false, true] {
        let mut world = World::with_replica().await;
        world.pod("job", json!({}), json!({"restartPolicy": "OnFailure"})).await;
        let job = world.ready("job").await;
        world.line.cut();
        world.clock.sleep(seconds(2)).await;
        world.runtime.exit(job.uid(), "c", 0);
        world.clock.sleep(seconds(2)).await;
        if server_is_back_first {
            // The board is off while the server returns.
            world.off().await;
            world.line.mend();
        }
        world.power_cut().await;
        world.clock.sleep(seconds(30)).await;
        world.line.mend();
        world.until("told", "job", |pod| pod.is_some_and(|pod| pod["status"]["phase"] == "Succeeded")).await;
        assert_eq!(world.starts(&job).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_removed_while_the_board_was_off_stops_when_the_server_returns() {
    let mut world = World::with_replica().await;
    world.pod("goes", json!({}), json!({})).await;
    world.pod("stays", json!({}), json!({})).await;
    let (goes, stays) = (world.ready("goes").await, world.ready("stays").await);
    world.line.cut();
    world.power_cut().await;
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    world.client.delete(PODS, "default", "goes", &options).await.expect("deleted");
    world.pod("comes", json!({}), json!({})).await;
    world.clock.sleep(seconds(10)).await;
    assert!(world.running(&goes).await && world.running(&stays).await);
    world.line.mend();
    world.ready("comes").await;
    world.clock.sleep(seconds(60)).await;
    assert!(!world.running(&goes).await && world.running(&stays).await);
    // And it does not come back with the next boot.
    world.line.cut();
    world.power_cut().await;
    world.clock.sleep(seconds(10)).await;
    assert!(!world.running(&goes).await && world.running(&stays).await);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_kubelet_keeps_what_its_replica_does_not_know() {
    let mut world = World::with_replica().await;
    world.pod("p", json!({}), json!({})).await;
    let pod = world.ready("p").await;
    world.kill().await;
    world.replica = Some(tempfile::tempdir().expect("an empty replica"));
    world.line.cut();
    world.start();
    world.clock.sleep(seconds(120)).await;
    assert!(world.running(&pod).await);
    world.line.mend();
    world.clock.sleep(seconds(60)).await;
    assert_eq!((world.running(&pod).await, world.starts(&pod).await), (true, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_pod_neither_runs_on_nor_begins_without_the_server() {
    let mut world = World::with_replica().await;
    let fenced = json!({"edgelet.io/fenced": "true"});
    let tolerates = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 60}]);
    world.pod("one", fenced, json!({"tolerations": tolerates, "terminationGracePeriodSeconds": 10})).await;
    let one = world.ready("one").await;
    world.line.cut();
    world.clock.sleep(seconds(70)).await;
    assert!(world.running(&one).await, "a short absence is no reason");
    world.clock.sleep(seconds(25)).await;
    assert!(!world.running(&one).await, "stopped before the server may replace it");
    world.line.mend();
    world
        .until("runs again", "one", |pod| {
            pod.is_some_and(|pod| is_ready(pod) && container(pod)["restartCount"].as_i64() == Some(1))
        })
        .await;
    world.line.cut();
    world.power_cut().await;
    world.clock.sleep(seconds(600)).await;
    assert!(!world.running(&one).await, "it does not begin without the server");
    world.line.mend();
    world.clock.sleep(seconds(60)).await;
    assert!(world.running(&one).await);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_ran_here_is_not_started_from_an_image_its_registry_cannot_confirm() {
    let world = World::with_replica().await;
    world.pod("first", json!({}), json!({})).await;
    world.ready("first").await;
    world.runtime.set_registry_away(true);
    let always = json!([{"name": "c", "image": "img:1", "imagePullPolicy": "Always"}]);
    world.pod("new", json!({}), json!({"containers": always})).await;
    world
        .until("waits", "new", |pod| {
            pod.is_some_and(|pod| container(pod)["state"]["waiting"]["reason"] == "ErrImagePull")
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_of_own_pods_follow_their_probes_without_the_server() {
    let mut world = World::with_replica().await;
    let probe =
        json!([{"name": "c", "image": "img:1", "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}]);
    let script = json!({"fake.edgelet.dev/ready-after": "20"});
    world.pod("p", script, json!({"containers": probe})).await;
    let pod = world.ready("p").await;
    world.create(SERVICES, "default", json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await;
    let endpoint = |node: &str, uid: &str, ip: &str| {
        json!({"nodeName": node, "addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "x", "uid": uid}})
    };
    let slice = json!({"metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": [endpoint("node", pod.uid(), "10.42.0.2"), endpoint("other", "away", "10.42.1.2")]});
    world.create(ENDPOINTSLICES, "default", slice).await;
    world.clock.sleep(seconds(2)).await;
    world.line.cut();
    world.power_cut().await;
    let ready = |kubelet: Arc<Kubelet>| -> Vec<bool> {
        let slice = kubelet.slices.get("default", "s-1").and_then(|item| item.object().ok()).unwrap_or_default();
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().map(|one| one["conditions"]["ready"] == true).collect()
    };
    world.clock.sleep(seconds(5)).await;
    assert_eq!(ready(world.kubelet()), [false, true], "not ready yet; what runs elsewhere stays");
    world.clock.sleep(seconds(30)).await;
    assert_eq!(ready(world.kubelet()), [true, true]);
    world.runtime.exit(pod.uid(), "c", 1);
    world.clock.sleep(seconds(1)).await;
    assert_eq!(ready(world.kubelet()), [false, true]);
    world.line.mend();
    world.clock.sleep(seconds(60)).await;
    assert_eq!(ready(world.kubelet()), [true, true], "the server's word again");
}

#[tokio::test(start_paused = true)]
async fn the_last_token_is_mounted_while_no_server_can_issue_another() {
    let mut world = World::with_replica().await;
    let keys = tempfile::tempdir().expect("a folder");
    let Client::Local(local) = &world.client else { unreachable!("the world's client") };
    let pki = Pki::open(keys.path(), "https://kubernetes.default.svc", world.clock.clone()).expect("keys");
    local.registry.issue_tokens_with(pki);
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    let volumes = json!([{"name": "v", "projected": {"sources": [source]}}]);
    world.pod("p", json!({}), json!({"volumes": volumes})).await;
    let pod = world.ready("p").await;
    let token = |world: &World| match world.runtime.volume(pod.uid(), "v") {
        Some(VolumeContent::Files { files, .. }) => files["token"].bytes.clone(),
        other => panic!("a token, not {other:?}"),
    };
    let issued = token(&world);
    world.line.cut();
    world.power_cut().await;
    world.clock.sleep(seconds(5)).await;
    assert!(world.running(&pod).await && token(&world) == issued);
    world.clock.sleep(seconds(3600)).await;
    assert!(token(&world) == issued, "past its time, but there is no other");
    world.line.mend();
    world.clock.sleep(seconds(40)).await;
    assert!(token(&world) != issued, "renewed at once when the server is back");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_could_not_be_told_is_told_as_soon_as_the_server_answers() {
    let mut world = World::new().await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "kube-node-lease"}})).await;
    let (informers, shutdown) = (world.informers.clone().expect("started"), world.tree.shutdown());
    world.tree.spawn("node status", node_status::run(world.kubelet(), informers, shutdown));
    world.clock.sleep(seconds(60)).await;
    world.line.cut();
    world.node_ips.send_replace(vec!["192.0.2.44".parse().expect("an address")]);
    world.clock.sleep(seconds(2)).await;
    world.line.mend();
    world.clock.sleep(seconds(5)).await;
    let node = world.client.get(NODES, "", "node").await.expect("a node").object().expect("an object");
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.44");
}
