//! A kubelet on a real registry and a scripted runtime, in paused time.

use super::*;
use crate::api::kinds::Kinds;
use crate::api::object::ObjectExt;
use crate::client::cut::Cut;
use crate::client::replica::KeySource;
use crate::client::{CONFIGMAPS, EVENTS, Local, NAMESPACES, Resource, SERVICEACCOUNTS};
use crate::registry::{DeleteOptions, ListOptions, PatchType, Registry, RegistryConfig};
use crate::runtime::fake::FakeRuntime;
use crate::store::MemoryStore;
use crate::supervise::Tree;
use serde_json::{Value, json};

struct World {
    client: Client,
    clock: Clock,
    trace: Arc<Trace>,
    runtime: FakeRuntime,
    tree: Tree,
    kubelet: Option<Arc<Kubelet>>,
    informers: Option<Informers>,
    /// The kubelet's line to the server.
    line: Cut,
    /// Where the node's replica is, if it has one.
    replica: Option<tempfile::TempDir>,
}

mod away;

impl World {
    async fn new() -> Self {
        let clock = Clock::simulated("2026-11-23T00:00:00Z".parse().expect("a time"));
        let trace = Arc::new(Trace::default());
        let store = Arc::new(MemoryStore::default());
        let config = RegistryConfig::default();
        let registry = Arc::new(Registry::new(config, store, Kinds::default(), clock.clone(), trace.clone()));
        let client = Client::Local(Local::new(registry.clone(), "test"));
        let runtime = FakeRuntime::new(clock.clone(), "10.42.0.0".parse().expect("an address"));
        let line = Cut::new(Client::Local(Local::new(registry.clone(), "kubelet")));
        let tree = Tree::default();
        let mut world =
            Self { client, clock, trace, runtime, tree, kubelet: None, informers: None, line, replica: None };
        world.create(NAMESPACES, "", json!({"metadata": {"name": "default"}})).await;
        world.create(SERVICEACCOUNTS, "default", json!({"metadata": {"name": "default"}})).await;
        world.start();
        world
    }

    /// A fresh kubelet over the same runtime and API.
    fn start(&mut self) {
        let client = Client::Cut(self.line.clone());
        let config = KubeletConfig {
            node_name: "node".into(),
            node_ips: vec!["192.0.2.1".parse().expect("an address")],
            cluster_dns: vec!["10.43.0.10".parse().expect("an address")],
            cluster_domain: "cluster.local".into(),
            log_directory: "/nonexistent".into(),
            resolv_conf: "/nonexistent".into(),
            labels: BTreeMap::new(),
            capacity: BTreeMap::from([("memory".into(), Quantity::from_bytes(1 << 30))]),
            allocatable: BTreeMap::from([("cpu".into(), Quantity::from_units(4))]),
            heartbeat: super::Heartbeat::Lease,
            board: super::board::Board::default(),
            devices: Vec::new(),
        };
        let replica = self
            .replica
            .as_ref()
            .map(|directory| Replica::open(directory.path(), &KeySource::new(b"key", None)).expect("a replica"));
        let informers = match replica {
            Some(replica) => Informers::with_replica(client.clone(), replica),
            None => Informers::new(client.clone()),
        };
        let runtime = Arc::new(self.runtime.clone());
        let kubelet = Kubelet::new(config, client, &informers, runtime, self.clock.clone(), self.trace.clone());
        self.informers = Some(informers);
        self.tree = Tree::default();
        let shutdown = self.tree.shutdown();
        self.tree.spawn("kubelet", kubelet.clone().run(shutdown));
        self.kubelet = Some(kubelet);
    }

    fn kubelet(&self) -> Arc<Kubelet> {
        self.kubelet.clone().expect("started")
    }

    /// As after `kill -9`: the kubelet is gone, the runtime's containers are not.
    async fn kill(&mut self) {
        self.kubelet = None;
        std::mem::take(&mut self.tree).end(Duration::from_secs(1)).await;
        self.end_informers().await;
    }

    async fn end_informers(&mut self) {
        if let Some(informers) = self.informers.take() {
            informers.end();
        }
        tokio::task::yield_now().await;
    }

    async fn create(&self, resource: Resource, namespace: &str, object: Value) -> Value {
        let created = self.client.create(resource, namespace, object).await;
        created.unwrap_or_else(|error| panic!("create {}: {error}", resource.plural)).object().expect("an object")
    }

