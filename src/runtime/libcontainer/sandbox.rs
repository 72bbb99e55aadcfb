//! Pods: made with everything in parallel, found again after a restart, taken down to the last file.

use super::connection::{Connection, Notice};
use super::record::{self, ContainerRecord, PodPaths, SandboxRecord};
use super::{
    Container, LibcontainerRuntime, Pod, PodState, binary, blocking, layers_directory, logs, other, pods_directory,
};
use crate::network::Attachment;
use crate::runtime::shim::protocol::{Answer, Event, ExitRecord, Listed, Request, Sandbox, Target};
use crate::runtime::{
    ContainerState, Exit, PodRef, Qos, Reason, Result, RuntimeError, SandboxConfig, SandboxStatus, spec, sysctl,
};
use crate::sys::{mount, seqpacket};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// `/dev/shm` of a pod, as everywhere.
const SHM_BYTES: u64 = 64 << 20;
/// What a pod's containers may write to `/etc/hosts` and the like, and as their last words, beyond what
/// these files hold at first: whole messages (4 KiB) of 250 containers, of 60 with pages of 16 KiB.
const FILES_BYTES: u64 = 1 << 20;
/// How long killed containers may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long an idle shim may take to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// Pods of a former process that are taken over at once.
const RECOVERIES_LIMIT: usize = 16;

fn failed(what: &str, error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::new(Reason::CreatePodSandboxError, format!("{what}: {error}"))
}

