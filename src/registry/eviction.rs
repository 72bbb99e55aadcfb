//! `pods/eviction`: a delete that a PodDisruptionBudget may refuse.
//! The budget is charged before the pod is deleted; the disruption controller settles the account afterwards.

use super::update::{ATTEMPTS, Target};
use super::{Context, DeleteOptions, Registry, encode, store_error};
use crate::api::kinds::KindRef;
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::Selector;
use crate::api::status::{Cause, Result, Status, Subject};
use crate::api::view::meta::LabelSelector;
use crate::clock::rfc3339;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Evictions whose pods the disruption controller has not seen going yet.
const PENDING_LIMIT: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
const RETRY_AFTER_S: u32 = 10;

/// What of a budget matters here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Budget {
    metadata: Metadata,
    spec: Spec,
    status: State,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    generation: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    selector: Option<LabelSelector>,
    unhealthy_pod_eviction_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    observed_generation: i64,
    disruptions_allowed: i64,
    current_healthy: i64,
    desired_healthy: i64,
    disrupted_pods: BTreeMap<String, Value>,
    conditions: Vec<Value>,
}

/// What an eviction may do to a pod.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Not healthy, so nothing is lost with it, as long as it stays so.
    Unhealthy,
    /// The budget must be charged.
    Charge,
}

impl Registry {
    /// A delete that may be refused to keep a workload alive.
    pub(super) async fn evict(&self, target: Target<'_>, eviction: Object) -> Result<Object> {
        let named = eviction.name();
        if !named.is_empty() && named != target.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let (options, dry_run) = options(&eviction);
        let context = Context { dry_run: target.context.dry_run || dry_run, ..target.context.clone() };
        let target = Target { context: &context, ..target };
        for _ in 0..ATTEMPTS {
            let existing = self.stored(target.kind, target.namespace, target.name).await?;
            let existing = existing.ok_or_else(|| target.not_found())?;
            let pod = encode::decode(target.kind, &existing)?;
            // Before any budget is charged for nothing.
            super::delete::check_preconditions(target.kind, &pod, &options)?;
            let insists = options.resource_version.is_some();
            let pinned = || DeleteOptions { resource_version: Some(existing.revision.to_string()), ..options.clone() };
            if is_lost_anyway(&pod) {
                // A pod that waits may be starting right now: it must still be the one that was looked at.
                let exact = is_waiting(&pod) && !insists;
                match self.mark_and_delete(target, if exact { pinned() } else { options.clone() }).await {
                    Err(error) if exact && error.is_conflict() => continue,
                    done => return done,
                }
            }
            let Some(budget) = self.budget_of(&target, &pod).await? else {
                return self.mark_and_delete(target, options.clone()).await;
            };
            if verdict(&pod, &budget) == Verdict::Unhealthy {
                return match self.mark_and_delete(target, pinned()).await {
                    Err(error) if error.is_conflict() && !insists => Err(being_processed(&budget.metadata.name)),
                    done => done,
                };
            }
            self.charge(&target, &budget.metadata.name).await?;
            return self.mark_and_delete(target, options.clone()).await;
        }
        Err(target.modified())
    }

