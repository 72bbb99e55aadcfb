//! Containers: root file system, configuration, start, stop, removal.

use super::record::{self, ContainerRecord, PodPaths, SandboxRecord};
use super::sandbox::remove_tree;
use super::{Container, LibcontainerRuntime, Pod, PodState, blocking, other};
use crate::image::Image;
use crate::runtime::executor::encode_programs;
use crate::runtime::seccomp::{self, SeccompError};
use crate::runtime::shim::protocol::{Answer, Create, Isolation, Request, Target};
use crate::runtime::spec::{self, DeviceNode, Input};
use crate::runtime::{ContainerConfig, ContainerState, Device, Reason, Result, RuntimeError, Seccomp, container_id};
use crate::sys::bpf::{self, DeviceRule};
use crate::sys::mount;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long libcontainer may take; an SD card under load is slow.
const HELPER_TIMEOUT_S: u64 = 60;
/// How long a killed container may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// `/etc/passwd` and `/etc/group` of an image.
const ACCOUNTS_LIMIT_BYTES: u64 = 1 << 20;
const PROFILE_LIMIT_BYTES: u64 = 1 << 20;

/// What is decided and on its place before the shim is asked.
struct Prepared {
    record: ContainerRecord,
    request: Create,
    /// `None` = any device.
    devices: Option<Vec<DeviceRule>>,
}

fn failed(what: &str, error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::new(Reason::CreateContainerError, format!("{what}: {error}"))
}

fn ended(state: &PodState, id: &str) -> bool {
    state.containers.get(id).is_none_or(|one| matches!(one.state, ContainerState::Exited(_)))
}

