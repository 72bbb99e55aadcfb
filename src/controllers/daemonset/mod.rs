//! Runs one pod of a DaemonSet on every node that takes it, and rolls new templates out node by node.

mod placement;
mod plan;

use super::history::{self, HASH_LABEL};
use super::owners::{self, Claim, claim};
use super::pods::{OwnerKind, PodControl, PodFacts};
use super::runner::{Reconcile, Source};
use super::{CATCH_UP_LIMIT, Tools};
use crate::api::status::{Result, Status, Subject};
use crate::api::view::meta::Meta;
use crate::api::view::workload::{ControllerRevision, DaemonSet, DaemonSetStatus};
use crate::client::events::Type;
use crate::client::informer::Change;
use crate::client::{CONTROLLERREVISIONS, DAEMONSETS, EventRecorder, Informer, Item, NODES, PODS};
use crate::client::{DeleteOptions, PatchType};
use crate::clock::monotonic;
use futures_util::future::BoxFuture;
use placement::NodeFacts;
use plan::{Action, Observed, plan, status};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

const OWNER: OwnerKind = OwnerKind { api_version: "apps/v1", kind: "DaemonSet", resource: DAEMONSETS };
/// Pods made or deleted in one go.
const BURST_LIMIT: usize = 250;
/// A pod that fails again and again is replaced more and more slowly.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LIMIT: Duration = Duration::from_secs(15 * 60);

