//! Empties namespaces that are being deleted, pods first, and then releases them.

use super::Tools;
use super::runner::{Reconcile, Source};
use crate::api::kinds::{KindRef, Kinds};
use crate::api::object::ObjectExt;
use crate::api::status::{Result, Status};
use crate::api::view::meta::{Any, Condition};
use crate::api::view::node::Namespace;
use crate::client::{Client, DeleteOptions, ListOptions, PatchType, WatchEvent};
use crate::client::{Informer, NAMESPACES, Resource};
use crate::clock::rfc3339;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The finalizer in `spec.finalizers` that is ours.
const FINALIZER: &str = "kubernetes";
/// What is left is followed by watches; this is for a kind that cannot be watched.
const BACKSTOP: Duration = Duration::from_secs(600);
/// Namespaces that wait to be looked at again.
const ASKED_LIMIT: usize = 64;
const PAGE_LIMIT: usize = 500;

/// What is left of a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rest {
    /// Objects by `pods.` or `deployments.apps`.
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
    /// Kinds of which something is left, and the revision at which it was seen.
    followed: Vec<(Resource, String)>,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.errors.is_empty()
    }

    /// `a has 1 resource instances, b has 2 resource instances`
    fn listed(counts: &BTreeMap<String, usize>, verb: &str) -> String {
        let parts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
        parts.join(", ")
    }
}