impl LibcontainerRuntime {
    pub(super) async fn create(&self, uid: &str, config: ContainerConfig) -> Result<String> {
        let pod = self.pod(uid)?;
        let id = container_id(uid, &config.name, config.attempt);
        let (sandbox, connection) = {
            let state = pod.state();
            if state.containers.contains_key(&id) {
                return Ok(id);
            }
            (state.record.clone(), state.connection.clone())
        };
        let Some(connection) = connection.filter(|_| sandbox.ready) else {
            return Err(failed("create container", format!("sandbox of pod {uid} is not ready")));
        };
        let name = config.name.clone();
        let (this, paths, made) = (self.clone(), pod.paths.clone(), id.clone());
        let prepared = blocking(move || this.prepare_container(&paths, &made, &sandbox, &config)).await;
        let result = match prepared {
            Ok(Prepared { record, request, devices }) => {
                let (group, started_at) = (record.cgroup.clone(), None);
                let container = Container { record, state: ContainerState::Created, started_at };
                pod.state().containers.insert(id.clone(), container);
                let created = connection.call(Request::Create(request), &[]).await;
                created.and_then(|created| self.restrict_devices(&group, devices).map(|()| created))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok((Answer::Created { .. }, _)) => {}
            Ok(_) => return Err(failed("create container", "unexpected answer of the pod's shim")),
            Err(error) => {
                // It may have been made, and only the last step failed.
                let signal = Request::Signal { target: Target::Processes(id.clone()), signal: libc::SIGKILL };
                if connection.call(signal, &[]).await.is_ok() {
                    pod.wait(KILL_LIMIT, |state| ended(state, &id)).await;
                    let _ = connection.call(Request::Delete { container: id.clone() }, &[]).await;
                }
                let removed = pod.state().containers.remove(&id);
                if let Some(container) = removed {
                    self.discard(&pod, &container.record).await?;
                }
                self.discard_files(&pod, &id).await?;
                let reason = if error.reason == Reason::Other { Reason::CreateContainerError } else { error.reason };
                return Err(RuntimeError { reason, ..error });
            }
        }
        self.mark(uid, &format!("container {name} created"));
        self.wake(&pod);
        Ok(id)
    }

    /// Blocking: everything the shim's helper will find.
    fn prepare_container(
        &self,
        paths: &PodPaths,
        id: &str,
        sandbox: &SandboxRecord,
        config: &ContainerConfig,
    ) -> Result<Prepared> {
        let found = self.0.images.get(&config.image).map_err(|error| failed("get image", error))?;
        let image = found.ok_or_else(|| failed("get image", format!("{:?} is not present", config.image)))?;
        mount_rootfs(paths, id, &image).map_err(|error| failed("mount root file system", error))?;
        let (accounts, rootfs) = (accounts(&paths.rootfs(id)), paths.rootfs(id));
        let (passwd, group) = accounts.map_err(|error| failed("read accounts of the image", error))?;
        let termination = (!config.termination_message_path.is_empty()).then(|| paths.termination_log(id));
        let opened = termination.as_deref().map_or(Ok(()), make_termination_log);
        opened.map_err(|error| failed("create termination log", error))?;
        let devices = devices(config).map_err(|error| failed("find devices", error))?;
        let cgroup = format!("{}/{id}", sandbox.cgroup);
        let plan = spec::plan(&Input {
            sandbox: &sandbox.config,
            container: config,
            image: &image.config.config,
            passwd: &passwd,
            group: &group,
            rootfs: &rootfs,
            files: &paths.files(),
            shm: &paths.shm(),
            termination_log: termination.as_deref(),
            cgroup_path: &cgroup,
            cgroup_v2: self.0.cgroups.is_v2(),
            memory_controller: self.0.cgroups.has("memory"),
            reaper: sandbox.reaper,
            devices: &devices,
        })?;
        mount::make_directory_in(&rootfs, &plan.context.cwd)
            .map_err(|error| failed("make working directory", error))?;
        let isolation = Isolation {
            capabilities: plan.context.capabilities,
            seccomp: self.seccomp_file(config, plan.context.capabilities)?,
            oom_score_adj: config.resources.oom_score_adj,
        };
        let log = self.pod_logs(&sandbox.config.pod).join(&config.name).join(format!("{}.log", config.attempt));
        let record = ContainerRecord {
            id: id.to_owned(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: image.id.clone(),
            created_at: self.0.clock.now(),
            spec_hash: config.spec_hash,
            cgroup: cgroup.clone(),
            log: log.clone(),
            context: plan.context,
            isolation: isolation.clone(),
            stop_signal: stop_signal(config, &image),
            tty: config.tty,
            termination_message_from_log: config.termination_message_from_log,
            devices: config.devices.iter().map(|device| device.host_path.clone()).collect(),
        };
        let bundle = paths.container(id);
        let written = write_bundle(&bundle, &plan.config.to_string(), paths, &record);
        written.map_err(|error| failed("write container record", error))?;
        let request = Create {
            container: id.to_owned(),
            bundle,
            state: paths.state(),
            isolation,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            log,
            exit: paths.exit_record(id),
            cgroup_processes: self.0.cgroups.processes_file(&cgroup),
            oom_counter: self.0.cgroups.oom_counter_file(&cgroup),
            timeout_s: HELPER_TIMEOUT_S,
        };
        let devices = spec::device_access(config, &devices);
        Ok(Prepared { record, request, devices })
    }

    /// On cgroup v2 libcontainer leaves devices open: closed here, before the program starts.
    fn restrict_devices(&self, group: &str, devices: Option<Vec<DeviceRule>>) -> Result<()> {
        let (Some(directory), Some(rules)) = (self.0.cgroups.device_directory(group), devices) else { return Ok(()) };
        bpf::restrict_devices(&directory, &rules).map_err(|error| failed("restrict devices", error))
    }

    /// The compiled filter for a container, made once per profile and set of capabilities.
    fn seccomp_file(&self, config: &ContainerConfig, capabilities: u64) -> Result<Option<PathBuf>> {
        let key = match &config.security.seccomp {
            _ if config.security.privileged => return Ok(None),
            Seccomp::Unconfined => return Ok(None),
            Seccomp::RuntimeDefault => format!("default-{capabilities:x}"),
            Seccomp::Localhost(profile) => format!("profile/{profile}"),
        };
        if let Some(file) = self.0.seccomp.lock().expect("no panic while the filters are locked").get(&key) {
            return Ok(Some(file.clone()));
        }
        let programs = match &config.security.seccomp {
            Seccomp::Localhost(profile) => {
                let directory = self.0.config.state_directory.join("seccomp");
                let what = format!("cannot load seccomp profile {profile:?}");
                let read = mount::read_in(&directory, profile, PROFILE_LIMIT_BYTES);
                let json = read.map_err(|error| failed(&what, error))?.ok_or_else(|| failed(&what, "no such file"))?;
                seccomp::profile_programs(&json)
            }
            _ => match seccomp::default_programs(capabilities) {
                // No table for this processor: unconfined, as without the feature elsewhere.
                Err(SeccompError::Architecture) => return Ok(None),
                programs => programs,
            },
        };
        let bytes = encode_programs(&programs.map_err(|error| failed("seccomp profile", error))?);
        let directory = self.0.config.run_directory.join("seccomp");
        let name = crate::image::unpack::digest(sha2::Digest::new_with_prefix(&bytes)).replace(':', "-");
        let file = directory.join(name);
        let written = std::fs::create_dir_all(&directory).and_then(|()| record::write(&file, &bytes));
        written.map_err(|error| failed("write seccomp filter", error))?;
        self.0.seccomp.lock().expect("no panic while the filters are locked").insert(key, file.clone());
        Ok(Some(file))
    }

    pub(super) async fn start(&self, id: &str) -> Result<()> {
        let (pod, container) = self.find(id)?;
        if container.state != ContainerState::Created {
            return Ok(());
        }
        let connection = pod.state().connection.clone();
        let Some(connection) = connection else { return Err(other(format!("sandbox of container {id} is not ready"))) };
        let started = connection.call(Request::Start { container: id.to_owned() }, &[]).await;
        started.map_err(|error| RuntimeError::new(Reason::RunContainerError, error.message))?;
        let listed = connection.call(Request::List, &[]).await?;
        if let (Answer::Listed(listed), _) = listed
            && let Some(listed) = listed.into_iter().find(|listed| listed.container == id)
        {
            let mut state = pod.state();
            // Its end may have been announced before this.
            if let Some(container) = state.containers.get_mut(id)
                && container.state == ContainerState::Created
            {
                container.started_at = listed.started_at;
                container.state = ContainerState::Running { pid: listed.pid };
            }
        }
        self.mark(&pod.uid, &format!("container {} started", container.record.name));
        self.wake(&pod);
        Ok(())
    }

    pub(super) async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let (pod, container) = self.find(id)?;
        if matches!(container.state, ContainerState::Exited(_)) {
            return Ok(());
        }
        let connection = pod.state().connection.clone();
        if let Some(connection) = connection {
            // Not started yet: its init has no handlers and would only see SIGKILL.
            let running = matches!(container.state, ContainerState::Running { .. });
            if running && !grace.is_zero() {
                let target = Target::Container(id.to_owned());
                let _ = connection.call(Request::Signal { target, signal: container.record.stop_signal }, &[]).await;
                if pod.wait(grace, |state| ended(state, id)).await {
                    return Ok(());
                }
            }
            let target = Target::Processes(id.to_owned());
            let _ = connection.call(Request::Signal { target, signal: libc::SIGKILL }, &[]).await;
        }
        if pod.wait(KILL_LIMIT, |state| ended(state, id)).await {
            return Ok(());
        }
        let (cgroups, group) = (self.0.cgroups.clone(), container.record.cgroup.clone());
        let killed = blocking(move || cgroups.kill(&group)).await;
        killed.map_err(|error| RuntimeError::new(Reason::Timeout, format!("stop container {id}: {error}")))
    }

    pub(super) async fn remove(&self, id: &str) -> Result<()> {
        let Ok((pod, container)) = self.find(id) else { return Ok(()) };
        if matches!(container.state, ContainerState::Running { .. }) {
            return Err(other(format!("container {id} is running")));
        }
        if container.state == ContainerState::Created {
            self.stop(id, Duration::ZERO).await?;
        }
        let connection = pod.state().connection.clone();
        if let Some(connection) = connection {
            connection.call(Request::Delete { container: id.to_owned() }, &[]).await?;
        }
        let record = &container.record;
        let newest = {
            let state = pod.state();
            let same = state.containers.values().filter(|one| one.record.name == record.name);
            same.map(|one| one.record.attempt).max().unwrap_or_default()
        };
        self.discard(&pod, record).await?;
        if record.attempt + 1 < newest {
            let log = record.log.clone();
            blocking(move || remove_logs(&log)).await.map_err(|error| other(format!("remove log: {error}")))?;
        }
        pod.state().containers.remove(id);
        self.wake(&pod);
        Ok(())
    }

    /// Everything of a container that does not run but its log.
    pub(super) async fn discard(&self, pod: &Arc<Pod>, record: &ContainerRecord) -> Result<()> {
        let (cgroups, group) = (self.0.cgroups.clone(), record.cgroup.clone());
        let group = blocking(move || cgroups.remove(&group)).await;
        let files = self.discard_files(pod, &record.id).await;
        files.and(group.map_err(|error| other(format!("remove cgroup: {error}"))))
    }

    async fn discard_files(&self, pod: &Arc<Pod>, id: &str) -> Result<()> {
        let (paths, id) = (pod.paths.clone(), id.to_owned());
        let removed = blocking(move || {
            mount::unmount(&paths.rootfs(&id))?;
            let layer = remove_tree(&paths.layer(&id));
            let state = remove_tree(&paths.state().join(&id));
            let termination = match std::fs::remove_file(paths.termination_log(&id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
            layer.and(state).and(termination).and(remove_tree(&paths.container(&id)))
        });
        removed.await.map_err(|error| other(format!("remove container files: {error}")))
    }
}

fn mount_rootfs(paths: &PodPaths, id: &str, image: &Image) -> io::Result<()> {
    let (rootfs, layer) = (paths.rootfs(id), paths.layer(id));
    // Remains of a create that was cut off.
    mount::unmount(&rootfs)?;
    remove_tree(&layer)?;
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    for directory in [&rootfs, &upper, &work] {
        std::fs::create_dir_all(directory)?;
    }
    if image.layers.len() > mount::LAYERS_LIMIT {
        return Err(io::Error::other(format!("image has {} layers, at most 500 can be mounted", image.layers.len())));
    }
    let mut lower: Vec<PathBuf> = image.layers.iter().rev().cloned().collect();
    if lower.is_empty() {
        // An image from scratch: an overlay needs something below.
        let empty = layer.join("empty");
        std::fs::create_dir_all(&empty)?;
        lower.push(empty);
    }
    mount::overlay(&lower, &upper, &work, &rootfs)
}

/// Every user of the container may write it.
fn make_termination_log(path: &Path) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(path)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// What libcontainer reads, and what edgelet reads at its next start.
fn write_bundle(bundle: &Path, config: &str, paths: &PodPaths, record: &ContainerRecord) -> io::Result<()> {
    std::fs::create_dir_all(record.log.parent().unwrap_or(bundle))?;
    record::write(&bundle.join("config.json"), config.as_bytes())?;
    record::save(&paths.container_record(&record.id), record)
}

fn accounts(rootfs: &Path) -> io::Result<(String, String)> {
    let read = |path: &str| -> io::Result<String> {
        let bytes = mount::read_in(rootfs, path, ACCOUNTS_LIMIT_BYTES)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok((read("/etc/passwd")?, read("/etc/group")?))
}

fn remove_logs(log: &Path) -> io::Result<()> {
    let rotated = (1..crate::runtime::log::FILES_LIMIT).map(|index| crate::runtime::log::rotated(log, index));
    for path in rotated.chain([log.to_owned()]) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// By name with or without `SIG`, or by number; SIGTERM if it says nothing.
fn stop_signal(config: &ContainerConfig, image: &Image) -> i32 {
    let wanted = [&config.stop_signal, &image.config.config.stop_signal].into_iter().find(|name| !name.is_empty());
    wanted.and_then(|name| signal_number(name)).unwrap_or(libc::SIGTERM)
}

fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return offset(rest.trim_start_matches('+')).map(|offset| 34 + offset).filter(|number| *number <= 64);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return offset(rest.trim_start_matches('-')).map(|offset| 64 - offset).filter(|number| *number >= 34);
    }
    format!("SIG{bare}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

fn devices(config: &ContainerConfig) -> io::Result<Vec<DeviceNode>> {
    let mut nodes = Vec::new();
    if config.security.privileged {
        all_devices(Path::new("/dev"), &mut nodes)?;
    }
    for Device { host_path, container_path, permissions } in &config.devices {
        let path = if container_path.is_empty() { host_path } else { container_path };
        let access = if permissions.is_empty() { "rwm" } else { permissions };
        let missing = |error: io::Error| io::Error::new(error.kind(), format!("{host_path}: {error}"));
        let metadata = std::fs::metadata(host_path).map_err(missing)?;
        let node = node(path, &metadata, access);
        nodes.push(node.ok_or_else(|| io::Error::other(format!("{host_path} is not a device")))?);
    }
    Ok(nodes)
}

fn node(path: &str, metadata: &std::fs::Metadata, access: &str) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let number = metadata.rdev();
    Some(DeviceNode {
        path: path.to_owned(),
        kind,
        major: i64::from(rustix::fs::major(number)),
        minor: i64::from(rustix::fs::minor(number)),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// What a privileged container sees: the host's devices but those that every container has of its own.
fn all_devices(directory: &Path, nodes: &mut Vec<DeviceNode>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            if !["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"].iter().any(|own| name == **own) {
                all_devices(&path, nodes)?;
            }
        } else if name != "console"
            && name != "ptmx"
            && let Some(node) = node(&path.to_string_lossy(), &metadata, "rwm")
        {
            nodes.push(node);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let cases = [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGRTMIN", 34)];
        for (name, number) in cases {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIGNOPE", "0", "65", "RTMIN+40"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
