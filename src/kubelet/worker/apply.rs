//! Plan's actions become tasks, and what the tasks found becomes memory.

use super::super::image::Failure;
use super::super::memory::{Backoff, Condemned, ImageState, Operation, Preparation, StartError};
use super::super::operation::{Done, Published, Started};
use super::super::plan::Action;
use super::super::probe::Kind;
use super::super::{SharedPod, status};
use super::*;
use crate::runtime::{ImageStatus, RuntimeError};
use futures_util::FutureExt;

/// A deletion that the server does not answer is tried again after this at the latest.
const DELETE_RETRY_LIMIT_S: i64 = 60;

impl Worker {
    pub(super) fn apply(&mut self, pod: &SharedPod, action: &Action, now: Timestamp) {
        let job = self.job(pod);
        match action.clone() {
            Action::PrepareVolumes => {
                match self.memory.volumes {
                    Preparation::Done => self.memory.refreshing = true,
                    _ => self.memory.volumes = Preparation::InFlight,
                }
                self.memory.refresh_at = None;
                self.tasks.spawn(job.publish_volumes().boxed());
            }
            Action::StartSandbox { replace } => {
                self.memory.sandbox = Preparation::InFlight;
                self.tasks.spawn(job.start_sandbox(replace).boxed());
            }
            Action::EnsureImage { container } => {
                self.memory.container_mut(&container).image.begin();
                self.tasks.spawn(job.ensure_image(container).boxed());
            }
            Action::StartContainer { container, attempt } => self.start(job, container, attempt, now),
            Action::StopContainer { id, container, grace_s, message } => {
                self.stop(job, container, id, grace_s, message, now);
            }
            Action::RemoveContainer { id } => {
                if self.removing.insert(id.clone()) {
                    self.tasks.spawn(job.remove_container(id).boxed());
                }
            }
            Action::StopSandbox => {
                self.memory.releasing = true;
                self.tasks.spawn(job.stop_sandbox().boxed());
            }
            Action::RemoveSandbox => {
                self.memory.releasing = true;
                self.tasks.spawn(job.remove_sandbox().boxed());
            }
        }
    }

    fn start(&mut self, job: Job, container: String, attempt: u32, now: Timestamp) {
        let ended_at = self.last_end(&container);
        let pod_ips = self.pod_ips(&job.pod);
        let volumes = self.volumes.clone();
        let memory = self.memory.container_mut(&container);
        let ImageState::Present(image) = memory.image.clone() else { return };
        memory.operation = Some(Operation::Starting);
        memory.error = None;
        if let Some(ended_at) = ended_at {
            memory.backoff = Some(Backoff::next(memory.backoff, ended_at, now));
        }
        self.tasks.spawn(job.start_container(container, attempt, image, pod_ips, volumes).boxed());
    }

    /// When the newest instance of a container ended; `None`: it has not.
    fn last_end(&self, container: &str) -> Option<Timestamp> {
        let records = self.sandbox.iter().flat_map(|sandbox| &sandbox.containers);
        let newest = records.filter(|record| record.name == container).max_by_key(|record| record.attempt)?;
        match &newest.state {
            ContainerState::Exited(exit) => Some(exit.finished_at.unwrap_or(newest.created_at)),
            _ => None,
        }
    }

    pub(super) fn pod_ips(&self, pod: &Pod) -> Vec<String> {
        let facts = Facts { pod, sandbox: self.sandbox.as_ref(), memory: &self.memory, now: self.seen_at };
        status::pod_ips(&facts, &self.kubelet.host.load())
    }

