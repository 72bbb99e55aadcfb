//! What a Deployment says of itself: counts and the conditions Available, Progressing and ReplicaFailure.

use super::bounds::Bounds;
use super::plan::replicas;
use super::revision::split;
use crate::api::view::meta::Condition;
use crate::api::view::workload::{Deployment, DeploymentStatus, ReplicaSet};
use crate::clock::rfc3339;
use crate::controllers::{seconds_until, timestamp};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// What happened in this pass that the conditions tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// A ReplicaSet was made.
    Created(String),
    /// One could not be made.
    CreateFailed(String),
}

/// An unset deadline is the largest number upstream.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i64::from(i32::MAX))?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.replicas.unwrap_or(1);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// The status now, and when it would change by the passing of time alone.
pub fn status(
    deployment: &Deployment,
    sets: &[ReplicaSet],
    rollout: bool,
    news: &News,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let (new, _) = split(deployment, sets);
    let mut status = counts(deployment, sets, new);
    let bounds = Bounds::of(deployment);
    let enough = status.available_replicas >= bounds.min_available();
    set(&mut status, availability(enough), now);
    if let Some(paused) = paused(deployment) {
        set(&mut status, paused, now);
    } else if rollout || *news != News::Nothing {
        progress(deployment, &mut status, new, news, now);
    }
    failure(&mut status, sets, now);
    let again = (rollout && !is_complete(deployment, &status)).then(|| stuck_after(deployment, &status, now)).flatten();
    (status, again)
}

fn counts(deployment: &Deployment, sets: &[ReplicaSet], new: Option<&ReplicaSet>) -> DeploymentStatus {
    let sum = |count: &dyn Fn(&ReplicaSet) -> i64| sets.iter().map(count).sum::<i64>();
    let available = sum(&|set| set.status.available_replicas);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: sum(&|set| set.status.replicas),
        updated_replicas: new.map_or(0, |set| set.status.replicas),
        ready_replicas: sum(&|set| set.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (sum(&replicas) - available).max(0),
        terminating_replicas: Some(sum(&|set| set.status.terminating_replicas.unwrap_or(0))),
        collision_count: deployment.status.collision_count,
        conditions: deployment.status.conditions.clone(),
    }
}

fn condition(r#type: &str, status: &str, reason: &str, message: String) -> Condition {
    Condition {
        r#type: r#type.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        ..Condition::default()
    }
}

fn availability(enough: bool) -> Condition {
    if enough {
        let message = "Deployment has minimum availability.".to_owned();
        condition("Available", "True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition("Available", "False", "MinimumReplicasUnavailable", message)
    }
}

fn find<'a>(status: &'a DeploymentStatus, r#type: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.r#type == r#type)
}

