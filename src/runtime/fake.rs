//! A runtime without a kernel: keeps pods in memory and follows what their annotations script.
//! Time is tokio's, so a test with paused time runs hours of pod life in no time.
//!
//! `fake.edgelet.dev/KEY`, or `fake.edgelet.dev/CONTAINER.KEY` for one container: see `Script`.

use super::*;
use crate::clock::Clock;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

const PREFIX: &str = "fake.edgelet.dev/";
/// Events that wait for the kubelet; more are lost, as they may be.
const EVENTS_LIMIT: usize = 256;
/// Bytes in flight on a stream.
const STREAM_BYTES: usize = 16 << 10;

/// What a container is told to do.
#[derive(Clone, Debug, Default, PartialEq)]
struct Script {
    /// `exit-code`: how it ends by itself; 0.
    exit_code: i32,
    /// `run-seconds`: when it ends by itself; never without.
    run: Option<Duration>,
    /// `stop-code`: how it ends when asked to; 143.
    stop_code: Option<i32>,
    /// `ignore-stop-signal`: it takes the whole grace period.
    ignore_stop_signal: bool,
    /// `ready-after`: seconds after its start until probes succeed; `never`.
    ready_after: Option<Duration>,
    never_ready: bool,
    /// `oom`: it ends by the OOM killer.
    oom: bool,
    /// `create-error`, `start-error`: the message to fail with.
    create_error: Option<String>,
    start_error: Option<String>,
    /// `message`: its last words.
    message: String,
}

impl Script {
    fn parse(annotations: &BTreeMap<String, String>, container: &str) -> Self {
        let get = |key: &str| {
            let own = annotations.get(&format!("{PREFIX}{container}.{key}"));
            own.or_else(|| annotations.get(&format!("{PREFIX}{key}"))).cloned()
        };
        let seconds = |key: &str| Duration::try_from_secs_f64(get(key)?.parse().ok()?).ok();
        let set = |key: &str| get(key).is_some_and(|value| value == "true");
        Self {
            exit_code: get("exit-code").and_then(|value| value.parse().ok()).unwrap_or(0),
            run: seconds("run-seconds"),
            stop_code: get("stop-code").and_then(|value| value.parse().ok()),
            ignore_stop_signal: set("ignore-stop-signal"),
            ready_after: seconds("ready-after"),
            never_ready: get("ready-after").is_some_and(|value| value == "never"),
            oom: set("oom"),
            create_error: get("create-error"),
            start_error: get("start-error"),
            message: get("message").unwrap_or_default(),
        }
    }
}

struct Pod {
    config: SandboxConfig,
    ready: bool,
    created_at: Timestamp,
    ip: IpAddr,
    containers: BTreeMap<String, Container>,
}

struct Container {
    status: ContainerStatus,
    script: Script,
}

struct State {
    pods: BTreeMap<String, Pod>,
    /// By pod and name; a volume may be there before the sandbox.
    volumes: BTreeMap<(String, String), VolumeContent>,
    images: BTreeMap<String, ImageStatus>,
    pull_errors: BTreeMap<String, String>,
    registry_away: bool,
    registry_silent: bool,
    pulls: u64,
    starts: BTreeMap<(String, String), u32>,
    next_host: u32,
    next_pid: i32,
    events: Option<mpsc::Sender<RuntimeEvent>>,
}

/// Cheap to clone; clones share the node's state, so a kubelet can be restarted over it.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    clock: Clock,
    /// First address of the node's pods.
    network: Ipv4Addr,
    /// Where what containers say would be.
    logs: PathBuf,
}

impl FakeRuntime {
    /// A node whose pods get the addresses after `network`, `10.42.0.0`.
    pub fn new(clock: Clock, network: Ipv4Addr) -> Self {
        Self::with_logs(clock, network, PathBuf::from("/nonexistent/fake"))
    }

