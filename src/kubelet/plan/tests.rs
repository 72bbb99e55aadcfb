//! Tables of situations and what follows from them, for the plan and the status.

use super::super::memory::*;
use super::super::status::{Host, status};
use super::*;
use crate::runtime::{Exit, ImageStatus, SandboxStatus};
use serde_json::{Value, json};

/// One situation: a pod, what the runtime shows, what the worker remembers.
struct Case {
    pod: Pod,
    sandbox: Option<SandboxStatus>,
    memory: Memory,
    now: Timestamp,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("in range")
}

impl Case {
    fn new(spec: Value) -> Self {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
            "spec": spec,
        });
        let memory = Memory { start_time: Some(at(0)), ..Memory::default() };
        Self { pod: serde_json::from_value(pod).expect("a pod"), sandbox: None, memory, now: at(100) }
    }

    /// Volumes, sandbox and images are there.
    fn prepared(mut self) -> Self {
        self.memory.volumes = Preparation::Done;
        self.memory.sandbox = Preparation::Done;
        let names: Vec<String> = containers(&self.pod).map(|(_, container)| container.name.clone()).collect();
        for name in names {
            let image = ImageStatus { id: "sha256:1".into(), names: Vec::new(), size_bytes: 1, user: String::new() };
            self.memory.container_mut(&name).image = ImageState::Present(image);
        }
        self.sandbox = Some(SandboxStatus {
            ready: true,
            created_at: Some(at(1)),
            ips: vec!["10.42.0.5".parse().expect("an address")],
            ..SandboxStatus::default()
        });
        self
    }

    fn container(mut self, name: &str, attempt: u32, state: ContainerState) -> Self {
        let hash = find_container(&self.pod, name).map(|(_, container)| spec_hash(container)).unwrap_or_default();
        let record = ContainerStatus {
            id: format!("{name}{attempt}"),
            name: name.to_owned(),
            attempt,
            image: "img".into(),
            image_id: "sha256:1".into(),
            state,
            created_at: at(2),
            started_at: Some(at(3)),
            spec_hash: hash,
            devices: Vec::new(),
        };
        self.sandbox.as_mut().expect("prepared").containers.push(record);
        self
    }

    fn running(self, name: &str) -> Self {
        self.container(name, 0, ContainerState::Running { pid: 1 })
    }

    fn exited(self, name: &str, attempt: u32, code: i32) -> Self {
        let exit = Exit { code, finished_at: Some(at(95)), ..Exit::default() };
        self.container(name, attempt, ContainerState::Exited(exit))
    }

    fn deleted(mut self, grace_s: i64) -> Self {
        self.pod.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
        self.pod.metadata.deletion_grace_period_seconds = Some(grace_s);
        self.memory.ending_since = Some(self.now);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.memory);
        self
    }

    fn facts(&self) -> Facts<'_> {
        Facts { pod: &self.pod, sandbox: self.sandbox.as_ref(), memory: &self.memory, now: self.now }
    }

    fn plan(&self) -> Plan {
        plan(&self.facts())
    }

    /// The actions in short words.
    fn short(&self) -> Vec<String> {
        let word = |action: &Action| match action {
            Action::PrepareVolumes => "volumes".into(),
            Action::StartSandbox { replace } => (if *replace { "replace" } else { "sandbox" }).into(),
            Action::EnsureImage { container } => format!("image {container}"),
            Action::StartContainer { container, attempt } => format!("start {container}{attempt}"),
            Action::StopContainer { container, grace_s, .. } => format!("stop {container} {grace_s}"),
            Action::RemoveContainer { id } => format!("remove {id}"),
            Action::StopSandbox => "release".into(),
            Action::RemoveSandbox => "clean".into(),
        };
        self.plan().actions.iter().map(word).collect()
    }

    fn status(&self) -> Value {
        let facts = self.facts();
        status(&facts, &plan(&facts), &Host { ips: vec!["192.0.2.1".into()] }).0
    }

    fn phase(&self) -> String {
        self.status()["phase"].as_str().expect("a phase").to_owned()
    }
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "img"}]})
}

