//! The long verbs of a pod, each a task of its own: what it found goes back to the worker as `Done`.
//! Nothing is decided here; the plan says what, this says how.

use super::container::{NodeFacts, container_config, mount, sandbox_config};
use super::device;
use super::downward::Downward;
use super::env::{self, Sources};
use super::image::{self, Failure};
use super::memory::{Role, find_container};
use super::references::{Key, Reference};
use super::status::Host;
use super::volume::{self, Source, token::Tokens};
use super::{Kubelet, SharedPod, hook};
use crate::api::view::pod::{Container, Pod, Volume};
use crate::client::events::Type;
use crate::client::{CONFIGMAPS, ObjectRef, PODS, Resource, SECRETS};
use crate::client::{DeleteOptions, PatchType};
use crate::clock::monotonic;
use crate::runtime::{ImageStatus, Mount, Reason, RuntimeError, SandboxStatus};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Upstream sets no limit to a postStart hook; everything here has one.
const POST_START_TIMEOUT: Duration = Duration::from_secs(3600);
/// What a container gets after its preStop hook has used up the grace.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

/// What a task found.
pub enum Done {
    Volumes(Result<Published, Vec<(String, String)>>),
    Sandbox(Result<SandboxStatus, RuntimeError>),
    Image {
        container: String,
        outcome: Result<ImageStatus, Failure>,
    },
    Started {
        container: String,
        outcome: Result<Started, Failure>,
    },
    Stopped {
        container: String,
        outcome: Result<(), RuntimeError>,
    },
    Removed(Result<(), RuntimeError>),
    SandboxStopped(Result<(), RuntimeError>),
    SandboxRemoved(Result<(), RuntimeError>),
    /// The revision of the object that was written.
    StatusWritten(crate::api::status::Result<u64>),
    Deleted(crate::api::status::Result<()>),
}

/// The volumes of a pod on the host, by name.
pub struct Published {
    pub paths: BTreeMap<String, PathBuf>,
    pub renew_at: Option<Timestamp>,
}

pub struct Started {
    pub id: String,
    /// The postStart hook failed: the container is to be killed.
    pub hook_failed: bool,
}

/// What a pod's tasks are given.
#[derive(Clone)]
pub struct Job {
    pub kubelet: Arc<Kubelet>,
    pub host: Arc<Host>,
    pub pod: SharedPod,
    pub held: Arc<BTreeMap<Key, Reference>>,
    pub tokens: Tokens,
}

/// The subject of an Event about one container.
pub fn about(pod: &Pod, container: &str) -> ObjectRef {
    let list = match find_container(pod, container) {
        Some((Role::Init | Role::Sidecar, _)) => "initContainers",
        Some((Role::Ephemeral, _)) => "ephemeralContainers",
        _ => "containers",
    };
    ObjectRef::pod(pod).field(format!("spec.{list}{{{container}}}"))
}

pub fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::ErrImagePull => "ErrImagePull",
        Reason::InvalidImageName => "InvalidImageName",
        Reason::ErrImageNeverPull => "ErrImageNeverPull",
        Reason::RegistryUnavailable => "RegistryUnavailable",
        Reason::CreateContainerConfigError => "CreateContainerConfigError",
        Reason::RunContainerError => "RunContainerError",
        Reason::CreatePodSandboxError => "CreatePodSandboxError",
        Reason::CreateContainerError | Reason::NotFound | Reason::Timeout | Reason::Other => "CreateContainerError",
    }
}

impl Job {
    fn event(&self, about: &ObjectRef, kind: Type, reason: &str, message: impl Into<String>) {
        self.kubelet.events.event(about, kind, reason, message);
    }

    fn find(&self, name: &str) -> Option<Container> {
        find_container(&self.pod, name).map(|(_, container)| container.clone())
    }

    fn downward<'a>(&'a self, pod_ips: &'a [String]) -> Downward<'a> {
        let allocatable = &self.kubelet.config.allocatable;
        Downward { pod: &self.pod, pod_ips, host_ips: &self.host.ips, allocatable }
    }

