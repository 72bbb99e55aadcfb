//! List and watch.

use super::*;
use futures_util::StreamExt;
use std::time::Duration;

impl Cluster {
    async fn list(&self, options: ListOptions) -> Result<List> {
        self.registry.list(&self.kind("v1", "ConfigMap"), "g1", &options).await
    }

    async fn watch(&self, options: ListOptions) -> Result<futures_util::stream::BoxStream<'static, Change>> {
        self.registry.watch(&self.kind("v1", "ConfigMap"), "g1", &options).await
    }

    async fn labelled(&self, name: &str) -> Value {
        let object = json!({"metadata": {"name": name, "labels": {"pg": "1"}}});
        self.create("v1", "ConfigMap", "g1", object).await.unwrap()
    }
}

fn names(list: &List) -> Vec<&str> {
    list.entries.iter().map(|entry| entry.namespaced_name().1).collect()
}

fn text(change: &Change) -> String {
    match change {
        Change::Added(entry) => format!("+{}", entry.namespaced_name().1),
        Change::Modified(entry) => format!("~{}", entry.namespaced_name().1),
        Change::Deleted(entry) => {
            format!("-{}@{}", entry.namespaced_name().1, decoded(entry)["metadata"]["resourceVersion"])
        }
        Change::Bookmark { revision, initial_events_end } => format!("bookmark {revision} {initial_events_end}"),
        Change::Error(status) => status.message.clone(),
    }
}

#[tokio::test]
async fn pages_show_one_revision_and_count_what_is_left() {
    let cluster = Cluster::new().await;
    for name in ["a", "b", "c", "d"] {
        cluster.config_map(name).await;
    }
    let first = cluster.list(ListOptions { limit: 3, ..ListOptions::default() }).await.unwrap();
    assert_eq!((names(&first), first.remaining), (vec!["a", "b", "c"], Some(1)));
    cluster.delete("ConfigMap", "d", DeleteOptions::default()).await.unwrap();
    let next = ListOptions { limit: 3, continue_token: first.continue_token.clone(), ..ListOptions::default() };
    let second = cluster.list(next).await.unwrap();
    assert_eq!((names(&second), second.revision), (vec!["d"], first.revision));
    assert!(second.continue_token.is_empty() && second.remaining.is_none());
    let with_revision =
        ListOptions { resource_version: "1".into(), continue_token: first.continue_token, ..ListOptions::default() };
    let error = cluster.list(with_revision).await.err().unwrap();
    assert_eq!(error.message, "specifying resource version is not allowed when using continue");
}

