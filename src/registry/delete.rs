//! DELETE and DELETECOLLECTION: grace, finalizers, preconditions. The decision is `plan`; doing it is one write.
//! An object that must wait is marked; the update that removes its last hold removes it (`meta::is_finished`).

use super::admission::{self, Operation, Request};
use super::update::{ATTEMPTS, Target};
use super::{Context, DeleteOptions, Deleted, List, ListOptions, Propagation, Registry};
use super::{encode, kind_subject, meta, store_error, trace};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::clock;
use crate::store::{Durability, Entry, Expected, StoreError, Write};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::sync::Arc;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Kinds whose delete answers the object where others answer a `Status`.
pub fn returns_deleted_object(kind: &Kind) -> bool {
    const CORE: [&str; 7] = [
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "podtemplates",
        "resourcequotas",
        "serviceaccounts",
        "services",
    ];
    match &*kind.group {
        "" => CORE.contains(&&*kind.plural),
        "storage.k8s.io" => matches!(&*kind.plural, "csidrivers" | "csinodes" | "storageclasses" | "volumeattachments"),
        _ => false,
    }
}

/// What a delete does to an object now.
#[derive(Debug, PartialEq)]
enum Action {
    /// It has been asked for already and nothing gets shorter.
    Nothing,
    /// The object to store, marked.
    Mark(Object),
    /// The last state.
    Remove(Object),
}

impl Registry {
    pub async fn delete(
        &self,
        context: &Context,
        kind: &Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        let target = Target { context, kind, subresource: "", namespace, name };
        for _ in 0..ATTEMPTS {
            let existing = self.stored(kind, namespace, name).await?.ok_or_else(|| target.not_found())?;
            let old = encode::decode(kind, &existing)?;
            check_preconditions(kind, &old, options)?;
            let now = self.clock.now();
            let request = Request {
                context,
                kind,
                subresource: "",
                operation: Operation::Delete,
                namespace,
                name,
                old: Some(&old),
                now,
            };
            admission::validate(self, &request, &old).await?;
            if let Some(deleted) = self.carry_out(target, &existing, &old, plan(kind, &old, options, now)).await? {
                return Ok(deleted);
            }
        }
        Err(target.modified())
    }

    /// `None`: somebody else was faster.
    async fn carry_out(
        &self,
        target: Target<'_>,
        existing: &Arc<Entry>,
        old: &Object,
        action: Action,
    ) -> Result<Option<Deleted>> {
        let kind = target.kind;
        let (object, removes) = match action {
            Action::Nothing => return encode::shown(kind, existing).map(|entry| Some(Deleted::Pending(entry))),
            Action::Mark(object) => (object, false),
            Action::Remove(object) => (object, true),
        };
        let steps = trace::steps(kind, Some(old), &object);
        let encoded = encode::encode(kind, object)?;
        let write = Write {
            key: existing.key.clone(),
            expected: Expected::Revision(existing.revision),
            value: (!removes).then(|| encoded.bytes.clone()),
            splice_at: encoded.splice_at,
            durability: Durability::Durable,
        };
        let moment = self.moment();
        let outcome = if target.context.dry_run { Ok(existing.clone()) } else { self.store.write(write).await };
        let stored = match outcome {
            Ok(stored) => stored,
            Err(StoreError::Conflict(_) | StoreError::Absent) => return Ok(None),
            Err(error) => return Err(store_error(kind, target.name, error)),
        };
        if !target.context.dry_run {
            self.mark(moment, old.uid(), &steps);
            if removes {
                self.mark_deleted(moment, kind, old.uid());
            }
        }
        let shown = encode::shown(kind, &encoded.unsaved(&existing.key, stored.revision))?;
        Ok(Some(if removes { Deleted::Gone(shown) } else { Deleted::Pending(shown) }))
    }

