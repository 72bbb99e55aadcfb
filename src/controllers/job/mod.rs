//! Runs a Job's pods until enough of them have succeeded, or too many have failed, or time is up.
//! Not here yet: pod failure policies, success policies, backoff limits per index.

mod indexes;
mod plan;

use super::owners::{self, Claim, claim};
use super::pods::{OwnerKind, PodControl, PodFacts, pod_from_template};
use super::runner::{Reconcile, Source};
use super::{CATCH_UP_LIMIT, Tools};
use crate::api::object::ObjectExt;
use crate::api::status::Result;
use crate::api::view::meta::Meta;
use crate::api::view::workload::{Job, JobStatus};
use crate::client::informer::Change;
use crate::client::{DeleteOptions, PatchType, Propagation};
use crate::client::{EventRecorder, Informer, Item, JOBS, PODS};
use futures_util::future::BoxFuture;
use plan::{Action, FINALIZER, INDEX, Plan, is_tracked, plan};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const OWNER: OwnerKind = OwnerKind { api_version: "batch/v1", kind: "Job", resource: JOBS };
const CONTROLLER: &str = "kubernetes.io/job-controller";

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    jobs: Informer,
    pods: Informer,
    control: PodControl,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let jobs = tools.informers.all(JOBS);
        let pods = owners::with_controllers(tools.informers.all(PODS));
        let of_pod = {
            let jobs = jobs.clone();
            move |change: &Change| owners::owner_keys(change, "Job", &jobs, selects)
        };
        let sources = vec![Source::own(&jobs), Source::new(&pods, of_pod)];
        let recorder = tools.recorder("job-controller");
        let control = PodControl::new(tools, &recorder, &pods, OWNER);
        (Arc::new(Self { tools: tools.clone(), recorder, jobs, pods, control }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.jobs.by_key(key) else {
            self.control.forget(key);
            return self.release_orphans(key).await.map(|()| None);
        };
        let job: Job = item.view()?;
        if !matches!(job.spec.managed_by.as_str(), "" | CONTROLLER) {
            return Ok(None);
        }
        let pods = self.claimed(key, &job).await?;
        let plan = plan(&job, &pods, self.tools.clock.now());
        let mut result = Ok(());
        for action in &plan.actions {
            result = result.and(self.apply(key, &job, &pods, action).await);
        }
        self.write(&job, &plan).await?;
        for pod in pods.iter().filter(|pod| plan.release.contains(&pod.metadata.name) && is_tracked(pod)) {
            result = result.and(self.release(&pod.metadata).await);
        }
        if plan.expired {
            self.delete_own(&job).await?;
        }
        result.map(|()| plan.again)
    }

    /// The job's pods, orphans adopted and strangers released. A deletion under way counts as done.
    async fn claimed(&self, key: &str, job: &Job) -> Result<Vec<PodFacts>> {
        let (owned, orphans) = owners::children(&self.pods, &job.metadata);
        let mut claimed = Vec::new();
        for item in owned.iter().chain(&orphans) {
            let pod: PodFacts = item.view()?;
            match claim(&job.metadata, &job.spec.selector, &pod.metadata) {
                Claim::Own => claimed.push(pod),
                Claim::Adopt if !plan::is_finished(&job.status) => {
                    self.control.adopt(&job.metadata, &pod.metadata).await?;
                    claimed.push(pod);
                }
                Claim::Release => {
                    self.release(&pod.metadata).await?;
                    self.control.release(&job.metadata, &pod.metadata).await?;
                }
                // Of a job that is being deleted: its finalizer must go all the same.
                Claim::Ignore if pod.metadata.controller().is_some_and(|owner| owner.uid == job.metadata.uid) => {
                    claimed.push(pod);
                }
                _ => {}
            }
        }
        let gone = self.control.still_staying(key, &claimed);
        for pod in claimed.iter_mut().filter(|pod| gone.contains(&pod.metadata.uid)) {
            pod.metadata.deletion_timestamp = Some(String::new());
        }
        Ok(claimed)
    }

    /// The job is gone: nothing counts its pods any more.
    async fn release_orphans(&self, key: &str) -> Result<()> {
        let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
        for item in self.pods.list_namespace(namespace) {
            let pod: PodFacts = item.view()?;
            let ours = pod.metadata.controller().is_some_and(|owner| owner.kind == "Job" && owner.name == name);
            if ours && is_tracked(&pod) {
                self.release(&pod.metadata).await?;
            }
        }
        Ok(())
    }

    async fn release(&self, pod: &Meta) -> Result<()> {
        if !pod.finalizers.iter().any(|one| one == FINALIZER) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": pod.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        self.control.patch(pod, patch).await
    }

    async fn apply(&self, key: &str, job: &Job, pods: &[PodFacts], action: &Action) -> Result<()> {
        let named = |names: &[String]| -> Vec<&Meta> {
            pods.iter().map(|pod| &pod.metadata).filter(|pod| names.contains(&pod.name)).collect()
        };
        match action {
            Action::Create(places) => {
                let made = places.iter().map(|place| pod_for(job, *place));
                self.control.create(&job.metadata, made).await
            }
            Action::End(names) => self.control.delete(key, &job.metadata, named(names)).await,
            Action::Discard(names) => {
                for pod in named(names) {
                    self.release(pod).await?;
                }
                self.control.delete(key, &job.metadata, named(names)).await
            }
            Action::Tell { kind, reason, message } => {
                self.recorder.event(&OWNER.about(&job.metadata), *kind, reason, message.clone());
                Ok(())
            }
        }
    }

    /// On the very revision that was looked at: no end may be counted on top of another count.
    async fn write(&self, job: &Job, plan: &Plan) -> Result<()> {
        if plan.status == job.status {
            return Ok(());
        }
        let meta = &job.metadata;
        let mut patch = status_patch(&plan.status);
        patch["metadata"] = json!({"resourceVersion": meta.resource_version});
        let client = &self.tools.client;
        let written = client.patch(JOBS, &meta.namespace, &meta.name, "status", PatchType::Merge, patch).await?;
        self.jobs.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }

    async fn delete_own(&self, job: &Job) -> Result<()> {
        let meta = &job.metadata;
        let options = DeleteOptions {
            uid: Some(meta.uid.clone()),
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        match self.tools.client.delete(JOBS, &meta.namespace, &meta.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn pod_for(job: &Job, place: Option<i64>) -> Value {
    let mut pod = pod_from_template(&job.spec.template, &job.metadata, OWNER.reference(&job.metadata));
    let mut finalizers: Vec<Value> =
        pod.at(&["metadata", "finalizers"]).and_then(Value::as_array).cloned().unwrap_or_default();
    finalizers.push(FINALIZER.into());
    pod.set(&["metadata", "finalizers"], finalizers.into());
    let Some(index) = place else { return pod };
    let name = format!("{}-{index}", job.metadata.name);
    pod.set(&["metadata", "generateName"], format!("{name}-").into());
    pod.set(&["metadata", "annotations", INDEX], index.to_string().into());
    pod.set(&["metadata", "labels", INDEX], index.to_string().into());
    pod.set(&["spec", "hostname"], name.into());
    for list in ["containers", "initContainers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            tell_index(container);
        }
    }
    pod
}

/// The container learns its index from the environment, unless its template says otherwise.
fn tell_index(container: &mut Value) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    let mut env: Vec<Value> = container.at(&["env"]).and_then(Value::as_array).cloned().unwrap_or_default();
    if env.iter().any(|one| one["name"] == NAME) {
        return;
    }
    let path = format!("metadata.labels['{INDEX}']");
    env.push(json!({"name": NAME, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}));
    container.set(&["env"], env.into());
}

/// A merge patch; zeros are absent where upstream leaves them out.
fn status_patch(status: &JobStatus) -> Value {
    let count = |number: i64| if number == 0 { Value::Null } else { number.into() };
    let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
    let list = |uids: &[String]| if uids.is_empty() { Value::Null } else { json!(uids) };
    let conditions = if status.conditions.is_empty() { Value::Null } else { super::conditions(&status.conditions) };
    let uncounted = &status.uncounted_terminated_pods;
    let indexes = Some(status.completed_indexes.clone()).filter(|text| !text.is_empty());
    json!({"status": {
        "active": count(status.active),
        "ready": status.ready,
        "terminating": status.terminating,
        "succeeded": count(status.succeeded),
        "failed": count(status.failed),
        "startTime": text(&status.start_time),
        "completionTime": text(&status.completion_time),
        "completedIndexes": text(&indexes),
        "uncountedTerminatedPods":
            {"succeeded": list(&uncounted.succeeded), "failed": list(&uncounted.failed)},
        "conditions": conditions,
    }})
}

fn selects(job: &Item, child: &Meta) -> bool {
    let selector = job.view::<Job>().map(|job| job.spec.selector);
    selector.is_ok_and(|selector| !selector.is_empty() && selector.matches(&child.labels))
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_its_index_and_is_tracked() {
        let job: Job = serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "a", "uid": "u"},
            "spec": {"template": {"metadata": {"labels": {"job-name": "j"}},
                "spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "b"}]}]}}}}))
        .expect("job");
        let pod = pod_for(&job, Some(3));
        assert_eq!(pod["metadata"]["generateName"], "j-3-");
        assert_eq!(
            (&pod["metadata"]["annotations"][INDEX], &pod["metadata"]["labels"][INDEX]),
            (&json!("3"), &json!("3"))
        );
        assert_eq!(pod["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(pod["spec"]["hostname"], "j-3");
        assert_eq!(pod["spec"]["containers"][0]["env"][1]["name"], "JOB_COMPLETION_INDEX");
        assert_eq!(pod_for(&job, None)["spec"].get("hostname"), None);
    }
}