    /// A pod on this node; `change` is merged into its spec.
    async fn pod(&self, name: &str, annotations: Value, change: Value) -> Value {
        let mut spec = json!({"nodeName": "node", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "img:1"}]});
        for (key, value) in change.as_object().expect("a change") {
            spec[key] = value.clone();
        }
        let metadata = json!({"name": name, "annotations": annotations});
        self.create(PODS, "default", json!({"metadata": metadata, "spec": spec})).await
    }

    async fn get(&self, name: &str) -> Option<Value> {
        self.client.get(PODS, "default", name).await.ok().map(|item| item.object().expect("an object"))
    }

    async fn until(&self, what: &str, name: &str, condition: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        for _ in 0..6000 {
            let pod = self.get(name).await;
            if condition(pod.as_ref()) {
                return pod;
            }
            self.clock.sleep(Duration::from_millis(100)).await;
        }
        panic!("{what}: not within ten minutes; {name} is {:#}", json!(self.get(name).await));
    }

    async fn ready(&self, name: &str) -> Value {
        self.until("ready", name, |pod| pod.is_some_and(is_ready)).await.expect("a pod")
    }

    async fn delete(&self, name: &str) {
        self.client.delete(PODS, "default", name, &DeleteOptions::default()).await.expect("deleted");
    }

    /// `reason: message` of a pod's Events.
    /// The pod is gone from the API and from the node.
    async fn gone(&self, name: &str) {
        self.until("gone", name, |pod| pod.is_none()).await;
        self.clock.sleep(Duration::from_secs(1)).await;
        assert!(self.runtime.list().await.expect("a list").is_empty());
    }

    async fn events(&self, name: &str) -> Vec<String> {
        self.clock.sleep(Duration::from_millis(500)).await;
        let listed = self.client.list(EVENTS, "default", &ListOptions::default()).await.expect("events");
        let mut all: Vec<Value> = listed.items.iter().map(|item| item.object().expect("an event")).collect();
        all.retain(|event| event.str_at(&["involvedObject", "name"]) == name);
        all.iter().map(|event| format!("{}: {}", event.str_at(&["reason"]), event.str_at(&["message"]))).collect()
    }

    fn steps(&self, pod: &Value) -> Vec<String> {
        let steps = self.trace.steps(pod.uid());
        steps.into_iter().filter(|step| step.room == "kubelet").map(|step| step.what).collect()
    }
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