    /// Deletes what the list finds; the objects as they were.
    pub async fn delete_collection(
        &self,
        context: &Context,
        kind: &Kind,
        namespace: &str,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List> {
        let found = self.list(kind, namespace, list).await?;
        for entry in &found.entries {
            let (namespace, name) = entry.namespaced_name();
            match self.delete(context, kind, namespace, name, options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(found)
    }
}

pub(super) fn check_preconditions(kind: &Kind, object: &Object, options: &DeleteOptions) -> Result<()> {
    let conflict = |why: String| Err(Status::conflict(kind_subject(kind, object.name()), &why));
    let (uid, revision) = (object.uid(), object.resource_version());
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        ));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != revision) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

fn plan(kind: &Kind, old: &Object, options: &DeleteOptions, now: Timestamp) -> Action {
    if kind.storage_prefix == "namespaces" {
        return plan_namespace(old, options, now);
    }
    let finalizers = finalizers(kind, old, options);
    let grace_s = grace_s(kind, old, options);
    let waits = grace_s.is_some_and(|seconds| seconds > 0) || !finalizers.is_empty();
    let mut new = old.clone();
    set_finalizers(&mut new, &finalizers);
    if old.deletion_timestamp().is_none() {
        if !waits {
            return Action::Remove(new);
        }
        mark(&mut new, now, grace_s.unwrap_or(0));
        return Action::Mark(new);
    }
    let before = old.int_at(&["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
    let shorter = match (options.grace_s, grace_s) {
        // A pod that has ended or lost its node need not wait any longer.
        (_, Some(0)) | (Some(_), None) => Some(0),
        (Some(_), Some(seconds)) => Some(seconds),
        (None, _) => None,
    };
    if let Some(seconds) = shorter.filter(|seconds| *seconds < before) {
        shorten(&mut new, before, seconds);
    }
    match meta::is_finished(kind, &new) {
        true => Action::Remove(new),
        false if new == *old => Action::Nothing,
        false => Action::Mark(new),
    }
}

/// A Namespace goes when `spec.finalizers` and `metadata.finalizers` are empty; until then it is Terminating.
fn plan_namespace(old: &Object, options: &DeleteOptions, now: Timestamp) -> Action {
    let mut new = old.clone();
    let mut finalizers: Vec<String> = old.finalizers().into_iter().map(str::to_owned).collect();
    if asks_orphan(options) && !finalizers.iter().any(|one| one == ORPHAN) {
        finalizers.push(ORPHAN.to_owned());
        set_finalizers(&mut new, &finalizers);
    }
    if old.deletion_timestamp().is_none() {
        new.set(&["metadata", "deletionTimestamp"], Value::from(clock::rfc3339(now)));
        new.set(&["status", "phase"], Value::from("Terminating"));
    }
    match finalizers.is_empty() && meta::namespace_is_released(&new) {
        true => Action::Remove(new),
        false if new == *old => Action::Nothing,
        false => Action::Mark(new),
    }
}

/// Seconds to wait; `None` for kinds that are deleted at once.
fn grace_s(kind: &Kind, object: &Object, options: &DeleteOptions) -> Option<i64> {
    match kind.strategy.grace_s(object) {
        Some(usual) if usual > 0 => Some(match options.grace_s {
            // Upstream takes a negative wait for the shortest.
            Some(given) if given < 0 => 1,
            Some(given) => given,
            None => usual,
        }),
        other => other,
    }
}

fn asks_orphan(options: &DeleteOptions) -> bool {
    options.orphan_dependents == Some(true) || options.propagation == Some(Propagation::Orphan)
}

/// What must happen to dependents first is written as a finalizer for the garbage collector.
fn finalizers(kind: &Kind, object: &Object, options: &DeleteOptions) -> Vec<String> {
    let there = object.finalizers();
    let policy = match (options.orphan_dependents, options.propagation) {
        (Some(true), _) | (_, Some(Propagation::Orphan)) => Some(ORPHAN),
        (_, Some(Propagation::Foreground)) => Some(FOREGROUND),
        (Some(false), _) | (_, Some(Propagation::Background)) => None,
        _ if there.contains(&ORPHAN) => Some(ORPHAN),
        _ if there.contains(&FOREGROUND) => Some(FOREGROUND),
        _ if kind.strategy.default_orphans() => Some(ORPHAN),
        _ => None,
    };
    let others = there.into_iter().filter(|one| *one != ORPHAN && *one != FOREGROUND);
    others.chain(policy).map(str::to_owned).collect()
}

fn set_finalizers(object: &mut Object, finalizers: &[String]) {
    match finalizers {
        [] => drop(object.unset(&["metadata", "finalizers"])),
        some => object.set(&["metadata", "finalizers"], Value::from(some)),
    }
}

fn mark(object: &mut Object, now: Timestamp, grace_s: i64) {
    let at = now.saturating_add(SignedDuration::from_secs(grace_s)).unwrap_or(Timestamp::MAX);
    object.set(&["metadata", "deletionTimestamp"], Value::from(clock::rfc3339(at)));
    object.set(&["metadata", "deletionGracePeriodSeconds"], Value::from(grace_s));
    let generation = object.generation();
    if generation > 0 {
        object.set(&["metadata", "generation"], Value::from(generation + 1));
    }
}

/// A later delete may only bring the end nearer.
fn shorten(object: &mut Object, before_s: i64, grace_s: i64) {
    let end: Option<Timestamp> = object.deletion_timestamp().and_then(|text| text.parse().ok());
    if let Some(nearer) = end.and_then(|end| end.checked_sub(SignedDuration::from_secs(before_s - grace_s)).ok()) {
        object.set(&["metadata", "deletionTimestamp"], Value::from(clock::rfc3339(nearer)));
    }
    object.set(&["metadata", "deletionGracePeriodSeconds"], Value::from(grace_s));
}