/// The same status and reason change nothing; the same status keeps its transition time.
fn set(status: &mut DeploymentStatus, condition: Condition, now: Timestamp) {
    let known = find(status, &condition.r#type);
    if known.is_some_and(|known| known.status == condition.status && known.reason == condition.reason) {
        return;
    }
    replace(status, condition, now);
}

/// As `set`, but refreshes the update time of an equal condition too.
fn replace(status: &mut DeploymentStatus, mut condition: Condition, now: Timestamp) {
    let known = find(status, &condition.r#type).filter(|known| known.status == condition.status);
    let since = known.and_then(|known| known.last_transition_time.clone());
    condition.last_transition_time = Some(since.unwrap_or_else(|| rfc3339(now)));
    condition.last_update_time = Some(rfc3339(now));
    status.conditions.retain(|other| other.r#type != condition.r#type);
    status.conditions.push(condition);
}

/// Pausing and resuming stop the clock of the progress deadline.
fn paused(deployment: &Deployment) -> Option<Condition> {
    deadline(deployment)?;
    let known = find(&deployment.status, "Progressing");
    let reason = known.map(|condition| condition.reason.as_str()).unwrap_or_default();
    match (deployment.spec.paused, reason) {
        (_, "ProgressDeadlineExceeded") => None,
        (true, _) => Some(condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".into())),
        (false, "DeploymentPaused") => {
            Some(condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into()))
        }
        _ => None,
    }
}

fn progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    news: &News,
    now: Timestamp,
) {
    if deadline(deployment).is_none() {
        status.conditions.retain(|condition| condition.r#type != "Progressing");
        return;
    }
    let progressing = |status, reason, message| condition("Progressing", status, reason, message);
    match news {
        News::Created(name) => {
            let message = format!("Created new replica set \"{name}\"");
            return set(status, progressing("True", "NewReplicaSetCreated", message), now);
        }
        News::CreateFailed(why) => {
            return set(status, progressing("False", "ReplicaSetCreateError", why.clone()), now);
        }
        News::Nothing => {}
    }
    let known = find(status, "Progressing").cloned();
    let was_complete = status.replicas == status.updated_replicas
        && known.as_ref().is_some_and(|known| known.reason == "NewReplicaSetAvailable");
    if was_complete {
        return;
    }
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name),
        None => format!("Deployment \"{}\"", deployment.metadata.name),
    };
    if known.is_none()
        && let Some(set_found) = new
    {
        let message = format!("Found new replica set \"{}\"", set_found.metadata.name);
        set(status, progressing("True", "FoundNewReplicaSet", message), now);
    }
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, progressing("True", "NewReplicaSetAvailable", message), now);
    } else if has_progressed(&deployment.status, status) {
        let message = format!("{subject} is progressing.");
        replace(status, progressing("True", "ReplicaSetUpdated", message), now);
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set(status, progressing("False", "ProgressDeadlineExceeded", message), now);
    }
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |status: &DeploymentStatus| status.replicas - status.updated_replicas;
    new.updated_replicas > old.updated_replicas
        || outdated(new) < outdated(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(known) = find(status, "Progressing") else { return false };
    match known.reason.as_str() {
        "NewReplicaSetAvailable" => false,
        "ProgressDeadlineExceeded" => true,
        _ => match (known.last_update_time.as_deref().and_then(timestamp), deadline(deployment)) {
            (Some(since), Some(limit)) => Duration::try_from(now.duration_since(since)).is_ok_and(|past| past >= limit),
            _ => false,
        },
    }
}

/// When to look again whether the deadline has passed.
fn stuck_after(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let known = find(status, "Progressing")?;
    if deployment.spec.paused || matches!(known.reason.as_str(), "NewReplicaSetAvailable" | "ProgressDeadlineExceeded")
    {
        return None;
    }
    Some(seconds_until(timestamp(known.last_update_time.as_deref()?)?, deadline(deployment)?, now))
}

