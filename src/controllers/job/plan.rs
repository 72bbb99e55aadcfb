//! The next step of a Job as a function of what is observed. Every pod holds a finalizer until its end is counted:
//! first its uid is written to the status, then the finalizer goes, then the count grows. No end is counted twice.

use super::indexes;
use crate::api::view::meta::Condition;
use crate::api::view::workload::{Job, JobStatus, UncountedPods};
use crate::client::events::Type;
use crate::clock::rfc3339;
use crate::controllers::pods::PodFacts;
use crate::controllers::{seconds_until, timestamp};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Pods made or deleted in one go.
const BURST_LIMIT: usize = 500;
const BACKOFF_FIRST_S: i64 = 10;
const BACKOFF_LIMIT_S: i64 = 600;

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Pods with these completion indexes; without any for jobs that have none.
    Create(Vec<Option<i64>>),
    /// These end with the job; their ends are counted.
    End(Vec<String>),
    /// These are too many; they count for nothing.
    Discard(Vec<String>),
    Tell {
        kind: Type,
        reason: String,
        message: String,
    },
}

#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub status: JobStatus,
    /// Pods whose finalizer may go when the status is written.
    pub release: Vec<String>,
    /// The job itself is to be deleted: it ended long enough ago.
    pub expired: bool,
    pub again: Option<Duration>,
}

impl Plan {
    fn wait(&mut self, until: Timestamp, now: Timestamp) {
        let left = seconds_until(now, Duration::try_from(until.duration_since(now)).unwrap_or_default(), now);
        self.again = Some(self.again.map_or(left, |known| known.min(left)));
    }

    fn tell(&mut self, kind: Type, reason: &str, message: &str) {
        self.actions.push(Action::Tell { kind, reason: reason.into(), message: message.into() });
    }
}

pub fn is_tracked(pod: &PodFacts) -> bool {
    pod.metadata.finalizers.iter().any(|one| one == FINALIZER)
}