    /// The one budget that guards a pod.
    async fn budget_of(&self, target: &Target<'_>, pod: &Object) -> Result<Option<Budget>> {
        let kind = self.budget_kind()?;
        let prefix = kind.key(target.namespace, "");
        let page = self.store.list(&prefix, "", 0, None).await.map_err(|error| store_error(&kind, "", error))?;
        let mut guards = Vec::new();
        for entry in page.entries {
            let budget: Budget = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
            if budget.selects(pod) {
                guards.push(budget);
            }
        }
        if guards.len() > 1 {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, "", why));
        }
        Ok(guards.pop())
    }

    fn budget_kind(&self) -> Result<KindRef> {
        self.kinds.kind("policy/v1", "PodDisruptionBudget").ok_or_else(Status::page_not_found)
    }

    /// Takes one disruption off the budget, and notes for which pod.
    async fn charge(&self, target: &Target<'_>, name: &str) -> Result<()> {
        let kind = self.budget_kind()?;
        let system = Context::default();
        let own = Target { context: &system, kind: &kind, subresource: "status", namespace: target.namespace, name };
        for _ in 0..ATTEMPTS {
            let Some(existing) = self.stored(&kind, target.namespace, name).await? else { return Ok(()) };
            let old = encode::decode(&kind, &existing)?;
            let budget: Budget = serde_json::from_value(old.clone()).map_err(Status::internal)?;
            check(&budget)?;
            if target.context.dry_run {
                return Ok(());
            }
            let new = charged(&old, target.name, &rfc3339(self.clock.now()));
            if self.replace(own, &existing, &old, new).await?.is_some() {
                return Ok(());
            }
        }
        let why = format!("couldn't update PodDisruptionBudget \"{name}\" due to conflicts");
        Err(Status::timeout(why))
    }

    /// The pod's status says why it goes, before it goes.
    async fn mark_and_delete(&self, target: Target<'_>, mut options: DeleteOptions) -> Result<Object> {
        if !target.context.dry_run {
            let system = Context::default();
            let own = Target { context: &system, subresource: "status", ..target };
            for _ in 0..ATTEMPTS {
                let Some(existing) = self.stored(target.kind, target.namespace, target.name).await? else { break };
                let old = encode::decode(target.kind, &existing)?;
                super::delete::check_preconditions(target.kind, &old, &options)?;
                let new = disrupted(&old, &rfc3339(self.clock.now()));
                if let Some(written) = self.replace(own, &existing, &old, new).await? {
                    if options.resource_version.is_some() {
                        options.resource_version = Some(written.entry.revision.to_string());
                    }
                    break;
                }
            }
        }
        self.delete(target.context, target.kind, target.namespace, target.name, &options).await?;
        Ok(super::pod::done())
    }
}

impl Budget {
    /// An empty selector selects every pod of the namespace, none at all selects nothing.
    fn selects(&self, pod: &Object) -> bool {
        let selector = self.spec.selector.as_ref().and_then(|view| Selector::from_view(view).ok());
        selector.is_some_and(|selector| selector.matches_object(pod))
    }
}

fn options(eviction: &Object) -> (DeleteOptions, bool) {
    let given = |path: &[&str]| eviction.at(path).and_then(Value::as_str).map(str::to_owned);
    let options = DeleteOptions {
        grace_s: eviction.int_at(&["deleteOptions", "gracePeriodSeconds"]),
        uid: given(&["deleteOptions", "preconditions", "uid"]),
        resource_version: given(&["deleteOptions", "preconditions", "resourceVersion"]),
        ..DeleteOptions::default()
    };
    let dry_run =
        eviction.at(&["deleteOptions", "dryRun"]).and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    (options, dry_run)
}

fn is_waiting(pod: &Object) -> bool {
    matches!(pod.str_at(&["status", "phase"]), "Pending" | "") && pod.deletion_timestamp().is_none()
}

/// It counts for no budget: it has ended, is going, or does not run yet.
fn is_lost_anyway(pod: &Object) -> bool {
    matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed")
        || pod.deletion_timestamp().is_some()
        || is_waiting(pod)
}

fn is_ready(pod: &Object) -> bool {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array);
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn verdict(pod: &Object, budget: &Budget) -> Verdict {
    let status = &budget.status;
    let always = budget.spec.unhealthy_pod_eviction_policy.as_deref() == Some("AlwaysAllow");
    let healthy_budget = status.current_healthy >= status.desired_healthy && status.desired_healthy > 0;
    if !is_ready(pod) && (always || healthy_budget) { Verdict::Unhealthy } else { Verdict::Charge }
}

/// Whether the budget has a disruption to give.
fn check(budget: &Budget) -> Result<()> {
    let (name, status) = (budget.metadata.name.as_str(), &budget.status);
    let forbidden =
        |why: &str| Err(Status::forbidden(Subject { group: "policy", kind: "poddisruptionbudget", name }, why));
    if status.observed_generation < budget.metadata.generation {
        return Err(being_processed(name));
    }
    if status.disruptions_allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.disrupted_pods.len() > PENDING_LIMIT {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if status.disruptions_allowed > 0 {
        return Ok(());
    }
    let failed =
        status.conditions.iter().find(|one| one["type"] == "DisruptionAllowed" && one["reason"] == "SyncFailed");
    let why = match failed {
        Some(condition) => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            condition.str_at(&["message"])
        ),
        None => format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status.desired_healthy, status.current_healthy
        ),
    };
    Err(refusal(0, why))
}