fn three() -> Value {
    json!({
        "restartPolicy": "Always",
        "initContainers": [{"name": "i", "image": "img"}, {"name": "s", "image": "img", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "img"}, {"name": "b", "image": "img"}],
    })
}

#[test]
fn brings_a_pod_up_in_order() {
    let fresh = Case::new(one("Always"));
    assert_eq!(fresh.short(), ["volumes", "sandbox", "image a"]);
    assert_eq!(Case::new(one("Always")).prepared().short(), ["start a0"]);
    let ready = Case::new(three()).prepared();
    assert_eq!(ready.short(), ["start i0"]);
    let ready = ready.exited("i", 0, 0);
    assert_eq!(ready.short(), ["start s0"]);
    let ready = ready.running("s");
    assert_eq!(ready.short(), ["start a0"], "one at a time");
    let ready = ready.running("a");
    assert_eq!(ready.short(), ["start b0"]);
    let ready = ready.running("b");
    assert_eq!(ready.short(), Vec::<String>::new());
    assert_eq!(ready.phase(), "Running");
}

#[test]
fn a_start_in_flight_holds_the_next_one() {
    let case = Case::new(three()).prepared().exited("i", 0, 0).running("s");
    let case = case.with(|memory| memory.container_mut("a").operation = Some(Operation::Starting));
    assert_eq!(case.short(), Vec::<String>::new());
}

#[test]
fn a_sidecar_that_has_not_started_holds_the_main_containers() {
    let mut spec = three();
    spec["initContainers"][1]["startupProbe"] = json!({"tcpSocket": {"port": 80}});
    let case = Case::new(spec).prepared().exited("i", 0, 0).running("s");
    assert_eq!(case.short(), Vec::<String>::new());
    assert_eq!(case.phase(), "Pending");
    let case = case.with(|memory| memory.container_mut("s").started = Some("s0".into()));
    assert_eq!(case.short(), ["start a0"]);
}