    /// All volumes at once; every failure is reported.
    pub async fn publish_volumes(self) -> Done {
        let source = Source { held: &self.held, tokens: &self.tokens, downward: self.downward(&[]) };
        let outcomes = join_all(self.pod.spec.volumes.iter().map(|volume| self.publish(volume, &source))).await;
        let (mut paths, mut failures) = (BTreeMap::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok((name, path)) => drop(paths.insert(name, path)),
                Err(failure) => failures.push(failure),
            }
        }
        if failures.is_empty() {
            return Done::Volumes(Ok(Published { paths, renew_at: self.tokens.renew_at() }));
        }
        for (name, message) in &failures {
            let text = format!("MountVolume.SetUp failed for volume \"{name}\" : {message}");
            self.event(&ObjectRef::pod(&self.pod), Type::Warning, "FailedMount", text);
        }
        Done::Volumes(Err(failures))
    }

    async fn publish(&self, wanted: &Volume, source: &Source<'_>) -> Result<(String, PathBuf), (String, String)> {
        let failed = |message: String| (wanted.name.clone(), message);
        let content = volume::content(wanted, source).await.map_err(failed)?;
        let uid = &self.pod.metadata.uid;
        let path = self.kubelet.runtime.publish_volume(uid, &wanted.name, content).await;
        path.map(|path| (wanted.name.clone(), path)).map_err(|error| failed(error.message))
    }

    pub async fn start_sandbox(self, replace: bool) -> Done {
        let kubelet = &self.kubelet;
        let about = ObjectRef::pod(&self.pod);
        if replace {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.event(&about, Type::Normal, "SandboxChanged", text);
            if let Err(error) = kubelet.runtime.stop_sandbox(&self.pod.metadata.uid).await {
                return Done::Sandbox(Err(error));
            }
        }
        let facts =
            NodeFacts { dns: &kubelet.dns, resolv_conf: &kubelet.resolv_conf, memory_bytes: kubelet.memory_bytes() };
        let outcome = match self.pod.spec.host_users {
            // Its author counts on a root that is nobody on the host.
            Some(false) => {
                let why = "RuntimeClass handler \"\" does not support user namespaces";
                Err(RuntimeError::new(Reason::CreatePodSandboxError, why))
            }
            _ => kubelet.runtime.run_sandbox(sandbox_config(&self.pod, &facts)).await,
        };
        if let Err(error) = &outcome {
            let text = format!("Failed to create pod sandbox: {error}");
            self.event(&about, Type::Warning, "FailedCreatePodSandBox", text);
        }
        Done::Sandbox(outcome)
    }

    pub async fn ensure_image(self, name: String) -> Done {
        let outcome = match self.find(&name) {
            Some(container) => image::ensure(&self, &container).await,
            None => Err(gone(&name)),
        };
        Done::Image { container: name, outcome }
    }

    pub async fn start_container(
        self,
        name: String,
        attempt: u32,
        image: ImageStatus,
        pod_ips: Vec<String>,
        volumes: BTreeMap<String, PathBuf>,
    ) -> Done {
        let outcome = match self.find(&name) {
            Some(container) => self.start(&container, attempt, &image, &pod_ips, &volumes).await,
            None => Err(gone(&name)),
        };
        Done::Started { container: name, outcome }
    }

    async fn start(
        &self,
        container: &Container,
        attempt: u32,
        image: &ImageStatus,
        pod_ips: &[String],
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<Started, Failure> {
        let about = about(&self.pod, &container.name);
        let report = |failure: Failure| {
            self.event(&about, Type::Warning, "Failed", format!("Error: {}", failure.message));
            failure
        };
        let id = self.create(container, attempt, image, pod_ips, volumes).await.map_err(report)?;
        self.event(&about, Type::Normal, "Created", "Container created");
        let failed =
            |error: RuntimeError| report(Failure { reason: "RunContainerError".to_owned(), message: error.message });
        self.kubelet.runtime.start_container(&id).await.map_err(failed)?;
        self.event(&about, Type::Normal, "Started", "Container started");
        let hook_failed = self.post_start(container, &id, pod_ips, &about).await.is_err();
        Ok(Started { id, hook_failed })
    }

    async fn create(
        &self,
        container: &Container,
        attempt: u32,
        image: &ImageStatus,
        pod_ips: &[String],
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<String, Failure> {
        let config_error = |message: String| Failure { reason: "CreateContainerConfigError".to_owned(), message };
        let env = self.environment(container, pod_ips).await.map_err(config_error)?;
        let mounts = self.mounts(container, &env, volumes).await.map_err(config_error)?;
        let memory_bytes = self.kubelet.memory_bytes();
        let config = container_config(&self.pod, container, attempt, image, env, mounts, memory_bytes);
        let mut config = config.map_err(config_error)?;
        let wanted = device::wanted(&container.resources.limits);
        let _choice = if wanted.is_empty() {
            None
        } else {
            let choice = self.kubelet.device_turn.lock().await;
            let given = self.kubelet.choose_devices(&wanted).await.map_err(config_error)?;
            config.devices = device::devices(&given);
            config.env.extend(device::variables(&given));
            Some(choice)
        };
        if let Some(grant) = self.kubelet.plugged(&self.pod.metadata.uid, container).await.map_err(config_error)? {
            config.devices.extend(grant.devices);
            config.env.extend(grant.env);
            config.mounts.extend(grant.mounts);
        }
        let _turn = self.kubelet.starts.acquire().await.expect("the semaphore is never closed");
        let created = self.kubelet.runtime.create_container(&self.pod.metadata.uid, config).await;
        created.map_err(|error| Failure { reason: reason_text(error.reason).to_owned(), message: error.message })
    }

    async fn environment(&self, container: &Container, pod_ips: &[String]) -> Result<Vec<(String, String)>, String> {
        let meta = &self.pod.metadata;
        self.kubelet.services.synced().await;
        let services: Vec<_> = self.kubelet.services.list().iter().filter_map(|item| item.view().ok()).collect();
        let links = self.pod.spec.enable_service_links.unwrap_or(true);
        let sources = Sources {
            config_maps: self.data(CONFIGMAPS).await?,
            secrets: self.data(SECRETS).await?,
            services: env::service_variables(services.iter(), &meta.namespace, links),
            downward: self.downward(pod_ips),
        };
        env::environment(container, &sources)
    }

    /// What variables may read: text only, as upstream.
    async fn data(&self, resource: Resource) -> Result<BTreeMap<String, env::Data>, String> {
        let mut all = BTreeMap::new();
        for key in self.held.keys().filter(|key| key.resource == resource) {
            let data = volume::data(&self.held, key).await?;
            let text = data.map(|data| {
                let lossy = |(key, bytes): (String, bytes::Bytes)| (key, String::from_utf8_lossy(&bytes).into_owned());
                data.into_iter().map(lossy).collect()
            });
            all.insert(key.name.clone(), text);
        }
        Ok(all)
    }

    async fn mounts(
        &self,
        container: &Container,
        env: &[(String, String)],
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<Vec<Mount>, String> {
        let mut mounts = Vec::new();
        for wanted in &container.volume_mounts {
            let base = volumes.get(&wanted.name);
            let base = base.ok_or_else(|| {
                format!("cannot find volume \"{}\" to mount into container \"{}\"", wanted.name, container.name)
            })?;
            let sub_path = sub_path(wanted, env)?;
            let source = if sub_path.is_empty() {
                base.clone()
            } else {
                let uid = &self.pod.metadata.uid;
                let inside = self.kubelet.runtime.sub_path(uid, &wanted.name, &container.name, &sub_path).await;
                inside.map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                        wanted.name, container.name
                    )
                })?
            };
            let volume = self.pod.spec.volumes.iter().find(|volume| volume.name == wanted.name);
            mounts.push(mount(wanted, volume, source));
        }
        Ok(mounts)
    }

    async fn post_start(
        &self,
        container: &Container,
        id: &str,
        pod_ips: &[String],
        about: &ObjectRef,
    ) -> Result<(), String> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = pod_ips.first().map(String::as_str).unwrap_or_default();
        let outcome = hook::run(&self.kubelet, handler, container, id, ip, POST_START_TIMEOUT).await;
        if let Err(error) = &outcome {
            tracing::debug!(pod = about.name, container = container.name, error, "postStart hook failed");
            self.event(about, Type::Warning, "FailedPostStartHook", "PostStartHook failed");
        }
        outcome
    }

    /// preStop hook within the grace, then the stop signal with what is left of it.
    pub async fn stop_container(
        self,
        name: String,
        id: String,
        grace: Duration,
        message: String,
        first: bool,
        pod_ip: String,
    ) -> Done {
        let about = about(&self.pod, &name);
        let began_at = monotonic();
        if first {
            self.event(&about, Type::Normal, "Killing", message);
            self.pre_stop(&name, &id, grace, &pod_ip, &about).await;
        }
        let left = grace.saturating_sub(began_at.elapsed());
        let left = if began_at.elapsed() > Duration::from_secs(1) { left.max(GRACE_AFTER_HOOK) } else { left };
        let outcome = match self.kubelet.runtime.stop_container(&id, left).await {
            Err(error) if error.reason != Reason::NotFound => Err(error),
            _ => Ok(()),
        };
        if let Err(error) = &outcome {
            let text = format!("error killing pod: failed to \"KillContainer\" for \"{name}\": {error}");
            self.event(&about, Type::Warning, "FailedKillPod", text);
        }
        Done::Stopped { container: name, outcome }
    }

    async fn pre_stop(&self, name: &str, id: &str, grace: Duration, pod_ip: &str, about: &ObjectRef) {
        let Some(container) = self.find(name) else { return };
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else {
            return;
        };
        let run = hook::run(&self.kubelet, handler, &container, id, pod_ip, grace);
        let outcome = tokio::time::timeout(grace, run).await;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(pod = about.name, container = name, error, "preStop hook failed");
                self.event(about, Type::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => tracing::debug!(pod = about.name, container = name, "preStop hook took the whole grace"),
        }
    }

    pub async fn remove_container(self, id: String) -> Done {
        Done::Removed(self.kubelet.runtime.remove_container(&id).await)
    }

    pub async fn stop_sandbox(self) -> Done {
        let outcome = self.kubelet.runtime.stop_sandbox(&self.pod.metadata.uid).await;
        Done::SandboxStopped(self.release(outcome))
    }

    pub async fn remove_sandbox(self) -> Done {
        let outcome = self.kubelet.runtime.remove_sandbox(&self.pod.metadata.uid, false).await;
        Done::SandboxRemoved(self.release(outcome))
    }

    fn release(&self, outcome: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        match outcome {
            Err(error) if error.reason == Reason::NotFound => Ok(()),
            Err(error) => {
                let text = format!("error killing pod: failed to \"KillPodSandbox\": {error}");
                self.event(&ObjectRef::pod(&self.pod), Type::Warning, "FailedKillPod", text);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    pub async fn write_status(self, status: Value) -> Done {
        let meta = &self.pod.metadata;
        let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
        let client = &self.kubelet.client;
        let written = client.patch(PODS, &meta.namespace, &meta.name, "status", PatchType::Strategic, patch).await;
        Done::StatusWritten(written.and_then(|item| Ok(super::revision(&item.identity()?.resource_version))))
    }

    pub async fn delete(self) -> Done {
        let meta = &self.pod.metadata;
        let options = DeleteOptions { grace_s: Some(0), uid: Some(meta.uid.clone()), ..DeleteOptions::default() };
        let outcome = self.kubelet.client.delete(PODS, &meta.namespace, &meta.name, &options).await;
        Done::Deleted(match outcome {
            // Gone, or another pod has the name by now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other,
        })
    }
}

fn gone(name: &str) -> Failure {
    Failure { reason: "CreateContainerError".to_owned(), message: format!("container {name} is no more in the spec") }
}

/// `subPathExpr` may use the container's variables; an unknown one is an error.
fn sub_path(wanted: &crate::api::view::pod::VolumeMount, env: &[(String, String)]) -> Result<String, String> {
    if wanted.sub_path_expr.is_empty() {
        return Ok(wanted.sub_path.clone());
    }
    let missing = std::cell::RefCell::new(Vec::new());
    let expanded = env::expand(&wanted.sub_path_expr, |name| {
        let found = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if found.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        found
    });
    match missing.into_inner().first() {
        Some(name) => {
            Err(format!("failed to expand subPath for volumeMount \"{}\": missing value for \"{name}\"", wanted.name))
        }
        None if expanded.starts_with('/') => Err(format!("error SubPath `{expanded}` must not be an absolute path")),
        None if expanded.split('/').any(|part| part == "..") => Err("must not contain '..'".to_owned()),
        None => Ok(expanded),
    }
}