    /// A shorter grace replaces a stop that is running; the hook does not run again.
    fn stop(&mut self, job: Job, container: String, id: String, grace_s: i64, message: String, now: Timestamp) {
        for kind in [Kind::Liveness, Kind::Startup] {
            self.probes.remove(&(container.clone(), kind));
        }
        let replaced = self.stops.remove(&container);
        if let Some(task) = &replaced {
            task.abort();
        }
        let pod_ip = self.pod_ips(&job.pod).into_iter().next().unwrap_or_default();
        let deadline = after(now, grace_s);
        self.memory.container_mut(&container).operation = Some(Operation::Stopping { deadline });
        let grace = Duration::from_secs(grace_s.unsigned_abs());
        let verb = job.stop_container(container.clone(), id, grace, message, replaced.is_none(), pod_ip);
        self.stops.insert(container, self.tasks.spawn(verb.boxed()));
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Volumes(outcome) => self.volumes_done(outcome),
            Done::Sandbox(outcome) => self.sandbox_done(outcome),
            Done::Image { container, outcome } => self.image_done(&container, outcome),
            Done::Started { container, outcome } => self.started(&container, outcome),
            Done::Stopped { container, outcome } => self.stopped(&container, outcome),
            Done::Removed(outcome) => {
                self.stale = true;
                if let Err(error) = outcome {
                    tracing::warn!(uid = self.uid, %error, "remove container failed");
                }
            }
            Done::SandboxStopped(outcome) => {
                self.stale = true;
                self.memory.stopped = self.released(outcome);
            }
            Done::SandboxRemoved(outcome) => {
                if self.released(outcome) {
                    self.memory.removed = true;
                    self.sandbox = None;
                    self.mark("cleaned up");
                }
            }
            Done::StatusWritten(outcome) => self.status_written(outcome),
            Done::Deleted(outcome) => {
                if let Err(error) = outcome {
                    if self.delete_retry_s == 0 {
                        tracing::warn!(uid = self.uid, %error, "delete pod failed; retrying");
                    }
                    self.deleting = false;
                    self.delete_retry_s = (self.delete_retry_s * 2).clamp(1, DELETE_RETRY_LIMIT_S);
                    self.retry_in(self.delete_retry_s);
                }
            }
        }
    }

    fn volumes_done(&mut self, outcome: Result<Published, Vec<(String, String)>>) {
        let retry_at = after(self.kubelet.clock.now(), RETRY_S);
        let refreshing = std::mem::take(&mut self.memory.refreshing);
        let earliest = |known: Option<Timestamp>, at: Timestamp| Some(known.map_or(at, |known| known.min(at)));
        match outcome {
            Ok(published) => {
                self.volumes = published.paths;
                self.memory.volumes = Preparation::Done;
                if let Some(at) = published.renew_at {
                    self.memory.refresh_at = earliest(self.memory.refresh_at, at);
                }
            }
            // What is published stays; containers run on with it.
            Err(_) if refreshing => self.memory.refresh_at = earliest(self.memory.refresh_at, retry_at),
            // An object has come meanwhile: try again at once.
            Err(_) if self.memory.refresh_at.take().is_some() => self.memory.volumes = Preparation::Wanted,
            Err(failures) => {
                let message = failures.into_iter().next().map(|(_, message)| message).unwrap_or_default();
                self.memory.volumes = Preparation::Failed { message, retry_at };
            }
        }
    }

    fn sandbox_done(&mut self, outcome: Result<SandboxStatus, RuntimeError>) {
        match outcome {
            Ok(status) => {
                self.memory.sandbox = Preparation::Done;
                self.set_sandbox(status);
            }
            Err(error) => {
                self.stale = true;
                let retry_at = after(self.kubelet.clock.now(), RETRY_S);
                self.memory.sandbox = Preparation::Failed { message: error.message, retry_at };
            }
        }
    }

    fn image_done(&mut self, container: &str, outcome: Result<ImageStatus, Failure>) {
        let now = self.kubelet.clock.now();
        let memory = self.memory.container_mut(container);
        match outcome {
            Ok(image) => {
                memory.image_reference = reference(&image);
                memory.image = ImageState::Present(image);
                memory.image_backoff = None;
                self.mark("image present");
            }
            Err(Failure { reason, message }) => {
                let backoff = Backoff::next(memory.image_backoff, now, now);
                memory.image_backoff = Some(backoff);
                memory.image = ImageState::Failed { reason, message, failed_at: now, backoff };
            }
        }
    }

    fn started(&mut self, container: &str, outcome: Result<Started, Failure>) {
        self.stale = true;
        let retry_at = after(self.kubelet.clock.now(), RETRY_S);
        let memory = self.memory.container_mut(container);
        memory.operation = None;
        // The next start looks for the image again.
        memory.image = ImageState::Unknown;
        match outcome {
            Ok(started) => {
                memory.error = None;
                memory.condemned = started.hook_failed.then_some((started.id, Condemned::PostStart));
            }
            Err(Failure { reason, message }) => memory.error = Some(StartError { reason, message, retry_at }),
        }
    }

    fn stopped(&mut self, container: &str, outcome: Result<(), RuntimeError>) {
        self.stale = true;
        self.stops.remove(container);
        let retry_at = after(self.kubelet.clock.now(), RETRY_S);
        let memory = self.memory.container_mut(container);
        memory.operation = None;
        memory.stop_retry_at = outcome.is_err().then_some(retry_at);
    }

    fn released(&mut self, outcome: Result<(), RuntimeError>) -> bool {
        self.memory.releasing = false;
        let retry_at = after(self.kubelet.clock.now(), RETRY_S);
        self.memory.release_retry_at = outcome.is_err().then_some(retry_at);
        if let Err(error) = &outcome {
            tracing::warn!(uid = self.uid, %error, "release sandbox failed; retrying");
        }
        outcome.is_ok()
    }

    /// An object that the pod refers to has come, changed or gone: volumes follow, failed starts are tried again.
    pub(super) fn objects_changed(&mut self) {
        let now = self.kubelet.clock.now();
        match self.memory.volumes {
            Preparation::Failed { .. } => self.memory.volumes = Preparation::Wanted,
            _ => self.memory.refresh_at = Some(now),
        }
        for memory in self.memory.containers.values_mut() {
            if memory.error.as_ref().is_some_and(|error| error.reason == "CreateContainerConfigError") {
                memory.error = None;
            }
        }
    }
}

/// How a status names an image: by repository and digest, else by its id.
fn reference(image: &ImageStatus) -> String {
    let digest = image.names.iter().find(|name| name.contains("@sha256:"));
    digest.unwrap_or(&image.id).clone()
}