#[test]
fn restart_policies() {
    for (policy, code, actions, phase) in [
        ("Always", 0, vec!["start a1"], "Running"),
        ("Always", 1, vec!["start a1"], "Running"),
        ("OnFailure", 0, vec!["release"], "Succeeded"),
        ("OnFailure", 1, vec!["start a1"], "Running"),
        ("Never", 0, vec!["release"], "Succeeded"),
        ("Never", 3, vec!["release"], "Failed"),
    ] {
        let case = Case::new(one(policy)).prepared().exited("a", 0, code);
        assert_eq!(case.short(), actions, "{policy} {code}");
        assert_eq!(case.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn an_ended_pod_is_released_once_and_stays() {
    let case = Case::new(one("Never")).prepared().exited("a", 0, 0).with(|memory| memory.stopped = true);
    assert!(case.plan().finished);
    assert_eq!(case.short(), Vec::<String>::new());
    let status = case.status();
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["conditions"][2]["reason"], "PodCompleted");
}

#[test]
fn crash_loops_back_off() {
    let backoff = Backoff { delay_s: 10, updated_at: at(80) };
    let case = Case::new(one("Always")).prepared().exited("a", 1, 1);
    let case = case.with(|memory| memory.container_mut("a").backoff = Some(backoff));
    assert_eq!(case.short(), Vec::<String>::new());
    assert_eq!(case.plan().wake_at, Some(at(105)));
    let status = case.status();
    let shown = &status["containerStatuses"][0];
    assert_eq!(shown["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = "back-off 10s restarting failed container=a pod=p_n(u)";
    assert_eq!(shown["state"]["waiting"]["message"], message);
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!((shown["restartCount"].as_i64(), status["phase"].as_str()), (Some(1), Some("Running")));
}

#[test]
fn backoff_doubles_to_its_limit_and_resets() {
    let mut backoff = None;
    let mut delays = Vec::new();
    for step in 0..7 {
        backoff = Some(Backoff::next(backoff, at(step), at(step)));
        delays.push(backoff.expect("just set").delay_s);
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(Backoff::next(backoff, at(700), at(700)).delay_s, 10);
}

#[test]
fn init_failures() {
    let failed = |policy: &str| {
        let mut spec = three();
        spec["restartPolicy"] = json!(policy);
        Case::new(spec).prepared().exited("i", 0, 1)
    };
    assert_eq!((failed("Never").short(), failed("Never").phase()), (vec!["release".into()], "Failed".into()));
    assert_eq!((failed("Always").short(), failed("Always").phase()), (vec!["start i1".into()], "Pending".into()));
    let status = failed("Always").status();
    let message = "containers with incomplete status: [i s]";
    assert_eq!(status["conditions"][1]["message"], message);
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

#[test]
fn probes_and_image_changes_kill() {
    let mut spec = one("Always");
    spec["containers"][0]["livenessProbe"] = json!({"terminationGracePeriodSeconds": 7, "exec": {}});
    let case = Case::new(spec).prepared().running("a");
    let condemned = |id: &str| {
        let id = id.to_owned();
        move |memory: &mut Memory| memory.container_mut("a").condemned = Some((id, Condemned::Liveness))
    };
    let case = case.with(condemned("another"));
    assert_eq!(case.short(), Vec::<String>::new(), "an older instance's verdict does not count");
    let case = case.with(condemned("a0"));
    assert_eq!(case.short(), ["stop a 7"]);
    let mut case = Case::new(one("Always")).prepared().running("a");
    case.pod.spec.containers[0].image = "other".into();
    let Some(Action::StopContainer { message, grace_s: 30, .. }) = case.plan().actions.pop() else {
        panic!("the changed container is stopped")
    };
    assert_eq!(message, "Container a definition changed, will be restarted");
}

#[test]
fn deletion_walks_back() {
    let case = Case::new(three()).prepared().exited("i", 0, 0).running("s").running("a").running("b").deleted(20);
    assert_eq!(case.short(), ["stop a 20", "stop b 20"]);
    let stopping = |memory: &mut Memory| {
        for name in ["a", "b"] {
            memory.container_mut(name).operation = Some(Operation::Stopping { deadline: at(120) });
        }
    };
    let case = case.with(stopping);
    assert_eq!(case.short(), Vec::<String>::new());
    let mut shorter = case;
    shorter.pod.metadata.deletion_grace_period_seconds = Some(5);
    assert_eq!(shorter.short(), ["stop a 5", "stop b 5"], "a shorter grace replaces the longer one");

    let case = Case::new(three()).prepared().exited("i", 0, 0).running("s").exited("a", 0, 0).exited("b", 0, 1);
    let case = case.deleted(20);
    assert_eq!(case.short(), ["stop s 20"], "sidecars go last");
    let case = Case::new(one("Always")).prepared().exited("a", 0, 137).deleted(20);
    assert_eq!((case.short(), case.phase()), (vec!["release".into()], "Failed".into()));
    let case = case.with(|memory| memory.stopped = true);
    assert_eq!(case.short(), ["clean"]);
    assert!(case.with(|memory| memory.removed = true).plan().finished);
}

#[test]
fn deletion_waits_for_a_start_in_flight() {
    let case = Case::new(one("Always")).prepared().deleted(0);
    let busy = case.with(|memory| memory.container_mut("a").operation = Some(Operation::Starting));
    assert_eq!((busy.short(), busy.plan().finished), (Vec::new(), false));
}

#[test]
fn active_deadline_fails_the_pod() {
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(100);
    spec["terminationGracePeriodSeconds"] = json!(3);
    let case = Case::new(spec.clone()).prepared().running("a");
    assert_eq!(case.short(), ["stop a 3"]);
    assert_eq!(case.status()["phase"], "Running", "until nothing runs any more");
    let status = Case::new(spec.clone()).prepared().exited("a", 0, 137).status();
    assert_eq!((status["phase"].as_str(), status["reason"].as_str()), (Some("Failed"), Some("DeadlineExceeded")));
    let mut earlier = Case::new(spec).prepared().running("a");
    earlier.now = at(40);
    assert_eq!((earlier.short().len(), earlier.plan().wake_at), (0, Some(at(100))));
}

#[test]
fn a_dead_sandbox_is_replaced_and_init_runs_again() {
    let mut case = Case::new(three()).prepared().exited("i", 0, 0).exited("s", 0, 137).exited("a", 0, 137);
    case.sandbox.as_mut().expect("prepared").ready = false;
    assert_eq!(case.short(), ["replace"]);
    case.sandbox.as_mut().expect("prepared").ready = true;
    case.sandbox.as_mut().expect("prepared").created_at = Some(at(50));
    assert_eq!(case.short(), ["start i1"]);
}

#[test]
fn a_rebooted_board_starts_its_pods_again() {
    let old = json!([{"name": "a", "containerID": "edgelet://x", "restartCount": 2, "ready": true,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]);
    let mut case = Case::new(one("Always")).prepared();
    case.pod.status.container_statuses = serde_json::from_value(old.clone()).expect("statuses");
    assert_eq!(case.short(), ["start a3"]);
    let status = case.status();
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    let mut case = Case::new(one("Never")).prepared();
    case.pod.status.container_statuses = serde_json::from_value(old).expect("statuses");
    assert_eq!((case.short(), case.phase()), (vec!["release".into()], "Failed".into()));
}

#[test]
fn failed_pulls_back_off() {
    let case = Case::new(one("Always")).prepared().with(|memory| {
        memory.container_mut("a").image = ImageState::Failed {
            reason: "ErrImagePull".into(),
            message: "no such host".into(),
            failed_at: at(100),
            backoff: Backoff { delay_s: 10, updated_at: at(100) },
        };
    });
    let waiting = |case: &Case| case.status()["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting(&case), json!({"reason": "ErrImagePull", "message": "no such host"}));
    assert_eq!(case.plan().wake_at, Some(at(101)));
    let later = Case { now: at(102), ..case };
    let message = "Back-off pulling image \"img\": ErrImagePull: no such host";
    assert_eq!(waiting(&later), json!({"reason": "ImagePullBackOff", "message": message}));
    let again = Case { now: at(110), ..later };
    assert_eq!(again.short(), ["image a"]);
}

#[test]
fn only_the_newest_ended_instance_is_kept() {
    let case = Case::new(one("Always")).prepared().exited("a", 0, 1).exited("a", 1, 1);
    let case = case.container("a", 2, ContainerState::Running { pid: 1 });
    assert_eq!(case.short(), ["remove a0"]);
    let status = case.status();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 2);
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["containerID"], "edgelet://a1");
}

#[test]
fn ephemeral_containers_start_once() {
    let mut spec = one("Always");
    spec["ephemeralContainers"] = json!([{"name": "e", "image": "img"}]);
    let case = Case::new(spec).prepared().running("a");
    assert_eq!(case.short(), ["start e0"]);
    assert_eq!(case.exited("e", 0, 1).short(), Vec::<String>::new());
}

#[test]
fn readiness() {
    let mut spec = one("Always");
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
    spec["readinessGates"] = json!([{"conditionType": "x/y"}]);
    let case = Case::new(spec).prepared().running("a");
    let ready = |case: &Case| case.status()["conditions"][2].clone();
    assert_eq!(ready(&case)["message"], "containers with unready status: [a]");
    let mut case = case.with(|memory| memory.container_mut("a").ready = Some("a0".into()));
    let message = "corresponding condition of pod readiness gate \"x/y\" does not exist.";
    assert_eq!(
        (ready(&case)["reason"].as_str(), ready(&case)["message"].as_str()),
        (Some("ReadinessGatesNotReady"), Some(message))
    );
    let gate = json!([{"type": "x/y", "status": "True"}]);
    case.pod.status.conditions = serde_json::from_value(gate).expect("conditions");
    assert_eq!(ready(&case)["status"], "True");
    assert_eq!(case.status()["conditions"][3]["type"], "ContainersReady");
}

#[test]
fn transition_times_change_only_with_the_status() {
    let case = Case::new(one("Always")).prepared().running("a");
    let (_, conditions) = {
        let facts = case.facts();
        status(&facts, &plan(&facts), &Host::default())
    };
    let case = Case { now: at(500), ..case }.with(|memory| memory.conditions = conditions.clone());
    let facts = case.facts();
    let (_, later) = status(&facts, &plan(&facts), &Host::default());
    assert_eq!(conditions, later);
}

#[test]
fn a_pod_that_never_ran_ends_as_failed() {
    let case = Case::new(one("Always")).deleted(0);
    let status = case.status();
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "ContainerStatusUnknown");
}
