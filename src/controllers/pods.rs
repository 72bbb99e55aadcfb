//! Pods as the controllers that make them see them, and how such a controller makes, takes and deletes them.

use super::owners;
use super::{CATCH_UP_LIMIT, Tools, timestamp};
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Any, Condition, Meta};
use crate::api::view::pod::Affinity;
use crate::client::events::Type;
use crate::client::{DeleteOptions, PatchType, Resource};
use crate::client::{EventRecorder, Informer, Item, ObjectRef, PODS};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

/// What decides about a pod; the rest of it is skipped when it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFacts {
    pub metadata: Meta,
    pub spec: Placement,
    pub status: PodState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    pub node_name: Option<String>,
    pub affinity: Option<Affinity>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodState {
    pub phase: String,
    pub conditions: Vec<Condition>,
    pub container_statuses: Vec<Restarts>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Restarts {
    pub restart_count: u32,
    pub state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    pub terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub finished_at: Option<String>,
}

impl PodFacts {
    pub fn ready(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|one| one.r#type == "Ready" && one.status == "True")
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub fn is_active(&self) -> bool {
        !self.metadata.is_deleting() && !self.has_ended()
    }

    pub fn ready_since(&self) -> Option<Timestamp> {
        self.ready()?.last_transition_time.as_deref().and_then(timestamp)
    }

    pub fn is_available(&self, min_ready_seconds: i64, now: Timestamp) -> bool {
        self.ready().is_some()
            && (min_ready_seconds == 0
                || self.ready_since().is_some_and(|since| now.duration_since(since).as_secs() >= min_ready_seconds))
    }

    /// When its last container ended.
    pub fn finished_at(&self) -> Option<Timestamp> {
        let ends = self.status.container_statuses.iter().filter_map(|one| one.state.terminated.as_ref());
        let last = ends.filter_map(|end| end.finished_at.as_deref().and_then(timestamp)).max();
        let ready = self.status.conditions.iter().find(|one| one.r#type == "Ready");
        last.or_else(|| ready?.last_transition_time.as_deref().and_then(timestamp))
            .or_else(|| timestamp(&self.metadata.creation_timestamp))
    }

    /// The node it is on; empty before it is bound.
    pub fn node(&self) -> &str {
        self.spec.node_name.as_deref().unwrap_or_default()
    }
}

/// A pod from the template of its owner.
pub fn pod_from_template(template: &Value, owner: &Meta, reference: Value) -> Value {
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": format!("{}-", owner.name), "namespace": owner.namespace,
            "ownerReferences": [reference]},
        "spec": template.get("spec").cloned().unwrap_or_default(),
    });
    for part in ["labels", "annotations", "finalizers"] {
        if let Some(value) = metadata.get(part).filter(|value| !value.is_null()) {
            pod["metadata"][part] = value.clone();
        }
    }
    pod
}

/// The kind whose objects own the pods.
#[derive(Clone, Copy)]
pub struct OwnerKind {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub resource: Resource,
}

impl OwnerKind {
    pub fn reference(&self, owner: &Meta) -> Value {
        owners::reference(self.api_version, self.kind, owner)
    }

    pub fn about(&self, owner: &Meta) -> ObjectRef {
        ObjectRef::new(self.api_version, self.kind, owner)
    }
}

/// The verbs on pods of one controller. Remembers what it deleted until the cache shows it.
pub struct PodControl {
    tools: Tools,
    recorder: EventRecorder,
    pods: Informer,
    owner: OwnerKind,
    /// By key: pods whose deletion was asked for and that the cache still shows as staying.
    gone: Mutex<HashMap<String, HashSet<String>>>,
}

impl PodControl {
    pub fn new(tools: &Tools, recorder: &EventRecorder, pods: &Informer, owner: OwnerKind) -> Self {
        let (tools, recorder, pods) = (tools.clone(), recorder.clone(), pods.clone());
        Self { tools, recorder, pods, owner, gone: Mutex::default() }
    }

    /// The owner is gone.
    pub fn forget(&self, key: &str) {
        self.gone.lock().expect("no panic while locked").remove(key);
    }

    /// Forgets deletions that the cache shows by now; the uids of those that it does not show.
    pub fn still_staying(&self, key: &str, pods: &[PodFacts]) -> HashSet<String> {
        let mut all = self.gone.lock().expect("no panic while locked");
        let Some(gone) = all.get_mut(key) else { return HashSet::new() };
        let staying: HashSet<&str> =
            pods.iter().filter(|pod| !pod.metadata.is_deleting()).map(|pod| pod.metadata.uid.as_str()).collect();
        gone.retain(|uid| staying.contains(uid.as_str()));
        let rest = gone.clone();
        if rest.is_empty() {
            all.remove(key);
        }
        rest
    }

