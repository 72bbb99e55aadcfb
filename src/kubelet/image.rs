//! Makes a container's image present, as its pull policy says, with the pod's pull secrets.

use super::Kubelet;
use super::operation::Job;
use super::references::Key;
use crate::api::view::pod::{Container, Pod};
use crate::client::events::Type;
use crate::client::{ObjectRef, SECRETS};
use crate::clock::monotonic;
use crate::runtime::{ImageStatus, Reason, RegistryAuth, RuntimeError};
use base64::Engine;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// A board may have no uplink, though its server answers, which may be the board itself: a registry that says nothing
/// by then is not waited for when the image is here.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for the whole pull while the server is away, and the uplink with it, as like as not.
const AWAY_PATIENCE: Duration = Duration::from_secs(1);

/// Why an image is not there, as the container waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// Checks for the image and pulls it where needed, with upstream's Events.
pub async fn ensure(job: &Job, container: &Container) -> Result<ImageStatus, Failure> {
    let (kubelet, pod) = (&*job.kubelet, &job.pod);
    let about = super::operation::about(pod, &container.name);
    let image = &container.image;
    let present = kubelet.runtime.image(image).await.map_err(|error| failure(kubelet, &about, &error))?;
    match (policy(container), present) {
        ("IfNotPresent" | "Never", Some(present)) => {
            let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
            kubelet.events.event(&about, Type::Normal, "Pulled", text);
            Ok(present)
        }
        ("Never", None) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            kubelet.events.event(&about, Type::Warning, "ErrImageNeverPull", message.clone());
            kubelet.events.event(&about, Type::Warning, "Failed", "Error: ErrImageNeverPull");
            Err(Failure { reason: "ErrImageNeverPull".to_owned(), message })
        }
        (_, Some(present)) if has_run(pod, container) => match pull_in_time(job, image, &about).await {
            Some(outcome) => outcome,
            None => {
                let text = format!("Container image \"{image}\" is used as it is here: its registry cannot be reached");
                tracing::info!(pod = pod.metadata.name, container = container.name, "{text}");
                kubelet.events.event(&about, Type::Normal, "Pulled", text);
                Ok(present)
            }
        },
        _ => match pull(job, image, &about).await {
            Ok(pulled) => Ok(pulled),
            Err(error) => Err(failed(kubelet, image, &about, &error)),
        },
    }
}

/// Whether this pod has run the container here: what it was allowed to pull once, it may run again.
fn has_run(pod: &Pod, container: &Container) -> bool {
    let mut known = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    known.any(|status| status.name == container.name && !status.image_id.is_empty())
}

/// `None`: the registry cannot be reached. One that refuses has the last word.
async fn pull_in_time(job: &Job, image: &str, about: &ObjectRef) -> Option<Result<ImageStatus, Failure>> {
    let kubelet = &job.kubelet;
    let outcome = if kubelet.is_connected() {
        timeout(PATIENCE, kubelet.runtime.reach_registry(image)).await.ok()?.ok()?;
        pull(job, image, about).await
    } else {
        timeout(AWAY_PATIENCE, pull(job, image, about)).await.ok()?
    };
    match outcome {
        Ok(pulled) => Some(Ok(pulled)),
        Err(error) if error.reason == Reason::RegistryUnavailable => None,
        Err(error) => Some(Err(failed(&job.kubelet, image, about, &error))),
    }
}

fn failed(kubelet: &Kubelet, image: &str, about: &ObjectRef, error: &RuntimeError) -> Failure {
    let text = format!("Failed to pull image \"{image}\": {error}");
    kubelet.events.event(about, Type::Warning, "Failed", text);
    failure(kubelet, about, error)
}

/// The API server sets a policy; a pod from elsewhere may lack it.
fn policy(container: &Container) -> &str {
    match container.image_pull_policy.as_str() {
        "" => "IfNotPresent",
        given => given,
    }
}