fn being_processed(name: &str) -> Status {
    refusal(RETRY_AFTER_S, format!("The disruption budget {name} is still being processed by the server."))
}

fn refusal(retry_after_s: u32, why: String) -> Status {
    let mut status = Status::too_many_requests(REFUSED, retry_after_s);
    let details = status.details.get_or_insert_default();
    details.retry_after_seconds = (retry_after_s > 0).then_some(retry_after_s);
    details.causes.push(Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() });
    status
}

/// The budget with one disruption less.
fn charged(budget: &Object, pod: &str, now: &str) -> Object {
    let mut new = budget.clone();
    let left = budget.int_at(&["status", "disruptionsAllowed"]).unwrap_or(0) - 1;
    new.set(&["status", "disruptionsAllowed"], left.into());
    new.set(&["status", "disruptedPods", pod], now.into());
    if left == 0 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods",
            "message": "", "observedGeneration": budget.generation(), "lastTransitionTime": now});
        set_condition(&mut new, condition);
    }
    new
}

fn disrupted(pod: &Object, now: &str) -> Object {
    let mut new = pod.clone();
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "observedGeneration": pod.generation(), "lastProbeTime": null,
        "lastTransitionTime": now});
    set_condition(&mut new, condition);
    new
}

/// A condition that keeps its status keeps its time.
fn set_condition(object: &mut Object, mut condition: Value) {
    let mut conditions = match object.unset(&["status", "conditions"]) {
        Some(Value::Array(conditions)) => conditions,
        _ => Vec::new(),
    };
    match conditions.iter_mut().find(|one| one["type"] == condition["type"]) {
        Some(old) => {
            if old["status"] == condition["status"] && old["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
    object.set(&["status", "conditions"], Value::Array(conditions));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(extra: Value) -> Budget {
        let mut object = json!({"metadata": {"name": "b", "generation": 1}, "spec": {"selector": {}},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 2, "desiredHealthy": 3}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("budget")
    }

    #[test]
    fn a_budget_refuses_in_upstreams_words() {
        let told = |extra: Value| {
            let error = check(&budget(extra)).expect_err("refused");
            let details = error.details.expect("details");
            let cause = details.causes.first().map(|cause| cause.message.clone()).unwrap_or(error.message);
            (error.code, details.retry_after_seconds, cause)
        };
        assert_eq!(
            told(json!({})),
            (429, None, "The disruption budget b needs 3 healthy pods and has 2 currently".to_owned())
        );
        assert_eq!(
            told(json!({"metadata": {"generation": 2}})),
            (429, Some(10), "The disruption budget b is still being processed by the server.".to_owned())
        );
        let failed = json!([{"type": "DisruptionAllowed", "reason": "SyncFailed", "message": "no scale"}]);
        assert_eq!(
            told(json!({"status": {"conditions": failed}})).2,
            "The disruption budget b does not allow evicting pods currently because it failed sync: no scale"
        );
        assert_eq!(
            told(json!({"status": {"disruptionsAllowed": -1}})),
            (
                403,
                None,
                "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative".to_owned()
            )
        );
        assert!(check(&budget(json!({"status": {"disruptionsAllowed": 1}}))).is_ok());
    }

    #[test]
    fn unhealthy_pods_go_when_nothing_is_lost_with_them() {
        let pod =
            |ready: &str| json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
        for (ready, extra, expected) in [
            ("True", json!({}), Verdict::Charge),
            ("True", always.clone(), Verdict::Charge),
            ("False", json!({}), Verdict::Charge),
            ("False", always, Verdict::Unhealthy),
            ("False", json!({"status": {"currentHealthy": 3}}), Verdict::Unhealthy),
            ("False", json!({"status": {"currentHealthy": 3, "desiredHealthy": 0}}), Verdict::Charge),
        ] {
            assert_eq!(verdict(&pod(ready), &budget(extra.clone())), expected, "{ready} {extra}");
        }
    }

    #[test]
    fn a_charge_is_noted_for_its_pod() {
        let before = json!({"metadata": {"generation": 3}, "status": {"disruptionsAllowed": 1}});
        let after = charged(&before, "web", "t");
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert_eq!(after["status"]["disruptedPods"], json!({"web": "t"}));
        assert_eq!(after["status"]["conditions"][0]["reason"], "InsufficientPods");
    }
}