/// The five conditions in upstream's words.
fn conditions(rest: &Rest, known: &[Condition], now: Timestamp) -> Vec<Condition> {
    let remaining = format!("Some resources are remaining: {}", Rest::listed(&rest.objects, "has"));
    let held =
        format!("Some content in the namespace has finalizers remaining: {}", Rest::listed(&rest.finalizers, "in"));
    let failed =
        format!("Failed to delete all resource types, {} remaining: {}", rest.errors.len(), rest.errors.join(", "));
    let rows: [(&str, bool, &str, &str, &str, &str); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "",
            "",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "",
            "",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            !rest.errors.is_empty(),
            "ContentDeletionFailed",
            &failed,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            !rest.objects.is_empty(),
            "SomeResourcesRemain",
            &remaining,
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            !rest.finalizers.is_empty(),
            "SomeFinalizersRemain",
            &held,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let one = |(r#type, bad, bad_reason, bad_message, reason, message): (&str, bool, &str, &str, &str, &str)| {
        let status = if bad { "True" } else { "False" };
        let before = known.iter().find(|one| one.r#type == r#type && one.status == status);
        let since = before.and_then(|one| one.last_transition_time.clone());
        Condition {
            r#type: r#type.to_owned(),
            status: status.to_owned(),
            reason: (if bad { bad_reason } else { reason }).to_owned(),
            message: (if bad { bad_message } else { message }).to_owned(),
            last_transition_time: Some(since.unwrap_or_else(|| rfc3339(now))),
            ..Condition::default()
        }
    };
    rows.into_iter().map(one).collect()
}

/// Namespaced kinds whose objects can be listed and deleted, each stored kind once, pods first.
fn deletable(kinds: &Kinds) -> Vec<KindRef> {
    let mut seen = BTreeSet::new();
    let can = |kind: &KindRef, verb: &str| kind.verbs.iter().any(|one| one == verb);
    let mut rows: Vec<KindRef> = kinds
        .all()
        .iter()
        .filter(|kind| kind.namespaced && can(kind, "list") && can(kind, "delete"))
        .filter(|kind| seen.insert(kind.storage_prefix.clone()))
        .cloned()
        .collect();
    rows.sort_by_key(|kind| kind.storage_prefix != "pods");
    rows
}

pub struct Controller {
    tools: Tools,
    kinds: Kinds,
    namespaces: Informer,
    asked: mpsc::Sender<String>,
    /// By namespace that is being deleted: the tasks that follow what is left in it.
    followers: Mutex<HashMap<String, JoinSet<()>>>,
}

impl Controller {
    pub fn new(tools: &Tools, kinds: &Kinds) -> (Arc<Self>, Vec<Source>) {
        let namespaces = tools.informers.all(NAMESPACES);
        let (asked, keys) = mpsc::channel(ASKED_LIMIT);
        let sources = vec![Source::own(&namespaces), Source::Asked(keys)];
        let (tools, kinds, followers) = (tools.clone(), kinds.clone(), Mutex::default());
        (Arc::new(Self { tools, kinds, namespaces, asked, followers }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        // Whoever followed what was left has done its work, or saw an older state.
        self.followers().remove(key);
        let Some(item) = self.namespaces.by_key(key) else { return Ok(None) };
        let namespace: Namespace = item.view()?;
        let ours = namespace.spec.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        if !namespace.metadata.is_deleting() || !ours {
            return Ok(None);
        }
        let name = &namespace.metadata.name;
        let rest = self.empty(name).await;
        self.tell(&namespace, &rest).await?;
        if rest.is_empty() {
            self.release(name, &namespace.metadata.uid).await?;
            return Ok(None);
        }
        if let Some(error) = rest.errors.first() {
            return Err(Status::internal(format!("delete what is in namespace {name}: {error}")));
        }
        self.follow(key, rest.followed);
        Ok(Some(BACKSTOP))
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<String, JoinSet<()>>> {
        self.followers.lock().expect("no panic while the followers are locked")
    }

    /// Asks for the namespace again at the first change of what is left in it.
    fn follow(&self, key: &str, followed: Vec<(Resource, String)>) {
        let namespace = key.trim_start_matches('/');
        let mut tasks = JoinSet::new();
        for (resource, revision) in followed {
            let (client, asked, key) = (self.tools.client.clone(), self.asked.clone(), key.to_owned());
            let namespace = namespace.to_owned();
            tasks.spawn(async move {
                change(&client, resource, &namespace, revision).await;
                // Nobody listens any more: the controller ends.
                let _ = asked.send(key).await;
            });
        }
        self.followers().insert(key.to_owned(), tasks);
    }

    /// Deletes what is there; while pods are left, only pods.
    async fn empty(&self, namespace: &str) -> Rest {
        let mut rest = Rest::default();
        for kind in deletable(&self.kinds) {
            if kind.storage_prefix != "pods" && rest.objects.contains_key("pods.") {
                break;
            }
            if let Err(error) = self.empty_kind(&kind, namespace, &mut rest).await {
                rest.errors.push(format!("{}: {}", kind.storage_prefix, error.message));
            }
        }
        rest
    }

    async fn empty_kind(&self, kind: &KindRef, namespace: &str, rest: &mut Rest) -> Result<()> {
        let (resource, mut failure) = (Resource::of(kind), None);
        for object in self.listed(resource, namespace).await?.0 {
            if object.metadata.is_deleting() {
                continue;
            }
            let options = DeleteOptions { uid: Some(object.metadata.uid.clone()), ..DeleteOptions::default() };
            match self.tools.client.delete(resource, namespace, &object.metadata.name, &options).await {
                Err(error) if !error.is_not_found() => failure = Some(error),
                _ => {}
            }
        }
        let (left, revision) = self.listed(resource, namespace).await?;
        if !left.is_empty() {
            if kind.verbs.iter().any(|verb| verb == "watch") {
                rest.followed.push((resource, revision));
            }
            rest.objects.insert(format!("{}.{}", kind.plural, kind.group), left.len());
        }
        for finalizer in left.into_iter().flat_map(|object| object.metadata.finalizers) {
            *rest.finalizers.entry(finalizer).or_default() += 1;
        }
        failure.map_or(Ok(()), Err)
    }

    /// Metadata of the objects of one kind, and the revision it is of.
    async fn listed(&self, resource: Resource, namespace: &str) -> Result<(Vec<Any>, String)> {
        let mut listed = Vec::new();
        let mut options = ListOptions { limit: PAGE_LIMIT, ..ListOptions::default() };
        loop {
            let page = self.tools.client.list(resource, namespace, &options).await?;
            for item in &page.items {
                listed.push(item.view()?);
            }
            if page.continue_token.is_empty() {
                return Ok((listed, page.resource_version));
            }
            options.continue_token = page.continue_token;
        }
    }

    async fn tell(&self, namespace: &Namespace, rest: &Rest) -> Result<()> {
        let known = &namespace.status.conditions;
        let conditions = conditions(rest, known, self.tools.clock.now());
        if conditions == *known || rest.is_empty() {
            return Ok(());
        }
        let patch = json!({"status": {"conditions": super::conditions(&conditions)}});
        let name = &namespace.metadata.name;
        match self.tools.client.patch(NAMESPACES, "", name, "status", PatchType::Merge, patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn release(&self, name: &str, uid: &str) -> Result<()> {
        let mut object = match self.tools.client.get(NAMESPACES, "", name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?.object()?,
        };
        if object.uid() != uid {
            return Err(Status::new(409, "Conflict", format!("namespace {name} was made again")));
        }
        if let Some(finalizers) = object.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match self.tools.client.update(NAMESPACES, "", name, "finalize", object).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Waits for the first change of one kind in a namespace after a revision, or for the end of the watch: then, too,
/// it is time to look.
async fn change(client: &Client, resource: Resource, namespace: &str, revision: String) {
    let options = ListOptions { resource_version: revision, ..ListOptions::default() };
    let Ok(mut events) = client.watch(resource, namespace, &options).await else { return };
    while let Some(Ok(WatchEvent::Bookmark { .. })) = events.next().await {}
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
    fn what_is_left_is_told_in_upstreams_words() {
        let mut rest = Rest::default();
        rest.objects.insert("pods.".into(), 2);
        rest.finalizers.insert("a/b".into(), 1);
        let now = "2026-01-01T00:00:00Z".parse().expect("time");
        let conditions = conditions(&rest, &[], now);
        let said: Vec<String> =
            conditions.iter().map(|one| format!("{} {}: {}", one.status, one.reason, one.message)).collect();
        assert_eq!(said[3], "True SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            said[4],
            "True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
        );
        let later = "2026-01-02T00:00:00Z".parse().expect("time");
        assert_eq!(super::conditions(&rest, &conditions, later), conditions, "times move only with the status");
    }

    #[test]
    fn pods_come_first_and_each_stored_kind_once() {
        let kinds = deletable(&Kinds::default());
        assert_eq!(kinds[0].storage_prefix, "pods");
        let prefixes: BTreeSet<&str> = kinds.iter().map(|kind| &*kind.storage_prefix).collect();
        assert_eq!(prefixes.len(), kinds.len());
        assert!(prefixes.contains("deployments.apps") && !prefixes.contains("nodes"));
    }
}
