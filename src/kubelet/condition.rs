//! The conditions of a pod's status, with upstream's reasons and messages. Pure.

use super::memory::{Facts, Role};
use super::status::{Shown, counts_for_readiness, is_initialized};
use crate::api::fencing;
use crate::api::view::meta::Condition;
use crate::clock::rfc3339;
use serde_json::{Value, json};

/// What a condition says before its transition time is known.
#[derive(Clone, Debug, PartialEq)]
struct Verdict {
    holds: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: String::new(), message: String::new() }
    }
    fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { holds: false, reason: reason.to_owned(), message: message.into() }
    }
}

/// The conditions the kubelet owns, in upstream's order.
pub fn conditions(facts: &Facts, phase: &str, shown: &[Shown]) -> Vec<Condition> {
    let containers_ready = containers_ready(phase, shown);
    let ready = ready(facts, &containers_ready);
    let list = [
        ("PodReadyToStartContainers", sandbox_ready(facts)),
        ("Initialized", initialized(phase, shown)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ];
    let disruption = facts.memory.verdict.as_ref().filter(|verdict| verdict.disruption).map(|verdict| {
        let said = Verdict { reason: "TerminationByKubelet".into(), ..Verdict::yes() };
        ("DisruptionTarget", Verdict { message: verdict.message.clone().into_owned(), ..said })
    });
    let fenced = fencing::is_asked(facts.pod).then(|| {
        let ends_within_s = fencing::wanted_s(facts.pod);
        let message = format!("the pod ends within {ends_within_s} s after the server has heard its node last");
        (fencing::CONDITION, Verdict { holds: true, reason: fencing::reason(ends_within_s), message })
    });
    list.into_iter().chain(disruption).chain(fenced).map(|(r#type, verdict)| dated(facts, r#type, verdict)).collect()
}

fn dated(facts: &Facts, r#type: &str, verdict: Verdict) -> Condition {
    let status = if verdict.holds { "True" } else { "False" };
    let same = |old: &&Condition| old.r#type == r#type && old.status == status;
    let old = facts.memory.conditions.iter().find(same);
    let since = old.and_then(|old| old.last_transition_time.clone());
    Condition {
        r#type: r#type.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason,
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or_else(|| rfc3339(facts.now))),
        observed_generation: Some(facts.pod.metadata.generation),
        ..Condition::default()
    }
}

fn sandbox_ready(facts: &Facts) -> Verdict {
    let networked = |sandbox: &&crate::runtime::SandboxStatus| {
        sandbox.ready && (facts.pod.spec.host_network || !sandbox.ips.is_empty())
    };
    Verdict { holds: facts.sandbox.filter(networked).is_some(), ..Verdict::yes() }
}

fn initialized(phase: &str, shown: &[Shown]) -> Verdict {
    let init = shown.iter().filter(|one| matches!(one.role, Role::Init | Role::Sidecar));
    let incomplete: Vec<&str> =
        init.clone().filter(|one| !is_initialized(one)).map(|one| one.container.name.as_str()).collect();
    if phase == "Succeeded" && init.count() > 0 {
        return Verdict { reason: "PodCompleted".to_owned(), ..Verdict::yes() };
    }
    // A sidecar that restarts does not undo the initialization.
    let main_ran = shown.iter().any(|one| one.role == Role::Main && (one.started || one.exit_code().is_some()));
    if incomplete.is_empty() || main_ran {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" ")))
}

fn containers_ready(phase: &str, shown: &[Shown]) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", ""),
        "Failed" => return Verdict::no("PodFailed", ""),
        _ => {}
    }
    let unready: Vec<&str> = shown
        .iter()
        .filter(|one| counts_for_readiness(one.role) && !one.ready)
        .map(|one| one.container.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
}

fn ready(facts: &Facts, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.holds {
        return containers_ready.clone();
    }
    let missing: Vec<String> = facts
        .pod
        .spec
        .readiness_gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match facts.pod.condition(name) {
                "True" => None,
                "" => Some(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
                status => Some(format!("the status of pod readiness gate \"{name}\" is not \"True\", but {status}")),
            }
        })
        .collect();
    if missing.is_empty() { Verdict::yes() } else { Verdict::no("ReadinessGatesNotReady", missing.join(", ")) }
}

/// As written: empty fields are cleared, so that a patch does not keep an old reason.
pub fn to_value(condition: &Condition) -> Value {
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    json!({
        "type": condition.r#type,
        "status": condition.status,
        "reason": text(&condition.reason),
        "message": text(&condition.message),
        "lastProbeTime": null,
        "lastTransitionTime": condition.last_transition_time,
        "observedGeneration": condition.observed_generation,
    })
}
