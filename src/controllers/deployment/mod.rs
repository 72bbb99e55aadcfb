//! Rolls templates out: a ReplicaSet per template, scaled step by step.

mod bounds;
mod plan;
mod revision;
mod status;

use super::owners::{self, Claim, claim};
use super::pods::PodFacts;
use super::runner::{Reconcile, Source};
use super::{CATCH_UP_LIMIT, Tools};
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Any, Meta};
use crate::api::view::workload::{Deployment, ReplicaSet};
use crate::client::events::Type;
use crate::client::informer::Change;
use crate::client::{DEPLOYMENTS, EventRecorder, Informer, Item, ObjectRef, PODS, REPLICASETS};
use crate::client::{DeleteOptions, PatchType};
use futures_util::future::BoxFuture;
use plan::{Action, plan, scale_patch};
use serde_json::{Value, json};
use status::News;
use std::sync::Arc;
use std::time::Duration;

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    deployments: Informer,
    sets: Informer,
    pods: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let deployments = tools.informers.all(DEPLOYMENTS);
        let sets = owners::with_controllers(tools.informers.all(REPLICASETS));
        let pods = owners::with_controllers(tools.informers.all(PODS));
        let of_set = {
            let deployments = deployments.clone();
            move |change: &_| owners::owner_keys(change, "Deployment", &deployments, selects)
        };
        let of_pod = {
            let sets = sets.clone();
            move |change: &_| of_last_pod(change, &sets)
        };
        let sources = vec![Source::own(&deployments), Source::new(&sets, of_set), Source::new(&pods, of_pod)];
        let recorder = tools.recorder("deployment-controller");
        (Arc::new(Self { tools: tools.clone(), recorder, deployments, sets, pods }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.deployments.by_key(key) else { return Ok(None) };
        let mut deployment: Deployment = item.view()?;
        let sets = self.claimed(&deployment).await?;
        let plan = plan(&deployment, &sets, self.old_pods_run(&deployment, &sets));
        let mut news = News::Nothing;
        let mut failure = None;
        for action in &plan.actions {
            match self.apply(&mut deployment, &sets, action).await {
                Ok(News::Nothing) => {}
                Ok(told) => news = told,
                Err(error) => {
                    if matches!(action, Action::Create(_)) {
                        news = News::CreateFailed(error.message.clone());
                    }
                    failure = failure.or(Some(error));
                }
            }
        }
        let now = self.tools.clock.now();
        // After a step the sets have changed: the status counts them as they are now.
        let sets = if plan.actions.is_empty() { sets } else { self.claimed(&deployment).await? };
        let (status, again) = status::status(&deployment, &sets, plan.rollout, &news, now);
        if status != deployment.status {
            self.patch_own(&deployment, "status", status::patch(&status)).await?;
        }
        failure.map_or(Ok(again), Err)
    }

    /// The ReplicaSets of the Deployment, orphans adopted and strangers released.
    async fn claimed(&self, deployment: &Deployment) -> Result<Vec<ReplicaSet>> {
        let (owned, orphans) = owners::children(&self.sets, &deployment.metadata);
        let mut claimed = Vec::new();
        for item in owned.iter().chain(&orphans) {
            let set: ReplicaSet = item.view()?;
            match claim(&deployment.metadata, &deployment.spec.selector, &set.metadata) {
                Claim::Own => claimed.push(set),
                Claim::Adopt => {
                    if self.adopt(deployment, &set.metadata).await? {
                        claimed.push(set);
                    }
                }
                Claim::Release => {
                    self.patch_set(
                        &set.metadata,
                        PatchType::Strategic,
                        owners::release(&deployment.metadata, &set.metadata),
                    )
                    .await?;
                }
                Claim::Ignore => {}
            }
        }
        Ok(claimed)
    }

    /// Asks the API first whether we still exist: an owner that is being deleted must not take new children.
    async fn adopt(&self, deployment: &Deployment, set: &Meta) -> Result<bool> {
        let meta = &deployment.metadata;
        let fresh: Any = self.tools.client.get(DEPLOYMENTS, &meta.namespace, &meta.name).await?.view()?;
        if fresh.metadata.uid != meta.uid || fresh.metadata.is_deleting() {
            return Ok(false);
        }
        let reference = owners::reference("apps/v1", "Deployment", meta);
        self.patch_set(set, PatchType::Strategic, owners::adoption(reference, set)).await?;
        Ok(true)
    }

    /// Only Recreate asks: it starts nothing before every old pod has ended.
    fn old_pods_run(&self, deployment: &Deployment, sets: &[ReplicaSet]) -> bool {
        if deployment.spec.strategy.r#type != "Recreate" {
            return false;
        }
        let (_, old) = revision::split(deployment, sets);
        let runs = |item: Item| item.view::<PodFacts>().is_ok_and(|pod| !pod.has_ended());
        old.iter().any(|set| self.pods.by_index(owners::BY_CONTROLLER, &set.metadata.uid).into_iter().any(runs))
    }

    async fn apply(&self, deployment: &mut Deployment, sets: &[ReplicaSet], action: &Action) -> Result<News> {
        let find = |name: &str| {
            let set = sets.iter().find(|set| set.metadata.name == name);
            set.map(|set| &set.metadata).ok_or_else(|| Status::internal(format!("replica set {name} left the plan")))
        };
        match action {
            Action::Create(object) => return self.create(deployment, object.clone()).await,
            Action::Patch { name, patch } => self.patch_set(find(name)?, PatchType::Merge, patch.clone()).await?,
            Action::Note { name } => {
                self.patch_set(find(name)?, PatchType::Merge, scale_patch(deployment, None)).await?;
            }
            Action::Scale { name, from, to } => {
                self.patch_set(find(name)?, PatchType::Merge, scale_patch(deployment, Some(*to))).await?;
                self.tell_scaled(deployment, name, *from, *to);
            }
            Action::Delete(name) => {
                let set = find(name)?;
                let options = DeleteOptions { uid: Some(set.uid.clone()), ..DeleteOptions::default() };
                match self.tools.client.delete(REPLICASETS, &set.namespace, &set.name, &options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
            Action::Revision(number) => {
                let patch = json!({"metadata": {"annotations": {revision::REVISION: number}}});
                self.patch_own(deployment, "", patch).await?;
                deployment.metadata.annotations.insert(revision::REVISION.to_owned(), number.clone());
            }
        }
        Ok(News::Nothing)
    }

    async fn create(&self, deployment: &mut Deployment, object: Value) -> Result<News> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let size = object["spec"]["replicas"].as_i64().unwrap_or(0);
        let namespace = deployment.metadata.namespace.clone();
        match self.tools.client.create(REPLICASETS, &namespace, object).await {
            Ok(item) => {
                self.sets.caught_up(&item, CATCH_UP_LIMIT).await;
                if size > 0 {
                    self.tell_scaled(deployment, &name, 0, size);
                }
                Ok(News::Created(name))
            }
            Err(error) if error.is_already_exists() => {
                self.collided(deployment, &name).await?;
                Ok(News::Nothing)
            }
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {}", error.message);
                self.tell(deployment, Type::Warning, "ReplicaSetCreateError", message);
                Err(error)
            }
        }
    }

    /// The name is taken. If not by our own set of this template, the next hash gets a counter mixed in.
    async fn collided(&self, deployment: &mut Deployment, name: &str) -> Result<()> {
        let item = self.tools.client.get(REPLICASETS, &deployment.metadata.namespace, name).await?;
        let set = [item.view::<ReplicaSet>()?];
        let ours = set[0].metadata.controller().is_some_and(|owner| owner.uid == deployment.metadata.uid);
        if ours && revision::split(deployment, &set).0.is_some() {
            self.sets.caught_up(&item, CATCH_UP_LIMIT).await;
            return Ok(());
        }
        let count = deployment.status.collision_count.unwrap_or(0) + 1;
        self.patch_own(deployment, "status", json!({"status": {"collisionCount": count}})).await?;
        deployment.status.collision_count = Some(count);
        Err(Status::already_exists(crate::api::status::Subject { group: "apps", kind: "replicasets", name }))
    }

    fn tell_scaled(&self, deployment: &Deployment, name: &str, from: i64, to: i64) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.tell(deployment, Type::Normal, "ScalingReplicaSet", message);
    }

    fn tell(&self, deployment: &Deployment, kind: Type, reason: &str, message: String) {
        self.recorder.event(&ObjectRef::new("apps/v1", "Deployment", &deployment.metadata), kind, reason, message);
    }

    async fn patch_set(&self, set: &Meta, kind: PatchType, patch: Value) -> Result<()> {
        let item = self.tools.client.patch(REPLICASETS, &set.namespace, &set.name, "", kind, patch).await?;
        self.sets.caught_up(&item, CATCH_UP_LIMIT).await;
        Ok(())
    }

    async fn patch_own(&self, deployment: &Deployment, subresource: &str, patch: Value) -> Result<()> {
        let (namespace, name) = (&deployment.metadata.namespace, &deployment.metadata.name);
        let written =
            self.tools.client.patch(DEPLOYMENTS, namespace, name, subresource, PatchType::Merge, patch).await?;
        self.deployments.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }
}

/// A pod that ended or went may be the last one Recreate waits for.
fn of_last_pod(change: &Change, sets: &Informer) -> Vec<String> {
    let Some(old) = change.old.as_ref().and_then(|item| item.view::<PodFacts>().ok()) else { return Vec::new() };
    let ended = change.new.as_ref().is_none_or(|new| new.view::<PodFacts>().is_ok_and(|pod| pod.has_ended()));
    let Some(owner) = old.metadata.controller().filter(|owner| ended && owner.kind == "ReplicaSet") else {
        return Vec::new();
    };
    let set = sets.get(&old.metadata.namespace, &owner.name).and_then(|item| item.view::<Any>().ok());
    let deployment = set.as_ref().and_then(|set| set.metadata.controller());
    deployment.map(|owner| format!("{}/{}", old.metadata.namespace, owner.name)).into_iter().collect()
}

fn selects(deployment: &Item, child: &Meta) -> bool {
    let selector = deployment.view::<Deployment>().map(|deployment| deployment.spec.selector);
    selector.is_ok_and(|selector| !selector.is_empty() && selector.matches(&child.labels))
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