fn condition(pod: &Value, r#type: &str) -> Value {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == r#type).unwrap_or_default()
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_goes() {
    let world = World::new().await;
    let made = world.pod("p", json!({}), json!({})).await;
    let pod = world.ready("p").await;
    let status = &pod["status"];
    assert_eq!((status["phase"].as_str(), status["podIP"].as_str()), (Some("Running"), Some("10.42.0.2")));
    assert_eq!((status["hostIP"].as_str(), status["qosClass"].as_str()), (Some("192.0.2.1"), Some("BestEffort")));
    assert!(container(&pod)["containerID"].as_str().is_some_and(|id| id.starts_with(CONTAINER_ID_SCHEME)));
    assert_eq!((container(&pod)["started"].clone(), container(&pod)["restartCount"].clone()), (json!(true), json!(0)));
    let versions = |pod: &Value| pod.resource_version().parse::<u64>().expect("a revision");
    let events = world.events("p").await;
    let want = [
        "Pulling: Pulling image",
        "Pulled: Successfully pulled image",
        "Created: Container created",
        "Started: Container started",
    ];
    assert_eq!(events.len(), want.len(), "{events:?}");
    assert!(events.iter().zip(want).all(|(event, want)| event.starts_with(want)), "{events:?}");
    // The pod was written once: Running and Ready come together, with no write before them.
    assert_eq!(versions(&world.get("p").await.expect("a pod")), versions(&pod));
    assert!(versions(&pod) > versions(&made));
    assert_eq!(world.steps(&pod), ["seen", "image present", "ready"]);

    world.delete("p").await;
    world.gone("p").await;
    assert_eq!(world.steps(&pod), ["seen", "image present", "ready", "stopped", "cleaned up"]);
    assert!(world.events("p").await.contains(&"Killing: Stopping container c".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_second_pod_finds_its_image() {
    let world = World::new().await;
    world.pod("p", json!({}), json!({})).await;
    world.ready("p").await;
    world.pod("q", json!({}), json!({})).await;
    world.ready("q").await;
    let text = "Pulled: Container image \"img:1\" already present on machine and can be accessed by the pod";
    assert!(world.events("q").await.contains(&text.to_owned()));
    assert_eq!(world.runtime.pulls(), 1);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_back_off() {
    let world = World::new().await;
    let script = json!({"fake.edgelet.dev/run-seconds": "1", "fake.edgelet.dev/exit-code": "3"});
    let pod = world.pod("p", script, json!({})).await;
    let waits = |pod: &Value| container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = world.until("backs off", "p", |pod| pod.is_some_and(waits)).await.unwrap_or(pod);
    let message = format!("back-off 10s restarting failed container=c pod=p_default({})", pod.uid());
    assert_eq!(container(&pod)["state"]["waiting"]["message"], json!(message));
    assert_eq!(container(&pod)["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(condition(&pod, "Ready")["message"], "containers with unready status: [c]");
    let event = format!("BackOff: Back-off restarting failed container c in pod p_default({})", pod.uid());
    assert!(world.events("p").await.contains(&event));
    // 1 s of life each, waits of 0, 10, 20, 40, 80, 160, 300 and 300 s: the eighth start comes after 313 s.
    world.clock.sleep(Duration::from_secs(600)).await;
    let starts = world.runtime.starts(pod.uid(), "c");
    assert!((7..=9).contains(&starts), "{starts} starts");
    let records = world.runtime.status(pod.uid()).await.expect("a sandbox").containers.len();
    assert!(records <= 2, "{records} records are kept");
}

#[tokio::test(start_paused = true)]
async fn jobs_end_and_stay() {
    let world = World::new().await;
    let script = json!({"fake.edgelet.dev/run-seconds": "2"});
    world.pod("p", script, json!({"restartPolicy": "Never"})).await;
    let ended = |pod: Option<&Value>| pod.is_some_and(|pod| pod["status"]["phase"] == "Succeeded");
    let pod = world.until("ended", "p", ended).await.expect("a pod");
    assert_eq!(container(&pod)["state"]["terminated"]["reason"], "Completed");
    world.clock.sleep(Duration::from_secs(5)).await;
    let pod = world.get("p").await.expect("a pod");
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    assert_eq!(pod["status"]["podIP"], "10.42.0.2", "its address stays in its status");
    assert!(!world.runtime.status(pod.uid()).await.expect("its records").ready, "its network is released");
    world.delete("p").await;
    world.gone("p").await;
}

#[tokio::test(start_paused = true)]
async fn volumes_wait_for_their_objects_and_follow_them() {
    let world = World::new().await;
    let volumes = json!([{"name": "v", "configMap": {"name": "late"}}]);
    let containers = json!([{"name": "c", "image": "img:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]}]);
    let pod = world.pod("p", json!({}), json!({"volumes": volumes, "containers": containers})).await;
    world.clock.sleep(Duration::from_secs(3)).await;
    let text = "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found";
    assert!(world.events("p").await.contains(&text.to_owned()), "{:?}", world.events("p").await);
    let waiting = world.get("p").await.expect("a pod");
    assert_eq!(container(&waiting)["state"]["waiting"]["reason"], "ContainerCreating");

    world.create(CONFIGMAPS, "default", json!({"metadata": {"name": "late"}, "data": {"k": "1"}})).await;
    world.clock.sleep(Duration::from_secs(1)).await;
    assert!(is_ready(&world.get("p").await.expect("a pod")), "it starts when the object comes, not at the next retry");
    let text = |world: &World| match world.runtime.volume(pod.uid(), "v") {
        Some(crate::runtime::VolumeContent::Files { files, .. }) => {
            String::from_utf8_lossy(&files["k"].bytes).into_owned()
        }
        other => panic!("not files: {other:?}"),
    };
    assert_eq!(text(&world), "1");
    let patch = json!({"data": {"k": "2"}});
    world.client.patch(CONFIGMAPS, "default", "late", "", PatchType::Merge, patch).await.expect("patched");
    world.clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(text(&world), "2");
}

#[tokio::test(start_paused = true)]
async fn a_missing_key_is_a_config_error() {
    let world = World::new().await;
    let containers = json!([{"name": "c", "image": "img:1",
        "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]}]);
    world.pod("p", json!({}), json!({"containers": containers})).await;
    let waits = |pod: &Value| container(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    let pod = world.until("waits", "p", |pod| pod.is_some_and(waits)).await.expect("a pod");
    assert_eq!(container(&pod)["state"]["waiting"]["message"], "secret \"none\" not found");
    assert_eq!(pod["status"]["phase"], "Pending");
    assert!(world.events("p").await.contains(&"Failed: Error: secret \"none\" not found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe() {
    let world = World::new().await;
    let containers = json!([{"name": "c", "image": "img:1",
        "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}]);
    world.pod("p", json!({"fake.edgelet.dev/ready-after": "5"}), json!({"containers": containers})).await;
    world.clock.sleep(Duration::from_secs(3)).await;
    let pod = world.get("p").await.expect("a pod");
    assert_eq!((pod["status"]["phase"].as_str(), is_ready(&pod)), (Some("Running"), false));
    world.clock.sleep(Duration::from_secs(3)).await;
    assert!(is_ready(&world.get("p").await.expect("a pod")));
    let failed = world
        .events("p")
        .await
        .into_iter()
        .filter(|event| event.starts_with("Unhealthy: Readiness probe failed: "))
        .count();
    assert!(failed > 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts_the_container() {
    let world = World::new().await;
    let containers = json!([{"name": "c", "image": "img:1",
        "livenessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 2, "failureThreshold": 2}}]);
    world.pod("p", json!({"fake.edgelet.dev/ready-after": "never"}), json!({"containers": containers})).await;
    let restarted = |pod: Option<&Value>| pod.is_some_and(|pod| container(pod)["restartCount"] == 1);
    world.until("restarted", "p", restarted).await;
    let events = world.events("p").await;
    let killing = "Killing: Container c failed liveness probe, will be restarted";
    assert!(events.contains(&killing.to_owned()), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_kubelet_finds_its_pods_and_removes_orphans() {
    let mut world = World::new().await;
    let containers = json!([{"name": "c", "image": "img:1", "readinessProbe": {"tcpSocket": {"port": 80}}}]);
    world.pod("stays", json!({}), json!({"containers": containers})).await;
    world.pod("goes", json!({}), json!({})).await;
    let (stays, goes) = (world.ready("stays").await, world.ready("goes").await);
    world.kill().await;
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    world.client.delete(PODS, "default", "goes", &options).await.expect("deleted");
    world.start();
    world.clock.sleep(Duration::from_secs(30)).await;
    let now = world.get("stays").await.expect("a pod");
    assert_eq!(now.resource_version(), stays.resource_version(), "nothing is written, readiness does not flap");
    assert_eq!(world.runtime.starts(stays.uid(), "c"), 1);
    assert!(world.runtime.status(goes.uid()).await.is_err(), "the orphan is gone");
}

#[tokio::test(start_paused = true)]
async fn a_rebooted_board_starts_its_pods_again() {
    let mut world = World::new().await;
    world.pod("p", json!({}), json!({})).await;
    world.ready("p").await;
    world.kill().await;
    world.runtime.reboot();
    world.start();
    world.clock.sleep(Duration::from_secs(5)).await;
    let pod = world.get("p").await.expect("a pod");
    assert_eq!((container(&pod)["restartCount"].as_i64(), is_ready(&pod)), (Some(1), true));
    assert_eq!(container(&pod)["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(pod["status"]["podIP"], "10.42.0.2", "it has its address again");
}

#[tokio::test(start_paused = true)]
async fn deletion_takes_the_grace_and_no_more() {
    let world = World::new().await;
    let script = json!({"fake.edgelet.dev/ignore-stop-signal": "true"});
    world.pod("p", script, json!({"terminationGracePeriodSeconds": 20})).await;
    world.ready("p").await;
    let before = world.clock.now();
    world.delete("p").await;
    world.until("gone", "p", |pod| pod.is_none()).await;
    let took = world.clock.now().duration_since(before).as_secs();
    assert!((19..=21).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_forced_deletion_cleans_up_too() {
    let world = World::new().await;
    world.pod("p", json!({}), json!({})).await;
    world.ready("p").await;
    let options = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    world.client.delete(PODS, "default", "p", &options).await.expect("deleted");
    world.clock.sleep(Duration::from_secs(5)).await;
    assert!(world.runtime.list().await.expect("a list").is_empty());
}

#[tokio::test(start_paused = true)]
async fn pulls_that_fail_back_off_and_recover() {
    let world = World::new().await;
    world.runtime.set_pull_error("img:1", Some("no such host"));
    world.pod("p", json!({}), json!({})).await;
    let reason = |wanted: &'static str| {
        move |pod: Option<&Value>| pod.is_some_and(|pod| container(pod)["state"]["waiting"]["reason"] == wanted)
    };
    world.until("fails", "p", reason("ErrImagePull")).await;
    let pod = world.until("backs off", "p", reason("ImagePullBackOff")).await.expect("a pod");
    let message = "Back-off pulling image \"img:1\": ErrImagePull: no such host";
    assert_eq!(container(&pod)["state"]["waiting"]["message"], message);
    let events = world.events("p").await;
    for want in [
        "Failed: Failed to pull image \"img:1\": no such host",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"img:1\"",
    ] {
        assert!(events.contains(&want.to_owned()), "{want} in {events:?}");
    }
    world.runtime.set_pull_error("img:1", None);
    world.ready("p").await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order() {
    let world = World::new().await;
    let init =
        json!([{"name": "one", "image": "img:1"}, {"name": "side", "image": "img:1", "restartPolicy": "Always"}]);
    world.pod("p", json!({"fake.edgelet.dev/one.run-seconds": "3"}), json!({"initContainers": init})).await;
    world.clock.sleep(Duration::from_secs(2)).await;
    let pod = world.get("p").await.expect("a pod");
    assert_eq!(container(&pod)["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(condition(&pod, "Initialized")["message"], "containers with incomplete status: [one side]");
    let pod = world.ready("p").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(pod["status"]["initContainerStatuses"][1]["started"], true);
    world.delete("p").await;
    world.gone("p").await;
}

#[tokio::test(start_paused = true)]
async fn commands_run_over_frames() {
    use crate::tunnel::frames;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    world.pod("p", json!({}), json!({})).await;
    world.ready("p").await;
    let (mut ours, theirs) = tokio::io::duplex(4096);
    tokio::spawn(server::serve_stream(world.kubelet(), theirs));
    let head = "POST /exec/default/p/c?command=say&stdin=true&stdout=true HTTP/1.1\r\nHost: node\r\n\
        Connection: Upgrade\r\nUpgrade: edgelet-stream\r\n\r\n";
    ours.write_all(head.as_bytes()).await.expect("asked");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(ours.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    frames::write(&mut ours, frames::STDIN, b"hello").await.expect("input");
    frames::write(&mut ours, frames::CLOSE, &[frames::STDIN]).await.expect("end of input");
    let mut output = Vec::new();
    let last = loop {
        let frame = frames::read(&mut ours).await.expect("a frame").expect("not the end");
        match frame.channel {
            frames::STDOUT => output.extend_from_slice(&frame.payload),
            _ => break frame,
        }
    };
    assert_eq!(String::from_utf8_lossy(&output), "say\nhello");
    let status: Value = serde_json::from_slice(&last.payload).expect("a status");
    assert_eq!((last.channel, status["status"].as_str()), (frames::ERROR, Some("Success")));
}

#[tokio::test(start_paused = true)]
async fn the_node_registers_and_idles_without_writing() {
    use crate::client::{LEASES, NODES};
    let world = World::new().await;
    world.create(NAMESPACES, "", json!({"metadata": {"name": "kube-node-lease"}})).await;
    let informers = Informers::new(world.client.clone());
    let tree = Tree::default();
    tokio::spawn(node_status::run(world.kubelet(), informers, tree.shutdown()));
    world.clock.sleep(Duration::from_secs(1)).await;
    let node = || async { world.client.get(NODES, "", "node").await.expect("a node").object().expect("an object") };
    let first = node().await;
    assert_eq!(first.label("kubernetes.io/hostname"), Some("node"));
    // What the board can tell comes before; scripts look for Ready at the end.
    let conditions = first.at(&["status", "conditions"]).and_then(Value::as_array).expect("conditions");
    let upstream: Vec<&str> = conditions.iter().rev().take(4).filter_map(|one| one["type"].as_str()).collect();
    assert_eq!(upstream, ["Ready", "PIDPressure", "DiskPressure", "MemoryPressure"]);
    let renewed = || async {
        let lease = world.client.get(LEASES, "kube-node-lease", "node").await.expect("a lease");
        lease.object().expect("an object").str_at(&["spec", "renewTime"]).to_owned()
    };
    let before = renewed().await;
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_ne!(renewed().await, before);
    let settled = node().await;
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(node().await.resource_version(), settled.resource_version());
}