impl LibcontainerRuntime {
    pub(super) async fn run(&self, config: SandboxConfig) -> Result<SandboxStatus> {
        let uid = config.pod.uid.clone();
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Err(failed("run pod", format!("{uid:?} is no file name")));
        }
        let pod = self.pods().entry(uid.clone()).or_insert_with(|| self.new_pod(&uid)).clone();
        let _turn = pod.turn.lock().await;
        if pod.state().record.ready {
            return Ok(pod.status());
        }
        // A removal may have had the turn before.
        self.pods().insert(uid.clone(), pod.clone());
        // What an interrupted attempt or a lost shim left would be in the way.
        self.take_down(&pod).await?;
        if let Err(error) = self.set_up(&pod, config).await {
            if let Err(leak) = self.take_down(&pod).await {
                tracing::warn!(pod = %uid, error = %leak, "cannot clean up after a sandbox that failed");
            }
            return Err(error);
        }
        self.mark(&uid, "sandbox ready");
        self.wake(&pod);
        Ok(pod.status())
    }

    fn new_pod(&self, uid: &str) -> Arc<Pod> {
        Arc::new(Pod {
            uid: uid.to_owned(),
            paths: self.paths(uid),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// The address, and the shim with its directories and groups, at the same time; then the shim
    /// joins the network and the pod's files are written.
    async fn set_up(&self, pod: &Arc<Pod>, config: SandboxConfig) -> Result<()> {
        // The kubelet has refused such a pod already; the shim, which writes them, is root on the host.
        for name in config.sysctls.keys() {
            sysctl::check(name, config.host_network, config.host_ipc)
                .map_err(|why| failed("set kernel parameters", why))?;
        }
        let record = SandboxRecord {
            cgroup: spec::pod_cgroup(&self.0.config.cgroup_root, &pod.uid, config.qos),
            created_at: self.0.clock.now(),
            binary: self.0.binary.clone(),
            config,
            ..SandboxRecord::default()
        };
        pod.state().record = record.clone();
        let (this, paths, uid) = (self.clone(), pod.paths.clone(), pod.uid.clone());
        let prepared = record.clone();
        let shim = blocking(move || this.prepare(&paths, &uid, &prepared));
        let (attachment, shim) = tokio::join!(self.attach_network(pod, &record.config), shim);
        shim.map_err(|error| failed("start pod shim", error))?;
        let attachment = attachment?;
        let (connection, shim_pid) = self.connect(pod).await.map_err(|error| failed("connect to pod shim", error))?;
        let request = Request::Sandbox(sandbox_request(&record.config, attachment.as_ref()));
        let (ip, netns) = match attachment {
            Some(attachment) => (Some(attachment.ip), Some(attachment.netns)),
            None => (None, None),
        };
        let (paths, record) = (pod.paths.clone(), SandboxRecord { ip, netns, shim_pid, ..record });
        let files = {
            let config = record.config.clone();
            blocking(move || write_files(&paths, &config, ip))
        };
        let (answer, files) = tokio::join!(connection.call(request, &[]), files);
        files.map_err(|error| failed("write pod files", error))?;
        let (answer, _) = answer.map_err(|error| failed("make pod namespaces", error.message))?;
        let Answer::Sandbox { reaper } = answer else { return Err(failed("make pod namespaces", "unexpected answer")) };
        let record = SandboxRecord { reaper, ready: true, ..record };
        record::save(&pod.paths.record(), &record).map_err(|error| failed("write pod record", error))?;
        let mut state = pod.state();
        state.record = record;
        state.connection = Some(connection);
        Ok(())
    }

    async fn attach_network(&self, pod: &Pod, config: &SandboxConfig) -> Result<Option<Attachment>> {
        if config.host_network {
            return Ok(None);
        }
        let attached = self.0.network.attach(&pod.uid, config.wanted_ip).await;
        let attachment = attached.map_err(|error| failed("set up pod network", error))?;
        self.mark(&pod.uid, &format!("network IP {}", attachment.ip));
        Ok(Some(attachment))
    }

    /// Blocking: directories, record, groups, shared memory, shim. The record comes first, so that a
    /// crash at any later point is found and cleaned.
    fn prepare(&self, paths: &PodPaths, uid: &str, record: &SandboxRecord) -> io::Result<()> {
        for directory in [paths.containers(), paths.state(), paths.shm(), paths.files()] {
            std::fs::create_dir_all(directory)?;
        }
        record::save(&paths.record(), record)?;
        logs::make(&self.pod_logs(&record.config.pod), &self.0.config.run_directory)?;
        let listener = seqpacket::listen(&paths.socket())?;
        let log = paths.directory.join("shim.log");
        binary::start_shim(&self.0.binary, uid, &log, listener, &self.0.shim_cgroup)?;
        if !record.config.host_ipc {
            mount::tmpfs("shm", &paths.shm(), 0o1777, SHM_BYTES)?;
        }
        self.0.cgroups.create(&record.cgroup, &spec::limits(&record.config.resources))
    }

    /// A connection whose announcements change the pod. Boxed: a lost connection is made again.
    fn connect<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, io::Result<(Connection, i32)>> {
        // Weak: the reader must not keep alive what owns its connection.
        let (runtime, pod_seen) = (Arc::downgrade(&self.0), Arc::downgrade(pod));
        let notify = move |notice| {
            let (Some(inner), Some(pod)) = (runtime.upgrade(), pod_seen.upgrade()) else { return };
            let runtime = LibcontainerRuntime(inner);
            match notice {
                Notice::Event(Event::Exited { container, exit }) => runtime.container_exited(&pod, &container, &exit),
                Notice::Event(Event::ExecExited { .. }) => {}
                Notice::Lost => {
                    crate::supervise::spawn(async move { runtime.shim_lost(&pod).await });
                }
            }
        };
        Box::pin(async move { Connection::open(&pod.paths.socket(), notify).await })
    }

    fn container_exited(&self, pod: &Pod, id: &str, exit: &ExitRecord) {
        {
            let mut state = pod.state();
            let Some(container) = state.containers.get_mut(id) else { return };
            container.started_at = exit.started_at.or(container.started_at);
            container.state = ContainerState::Exited(record::exit(exit, &container.record, &pod.paths));
        }
        self.wake(pod);
    }

    /// The connection ended by itself. A living shim only found us too slow; a dead one leaves
    /// containers without a parent, which are killed: nobody would report their end.
    async fn shim_lost(&self, pod: &Arc<Pod>) {
        let _turn = pod.turn.lock().await;
        if !pod.state().record.ready {
            return;
        }
        match self.resume(pod).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(pod = %pod.uid, %error, "pod shim is gone, its containers are ended");
                self.bury(pod).await;
            }
        }
        self.wake(pod);
    }

    /// Connects and takes over what the shim knows.
    async fn resume(&self, pod: &Arc<Pod>) -> io::Result<()> {
        let (connection, shim_pid) = self.connect(pod).await?;
        let listed = connection.call(Request::List, &[]).await.map_err(|error| io::Error::other(error.message))?;
        let (Answer::Listed(listed), _) = listed else { return Err(io::Error::other("unexpected answer")) };
        let unknown = {
            let mut state = pod.state();
            state.record.shim_pid = shim_pid;
            state.connection = Some(connection);
            adopt(&mut state, &listed, &pod.paths)
        };
        // Recorded, but never made: the create was cut off. Nothing of it runs.
        for container in unknown {
            if let Err(error) = self.discard(pod, &container.record).await {
                tracing::warn!(pod = %pod.uid, %error, "cannot remove a half-made container");
            }
        }
        Ok(())
    }

    /// Ends what a dead shim left, and says so in each container's status.
    async fn bury(&self, pod: &Arc<Pod>) {
        let (cgroup, saved) = {
            let mut state = pod.state();
            state.connection = None;
            state.record.ready = false;
            (state.record.cgroup.clone(), state.record.clone())
        };
        let (cgroups, paths) = (self.0.cgroups.clone(), pod.paths.clone());
        let buried = blocking(move || {
            let killed = cgroups.kill(&cgroup);
            record::save(&paths.record(), &saved).and(killed)
        });
        if let Err(error) = buried.await {
            tracing::warn!(pod = %pod.uid, %error, "cannot end the containers of a pod without shim");
        }
        let now = self.0.clock.now();
        let mut state = pod.state();
        for container in state.containers.values_mut() {
            if matches!(container.state, ContainerState::Exited(_)) {
                continue;
            }
            let id = &container.record.id;
            let exit = record::load::<ExitRecord>(&pod.paths.exit_record(id));
            let exit = exit.map(|exit| record::exit(&exit, &container.record, &pod.paths));
            container.state = ContainerState::Exited(exit.unwrap_or_else(|| Exit {
                code: 137,
                signal: 9,
                finished_at: Some(now),
                reason: "ContainerStatusUnknown".to_owned(),
                message: "The container could not be located when the pod was terminated".to_owned(),
            }));
        }
    }

    /// All pods of a former process, several at once: a shim that does not answer delays no other pod.
    pub(super) async fn recover(&self) -> io::Result<()> {
        let mut former = Vec::new();
        for entry in std::fs::read_dir(pods_directory(&self.0.config))? {
            let Ok(uid) = entry?.file_name().into_string() else { continue };
            let pod = self.new_pod(&uid);
            let record = match record::load::<SandboxRecord>(&pod.paths.record()) {
                Some(record) => record,
                None if pod.paths.record().exists() => self.unreadable(&uid),
                None => {
                    // A crash before the first record: nothing was made yet but directories.
                    let _ = std::fs::remove_dir_all(&pod.paths.directory);
                    continue;
                }
            };
            *pod.state() = PodState { record, connection: None, containers: load_containers(&pod.paths) };
            self.pods().insert(uid, pod.clone());
            former.push(pod);
        }
        let recovering = former.iter().map(|pod| self.recover_pod(pod));
        futures_util::stream::iter(recovering).buffer_unordered(RECOVERIES_LIMIT).collect::<()>().await;
        let used: Vec<_> = self.pods().values().map(|pod| pod.state().record.binary.clone()).collect();
        binary::sweep(&self.0.config.state_directory.join("bin"), &[used, vec![self.0.binary.clone()]].concat());
        self.sweep_layers()
    }

    /// What can be told of a pod whose record is damaged or of a version that nobody reads any more. Its shim runs
    /// and must be ended: without a record nobody would know of it.
    fn unreadable(&self, uid: &str) -> SandboxRecord {
        tracing::warn!(pod = %uid, "the record of a pod cannot be read, its containers are ended");
        let group = |qos| spec::pod_cgroup(&self.0.config.cgroup_root, uid, qos);
        let made = |group: &String| self.0.cgroups.processes_file(group).exists();
        let cgroup = [Qos::Guaranteed, Qos::Burstable].map(group).into_iter().find(made);
        let logs = std::fs::read_dir(&self.0.config.log_directory).into_iter().flatten().flatten();
        let mut names = logs.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (namespace, name) = name.strip_suffix(uid)?.strip_suffix('_')?.split_once('_')?;
            Some((namespace.to_owned(), name.to_owned()))
        });
        let (namespace, name) = names.next().unwrap_or_default();
        SandboxRecord {
            config: SandboxConfig { pod: PodRef { uid: uid.to_owned(), namespace, name }, ..SandboxConfig::default() },
            cgroup: cgroup.unwrap_or_else(|| group(Qos::BestEffort)),
            ..SandboxRecord::default()
        }
    }

    async fn recover_pod(&self, pod: &Arc<Pod>) {
        if !pod.state().record.ready {
            self.find_shim(pod).await;
            self.bury(pod).await;
        } else if let Err(error) = self.resume(pod).await {
            tracing::warn!(pod = %pod.uid, %error, "pod of a former process does not run any more");
            self.bury(pod).await;
        }
    }

    /// A crash between the start of a shim and the record of its pid leaves one that only its socket
    /// knows; it says who it is, so that `take_down` can end it.
    async fn find_shim(&self, pod: &Arc<Pod>) {
        if pod.state().record.shim_pid != 0 {
            return;
        }
        if let Ok(Ok((_, shim_pid))) = tokio::time::timeout(SHUTDOWN_LIMIT, self.connect(pod)).await {
            pod.state().record.shim_pid = shim_pid;
        }
    }

    /// Writable layers of pods that went with the run directory: after a reboot, all.
    fn sweep_layers(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(layers_directory(&self.0.config))? {
            let path = entry?.path();
            let known = path.file_name().is_some_and(|uid| self.pods().contains_key(&*uid.to_string_lossy()));
            if !known && let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the layers of a former pod");
            }
        }
        Ok(())
    }

    pub(super) async fn stop_pod(&self, uid: &str) -> Result<()> {
        let Ok(pod) = self.pod(uid) else { return Ok(()) };
        let _turn = pod.turn.lock().await;
        let result = self.take_down(&pod).await;
        self.wake(&pod);
        result
    }

    /// Ends containers, shim and network; goes on after errors and returns the first. Done twice it
    /// does nothing.
    async fn take_down(&self, pod: &Arc<Pod>) -> Result<()> {
        let (connection, record) = {
            let mut state = pod.state();
            state.record.ready = false;
            (state.connection.take(), state.record.clone())
        };
        if record.cgroup.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        if let Some(connection) = connection {
            result = self.end_shim(pod, &connection).await;
        }
        let (cgroups, paths, uid, saved) = (self.0.cgroups.clone(), pod.paths.clone(), pod.uid.clone(), record.clone());
        let left = blocking(move || {
            let killed = cgroups.kill(&saved.cgroup);
            if let Ok(text) = std::fs::read_to_string(paths.directory.join("shim.log"))
                && !text.is_empty()
            {
                tracing::info!(pod = %uid, log = %text.trim_end(), "pod shim reported");
            }
            binary::kill_shim(saved.shim_pid, &uid);
            let _ = std::fs::remove_file(paths.socket());
            let unmounted = mount::unmount(&paths.shm());
            let recorded = if paths.directory.exists() { record::save(&paths.record(), &saved) } else { Ok(()) };
            killed.and(unmounted).and(recorded)
        });
        result = result.and(left.await.map_err(|error| other(format!("stop pod: {error}"))));
        if !record.config.host_network {
            let detached = self.0.network.detach(&pod.uid).await;
            result = result.and(detached.map_err(|error| other(format!("release pod network: {error}"))));
        }
        result
    }

    async fn end_shim(&self, pod: &Arc<Pod>, connection: &Connection) -> Result<()> {
        let running: Vec<String> = {
            let state = pod.state();
            let running = |one: &&Container| !matches!(one.state, ContainerState::Exited(_));
            state.containers.values().filter(running).map(|one| one.record.id.clone()).collect()
        };
        for id in &running {
            let request = Request::Signal { target: Target::Processes(id.clone()), signal: libc::SIGKILL };
            // Not in the shim: it ends with the cgroup below.
            let _ = connection.call(request, &[]).await;
        }
        let ended = |state: &PodState| {
            let ended = |id| state.containers.get(id).is_none_or(|one| matches!(one.state, ContainerState::Exited(_)));
            running.iter().all(ended)
        };
        if !pod.wait(KILL_LIMIT, ended).await {
            return Err(RuntimeError::new(Reason::Timeout, "containers do not end after SIGKILL"));
        }
        connection.call(Request::Shutdown, &[]).await?;
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, connection.closed()).await;
        Ok(())
    }

    pub(super) async fn remove_pod(&self, uid: &str, keep_logs: bool) -> Result<()> {
        let Ok(pod) = self.pod(uid) else {
            // Its volumes may have been made before its sandbox was to be; its logs outlived a reboot.
            let (this, uid) = (self.clone(), uid.to_owned());
            return blocking(move || {
                let volumes = this.0.volumes.remove(&uid);
                let config = &this.0.config;
                let logs =
                    if keep_logs { Ok(()) } else { logs::remove(&config.log_directory, &config.run_directory, &uid) };
                volumes.and(logs.map_err(|error| other(format!("remove logs: {error}"))))
            })
            .await;
        };
        let _turn = pod.turn.lock().await;
        let stopped = self.take_down(&pod).await;
        let record = pod.state().record.clone();
        let (this, paths, uid_owned) = (self.clone(), pod.paths.clone(), uid.to_owned());
        let removed = blocking(move || {
            let mut result = Ok(());
            // Not those in memory: a record that cannot be read has a mount all the same.
            for entry in std::fs::read_dir(paths.containers()).into_iter().flatten().flatten() {
                result = result.and(mount::unmount(&entry.path().join("rootfs")));
            }
            // Not when the pod stops: a restart still reads the last words of its containers.
            result = result.and(mount::unmount(&paths.files()));
            result = result.and(remove_tree(&paths.layers));
            let volumes = this.0.volumes.remove(&uid_owned).map_err(|error| io::Error::other(error.message));
            result = result.and(volumes).and(this.0.cgroups.remove(&record.cgroup));
            if !keep_logs {
                result = result.and(remove_tree(&this.pod_logs(&record.config.pod)));
            }
            // The record is the last to go: until then a restart finds what is left.
            result.and_then(|()| remove_tree(&paths.directory))
        });
        stopped.and(removed.await.map_err(|error| other(format!("remove pod: {error}"))))?;
        self.pods().remove(uid);
        self.wake(&pod);
        Ok(())
    }
}

pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

fn sandbox_request(config: &SandboxConfig, attachment: Option<&Attachment>) -> Sandbox {
    Sandbox {
        netns: attachment.map(|attachment| attachment.netns.clone()),
        hostname: (!config.host_network && !config.hostname.is_empty()).then(|| config.hostname.clone()),
        host_ipc: config.host_ipc,
        share_process_namespace: config.share_process_namespace && !config.host_pid,
        sysctls: config.sysctls.clone(),
    }
}

/// Files that all containers of the pod have mounted. What a former sandbox of the pod wrote goes: it may
/// have left no space.
fn write_files(paths: &PodPaths, config: &SandboxConfig, ip: Option<IpAddr>) -> io::Result<()> {
    let host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hosts = if config.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{}", host("/etc/hosts"))
    } else {
        spec::hosts_file(config, ip)
    };
    let resolv_conf = config.resolv_conf.clone().unwrap_or_else(|| host("/etc/resolv.conf"));
    let files = paths.files();
    mount::unmount(&files)?;
    // The host's own list of hosts, say of those to block, can be long.
    let size_bytes = FILES_BYTES + (hosts.len() + resolv_conf.len()) as u64;
    mount::tmpfs("edgelet", &files, 0o755, size_bytes)?;
    // Readable by every user in the containers; the directory above is root's alone.
    std::fs::write(files.join("hosts"), hosts)?;
    std::fs::write(files.join("resolv.conf"), resolv_conf)?;
    std::fs::write(files.join("hostname"), format!("{}\n", config.hostname))
}