/// When a failed pod of a node was replaced last, and how long the next one waits.
#[derive(Clone, Copy)]
struct Backoff {
    at: Instant,
    wait: Duration,
}

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    sets: Informer,
    revisions: Informer,
    nodes: Informer,
    pods: Informer,
    control: PodControl,
    /// By key of the set, then by node; bounded by both.
    backoff: Mutex<HashMap<String, BTreeMap<String, Backoff>>>,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let sets = tools.informers.all(DAEMONSETS);
        let revisions = owners::with_controllers(tools.informers.all(CONTROLLERREVISIONS));
        let pods = owners::with_controllers(tools.informers.all(PODS));
        let nodes = tools.informers.all(NODES);
        let of_child = {
            let sets = sets.clone();
            move |change: &Change| owners::owner_keys(change, "DaemonSet", &sets, selects)
        };
        let of_node = {
            let sets = sets.clone();
            move |change: &Change| if matters(change) { keys(&sets) } else { Vec::new() }
        };
        let sources = vec![
            Source::own(&sets),
            Source::new(&revisions, of_child.clone()),
            Source::new(&pods, of_child),
            Source::new(&nodes, of_node),
        ];
        let recorder = tools.recorder("daemonset-controller");
        let control = PodControl::new(tools, &recorder, &pods, OWNER);
        let tools = tools.clone();
        (Arc::new(Self { tools, recorder, sets, revisions, nodes, pods, control, backoff: Mutex::default() }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.sets.by_key(key) else {
            self.control.forget(key);
            self.backoff.lock().expect("no panic while locked").remove(key);
            return Ok(None);
        };
        let mut set: DaemonSet = item.view()?;
        if set.spec.selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&OWNER.about(&set.metadata), Type::Warning, "SelectingAll", message);
            return Ok(None);
        }
        if set.metadata.is_deleting() {
            return Ok(None);
        }
        let revisions = self.claimed_revisions(&set).await?;
        let pods = self.claimed_pods(key, &set).await?;
        let current = self.current_revision(&mut set, &revisions, &pods).await?;
        let (spec, nodes) = (placement::pod_spec(&set)?, self.node_facts()?);
        let (backoff, now) = (self.backing_off(key), self.tools.clock.now());
        let hash = history::hash_of(&current);
        let (set, nodes) = (&set, nodes.as_slice());
        let observed = Observed { set, spec: &spec, nodes, pods: &pods, hash, backoff: &backoff, now };
        let plan = plan(&observed);
        let mut result = Ok(());
        for action in &plan.actions {
            result = result.and(self.apply(key, set, hash, &pods, action).await);
        }
        self.clean_up(set, &revisions, &pods).await?;
        let after = if plan.actions.is_empty() { Vec::new() } else { self.claimed_pods(key, set).await? };
        let status = status(&Observed { pods: if plan.actions.is_empty() { &pods } else { &after }, ..observed });
        if status != set.status {
            self.patch_own(set, "status", status_patch(&status)).await?;
        }
        result.map(|()| plan.again)
    }

    fn node_facts(&self) -> Result<Vec<NodeFacts>> {
        self.nodes.list().iter().map(Item::view).collect()
    }

    /// The set's pods, orphans adopted and strangers released. A deletion under way counts as done.
    async fn claimed_pods(&self, key: &str, set: &DaemonSet) -> Result<Vec<PodFacts>> {
        let (owned, orphans) = owners::children(&self.pods, &set.metadata);
        let mut claimed = Vec::new();
        for item in owned.iter().chain(&orphans) {
            let pod: PodFacts = item.view()?;
            match claim(&set.metadata, &set.spec.selector, &pod.metadata) {
                Claim::Own => claimed.push(pod),
                Claim::Adopt if !pod.has_ended() => {
                    self.control.adopt(&set.metadata, &pod.metadata).await?;
                    claimed.push(pod);
                }
                Claim::Release => self.control.release(&set.metadata, &pod.metadata).await?,
                _ => {}
            }
        }
        let gone = self.control.still_staying(key, &claimed);
        for pod in claimed.iter_mut().filter(|pod| gone.contains(&pod.metadata.uid)) {
            pod.metadata.deletion_timestamp = Some(String::new());
        }
        Ok(claimed)
    }

    async fn claimed_revisions(&self, set: &DaemonSet) -> Result<Vec<ControllerRevision>> {
        let (owned, orphans) = owners::children(&self.revisions, &set.metadata);
        let mut claimed = Vec::new();
        for item in owned.iter().chain(&orphans) {
            let revision: ControllerRevision = item.view()?;
            match claim(&set.metadata, &set.spec.selector, &revision.metadata) {
                Claim::Own => claimed.push(revision),
                Claim::Adopt if self.control.owns_still(&set.metadata).await? => {
                    let patch = owners::adoption(OWNER.reference(&set.metadata), &revision.metadata);
                    self.patch_revision(&revision.metadata, PatchType::Strategic, patch).await?;
                    claimed.push(revision);
                }
                Claim::Release => {
                    let patch = owners::release(&set.metadata, &revision.metadata);
                    self.patch_revision(&revision.metadata, PatchType::Strategic, patch).await?;
                }
                _ => {}
            }
        }
        Ok(claimed)
    }

    /// The revision of the current template: made, made the newest again, or found.
    async fn current_revision(
        &self,
        set: &mut DaemonSet,
        revisions: &[ControllerRevision],
        pods: &[PodFacts],
    ) -> Result<ControllerRevision> {
        let (current, old) = history::split(&set.spec.template, revisions);
        let number = history::next_number(&old);
        let Some((newest, doubles)) = current.split_first() else {
            return self.new_revision(set, number).await;
        };
        self.merge_doubles(newest, doubles, pods).await?;
        if newest.revision < number {
            let patch = json!({"revision": number});
            self.patch_revision(&newest.metadata, PatchType::Merge, patch).await?;
        }
        Ok((*newest).clone())
    }

    /// Two revisions of one template: pods of the others become pods of the newest, and the others go.
    async fn merge_doubles(
        &self,
        newest: &ControllerRevision,
        doubles: &[&ControllerRevision],
        pods: &[PodFacts],
    ) -> Result<()> {
        let hash = history::hash_of(newest);
        for double in doubles {
            for pod in pods.iter().filter(|pod| label(pod) == Some(history::hash_of(double))) {
                let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": {HASH_LABEL: hash}}});
                self.control.patch(&pod.metadata, patch).await?;
            }
            self.delete_revision(&double.metadata).await?;
        }
        Ok(())
    }

    async fn new_revision(&self, set: &mut DaemonSet, number: i64) -> Result<ControllerRevision> {
        let (meta, collisions) = (&set.metadata, set.status.collision_count.unwrap_or(0));
        let object = history::new_revision(meta, OWNER.reference(meta), &set.spec.template, collisions, number);
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match self.tools.client.create(CONTROLLERREVISIONS, &meta.namespace, object).await {
            Ok(item) => {
                self.revisions.caught_up(&item, CATCH_UP_LIMIT).await;
                item.view()
            }
            Err(error) if error.is_already_exists() => self.collided(set, &name).await,
            Err(error) => Err(error),
        }
    }

    /// The name is taken. If not by a revision of this template, the next hash gets a counter mixed in.
    async fn collided(&self, set: &mut DaemonSet, name: &str) -> Result<ControllerRevision> {
        let item = self.tools.client.get(CONTROLLERREVISIONS, &set.metadata.namespace, name).await?;
        let revision: ControllerRevision = item.view()?;
        if revision.data == history::data(&set.spec.template) {
            self.revisions.caught_up(&item, CATCH_UP_LIMIT).await;
            return Ok(revision);
        }
        let count = set.status.collision_count.unwrap_or(0) + 1;
        self.patch_own(set, "status", json!({"status": {"collisionCount": count}})).await?;
        set.status.collision_count = Some(count);
        Err(Status::already_exists(Subject { group: "apps", kind: "controllerrevisions", name }))
    }

    async fn clean_up(&self, set: &DaemonSet, revisions: &[ControllerRevision], pods: &[PodFacts]) -> Result<()> {
        let (_, old) = history::split(&set.spec.template, revisions);
        let live: BTreeSet<&str> = pods.iter().filter_map(label).collect();
        for revision in history::expired(&old, set.spec.revision_history_limit.unwrap_or(10), &live) {
            self.delete_revision(&revision.metadata).await?;
        }
        Ok(())
    }

    async fn apply(&self, key: &str, set: &DaemonSet, hash: &str, pods: &[PodFacts], action: &Action) -> Result<()> {
        match action {
            Action::Create(nodes) => {
                let template = placement::pod_template(set, hash);
                let reference = OWNER.reference(&set.metadata);
                let some = nodes.iter().take(BURST_LIMIT);
                let pods = some.map(|node| placement::pod_on(&template, set, reference.clone(), node));
                self.control.create(&set.metadata, pods).await
            }
            Action::Delete(names) => {
                let doomed = names
                    .iter()
                    .take(BURST_LIMIT)
                    .filter_map(|name| pods.iter().find(|pod| pod.metadata.name == *name).map(|pod| &pod.metadata));
                self.control.delete(key, &set.metadata, doomed.collect()).await
            }
            Action::Tell { kind, reason, message } => {
                self.recorder.event(&OWNER.about(&set.metadata), *kind, reason, message.clone());
                Ok(())
            }
            Action::BackOff(node) => {
                self.back_off(key, node);
                Ok(())
            }
        }
    }

    /// The nodes of a set whose failed pods stay a while, and for how long.
    fn backing_off(&self, key: &str) -> BTreeMap<String, Duration> {
        let mut all = self.backoff.lock().expect("no panic while locked");
        let Some(nodes) = all.get_mut(key) else { return BTreeMap::new() };
        // After a long quiet time a failure is a first one again.
        nodes.retain(|_, backoff| backoff.at.elapsed() < BACKOFF_LIMIT * 2);
        let left = |backoff: &Backoff| backoff.wait.saturating_sub(backoff.at.elapsed());
        let waiting = nodes.iter().filter(|(_, backoff)| !left(backoff).is_zero());
        waiting.map(|(node, backoff)| (node.clone(), left(backoff))).collect()
    }

    fn back_off(&self, key: &str, node: &str) {
        let mut all = self.backoff.lock().expect("no panic while locked");
        let nodes = all.entry(key.to_owned()).or_default();
        let wait = nodes.get(node).map_or(BACKOFF_FIRST, |backoff| (backoff.wait * 2).min(BACKOFF_LIMIT));
        nodes.insert(node.to_owned(), Backoff { at: monotonic(), wait });
    }

    async fn patch_revision(&self, revision: &Meta, kind: PatchType, patch: Value) -> Result<()> {
        let (namespace, name) = (&revision.namespace, &revision.name);
        let written = self.tools.client.patch(CONTROLLERREVISIONS, namespace, name, "", kind, patch).await?;
        self.revisions.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }

    async fn delete_revision(&self, revision: &Meta) -> Result<()> {
        let options = DeleteOptions { uid: Some(revision.uid.clone()), ..DeleteOptions::default() };
        match self.tools.client.delete(CONTROLLERREVISIONS, &revision.namespace, &revision.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn patch_own(&self, set: &DaemonSet, subresource: &str, patch: Value) -> Result<()> {
        let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
        let client = &self.tools.client;
        let written = client.patch(DAEMONSETS, namespace, name, subresource, PatchType::Merge, patch).await?;
        self.sets.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }
}

fn label(pod: &PodFacts) -> Option<&str> {
    pod.metadata.labels.get(HASH_LABEL).map(String::as_str)
}

/// A merge patch; upstream leaves out the later counts when they are zero.
fn status_patch(status: &DaemonSetStatus) -> Value {
    let count = |number: i64| if number == 0 { Value::Null } else { number.into() };
    json!({"status": {
        "observedGeneration": status.observed_generation,
        "desiredNumberScheduled": status.desired_number_scheduled,
        "currentNumberScheduled": status.current_number_scheduled,
        "numberMisscheduled": status.number_misscheduled,
        "numberReady": status.number_ready,
        "numberAvailable": count(status.number_available),
        "numberUnavailable": count(status.number_unavailable),
        "updatedNumberScheduled": count(status.updated_number_scheduled),
    }})
}

fn selects(set: &Item, child: &Meta) -> bool {
    let selector = set.view::<DaemonSet>().map(|set| set.spec.selector);
    selector.is_ok_and(|selector| !selector.is_empty() && selector.matches(&child.labels))
}

fn keys(sets: &Informer) -> Vec<String> {
    sets.list().iter().filter_map(|set| set.identity().ok().map(|identity| identity.key())).collect()
}

/// Whether a change of a node decides about daemons; a heartbeat does not.
fn matters(change: &Change) -> bool {
    let facts = |item: &Option<Item>| {
        let node: NodeFacts = item.as_ref()?.view().ok()?;
        Some((node.metadata.labels, node.spec))
    };
    facts(&change.old) != facts(&change.new)
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