/// Takes over what hinders a ReplicaSet from making pods.
fn failure(status: &mut DeploymentStatus, sets: &[ReplicaSet], now: Timestamp) {
    let mut failures = sets.iter().rev().flat_map(|set| &set.status.conditions);
    match failures.rfind(|condition| condition.r#type == "ReplicaFailure").cloned() {
        Some(failure) => set(status, failure, now),
        None => status.conditions.retain(|condition| condition.r#type != "ReplicaFailure"),
    }
}

/// A merge patch of the status; zeros are absent, as upstream leaves them out.
pub fn patch(status: &DeploymentStatus) -> Value {
    let count = |number: i64| if number == 0 { Value::Null } else { number.into() };
    json!({"status": {
        "observedGeneration": status.observed_generation,
        "replicas": count(status.replicas),
        "updatedReplicas": count(status.updated_replicas),
        "readyReplicas": count(status.ready_replicas),
        "availableReplicas": count(status.available_replicas),
        "unavailableReplicas": count(status.unavailable_replicas),
        "terminatingReplicas": status.terminating_replicas,
        "collisionCount": status.collision_count,
        "conditions": crate::controllers::conditions(&status.conditions),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    fn deployment(extra: Value) -> Deployment {
        let mut object = json!({"metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 600, "template": {"image": "2"}}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("deployment")
    }

    fn set_of(image: &str, replicas: i64, available: i64) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": format!("web-{image}")},
            "spec": {"replicas": replicas, "template": {"image": image}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
        .expect("set")
    }

    fn said(status: &DeploymentStatus) -> Vec<String> {
        let line = |one: &Condition| format!("{}={} {}: {}", one.r#type, one.status, one.reason, one.message);
        status.conditions.iter().map(line).collect()
    }

    #[test]
    fn a_rollout_tells_its_progress_and_its_end() {
        let mut own = deployment(json!({}));
        let created = News::Created("web-2".into());
        let (status, again) = super::status(&own, &[], true, &created, at("2026-01-01T00:00:00Z"));
        assert_eq!(
            said(&status),
            [
                "Available=False MinimumReplicasUnavailable: Deployment does not have minimum availability.",
                "Progressing=True NewReplicaSetCreated: Created new replica set \"web-2\"",
            ]
        );
        assert_eq!(again, Some(Duration::from_secs(600)));

        own.status = status;
        let (status, _) = super::status(&own, &[set_of("2", 2, 1)], true, &News::Nothing, at("2026-01-01T00:00:05Z"));
        assert_eq!(said(&status)[1], "Progressing=True ReplicaSetUpdated: ReplicaSet \"web-2\" is progressing.");
        let progressing = &status.conditions[1];
        assert_eq!(progressing.last_transition_time.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(progressing.last_update_time.as_deref(), Some("2026-01-01T00:00:05Z"));
        assert_eq!((status.unavailable_replicas, status.updated_replicas), (1, 2));

        own.status = status;
        let (status, again) =
            super::status(&own, &[set_of("2", 2, 2)], true, &News::Nothing, at("2026-01-01T00:00:06Z"));
        assert_eq!(
            said(&status),
            [
                "Available=True MinimumReplicasAvailable: Deployment has minimum availability.",
                "Progressing=True NewReplicaSetAvailable: ReplicaSet \"web-2\" has successfully progressed.",
            ]
        );
        assert_eq!(again, None);
        own.status = status.clone();
        let (same, _) = super::status(&own, &[set_of("2", 2, 2)], true, &News::Nothing, at("2026-01-01T09:00:00Z"));
        assert_eq!(same, status);
    }

    #[test]
    fn a_stuck_rollout_exceeds_its_deadline() {
        let progressing = json!({"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
            "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let own = deployment(json!({"status": {"conditions": [progressing], "replicas": 2, "updatedReplicas": 2}}));
        let sets = [set_of("2", 2, 0)];
        let (status, again) = super::status(&own, &sets, true, &News::Nothing, at("2026-01-01T00:09:59Z"));
        assert_eq!(status.conditions[0].reason, "ReplicaSetUpdated");
        assert_eq!(again, Some(Duration::from_secs(1)));
        let (status, again) = super::status(&own, &sets, true, &News::Nothing, at("2026-01-01T00:10:00Z"));
        let last = said(&status).into_iter().find(|line| line.starts_with("Progressing")).expect("condition");
        assert_eq!(last, "Progressing=False ProgressDeadlineExceeded: ReplicaSet \"web-2\" has timed out progressing.");
        assert_eq!(again, None);
    }

    #[test]
    fn pausing_and_resuming_are_told() {
        let mut own = deployment(json!({"spec": {"paused": true}}));
        let now = at("2026-01-01T00:00:00Z");
        let (status, _) = super::status(&own, &[], false, &News::Nothing, now);
        assert_eq!(said(&status)[1], "Progressing=Unknown DeploymentPaused: Deployment is paused");
        own.status = status;
        own.spec.paused = false;
        let (status, _) = super::status(&own, &[], true, &News::Nothing, now);
        assert_eq!(said(&status)[1], "Progressing=Unknown DeploymentResumed: Deployment is resumed");
    }

    #[test]
    fn the_failure_of_a_set_is_the_failure_of_the_deployment() {
        let mut failing = set_of("2", 2, 0);
        failing.status.conditions.push(condition("ReplicaFailure", "True", "FailedCreate", "quota".into()));
        let mut own = deployment(json!({}));
        let now = at("2026-01-01T00:00:00Z");
        let (status, _) = super::status(&own, &[failing], true, &News::Nothing, now);
        assert!(said(&status).contains(&"ReplicaFailure=True FailedCreate: quota".to_owned()));
        own.status = status;
        let (status, _) = super::status(&own, &[set_of("2", 2, 0)], true, &News::Nothing, now);
        assert!(!said(&status).iter().any(|line| line.starts_with("ReplicaFailure")));
    }

    #[test]
    fn zeros_are_left_out_of_the_patch() {
        let patch = patch(&DeploymentStatus { replicas: 1, observed_generation: 1, ..DeploymentStatus::default() });
        assert_eq!((&patch["status"]["replicas"], &patch["status"]["readyReplicas"]), (&json!(1), &Value::Null));
    }
}