    /// The same; containers write a line into their logs when they start, if the folder is there.
    pub fn with_logs(clock: Clock, network: Ipv4Addr, logs: PathBuf) -> Self {
        let state = State {
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            images: BTreeMap::new(),
            pull_errors: BTreeMap::new(),
            registry_away: false,
            registry_silent: false,
            pulls: 0,
            starts: BTreeMap::new(),
            next_host: 2,
            next_pid: 1000,
            events: None,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), clock, network, logs }))
    }

    /// Pulls of this reference fail with this message until it is set to `None`.
    pub fn set_pull_error(&self, reference: &str, message: Option<&str>) {
        let mut state = self.state();
        match message {
            Some(message) => state.pull_errors.insert(reference.to_owned(), message.to_owned()),
            None => state.pull_errors.remove(reference),
        };
    }

    /// Whether any registry can be reached.
    pub fn set_registry_away(&self, away: bool) {
        self.state().registry_away = away;
    }

    /// Whether registries answer nothing, not even with a refusal.
    pub fn set_registry_silent(&self, silent: bool) {
        self.state().registry_silent = silent;
    }

    /// How many pulls were tried.
    pub fn pulls(&self) -> u64 {
        self.state().pulls
    }

    /// How often a container of a pod was started.
    pub fn starts(&self, pod_uid: &str, container: &str) -> u32 {
        self.state().starts.get(&(pod_uid.to_owned(), container.to_owned())).copied().unwrap_or(0)
    }

    /// What a volume holds now.
    pub fn volume(&self, pod_uid: &str, name: &str) -> Option<VolumeContent> {
        self.state().volumes.get(&(pod_uid.to_owned(), name.to_owned())).cloned()
    }

    /// A container ends by itself, now.
    pub fn exit(&self, pod_uid: &str, container: &str, code: i32) {
        let id = {
            let state = self.state();
            let running = |one: &&Container| one.status.name == container && is_running(&one.status);
            let pod = state.pods.get(pod_uid);
            pod.and_then(|pod| pod.containers.values().find(running)).map(|one| one.status.id.clone())
        };
        if let Some(id) = id {
            self.end(&id, |script| exit(code, 0, script));
        }
    }

    /// As after a power cut: nothing runs, no sandbox is known; images stay.
    pub fn reboot(&self) {
        self.state().pods.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while the fake is locked")
    }

    /// Ends a running container; another end is no news.
    fn end(&self, id: &str, how: impl FnOnce(&Script) -> Exit) {
        let mut state = self.state();
        let now = self.0.clock.now();
        let Some((uid, container)) = find(&mut state, id) else { return };
        if matches!(container.status.state, ContainerState::Exited(_)) {
            return;
        }
        let mut exit = how(&container.script);
        exit.finished_at = Some(now);
        container.status.state = ContainerState::Exited(exit);
        wake(&state, &uid);
    }

    fn sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus> {
        let mut state = self.state();
        let uid = config.pod.uid.clone();
        if let Some(message) = config.annotations.get(&format!("{PREFIX}sandbox-error")) {
            return Err(RuntimeError::new(Reason::CreatePodSandboxError, message));
        }
        if !state.pods.get(&uid).is_some_and(|pod| pod.ready) {
            let ip = self.address(&mut state, config.wanted_ip);
            let created_at = self.0.clock.now();
            let former = state.pods.remove(&uid);
            let containers = former.map(|pod| pod.containers).unwrap_or_default();
            let pod = Pod { config, ready: true, created_at, ip, containers };
            state.pods.insert(uid.clone(), pod);
        }
        Ok(status(&state.pods[&uid]))
    }

    fn address(&self, state: &mut State, wanted: Option<IpAddr>) -> IpAddr {
        let taken = |state: &State, ip: IpAddr| state.pods.values().any(|pod| pod.ready && pod.ip == ip);
        if let Some(ip) = wanted.filter(|ip| !taken(state, *ip)) {
            return ip;
        }
        loop {
            let ip = IpAddr::V4(Ipv4Addr::from(u32::from(self.0.network) + state.next_host));
            state.next_host = if state.next_host >= 254 { 2 } else { state.next_host + 1 };
            if !taken(state, ip) {
                return ip;
            }
        }
    }

    fn create(&self, pod_uid: &str, config: &ContainerConfig) -> Result<String> {
        let mut state = self.state();
        let Some(image) = state.images.get(&config.image).cloned() else {
            let message = format!("image {:?} is not present", config.image);
            return Err(RuntimeError::new(Reason::CreateContainerError, message));
        };
        let created_at = self.0.clock.now();
        let pod = state.pods.get_mut(pod_uid).ok_or_else(|| not_found(pod_uid))?;
        let script = Script::parse(&config.annotations, &config.name);
        if let Some(message) = &script.create_error {
            return Err(RuntimeError::new(Reason::CreateContainerError, message));
        }
        let id = super::container_id(pod_uid, &config.name, config.attempt);
        let status = ContainerStatus {
            id: id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: image.id,
            state: ContainerState::Created,
            created_at,
            started_at: None,
            spec_hash: config.spec_hash,
            devices: config.devices.iter().map(|device| device.host_path.clone()).collect(),
        };
        pod.containers.entry(id.clone()).or_insert(Container { status, script });
        Ok(id)
    }

    fn start(&self, id: &str) -> Result<()> {
        let mut state = self.state();
        let now = self.0.clock.now();
        state.next_pid += 1;
        let pid = state.next_pid;
        let (uid, container) = find(&mut state, id).ok_or_else(|| not_found(id))?;
        if container.status.state != ContainerState::Created {
            return Ok(());
        }
        container.status.started_at = Some(now);
        if let Some(message) = container.script.start_error.clone() {
            let reason = "StartError".to_owned();
            let exit = Exit { code: 128, signal: 0, finished_at: Some(now), reason, message: message.clone() };
            container.status.state = ContainerState::Exited(exit);
            return Err(RuntimeError::new(Reason::RunContainerError, message));
        }
        container.status.state = ContainerState::Running { pid };
        let run = container.script.run;
        let (name, attempt) = (container.status.name.clone(), container.status.attempt);
        *state.starts.entry((uid.clone(), name.clone())).or_default() += 1;
        wake(&state, &uid);
        let log = self.log_path(&state.pods[&uid].config.pod, &name, attempt);
        drop(state);
        if self.0.logs.is_dir() {
            let line = format!("{now} stdout F {name} started\n");
            let written =
                std::fs::create_dir_all(log.parent().unwrap_or(&log)).and_then(|()| std::fs::write(&log, line));
            written.map_err(|error| RuntimeError::new(Reason::RunContainerError, error.to_string()))?;
        }
        if let Some(run) = run {
            let (fake, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move {
                fake.0.clock.sleep(run).await;
                fake.end(&id, |script| match script.oom {
                    true => Exit { reason: "OOMKilled".to_owned(), ..exit(137, 9, script) },
                    false => exit(script.exit_code, 0, script),
                });
            });
        }
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let script = {
            let mut state = self.state();
            let (_, container) = find(&mut state, id).ok_or_else(|| not_found(id))?;
            if matches!(container.status.state, ContainerState::Exited(_)) {
                return Ok(());
            }
            container.script.clone()
        };
        if script.ignore_stop_signal || grace.is_zero() {
            self.0.clock.sleep(grace).await;
            self.end(id, |script| exit(137, 9, script));
        } else {
            let code = script.stop_code.unwrap_or(143);
            self.end(id, |script| exit(code, if code == 143 { 15 } else { 0 }, script));
        }
        Ok(())
    }

    /// Whether some container of the pod with this address runs and is ready.
    fn answers(&self, host: &str) -> bool {
        let state = self.state();
        let now = self.0.clock.now();
        let Some(pod) = state.pods.values().find(|pod| pod.ready && pod.ip.to_string() == host) else { return false };
        pod.containers.values().any(|container| is_ready(container, now))
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    matches!(status.state, ContainerState::Running { .. })
}

