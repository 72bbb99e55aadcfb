use super::*;
use crate::client::{NODES, SECRETS, SERVICES};
use serde_json::json;

fn key() -> KeySource {
    KeySource::new(b"a node's private key", None)
}

fn pod(name: &str, revision: u64, phase: &str) -> (Arc<str>, Item) {
    let pod = json!({"metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}"),
        "resourceVersion": revision.to_string()}, "spec": {"a": 1}, "status": {"phase": phase}});
    (format!("n/{name}").into(), Item(Bytes::from(pod.to_string())))
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.iter().map(|(key, _)| &**key).collect()
}

async fn reopened(replica: Replica) -> Replica {
    let directory = replica.directory().to_owned();
    replica.flush().await.unwrap();
    drop(replica);
    Replica::open(&directory, &key()).unwrap()
}

#[tokio::test]
async fn lists_come_back_by_their_scope_and_an_empty_one_is_known_to_be_empty() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    let own = Scope { field_selector: "spec.nodeName=a".into(), ..Scope::default() };
    let all = Scope::default();
    replica.replace(PODS, &own, &[pod("x", 1, ""), pod("y", 1, "")]);
    replica.replace(SERVICES, &all, &[]);
    replica.set(PODS, &own, &"n/y".into(), None);
    let replica = reopened(replica).await;
    assert_eq!(names(&replica.load(PODS, &own).unwrap()), ["n/x"]);
    assert_eq!(names(&replica.load(SERVICES, &all).unwrap()), [""; 0]);
    assert!(replica.load(PODS, &all).is_none() && replica.load(NODES, &all).is_none());
    replica.replace(PODS, &own, &[pod("z", 1, "")]);
    assert!(replica.load(PODS, &own).is_none(), "the server has answered");
    let replica = reopened(replica).await;
    assert_eq!(names(&replica.load(PODS, &own).unwrap()), ["n/z"]);
    assert_eq!(names(&Replica::read(directory.path(), &key(), PODS).unwrap()), ["n/z"]);
}

#[tokio::test]
async fn what_is_no_news_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    let all = Scope::default();
    replica.replace(PODS, &all, &[pod("x", 1, "Pending")]);
    replica.flush().await.unwrap();
    let written = replica.written_bytes();
    assert_eq!(written, 4096);
    replica.replace(PODS, &all, &[pod("x", 2, "Pending")]);
    let (key, item) = pod("x", 3, "Running");
    replica.set(PODS, &all, &key, Some(&item));
    replica.set(PODS, &all, &"n/unknown".into(), None);
    replica.flush().await.unwrap();
    assert_eq!(replica.written_bytes(), written);
    let replica = reopened(replica).await;
    replica.replace(PODS, &all, &[pod("x", 9, "Running")]);
    replica.flush().await.unwrap();
    assert_eq!(replica.written_bytes(), 0, "nor after a restart");
}

#[tokio::test]
async fn a_pod_comes_back_with_the_status_its_kubelet_noted() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    let all = Scope::default();
    replica.replace(PODS, &all, &[pod("x", 1, "Pending"), pod("y", 1, "Pending")]);
    replica.note_status("uid-x", &json!({"phase": "Succeeded"}));
    replica.flush().await.unwrap();
    let written = replica.written_bytes();
    replica.note_status("uid-x", &json!({"phase": "Succeeded", "conditions": [1]}));
    replica.flush().await.unwrap();
    assert_eq!(replica.written_bytes(), written);
    let replica = reopened(replica).await;
    let loaded = replica.load(PODS, &all).unwrap();
    let phases: Vec<String> = loaded
        .iter()
        .map(|(_, item)| {
            item.object().unwrap().pointer("/status/phase").map_or(String::new(), |phase| phase.to_string())
        })
        .collect();
    assert_eq!(phases, ["\"Succeeded\"", ""]);
    let read = Replica::read(directory.path(), &key(), PODS).unwrap();
    assert!(read[0].1.object().unwrap().pointer("/status/phase").is_some());
}

#[tokio::test]
async fn what_belonged_to_pods_that_are_gone_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    let one = |name: &str| Scope {
        namespace: "n".into(),
        field_selector: format!("metadata.name={name}"),
        ..Scope::default()
    };
    for name in ["used", "unused"] {
        let secret = json!({"metadata": {"namespace": "n", "name": name}});
        replica.replace(SECRETS, &one(name), &[(format!("n/{name}").into(), Item(Bytes::from(secret.to_string())))]);
        replica.note("tokens", name, Some(Bytes::from_static(b"t")), b"t");
    }
    replica.replace(PODS, &Scope::default(), &[]);
    replica.retain(|place| match place {
        Place::Note { kind, key } => kind == "tokens" && key == "used",
        Place::Single { .. } => place.is(SECRETS, "n", "used"),
        Place::List => true,
    });
    let replica = reopened(replica).await;
    assert_eq!(names(&replica.load(SECRETS, &one("used")).unwrap()), ["n/used"]);
    assert!(replica.load(SECRETS, &one("unused")).is_none());
    assert_eq!((replica.noted("tokens", "used").is_some(), replica.noted("tokens", "unused")), (true, None));
    assert!(replica.load(PODS, &Scope::default()).is_some());
}

#[tokio::test]
async fn a_replica_of_another_key_is_given_up_only_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    replica.replace(PODS, &Scope::default(), &[pod("x", 1, "")]);
    drop(reopened(replica).await);
    let other = KeySource::new(b"another", None);
    assert!(matches!(Replica::open(directory.path(), &other), Err(ReplicaError::Key(_))));
    let replica = Replica::open_or_new(directory.path(), &other).unwrap();
    assert!(replica.load(PODS, &Scope::default()).is_none());
}

#[tokio::test]
async fn changes_are_written_together_and_the_writer_ends_with_the_replica() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::open(directory.path(), &key()).unwrap();
    replica.start();
    let all = Scope::default();
    for revision in 0..50 {
        let (key, item) = pod(&format!("p{revision}"), revision, "");
        replica.set(PODS, &all, &key, Some(&item));
    }
    // The write happens on another thread: real time passes.
    while replica.written_bytes() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(replica.written_bytes(), 4096, "one frame");
    let inner = Arc::downgrade(&replica.0);
    drop(replica);
    while inner.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