fn failure(kubelet: &Kubelet, about: &ObjectRef, error: &RuntimeError) -> Failure {
    let reason = match error.reason {
        Reason::InvalidImageName => "InvalidImageName",
        Reason::ErrImageNeverPull => "ErrImageNeverPull",
        _ => "ErrImagePull",
    };
    if reason == "InvalidImageName" {
        kubelet.events.event(about, Type::Warning, "InspectFailed", error.message.clone());
    }
    kubelet.events.event(about, Type::Warning, "Failed", format!("Error: {reason}"));
    Failure { reason: reason.to_owned(), message: error.message.clone() }
}

async fn pull(job: &Job, image: &str, about: &ObjectRef) -> Result<ImageStatus, RuntimeError> {
    let kubelet = &job.kubelet;
    let asked_at = monotonic();
    let auth = registry_auth(job, image).await;
    let _turn = kubelet.pulls.acquire().await.expect("the semaphore is never closed");
    kubelet.events.event(about, Type::Normal, "Pulling", format!("Pulling image \"{image}\""));
    let began_at = monotonic();
    let pulled = kubelet.runtime.pull_image(image, &auth).await?;
    let text = format!(
        "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
        seconds(began_at.elapsed()),
        seconds(asked_at.elapsed()),
        pulled.size_bytes
    );
    kubelet.events.event(about, Type::Normal, "Pulled", text);
    kubelet.node_changed.notify_one();
    Ok(pulled)
}

/// As Go prints a duration in whole milliseconds: `1.2s`, `350ms`.
fn seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1000 => format!("{millis}ms"),
        _ => {
            let text = format!("{}.{:03}", millis / 1000, millis % 1000);
            format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretData {
    data: BTreeMap<String, String>,
}

/// The credentials of the pod's pull secrets for the registry of this image.
async fn registry_auth(job: &Job, image: &str) -> Vec<RegistryAuth> {
    let mut found = Vec::new();
    for secret in &job.pod.spec.image_pull_secrets {
        let namespace = job.pod.metadata.namespace.clone();
        let key = Key { resource: SECRETS, namespace, name: secret.name.clone() };
        let Some(held) = job.held.get(&key) else { continue };
        let Ok(secret) = held.get().await.map(|item| item.view::<SecretData>()) else { continue };
        found.extend(secret.map(|secret| credentials(&secret.data, registry(image))).unwrap_or_default());
    }
    found
}

/// The registry a reference names; Docker Hub when it names none.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn credentials(secret: &BTreeMap<String, String>, registry: &str) -> Vec<RegistryAuth> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    let config = |key: &str| secret.get(key).and_then(|text| decode(text));
    let auths = match (config(".dockerconfigjson"), config(".dockercfg")) {
        (Some(bytes), _) => serde_json::from_slice::<DockerConfig>(&bytes).unwrap_or_default().auths,
        (_, Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let matches = |server: &str| {
        let host = server.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or("");
        host == registry || (registry == "docker.io" && matches!(host, "index.docker.io" | "registry-1.docker.io"))
    };
    let own = auths.into_iter().filter(|(server, _)| matches(server));
    let auth = own.map(|(_, auth)| {
        let pair = decode(&auth.auth).and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = match pair.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((username, password)) => (username.to_owned(), password.to_owned()),
            None => (auth.username, auth.password),
        };
        RegistryAuth { username, password, token: auth.identitytoken }
    });
    auth.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_prints_them() {
        for (millis, want) in [(0, "0ms"), (350, "350ms"), (1200, "1.2s"), (3000, "3s"), (12_345, "12.345s")] {
            assert_eq!(seconds(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let pair = encode("me:pass:word");
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{pair}"}},"r.example:5000":{{"username":"u","password":"p"}}}}}}"#
        );
        let secret = BTreeMap::from([(".dockerconfigjson".to_owned(), encode(&config))]);
        let names = |image: &str| -> Vec<String> {
            credentials(&secret, registry(image))
                .into_iter()
                .map(|auth| format!("{}:{}", auth.username, auth.password))
                .collect()
        };
        assert_eq!(names("nginx"), ["me:pass:word"]);
        assert_eq!(names("docker.io/library/nginx:1"), ["me:pass:word"]);
        assert_eq!(names("r.example:5000/a/b"), ["u:p"]);
        assert!(names("other.example/a").is_empty());
    }
}