fn is_ready(container: &Container, now: Timestamp) -> bool {
    let Some(started_at) = container.status.started_at else { return false };
    let running = Duration::try_from(now.duration_since(started_at)).unwrap_or_default();
    let enough = container.script.ready_after.is_none_or(|wanted| running >= wanted);
    is_running(&container.status) && enough && !container.script.never_ready
}

fn exit(code: i32, signal: i32, script: &Script) -> Exit {
    let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
    Exit { code, signal, finished_at: None, reason, message: script.message.clone() }
}

fn find<'a>(state: &'a mut State, id: &str) -> Option<(String, &'a mut Container)> {
    state.pods.iter_mut().find_map(|(uid, pod)| Some((uid.clone(), pod.containers.get_mut(id)?)))
}

fn wake(state: &State, pod_uid: &str) {
    if let Some(events) = &state.events {
        let _ = events.try_send(RuntimeEvent { pod_uid: pod_uid.to_owned() });
    }
}

fn not_found(what: &str) -> RuntimeError {
    RuntimeError::new(Reason::NotFound, format!("{what} not found"))
}

fn status(pod: &Pod) -> SandboxStatus {
    SandboxStatus {
        pod: pod.config.pod.clone(),
        ready: pod.ready,
        created_at: Some(pod.created_at),
        ips: vec![pod.ip],
        termination_grace_s: pod.config.termination_grace_s,
        containers: pod.containers.values().map(|container| container.status.clone()).collect(),
    }
}

