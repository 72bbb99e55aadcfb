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
    node_ips: tokio::sync::watch::Sender<Vec<std::net::IpAddr>>,
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
        let node_ips = tokio::sync::watch::Sender::new(vec!["192.0.2.1".parse().expect("an address")]);
        let mut world =
            Self { client, clock, trace, runtime, tree, kubelet: None, informers: None, node_ips, line, replica: None };
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
            node_ips: self.node_ips.subscribe(),
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
    let steps = world.steps(&pod);
    for told in ["container c failed: Error, exit code 3", &format!("container c waits: CrashLoopBackOff: {message}")] {
        assert!(steps.iter().any(|step| step == told), "{steps:#?}");
    }
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

/// A login manager that lets a shutdown be delayed by thirty seconds; it tells when its lock is let go.
async fn login_manager(listener: tokio::net::UnixListener, shutdown: Arc<Notify>, released: Arc<Notify>) {
    use crate::sys::dbus::fake::Served;
    let (stream, _) = listener.accept().await.expect("a client");
    let mut client = Served::accept(stream).await;
    let (end, lock) = rustix::pipe::pipe().expect("a lock");
    let mut lock = Some(lock);
    loop {
        let call = client.call().await.expect("a call");
        match call.member.as_str() {
            "Get" => {
                let body = [&[1, b't', 0, 0, 0, 0, 0, 0][..], &30_000_000_u64.to_le_bytes()].concat();
                client.answer(&call, "v", &body, None).await;
            }
            "Inhibit" => {
                assert_eq!(call.texts(), ["shutdown", "edgelet", "pods need time to end", "delay"]);
                let given = lock.take().expect("one lock");
                let fd = std::os::fd::AsFd::as_fd(&given);
                client.answer(&call, "h", &0_u32.to_le_bytes(), Some(fd)).await;
                break;
            }
            _ => client.answer(&call, "", &[], None).await,
        }
    }
    shutdown.notified().await;
    client.signal("org.freedesktop.login1.Manager", "PrepareForShutdown", true).await;
    tokio::task::spawn_blocking(move || rustix::io::read(&end, &mut [0; 1])).await.expect("read").expect("the end");
    released.notify_one();
}

#[tokio::test]
async fn a_shutdown_of_the_machine_ends_pods_in_their_order() {
    let mut world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let bus = folder.path().join("bus");
    let listener = tokio::net::UnixListener::bind(&bus).expect("a bus");
    let (shutdown, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    tokio::spawn(login_manager(listener, shutdown.clone(), released.clone()));
    let config = shutdown::ShutdownConfig { bus, drop_in: folder.path().join("drop-in"), ..Default::default() };
    let task = shutdown::run(world.kubelet(), config, world.tree.shutdown());
    world.tree.spawn("machine", task);

    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "system-node-critical"}, "value": 2_000_001_000_i64});
    let classes = Resource { group: "scheduling.k8s.io", version: "v1", plural: "priorityclasses" };
    world.create(classes, "", class).await;
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true});
    for (name, class) in [("web", Value::Null), ("agent", json!("system-node-critical"))] {
        let spec = json!({"nodeName": "node", "automountServiceAccountToken": false, "priorityClassName": class,
            "containers": [{"name": "c", "image": "img:1"}]});
        let metadata = json!({"name": name, "ownerReferences": [owner]});
        world.create(PODS, "default", json!({"metadata": metadata, "spec": spec})).await;
    }
    world.pod("alone", json!({}), json!({})).await;
    for name in ["web", "agent", "alone"] {
        world.ready(name).await;
    }
    shutdown.notify_one();
    tokio::time::timeout(Duration::from_secs(20), released.notified()).await.expect("the machine may go down");
    for name in ["web", "agent"] {
        let pod = world.get(name).await.expect("it stays in the API");
        assert_eq!(
            (pod["status"]["phase"].as_str(), pod["status"]["reason"].as_str()),
            (Some("Failed"), Some("Terminated"))
        );
        assert_eq!(pod["status"]["message"], "Pod was terminated in response to imminent node shutdown.");
        assert_eq!(condition(&pod, "DisruptionTarget")["reason"], "TerminationByKubelet");
    }
    let alone = world.get("alone").await.expect("a pod");
    assert_eq!(alone["status"]["phase"], "Running", "nobody would replace it: it runs again with the machine");
    let late = world.pod("late", json!({}), json!({})).await;
    let late =
        world.until("rejected", late.name(), |pod| pod.is_some_and(|pod| pod["status"]["phase"] == "Failed")).await;
    assert_eq!(late.expect("a pod")["status"]["reason"], "NodeShutdown");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_rejected_and_the_others_stay() {
    let world = World::new().await;
    let asks =
        |cpu: &str| json!({"containers": [{"name": "c", "image": "img:1", "resources": {"requests": {"cpu": cpu}}}]});
    world.pod("first", json!({}), asks("3")).await;
    world.ready("first").await;
    world.pod("second", json!({}), asks("2")).await;
    let failed = |pod: Option<&Value>| pod.is_some_and(|pod| pod["status"]["phase"] == "Failed");
    let pod = world.until("rejected", "second", failed).await.expect("a pod");
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    let why = "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000";
    assert_eq!(pod["status"]["message"], format!("Pod was rejected: {why}"));
    assert_eq!(world.events("second").await, [format!("OutOfcpu: {why}")]);
    assert!(pod["status"].get("containerStatuses").is_none());
    assert!(is_ready(&world.get("first").await.expect("a pod")));
    // What is rejected takes no room.
    world.pod("third", json!({}), asks("1")).await;
    world.ready("third").await;
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_ends_and_says_why() {
    let world = World::new().await;
    let pod = world.pod("web", json!({}), json!({})).await;
    world.ready("web").await;
    let verdict = Verdict::disrupted("Evicted", "The node was low on resource: memory. ", 1);
    world.kubelet().sentences.send((pod.uid().to_owned(), verdict)).await.expect("told");
    let failed = |pod: Option<&Value>| pod.is_some_and(|pod| pod["status"]["phase"] == "Failed");
    let pod = world.until("evicted", "web", failed).await.expect("a pod");
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(condition(&pod, "DisruptionTarget")["status"], "True");
    assert!(container(&pod)["state"].get("terminated").is_some(), "it had ended before it said so");
}