fn holds(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().any(|one| one.r#type == kind && one.status == "True")
}

pub fn is_finished(status: &JobStatus) -> bool {
    holds(status, "Complete") || holds(status, "Failed")
}

/// `pods`: the job's own.
pub fn plan(job: &Job, pods: &[PodFacts], now: Timestamp) -> Plan {
    let mut plan = Plan { status: job.status.clone(), ..Plan::default() };
    if job.metadata.is_deleting() || is_finished(&job.status) {
        plan.release = pods.iter().filter(|pod| is_tracked(pod)).map(|pod| pod.metadata.name.clone()).collect();
        expire(job, &mut plan, now);
        return plan;
    }
    Step { job, pods, now, indexed: job.spec.completion_mode == "Indexed" }.take(&mut plan);
    plan
}

/// A finished job goes when its time is over.
fn expire(job: &Job, plan: &mut Plan, now: Timestamp) {
    let finished = job.status.conditions.iter().find(|one| matches!(one.r#type.as_str(), "Complete" | "Failed"));
    let since = finished.and_then(|one| one.last_transition_time.as_deref().and_then(timestamp));
    let (Some(since), Some(seconds)) = (since, job.spec.ttl_seconds_after_finished) else { return };
    if job.metadata.is_deleting() {
        return;
    }
    let end = since.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    if end <= now { plan.expired = true } else { plan.wait(end, now) }
}

struct Step<'a> {
    job: &'a Job,
    pods: &'a [PodFacts],
    now: Timestamp,
    indexed: bool,
}

impl<'a> Step<'a> {
    fn take(&self, plan: &mut Plan) {
        self.count(plan);
        let active: Vec<&PodFacts> = self.pods.iter().filter(|pod| pod.is_active()).collect();
        let leaving = self.pods.iter().filter(|pod| pod.metadata.is_deleting() && !pod.has_ended()).count();
        plan.status.active = to_int(active.len());
        plan.status.ready = to_int(active.iter().filter(|pod| pod.ready().is_some()).count());
        plan.status.terminating = to_int(leaving);
        self.start_or_suspend(plan);
        if self.decide(plan, &active) {
            let names: Vec<String> = active.iter().map(|pod| pod.metadata.name.clone()).collect();
            if !names.is_empty() {
                plan.actions.push(Action::End(names));
            }
            self.finish(plan);
        } else if self.job.spec.suspend {
            self.discard(plan, &active);
        } else {
            self.scale(plan, &active);
        }
    }

    fn index(&self, pod: &PodFacts) -> Option<i64> {
        pod.metadata.annotations.get(INDEX)?.parse().ok()
    }

    fn is_wanted_index(&self, pod: &PodFacts) -> bool {
        !self.indexed || self.index(pod).is_some_and(|index| index < self.job.spec.completions.unwrap_or(0))
    }

    /// Whether a pod counts as failed; one that is being deleted does, unless its real end is to be waited for.
    fn has_failed(&self, pod: &PodFacts) -> bool {
        let replaced_early = self.job.spec.pod_replacement_policy != "Failed";
        let phase = pod.status.phase.as_str();
        phase == "Failed" || (replaced_early && pod.metadata.is_deleting() && phase != "Succeeded")
    }

    /// Ends that were noted and released grow the counts; new ends are noted.
    fn count(&self, plan: &mut Plan) {
        let tracked: BTreeMap<&str, &PodFacts> =
            self.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| (pod.metadata.uid.as_str(), pod)).collect();
        let noted = std::mem::take(&mut plan.status.uncounted_terminated_pods);
        let settle = |uids: Vec<String>| -> (Vec<String>, i64) {
            let before = uids.len();
            let kept: Vec<String> = uids.into_iter().filter(|uid| tracked.contains_key(uid.as_str())).collect();
            let settled = to_int(before - kept.len());
            (kept, settled)
        };
        let (mut succeeded, more_succeeded) = settle(noted.succeeded);
        let (mut failed, more_failed) = settle(noted.failed);
        let mut done = indexes::parse(&plan.status.completed_indexes);
        let ending = holds(&self.job.status, "FailureTarget");
        for (uid, pod) in &tracked {
            let success = pod.status.phase == "Succeeded";
            let failure = !success && (self.has_failed(pod) || (ending && !pod.is_active()));
            if !success && !failure {
                continue;
            }
            plan.release.push(pod.metadata.name.clone());
            let known = succeeded.iter().chain(&failed).any(|one| one == uid);
            if known || !self.is_wanted_index(pod) {
                continue;
            }
            match (success, self.indexed) {
                (true, true) => done.extend(self.index(pod)),
                (true, false) => succeeded.push((*uid).to_owned()),
                (false, _) => failed.push((*uid).to_owned()),
            }
        }
        plan.status.failed += more_failed;
        if self.indexed {
            plan.status.succeeded = to_int(done.len());
            plan.status.completed_indexes = indexes::format(&done);
        } else {
            plan.status.succeeded += more_succeeded;
        }
        plan.status.uncounted_terminated_pods = UncountedPods { succeeded, failed };
    }

    fn succeeded(&self, status: &JobStatus) -> i64 {
        status.succeeded + to_int(status.uncounted_terminated_pods.succeeded.len())
    }

    fn failed(&self, status: &JobStatus) -> i64 {
        status.failed + to_int(status.uncounted_terminated_pods.failed.len())
    }

    fn start_or_suspend(&self, plan: &mut Plan) {
        let (suspend, now) = (self.job.spec.suspend, self.now);
        let known = plan.status.conditions.iter().find(|one| one.r#type == "Suspended").map(|one| one.status == "True");
        match (suspend, known) {
            (true, Some(true)) => {}
            (true, _) => {
                set(&mut plan.status, "Suspended", true, "JobSuspended", "Job suspended", now);
                plan.status.start_time = None;
                plan.tell(Type::Normal, "Suspended", "Job suspended");
            }
            (false, Some(true)) => {
                set(&mut plan.status, "Suspended", false, "JobResumed", "Job resumed", now);
                plan.status.start_time = Some(rfc3339(now));
                plan.tell(Type::Normal, "Resumed", "Job resumed");
            }
            (false, _) => drop(plan.status.start_time.get_or_insert_with(|| rfc3339(now))),
        }
    }

    /// Whether the job has reached its end, good or bad; the conditions say so.
    fn decide(&self, plan: &mut Plan, active: &[&PodFacts]) -> bool {
        if holds(&plan.status, "FailureTarget") || holds(&plan.status, "SuccessCriteriaMet") {
            return true;
        }
        if let Some((reason, message)) = self.failure(plan, active) {
            set(&mut plan.status, "FailureTarget", true, reason, message, self.now);
            return true;
        }
        let succeeded = self.succeeded(&plan.status);
        let complete = match self.job.spec.completions {
            None => succeeded > 0 && active.is_empty(),
            Some(wanted) => succeeded >= wanted,
        };
        if complete && !(self.job.spec.suspend && succeeded == 0) {
            let message = "Reached expected number of succeeded pods";
            set(&mut plan.status, "SuccessCriteriaMet", true, "CompletionsReached", message, self.now);
        }
        complete
    }

    fn failure(&self, plan: &mut Plan, active: &[&PodFacts]) -> Option<(&'static str, &'static str)> {
        let limit = self.job.spec.backoff_limit.unwrap_or(6);
        let restarts: i64 = active
            .iter()
            .flat_map(|pod| &pod.status.container_statuses)
            .map(|container| i64::from(container.restart_count))
            .sum();
        let on_failure = self.job.spec.template.pointer("/spec/restartPolicy").and_then(|policy| policy.as_str())
            == Some("OnFailure");
        let worn_out = on_failure && restarts > 0 && restarts >= limit;
        if self.failed(&plan.status) > limit || worn_out {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let started = plan.status.start_time.as_deref().and_then(timestamp);
        let (Some(seconds), Some(started)) = (self.job.spec.active_deadline_seconds, started) else { return None };
        let end = started.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        if self.job.spec.suspend || end > self.now {
            if !self.job.spec.suspend {
                plan.wait(end, self.now);
            }
            return None;
        }
        Some(("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    /// The last condition comes when nothing runs and every end is counted.
    fn finish(&self, plan: &mut Plan) {
        let uncounted = &plan.status.uncounted_terminated_pods;
        let open = plan.status.active + plan.status.terminating > 0
            || !uncounted.succeeded.is_empty()
            || !uncounted.failed.is_empty();
        if open || self.pods.iter().any(|pod| is_tracked(pod) && plan.release.contains(&pod.metadata.name)) {
            return;
        }
        let target =
            |kind: &str| plan.status.conditions.iter().find(|one| one.r#type == kind && one.status == "True").cloned();
        if let Some(failure) = target("FailureTarget") {
            set(&mut plan.status, "Failed", true, &failure.reason, &failure.message, self.now);
            plan.tell(Type::Warning, &failure.reason, &failure.message);
        } else if let Some(success) = target("SuccessCriteriaMet") {
            set(&mut plan.status, "Complete", true, &success.reason, &success.message, self.now);
            plan.status.completion_time = Some(rfc3339(self.now));
            plan.tell(Type::Normal, "Completed", "Job completed");
        }
    }

    fn discard(&self, plan: &mut Plan, pods: &[&PodFacts]) {
        let names: Vec<String> = pods.iter().take(BURST_LIMIT).map(|pod| pod.metadata.name.clone()).collect();
        if !names.is_empty() {
            plan.actions.push(Action::Discard(names));
        }
    }

    fn scale(&self, plan: &mut Plan, active: &[&PodFacts]) {
        let spec = &self.job.spec;
        let parallelism = spec.parallelism.unwrap_or(1);
        let succeeded = self.succeeded(&plan.status);
        let wanted = match spec.completions {
            None if succeeded > 0 => plan.status.active,
            None => parallelism,
            Some(completions) => (completions - succeeded).clamp(0, parallelism),
        };
        let surplus = self.surplus(active, wanted, plan);
        if !surplus.is_empty() {
            return self.discard(plan, &surplus);
        }
        let leaving = if spec.pod_replacement_policy == "Failed" { plan.status.terminating } else { 0 };
        let missing = usize::try_from(wanted - plan.status.active - leaving).unwrap_or(0).min(BURST_LIMIT);
        if missing == 0 {
            return;
        }
        if let Some(until) = self.backoff_until().filter(|until| *until > self.now) {
            return plan.wait(until, self.now);
        }
        let places = self.places(active, missing, plan);
        if !places.is_empty() {
            plan.actions.push(Action::Create(places));
        }
    }

    /// Pods beyond what is wanted, those that lose least first; and doubles of an index.
    fn surplus(&self, active: &[&'a PodFacts], wanted: i64, plan: &Plan) -> Vec<&'a PodFacts> {
        let done = indexes::parse(&plan.status.completed_indexes);
        let mut taken = BTreeSet::new();
        let (mut kept, mut surplus) = (Vec::new(), Vec::new());
        for pod in active {
            let index = self.index(pod);
            let usable = !self.indexed
                || (self.is_wanted_index(pod)
                    && index.is_some_and(|index| !done.contains(&index) && taken.insert(index)));
            if usable { kept.push(*pod) } else { surplus.push(*pod) }
        }
        kept.sort_by_key(|pod| (pod.ready().is_some(), std::cmp::Reverse(self.index(pod)), pod.metadata.name.clone()));
        let too_many = usize::try_from(to_int(kept.len()) - wanted).unwrap_or(0);
        surplus.extend(kept.into_iter().take(too_many));
        surplus
    }

    fn places(&self, active: &[&PodFacts], missing: usize, plan: &Plan) -> Vec<Option<i64>> {
        if !self.indexed {
            return vec![None; missing];
        }
        let done = indexes::parse(&plan.status.completed_indexes);
        let waiting = self.job.spec.pod_replacement_policy == "Failed";
        let leaving = self.pods.iter().filter(|pod| waiting && pod.metadata.is_deleting() && !pod.has_ended());
        let taken: BTreeSet<i64> = active.iter().copied().chain(leaving).filter_map(|pod| self.index(pod)).collect();
        let free =
            (0..self.job.spec.completions.unwrap_or(0)).filter(|index| !done.contains(index) && !taken.contains(index));
        free.take(missing).map(Some).collect()
    }

    /// Failures in a row are answered more and more slowly.
    fn backoff_until(&self) -> Option<Timestamp> {
        let ended = |phase: &'static str| {
            self.pods.iter().filter(move |pod| pod.status.phase == phase).filter_map(PodFacts::finished_at)
        };
        let success = ended("Succeeded").max();
        let failures: Vec<Timestamp> =
            ended("Failed").filter(|at| success.is_none_or(|success| *at > success)).collect();
        let last = failures.iter().max()?;
        let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(16);
        let delay_s = (BACKOFF_FIRST_S << doublings).min(BACKOFF_LIMIT_S);
        last.saturating_add(SignedDuration::from_secs(delay_s)).ok()
    }
}

fn to_int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn set(status: &mut JobStatus, kind: &str, holds: bool, reason: &str, message: &str, now: Timestamp) {
    let now = rfc3339(now);
    let condition = Condition {
        r#type: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Some(now.clone()),
        last_probe_time: Some(now),
        ..Condition::default()
    };
    match status.conditions.iter_mut().find(|one| one.r#type == kind) {
        Some(old) => *old = condition,
        None => status.conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("time")
    }

    fn job(spec: Value, status: Value) -> Job {
        let mut spec = spec;
        spec["template"] = json!({"spec": {"restartPolicy": "Never"}});
        let mut status = status;
        if status.get("startTime").is_none() {
            status["startTime"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec, "status": status}))
            .expect("job")
    }

    /// `name:phase[:index]`, with `-` for one that is being deleted and `*` for one that is counted.
    fn pod(text: &str) -> PodFacts {
        let mut parts = text.trim_end_matches(['-', '*']).split(':');
        let (name, phase) = (parts.next().expect("name"), parts.next().expect("phase"));
        let mut pod = json!({"metadata": {"name": name, "uid": name, "finalizers": [FINALIZER],
            "creationTimestamp": "2026-01-01T00:10:00Z"}, "status": {"phase": phase}});
        if let Some(index) = parts.next() {
            pod["metadata"]["annotations"] = json!({INDEX: index});
        }
        if text.ends_with('-') {
            pod["metadata"]["deletionTimestamp"] = "t".into();
        }
        if text.ends_with('*') {
            pod["metadata"]["finalizers"] = json!([]);
        }
        serde_json::from_value(pod).expect("pod")
    }

    fn step(job: &Job, pods: &[&str]) -> Plan {
        let pods: Vec<PodFacts> = pods.iter().map(|text| pod(text)).collect();
        plan(job, &pods, now())
    }

    fn acts(plan: &Plan) -> String {
        let words = plan.actions.iter().filter_map(|action| match action {
            Action::Create(places) if places.iter().any(Option::is_some) => {
                let all: Vec<String> = places.iter().flatten().map(ToString::to_string).collect();
                Some(format!("create {}", all.join(",")))
            }
            Action::Create(places) => Some(format!("create {}", places.len())),
            Action::End(names) => Some(format!("end {}", names.join(","))),
            Action::Discard(names) => Some(format!("discard {}", names.join(","))),
            Action::Tell { .. } => None,
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn conditions(plan: &Plan) -> Vec<&str> {
        plan.status.conditions.iter().filter(|one| one.status == "True").map(|one| one.r#type.as_str()).collect()
    }

    #[test]
    fn pods_are_made_up_to_parallelism_and_completions() {
        for (spec, status, pods, expected) in [
            (json!({"parallelism": 2, "completions": 5}), json!({}), vec![], "create 2"),
            (json!({"parallelism": 3, "completions": 5}), json!({"succeeded": 4}), vec![], "create 1"),
            (json!({"parallelism": 2}), json!({}), vec!["a:Running"], "create 1"),
            (json!({"parallelism": 2}), json!({"succeeded": 1}), vec!["a:Running"], ""),
            (json!({"parallelism": 1, "completions": 5}), json!({}), vec!["a:Running", "b:Running"], "discard a"),
            (json!({"completions": 2, "suspend": true}), json!({}), vec!["a:Running"], "discard a"),
            (json!({"completions": 1}), json!({}), vec!["a:Running-"], "create 1"),
            (json!({"completions": 1, "podReplacementPolicy": "Failed"}), json!({}), vec!["a:Running-"], ""),
            (
                json!({"parallelism": 2, "completions": 4, "completionMode": "Indexed"}),
                json!({}),
                vec!["a:Running:1"],
                "create 0",
            ),
            (
                json!({"parallelism": 3, "completions": 4, "completionMode": "Indexed"}),
                json!({"completedIndexes": "0,1"}),
                vec!["a:Running:2", "b:Running:2"],
                "discard b",
            ),
        ] {
            assert_eq!(acts(&step(&job(spec.clone(), status), &pods)), expected, "{spec} {pods:?}");
        }
    }

    #[test]
    fn an_end_is_noted_then_released_then_counted() {
        let spec = json!({"completions": 2});
        let first = step(&job(spec.clone(), json!({})), &["a:Succeeded"]);
        assert_eq!((first.status.succeeded, first.release.as_slice()), (0, ["a".to_owned()].as_slice()));
        assert_eq!(first.status.uncounted_terminated_pods.succeeded, ["a"]);
        let noted = json!({"uncountedTerminatedPods": {"succeeded": ["a"]}});
        let again = step(&job(spec.clone(), noted.clone()), &["a:Succeeded"]);
        assert_eq!(
            (again.status.succeeded, again.status.uncounted_terminated_pods.succeeded.len()),
            (0, 1),
            "not twice"
        );
        let counted = step(&job(spec, noted), &["a:Succeeded*"]);
        assert_eq!((counted.status.succeeded, counted.status.uncounted_terminated_pods.succeeded.len()), (1, 0));
        assert_eq!(acts(&counted), "create 1");
    }

    #[test]
    fn a_job_completes_when_all_ends_are_counted() {
        let spec = json!({"completions": 1});
        let noted = step(&job(spec.clone(), json!({})), &["a:Succeeded"]);
        assert_eq!(conditions(&noted), ["SuccessCriteriaMet"]);
        let status = json!({"uncountedTerminatedPods": {"succeeded": ["a"]}, "conditions": noted.status.conditions});
        let done = step(&job(spec, status), &["a:Succeeded*"]);
        assert_eq!(conditions(&done), ["SuccessCriteriaMet", "Complete"]);
        assert!(done.status.completion_time.is_some() && done.status.succeeded == 1);
    }

    #[test]
    fn failures_are_answered_slowly_and_not_for_ever() {
        let spec = json!({"completions": 1, "backoffLimit": 1});
        let mut late = pod("a:Failed*");
        late.metadata.creation_timestamp = "2026-01-01T00:59:55Z".into();
        let waiting = plan(&job(spec.clone(), json!({"failed": 1})), &[late], now());
        assert_eq!((acts(&waiting), waiting.again), (String::new(), Some(Duration::from_secs(5))));
        assert_eq!(acts(&step(&job(spec.clone(), json!({"failed": 1})), &["a:Failed*"])), "create 1");
        let over = step(&job(spec.clone(), json!({"failed": 2})), &["c:Running"]);
        assert_eq!((acts(&over), conditions(&over)), ("end c".to_owned(), vec!["FailureTarget"]));
        let target = json!({"failed": 2, "conditions": over.status.conditions});
        let counted = step(&job(spec.clone(), target.clone()), &["c:Running-"]);
        assert_eq!(conditions(&counted), ["FailureTarget"], "it still runs");
        let failed = step(&job(spec, target), &[]);
        assert_eq!(conditions(&failed), ["FailureTarget", "Failed"]);
        assert_eq!(failed.status.conditions[1].reason, "BackoffLimitExceeded");
    }

    #[test]
    fn deadlines_and_lives_after_the_end_are_kept() {
        let over = step(&job(json!({"activeDeadlineSeconds": 60}), json!({})), &["a:Running"]);
        assert_eq!(over.status.conditions[0].reason, "DeadlineExceeded");
        let later = step(&job(json!({"activeDeadlineSeconds": 7200}), json!({})), &["a:Running"]);
        assert_eq!(later.again, Some(Duration::from_secs(3600)));
        let ended = json!([{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]);
        let keeps = |seconds: i64| job(json!({"ttlSecondsAfterFinished": seconds}), json!({"conditions": ended}));
        assert!(step(&keeps(60), &[]).expired);
        assert_eq!(
            (step(&keeps(90), &[]).expired, step(&keeps(90), &[]).again),
            (false, Some(Duration::from_secs(30)))
        );
        assert_eq!(step(&keeps(90), &["a:Succeeded"]).release, ["a"]);
    }

    #[test]
    fn a_suspended_job_stops_and_starts_again() {
        let stopped = step(&job(json!({"suspend": true}), json!({})), &[]);
        assert_eq!((conditions(&stopped), stopped.status.start_time.as_deref()), (vec!["Suspended"], None));
        let status = json!({"conditions": stopped.status.conditions, "startTime": null});
        let resumed = step(&job(json!({}), status), &[]);
        assert_eq!((conditions(&resumed).len(), acts(&resumed)), (0, "create 1".to_owned()));
        assert_eq!(resumed.status.start_time.as_deref(), Some("2026-01-01T01:00:00Z"));
    }
}