/// A command that says its own words, then repeats what it is told.
fn echo(request: &ExecRequest, greeting: String) -> ExecSession {
    let (input, mut reader) = tokio::io::duplex(STREAM_BYTES);
    let (mut writer, output) = tokio::io::duplex(STREAM_BYTES);
    let stdin = request.stdin.then_some(Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>);
    let task = tokio::spawn(async move {
        let _ = writer.write_all(greeting.as_bytes()).await;
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    ExecSession {
        stdin,
        stdout: request.stdout.then_some(Box::new(output) as Box<dyn AsyncRead + Send + Unpin>),
        stderr: (request.stderr && !request.tty).then_some(Box::new(tokio::io::empty()) as _),
        resize: request.tty.then(|| mpsc::channel(1).0),
        exit: Box::pin(async move {
            let _ = task.await;
            Ok(0)
        }),
    }
}

impl Runtime for FakeRuntime {
    fn list(&self) -> Verb<'_, Vec<SandboxStatus>> {
        Box::pin(async { Ok(self.state().pods.values().map(status).collect()) })
    }

    fn status<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, SandboxStatus> {
        Box::pin(async move { self.state().pods.get(pod_uid).map(status).ok_or_else(|| not_found(pod_uid)) })
    }

    fn run_sandbox(&self, config: SandboxConfig) -> Verb<'_, SandboxStatus> {
        Box::pin(async move { self.sandbox(config) })
    }

    fn stop_sandbox<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, ()> {
        Box::pin(async move {
            let ids: Vec<String> = {
                let mut state = self.state();
                let Some(pod) = state.pods.get_mut(pod_uid) else { return Ok(()) };
                pod.ready = false;
                pod.containers.keys().cloned().collect()
            };
            for id in ids {
                self.end(&id, |script| exit(137, 9, script));
            }
            Ok(())
        })
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str, _keep_logs: bool) -> Verb<'a, ()> {
        Box::pin(async move {
            let mut state = self.state();
            state.pods.remove(pod_uid);
            state.volumes.retain(|(uid, _), _| uid != pod_uid);
            Ok(())
        })
    }

    fn retain<'a>(&'a self, _pod_uids: &'a [String]) -> Verb<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn create_container<'a>(&'a self, pod_uid: &'a str, config: ContainerConfig) -> Verb<'a, String> {
        Box::pin(async move { self.create(pod_uid, &config) })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()> {
        Box::pin(async move { self.start(id) })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Verb<'a, ()> {
        Box::pin(self.stop(id, grace))
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Verb<'a, ()> {
        Box::pin(async move {
            for pod in self.state().pods.values_mut() {
                if pod.containers.get(id).is_some_and(|container| is_running(&container.status)) {
                    return Err(RuntimeError::new(Reason::Other, format!("container {id} is running")));
                }
                pod.containers.remove(id);
            }
            Ok(())
        })
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], _timeout: Duration) -> Verb<'a, ExecOutput> {
        Box::pin(async move {
            let mut state = self.state();
            let now = self.0.clock.now();
            let (_, container) = find(&mut state, id).ok_or_else(|| not_found(id))?;
            let output = Bytes::from(command.join(" "));
            Ok(ExecOutput { exit_code: i32::from(!is_ready(container, now)), output })
        })
    }

    fn exec<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession> {
        Box::pin(async move {
            find(&mut self.state(), id).ok_or_else(|| not_found(id))?;
            Ok(echo(&request, format!("{}\n", request.command.join(" "))))
        })
    }

    fn attach<'a>(&'a self, id: &'a str, request: ExecRequest) -> Verb<'a, ExecSession> {
        Box::pin(async move {
            find(&mut self.state(), id).ok_or_else(|| not_found(id))?;
            Ok(echo(&request, String::new()))
        })
    }

    fn port_forward<'a>(&'a self, pod_uid: &'a str, _port: u16) -> Verb<'a, Box<dyn crate::sys::Stream>> {
        Box::pin(async move {
            self.state().pods.get(pod_uid).ok_or_else(|| not_found(pod_uid))?;
            let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(theirs);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
            Ok(Box::new(ours) as Box<dyn crate::sys::Stream>)
        })
    }

    fn probe<'a>(&'a self, probe: &'a NetworkProbe, _timeout: Duration) -> BoxFuture<'a, ProbeOutcome> {
        Box::pin(async move {
            let (NetworkProbe::Http { host, .. } | NetworkProbe::Tcp { host, .. } | NetworkProbe::Grpc { host, .. }) =
                probe;
            match self.answers(host) {
                true => ProbeOutcome::Success(String::new()),
                false => ProbeOutcome::Failure("HTTP probe failed with statuscode: 503".to_owned()),
            }
        })
    }

    fn log_path(&self, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
        let directory = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        self.0.logs.join(directory).join(container).join(format!("{attempt}.log"))
    }

    fn stats<'a>(&'a self, pod_uid: &'a str) -> Verb<'a, BTreeMap<String, Stats>> {
        Box::pin(async move {
            let state = self.state();
            let pod = state.pods.get(pod_uid).ok_or_else(|| not_found(pod_uid))?;
            let running = pod.containers.values().filter(|container| is_running(&container.status));
            Ok(running.map(|container| (container.status.name.clone(), Stats::default())).collect())
        })
    }

    fn publish_volume<'a>(&'a self, pod_uid: &'a str, name: &'a str, content: VolumeContent) -> Verb<'a, PathBuf> {
        Box::pin(async move {
            self.state().volumes.insert((pod_uid.to_owned(), name.to_owned()), content);
            Ok(PathBuf::from("/nonexistent/fake").join(pod_uid).join(name))
        })
    }

    fn sub_path<'a>(
        &'a self,
        pod_uid: &'a str,
        volume: &'a str,
        _container: &'a str,
        sub_path: &'a str,
    ) -> Verb<'a, PathBuf> {
        Box::pin(async move { Ok(PathBuf::from("/nonexistent/fake").join(pod_uid).join(volume).join(sub_path)) })
    }

    fn image<'a>(&'a self, reference: &'a str) -> Verb<'a, Option<ImageStatus>> {
        Box::pin(async move { Ok(self.state().images.get(reference).cloned()) })
    }

    fn pull_image<'a>(&'a self, reference: &'a str, _auth: &'a [RegistryAuth]) -> Verb<'a, ImageStatus> {
        Box::pin(async move {
            self.state().pulls += 1;
            self.reach_registry(reference).await?;
            let mut state = self.state();
            let key = format!("{PREFIX}pull-error");
            let scripted = state.pods.values().find_map(|pod| pod.config.annotations.get(&key)).cloned();
            if let Some(message) = state.pull_errors.get(reference).cloned().or(scripted) {
                return Err(RuntimeError::new(Reason::ErrImagePull, message));
            }
            let digest = crate::image::unpack::digest(sha2::Digest::new_with_prefix(reference));
            let names = vec![reference.to_owned()];
            let image = ImageStatus { id: digest, names, size_bytes: 1 << 20, user: String::new() };
            state.images.insert(reference.to_owned(), image.clone());
            Ok(image)
        })
    }

    fn reach_registry<'a>(&'a self, reference: &'a str) -> Verb<'a, ()> {
        Box::pin(async move {
            let (away, silent) = {
                let state = self.state();
                (state.registry_away, state.registry_silent)
            };
            match (away, silent) {
                (_, true) => std::future::pending().await,
                (true, _) => {
                    let message = format!("pull image {reference}: no route to host");
                    Err(RuntimeError::new(Reason::RegistryUnavailable, message))
                }
                _ => Ok(()),
            }
        })
    }

    fn images(&self) -> Verb<'_, Vec<ImageStatus>> {
        Box::pin(async { Ok(self.state().images.values().cloned().collect()) })
    }

    fn collect_images<'a>(&'a self, _wanted: &'a [String]) -> Verb<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_LIMIT);
        self.state().events = Some(sender);
        receiver
    }

    fn version(&self) -> String {
        format!("edgelet-fake://{}", env!("CARGO_PKG_VERSION"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
    }

    async fn pod(script: &[(&str, &str)]) -> (FakeRuntime, String) {
        let fake = FakeRuntime::new(Clock::simulated(Timestamp::UNIX_EPOCH), Ipv4Addr::new(10, 42, 0, 0));
        let pod = PodRef { uid: "uid".into(), namespace: "default".into(), name: "pod".into() };
        let config = SandboxConfig { pod, ..SandboxConfig::default() };
        fake.run_sandbox(config).await.expect("sandbox");
        fake.pull_image("image", &[]).await.expect("pull");
        let container = ContainerConfig {
            name: "main".into(),
            image: "image".into(),
            annotations: annotations(script),
            ..ContainerConfig::default()
        };
        let id = fake.create_container("uid", container).await.expect("create");
        (fake, id)
    }

    async fn state(fake: &FakeRuntime) -> ContainerState {
        fake.status("uid").await.expect("status").containers[0].state.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_ends_when_its_script_says() {
        let (fake, id) = pod(&[("run-seconds", "60"), ("main.exit-code", "3")]).await;
        let mut events = fake.events();
        fake.start_container(&id).await.expect("start");
        assert_eq!(events.recv().await.expect("event").pod_uid, "uid");
        assert!(matches!(state(&fake).await, ContainerState::Running { .. }));
        events.recv().await.expect("event");
        let ContainerState::Exited(exit) = state(&fake).await else { panic!("it runs") };
        assert_eq!((exit.code, exit.reason.as_str()), (3, "Error"));
        assert_eq!(exit.finished_at, Some("1970-01-01T00:01:00Z".parse().expect("time")));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_wait_for_readiness_and_stop_takes_its_grace() {
        let (fake, id) = pod(&[("ready-after", "5"), ("ignore-stop-signal", "true")]).await;
        fake.start_container(&id).await.expect("start");
        let probe = NetworkProbe::Tcp { host: "10.42.0.2".into(), port: 80 };
        let second = Duration::from_secs(1);
        assert!(matches!(fake.probe(&probe, second).await, ProbeOutcome::Failure(_)));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(matches!(fake.probe(&probe, second).await, ProbeOutcome::Success(_)));
        let before = tokio::time::Instant::now();
        fake.stop_container(&id, 30 * second).await.expect("stop");
        assert_eq!(before.elapsed(), 30 * second);
        assert!(matches!(state(&fake).await, ContainerState::Exited(Exit { code: 137, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_scripted() {
        let (fake, id) = pod(&[("start-error", "exec: \"x\": executable file not found in $PATH")]).await;
        assert_eq!(fake.start_container(&id).await.unwrap_err().reason, Reason::RunContainerError);
        fake.set_pull_error("other", Some("not found"));
        assert_eq!(fake.pull_image("other", &[]).await.unwrap_err().message, "not found");
        assert_eq!(fake.status("nobody").await.unwrap_err().reason, Reason::NotFound);
    }
}