    /// In batches that double, so that a pod the API refuses is refused few times. A namespace that is being
    /// deleted takes nothing: that is no failure.
    pub async fn create(&self, owner: &Meta, mut pods: impl ExactSizeIterator<Item = Value> + Send) -> Result<()> {
        let (mut batch, mut last) = (1, None);
        while pods.len() > 0 {
            let creations: Vec<_> = pods.by_ref().take(batch).map(|pod| self.create_one(owner, pod)).collect();
            let mut failed = None;
            for created in join_all(creations).await {
                match created {
                    Ok(item) => last = Some(item),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                self.catch_up(last).await;
                return if is_terminating_namespace(&error) { Ok(()) } else { Err(error) };
            }
            batch *= 2;
        }
        self.catch_up(last).await;
        Ok(())
    }

    async fn create_one(&self, owner: &Meta, pod: Value) -> Result<Item> {
        let about = self.owner.about(owner);
        match self.tools.client.create(PODS, &owner.namespace, pod).await {
            Ok(item) => {
                let message = format!("Created pod: {}", item.identity()?.name);
                self.recorder.event(&about, Type::Normal, "SuccessfulCreate", message);
                Ok(item)
            }
            Err(error) => {
                if !is_terminating_namespace(&error) {
                    let message = format!("Error creating: {}", error.message);
                    self.recorder.event(&about, Type::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    /// The next look must see these pods, or it would make them again.
    pub async fn catch_up(&self, last: Option<Item>) {
        if let Some(item) = last
            && !self.pods.caught_up(&item, CATCH_UP_LIMIT).await
        {
            tracing::warn!("pods made are not in the cache yet");
        }
    }

    pub async fn delete(&self, key: &str, owner: &Meta, doomed: Vec<&Meta>) -> Result<()> {
        let uids = doomed.iter().map(|pod| pod.uid.clone());
        self.gone.lock().expect("no panic while locked").entry(key.to_owned()).or_default().extend(uids);
        let deletions = doomed.into_iter().map(|pod| self.delete_one(key, owner, pod));
        join_all(deletions).await.into_iter().fold(Ok(()), Result::and)
    }

    async fn delete_one(&self, key: &str, owner: &Meta, pod: &Meta) -> Result<()> {
        let about = self.owner.about(owner);
        let options = DeleteOptions { uid: Some(pod.uid.clone()), ..DeleteOptions::default() };
        match self.tools.client.delete(PODS, &pod.namespace, &pod.name, &options).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", pod.name);
                self.recorder.event(&about, Type::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", error.message);
                self.recorder.event(&about, Type::Warning, "FailedDelete", message);
                if let Some(gone) = self.gone.lock().expect("no panic while locked").get_mut(key) {
                    gone.remove(&pod.uid);
                }
                Err(error)
            }
        }
    }

    /// Asks the API first whether we still exist: an owner that is being deleted must not take new children.
    pub async fn adopt(&self, owner: &Meta, pod: &Meta) -> Result<()> {
        if !self.owns_still(owner).await? {
            return Ok(());
        }
        self.patch(pod, owners::adoption(self.owner.reference(owner), pod)).await
    }

    pub async fn owns_still(&self, owner: &Meta) -> Result<bool> {
        let fresh = self.tools.client.get(self.owner.resource, &owner.namespace, &owner.name).await?;
        let fresh: Any = fresh.view()?;
        Ok(fresh.metadata.uid == owner.uid && !fresh.metadata.is_deleting())
    }

    pub async fn release(&self, owner: &Meta, pod: &Meta) -> Result<()> {
        self.patch(pod, owners::release(owner, pod)).await
    }

    /// A strategic patch; a pod that is gone needs none.
    pub async fn patch(&self, pod: &Meta, patch: Value) -> Result<()> {
        match self.tools.client.patch(PODS, &pod.namespace, &pod.name, "", PatchType::Strategic, patch).await {
            Ok(item) => self.catch_up(Some(item)).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_terminating_namespace(error: &Status) -> bool {
    let causes = error.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_takes_its_template_and_names_its_owner() {
        let template = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}});
        let owner = Meta { name: "web".into(), namespace: "a".into(), uid: "u".into(), ..Meta::default() };
        let pod = pod_from_template(&template, &owner, owners::reference("apps/v1", "ReplicaSet", &owner));
        assert_eq!(pod["metadata"]["generateName"], "web-");
        assert_eq!(pod["metadata"]["labels"]["tier"], "front");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(pod["metadata"].get("annotations"), None);
    }
}