fn load_containers(paths: &PodPaths) -> std::collections::BTreeMap<String, Container> {
    let entries = std::fs::read_dir(paths.containers()).into_iter().flatten().flatten();
    let records = entries.filter_map(|entry| {
        let id = entry.file_name().into_string().ok()?;
        let record: ContainerRecord = record::load(&paths.container_record(&id))?;
        let exit = record::load::<ExitRecord>(&paths.exit_record(&id));
        let started_at = exit.as_ref().and_then(|exit| exit.started_at);
        let state =
            exit.map_or(ContainerState::Created, |exit| ContainerState::Exited(record::exit(&exit, &record, paths)));
        Some((id, Container { record, state, started_at }))
    });
    records.collect()
}

/// Takes the shim's word for each container; gives back those it does not know and that never ended.
fn adopt(state: &mut PodState, listed: &[Listed], paths: &PodPaths) -> Vec<Container> {
    let mut unknown = Vec::new();
    state.containers.retain(|id, container| {
        let Some(found) = listed.iter().find(|listed| listed.container == *id) else {
            let ended = matches!(container.state, ContainerState::Exited(_));
            if !ended {
                unknown.push(container.clone());
            }
            return ended;
        };
        container.started_at = found.started_at;
        container.state = match (&found.exit, found.started_at) {
            (Some(exit), _) => ContainerState::Exited(record::exit(exit, &container.record, paths)),
            (None, Some(_)) => ContainerState::Running { pid: found.pid },
            (None, None) => ContainerState::Created,
        };
        true
    });
    unknown
}