#[tokio::test]
async fn selected_pages_are_filled_from_many_objects() {
    let cluster = Cluster::new().await;
    for name in ["a", "b", "c"] {
        cluster.config_map(&format!("x{name}")).await;
        cluster.labelled(name).await;
    }
    let options = ListOptions { label_selector: "pg=1".into(), limit: 2, ..ListOptions::default() };
    let first = cluster.list(options.clone()).await.unwrap();
    assert_eq!((names(&first), first.remaining), (vec!["a", "b"], None));
    let second = cluster.list(ListOptions { continue_token: first.continue_token, ..options }).await.unwrap();
    assert_eq!((names(&second), &*second.continue_token), (vec!["c"], ""));
    let by_name = ListOptions { field_selector: "metadata.name=xa".into(), ..ListOptions::default() };
    assert_eq!(names(&cluster.list(by_name).await.unwrap()), ["xa"]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_page_offers_to_go_on_inconsistently() {
    let cluster = Cluster::new().await;
    for name in ["a", "b"] {
        cluster.config_map(name).await;
    }
    let first = cluster.list(ListOptions { limit: 1, ..ListOptions::default() }).await.unwrap();
    cluster.config_map("c").await;
    tokio::time::advance(Duration::from_secs(301)).await;
    let next = ListOptions { limit: 1, continue_token: first.continue_token, ..ListOptions::default() };
    let error = cluster.list(next).await.err().unwrap();
    assert_eq!((error.code, &*error.reason), (410, "Expired"));
    let token = error.to_object()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = cluster.list(ListOptions { continue_token: token, ..ListOptions::default() }).await.unwrap();
    assert_eq!(names(&rest), ["b", "c"]);
    let exact = ListOptions {
        resource_version: first.revision.to_string(),
        resource_version_match: "Exact".into(),
        ..ListOptions::default()
    };
    let error = cluster.list(exact).await.err().unwrap();
    assert_eq!(error.message, "The resourceVersion for the provided list is too old.");
}

#[tokio::test]
async fn wrong_list_options_are_refused_in_upstreams_words() {
    let cluster = Cluster::new().await;
    let newest = cluster.registry.store.revision();
    let default = ListOptions::default;
    let cases = [
        (
            ListOptions { resource_version: "abc".into(), ..default() },
            400,
            "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax".to_owned(),
        ),
        (
            ListOptions { resource_version: "999999999".into(), ..default() },
            504,
            format!("Timeout: Too large resource version: 999999999, current: {newest}"),
        ),
        (
            ListOptions { resource_version_match: "Exact".into(), ..default() },
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided".to_owned(),
        ),
        (
            ListOptions { resource_version: "1".into(), resource_version_match: "Foo".into(), ..default() },
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"Exact\", \"NotOlderThan\", \"\"".to_owned(),
        ),
        (
            ListOptions { label_selector: "a in x".into(), ..default() },
            400,
            "unable to parse requirement: found 'x' expected: '('".to_owned(),
        ),
        (
            ListOptions { field_selector: "a".into(), ..default() },
            400,
            "invalid selector: 'a'; can't understand 'a'".to_owned(),
        ),
    ];
    for (options, code, message) in cases {
        let error = cluster.list(options).await.err().unwrap();
        assert_eq!((error.code, error.message), (code, message));
    }
    let error = cluster.watch(ListOptions { send_initial_events: Some(true), ..default() }).await.err().unwrap();
    let expected = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    assert_eq!((error.code, &*error.message), (422, expected));
    let error = cluster.watch(ListOptions { resource_version: "abc".into(), ..default() }).await.err().unwrap();
    assert_eq!((error.code, &*error.reason), (500, ""));
}

#[tokio::test(start_paused = true)]
async fn a_watch_sees_objects_enter_and_leave_its_selection() {
    let cluster = Cluster::new().await;
    cluster.labelled("a").await;
    cluster.config_map("other").await;
    let options = ListOptions {
        label_selector: "pg=1".into(),
        send_initial_events: Some(true),
        resource_version_match: "NotOlderThan".into(),
        allow_bookmarks: true,
        timeout_s: Some(90),
        ..ListOptions::default()
    };
    let start = cluster.registry.store.revision();
    let mut stream = cluster.watch(options).await.unwrap();
    cluster.merge("ConfigMap", "", "other", json!({"metadata": {"labels": {"pg": "1"}}})).await.unwrap();
    cluster.merge("ConfigMap", "", "other", json!({"data": {"x": "y"}})).await.unwrap();
    cluster.merge("ConfigMap", "", "other", json!({"metadata": {"labels": null}})).await.unwrap();
    cluster.merge("ConfigMap", "", "other", json!({"data": {"x": "z"}})).await.unwrap();
    cluster.delete("ConfigMap", "a", DeleteOptions::default()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(change) = stream.next().await {
        seen.push(text(&change));
    }
    let end = cluster.registry.store.revision();
    let expected = [
        "+a".to_owned(),
        format!("bookmark {start} true"),
        "+other".to_owned(),
        "~other".to_owned(),
        format!("-other@\"{}\"", start + 3),
        format!("-a@\"{end}\""),
        format!("bookmark {end} false"),
        format!("bookmark {end} false"),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_watch_from_a_lost_revision_is_told_so() {
    let cluster = Cluster::new().await;
    let store = Arc::new(MemoryStore::with_ring_limit(4096));
    let registry = Registry { store, ..cluster.registry };
    let cluster = Cluster { registry, ..cluster };
    cluster.create("v1", "Namespace", "", json!({"metadata": {"name": "g1"}})).await.unwrap();
    cluster.config_map("a").await;
    for value in 0..40 {
        cluster.merge("ConfigMap", "", "a", json!({"data": {"v": value.to_string()}})).await.unwrap();
    }
    let mut stream =
        cluster.watch(ListOptions { resource_version: "3".into(), ..ListOptions::default() }).await.unwrap();
    let Some(Change::Error(error)) = stream.next().await else { panic!("no error") };
    assert!(error.is_expired() && error.message.starts_with("too old resource version: 3 ("), "{}", error.message);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_node_finds_its_own_pods_and_hears_of_no_others() {
    let cluster = Cluster::new().await;
    let pods = cluster.kind("v1", "Pod");
    let on = |node: &str| ListOptions {
        field_selector: format!("spec.nodeName={node}"),
        allow_bookmarks: true,
        timeout_s: Some(90),
        ..ListOptions::default()
    };
    let bound = |name: &str, node: &str| {
        let mut object = pod(name);
        object["spec"]["nodeName"] = node.into();
        object
    };
    for (name, node) in [("a", "one"), ("b", "two"), ("c", "one")] {
        cluster.create("v1", "Pod", "g1", bound(name, node)).await.unwrap();
    }
    cluster.create("v1", "Pod", "default", bound("d", "one")).await.unwrap();
    cluster.create("v1", "Pod", "g1", pod("waits")).await.unwrap();
    let listed = cluster.registry.list(&pods, "", &on("one")).await.unwrap();
    assert_eq!(names(&listed), ["d", "a", "c"]);
    assert_eq!(names(&cluster.registry.list(&pods, "g1", &on("one")).await.unwrap()), ["a", "c"]);
    let both = ListOptions { field_selector: "spec.nodeName=one,metadata.name=c".into(), ..ListOptions::default() };
    assert_eq!(names(&cluster.registry.list(&pods, "g1", &both).await.unwrap()), ["c"]);
    let paged = ListOptions { limit: 2, ..on("one") };
    let first = cluster.registry.list(&pods, "", &paged).await.unwrap();
    let next = ListOptions { continue_token: first.continue_token.clone(), ..paged };
    assert_eq!((names(&first).len(), names(&cluster.registry.list(&pods, "", &next).await.unwrap())), (2, vec!["c"]));

    let mut options = on("one");
    options.resource_version = listed.revision.to_string();
    let mut stream = cluster.registry.watch(&pods, "", &options).await.unwrap();
    cluster.merge("Pod", "", "b", json!({"metadata": {"labels": {"x": "y"}}})).await.unwrap();
    cluster.merge("Pod", "", "a", json!({"metadata": {"labels": {"x": "y"}}})).await.unwrap();
    assert_eq!(text(&stream.next().await.unwrap()), "~a");
    cluster.merge("Pod", "", "b", json!({"metadata": {"labels": {"x": "z"}}})).await.unwrap();
    let end = cluster.registry.store.revision();
    // It has seen nothing since, and still hears how far it is.
    assert_eq!(text(&stream.next().await.unwrap()), format!("bookmark {end} false"));
    let unbound = ListOptions { field_selector: "spec.nodeName=".into(), ..ListOptions::default() };
    assert_eq!(names(&cluster.registry.list(&pods, "g1", &unbound).await.unwrap()), ["waits"]);
}
