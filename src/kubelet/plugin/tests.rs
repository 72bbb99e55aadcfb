use super::*;
use crate::runtime::{ContainerStatus, PodRef};
use serde_json::json;
use wire::tests::message;

fn holding(pod_uid: &str, ids: &[&str]) -> Holding {
    let ids = ids.iter().map(|&id| id.to_owned()).collect();
    Holding { pod_uid: pod_uid.into(), container: "main".into(), resource: "example.com/tpu".into(), ids }
}

#[test]
fn a_container_gets_free_healthy_devices_and_after_a_restart_its_own() {
    let devices = Devices::from([("a".into(), true), ("b".into(), false), ("c".into(), true)]);
    let ask = |holdings: &[Holding], count| choose(&devices, holdings, ("pod", "main", "example.com/tpu"), count);
    assert_eq!(ask(&[], 1).unwrap(), ["a"]);
    assert_eq!(ask(&[], 2).unwrap(), ["a", "c"]);
    assert_eq!(ask(&[holding("other", &["a"])], 1).unwrap(), ["c"]);
    assert_eq!(ask(&[holding("pod", &["c"])], 1).unwrap(), ["c"], "its own");
    assert_eq!(ask(&[holding("pod", &["b"])], 1).unwrap(), ["a"], "its own is ill");
    let refused = ask(&[holding("other", &["a", "c"])], 1).unwrap_err();
    assert_eq!(refused, "1 of example.com/tpu wanted, but only 0 free on this node");
}

#[test]
fn registrations_that_upstream_refuses_are_refused() {
    let registration = |version: &str, resource: &str, endpoint: &str| Registration {
        version: version.into(),
        resource: resource.into(),
        endpoint: endpoint.into(),
    };
    assert_eq!(acceptable(&registration("v1beta1", "example.com/tpu", "tpu.sock")), Ok(()));
    for (version, resource, endpoint) in [
        ("v1alpha", "example.com/tpu", "tpu.sock"),
        ("v1beta1", "tpu", "tpu.sock"),
        ("v1beta1", "kubernetes.io/tpu", "tpu.sock"),
        ("v1beta1", "edgelet.io/serial", "tpu.sock"),
        ("v1beta1", "example.com/tpu", "../tpu.sock"),
        ("v1beta1", "example.com/tpu", "/tpu.sock"),
        ("v1beta1", "example.com/tpu", "kubelet.sock"),
        ("v1beta1", "example.com/tpu", ""),
    ] {
        assert!(acceptable(&registration(version, resource, endpoint)).is_err(), "{version} {resource} {endpoint}");
    }
}

/// A plugin on a socket: its methods' answers, in order of their calls.
fn plugin(socket: &Path, grant: Vec<u8>) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let grant = grant.clone();
            let _ = grpc::serve(stream, ALLOCATE, move |request| {
                assert_eq!(request, wire::allocate_request(&["a".into()]));
                Ok(grant.clone())
            })
            .await;
        }
    })
}

#[tokio::test]
async fn what_a_plugin_offers_is_counted_granted_and_remembered_until_its_container_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, record) = (folder.path().join("tpu.sock"), folder.path().join("record.json"));
    let device = message(&[(1, b"/dev/tpu"), (2, b"/dev/apex_0"), (3, b"rw")]);
    let container = message(&[(1, &message(&[(1, b"TPU"), (2, b"0")])), (3, &device)]);
    let serving = plugin(&socket, message(&[(1, &container)]));

    let plugins = Plugins::default();
    let number = plugins.enter("example.com/tpu", socket).unwrap();
    assert!(plugins.update("example.com/tpu", number, Devices::from([("a".into(), true), ("b".into(), false)]), false));
    let shown = |amounts: BTreeMap<String, Quantity>| amounts["example.com/tpu"].to_string();
    let (capacity, allocatable) = plugins.amounts();
    assert_eq!((shown(capacity), shown(allocatable)), ("2".into(), "1".into()));

    let limits = json!({"cpu": "1", "example.com/tpu": "1", "example.com/counted": "3"});
    let limits = limits.as_object().unwrap();
    let given = plugins.allocate("one", "main", limits, &[], &record).await.unwrap().unwrap();
    assert_eq!(given.env["TPU"], "0");
    assert_eq!(given.devices[0].container_path, "/dev/tpu");
    let running = SandboxStatus {
        pod: PodRef { uid: "one".into(), ..PodRef::default() },
        containers: vec![status("main", ContainerState::Running { pid: 1 })],
        ..SandboxStatus::default()
    };
    let alive = [running.clone()];
    let refused = plugins.allocate("two", "main", limits, &alive, &record).await.unwrap_err();
    assert!(refused.contains("only 0 free"), "{refused}");

    // Another edgelet, before the plugin has registered again: the resource is still known to be a plugin's.
    let restarted = Plugins::default();
    let refused = restarted.allocate("two", "main", limits, &alive, &record).await.unwrap_err();
    assert_eq!(refused, "the device plugin of example.com/tpu does not run on this node");
    let nothing = json!({"cpu": "1"});
    assert_eq!(restarted.allocate("two", "main", nothing.as_object().unwrap(), &alive, &record).await, Ok(None));

    // The first container is gone: its device is free.
    assert!(plugins.allocate("two", "main", limits, &[], &record).await.unwrap().is_some());

    assert!(!plugins.leave("example.com/tpu", number + 1), "an older registration's end says nothing");
    assert!(plugins.leave("example.com/tpu", number));
    assert_eq!(shown(plugins.amounts().1), "0");
    serving.abort();
}

fn status(name: &str, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: String::new(),
        name: name.into(),
        attempt: 0,
        image: String::new(),
        image_id: String::new(),
        state,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: None,
        spec_hash: 0,
        devices: Vec::new(),
    }
}
