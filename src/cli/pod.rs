//! The pod and the container that people mean: `POD`, `pod/POD`, or anything that selects pods.

use super::get;
use crate::api::object::{Object, ObjectExt};
use crate::client::remote::path;
use crate::client::{PODS, Remote};
use crate::registry::ListOptions;
use anyhow::{Context, bail};
use http::Method;

/// What a name led to.
pub struct Found {
    pub pod: Object,
    /// The object that was named, when it was not the pod.
    pub through: Option<Object>,
}

/// Finds the pod that `typed` names or selects; of several, one that is ready.
pub async fn find(remote: &Remote, namespace: &str, typed: &str) -> anyhow::Result<Found> {
    let (kind, name) = typed.split_once('/').unwrap_or(("pods", typed));
    let kind = get::find_kind(kind)?;
    let body = remote.raw(Method::GET, &get::path(&kind, namespace, name), None).await?;
    let object: Object = serde_json::from_slice(&body)?;
    if kind.plural == "pods" {
        return Ok(Found { pod: object, through: None });
    }
    let label_selector = selector(&object).with_context(|| format!("{typed} selects no pods"))?;
    let options = ListOptions { label_selector, ..ListOptions::default() };
    let listed = remote.list(PODS, namespace, &options).await?;
    let pods = listed.items.iter().map(|item| serde_json::from_slice(&item.0));
    let pods = pods.collect::<Result<Vec<Object>, _>>()?;
    let pod = pods.into_iter().max_by_key(fitness).with_context(|| format!("{typed} has no pods"))?;
    Ok(Found { pod, through: Some(object) })
}

/// `a=b,c=d` of a service or a workload.
fn selector(object: &Object) -> Option<String> {
    let labels = object.at(&["spec", "selector", "matchLabels"]).or_else(|| object.at(&["spec", "selector"]))?;
    let labels = labels.as_object().filter(|labels| !labels.is_empty())?;
    let pairs = labels.iter().map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    Some(pairs.collect::<Option<Vec<_>>>()?.join(","))
}

/// Ready before running before the rest; nothing that is on its way out.
fn fitness(pod: &Object) -> (bool, bool, bool) {
    let conditions = pod.at(&["status", "conditions"]).and_then(Object::as_array).into_iter().flatten();
    let mut ready = conditions.filter(|one| one.str_at(&["type"]) == "Ready");
    let is_ready = ready.any(|one| one.str_at(&["status"]) == "True");
    (pod.deletion_timestamp().is_none(), is_ready, pod.str_at(&["status", "phase"]) == "Running")
}

/// The container that was asked for, else the pod's default; which of several it is, is said.
pub fn container<'a>(pod: &'a Object, asked: Option<&str>) -> anyhow::Result<&'a Object> {
    let list = |name: &str| pod.at(&["spec", name]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    let containers = list("containers");
    let all = || containers.iter().chain(list("initContainers")).chain(list("ephemeralContainers"));
    let named = |name: &str| all().find(|container| container.str_at(&["name"]) == name);
    if let Some(asked) = asked {
        return named(asked).with_context(|| format!("container {asked} is not in pod {}", pod.name()));
    }
    let marked = pod.annotation("kubectl.kubernetes.io/default-container").and_then(named);
    let Some(chosen) = marked.or(containers.first()) else { bail!("pod {} has no containers", pod.name()) };
    if all().count() > 1 && marked.is_none() {
        let names: Vec<&str> = all().map(|container| container.str_at(&["name"])).collect();
        eprintln!("Defaulted container \"{}\" out of: {}", chosen.str_at(&["name"]), names.join(", "));
    }
    Ok(chosen)
}

/// The path of a subresource of the pod.
pub fn subresource(pod: &Object, name: &str) -> String {
    path(PODS, pod.namespace(), pod.name(), name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_of_services_and_of_workloads() {
        let service = json!({"spec": {"selector": {"app": "web", "tier": "front"}}});
        assert_eq!(selector(&service).as_deref(), Some("app=web,tier=front"));
        assert_eq!(
            selector(&json!({"spec": {"selector": {"matchLabels": {"app": "web"}}}})).as_deref(),
            Some("app=web")
        );
        assert_eq!(selector(&json!({"spec": {"selector": {}}})), None);
        assert_eq!(selector(&json!({"spec": {}})), None);
    }

    #[test]
    fn the_fittest_pod_is_ready_and_stays() {
        let pod = |phase: &str, ready: &str| json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
        let mut going = pod("Running", "True");
        going.set(&["metadata", "deletionTimestamp"], json!("2026-01-01T00:00:00Z"));
        let in_order = [going, pod("Pending", "False"), pod("Running", "False"), pod("Running", "True")];
        assert!(in_order.windows(2).all(|pair| fitness(&pair[0]) < fitness(&pair[1])));
    }

    #[test]
    fn the_container_meant() {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        });
        let name = |pod: &Object, asked| container(pod, asked).map(|one| one.str_at(&["name"]).to_owned()).ok();
        assert_eq!(name(&pod, None).as_deref(), Some("a"));
        assert_eq!(name(&pod, Some("i")).as_deref(), Some("i"));
        assert_eq!(name(&pod, Some("x")), None);
        pod.set(&["metadata", "annotations"], json!({"kubectl.kubernetes.io/default-container": "b"}));
        assert_eq!(name(&pod, None).as_deref(), Some("b"));
    }
}
