//! Every pod runs as a ServiceAccount: sets it, checks that it exists, mounts its token, takes its pull secrets.

use super::{Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::Result;
use crate::registry::{Registry, meta};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::time::Duration;

const DEFAULT: &str = "default";
const MIRROR: &str = "kubernetes.io/config.mirror";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and seven seconds by which upstream tells its own tokens.
const TOKEN_LIFE_S: u32 = 3607;
/// How long a pod waits for the account that its new Namespace is about to get.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

pub struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn handles(&self, request: &Request) -> bool {
        request.creates("pods")
    }

    fn admit<'a>(
        &'a self,
        registry: &'a Registry,
        request: &'a Request<'a>,
        pod: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            if pod.annotation(MIRROR).is_some() {
                return check_mirror(request, pod);
            }
            let name = match pod.str_at(&["spec", "serviceAccountName"]) {
                "" => DEFAULT.to_owned(),
                given => given.to_owned(),
            };
            let account = find(registry, request, &name).await?;
            pod.set(&["spec", "serviceAccountName"], Value::from(name.as_str()));
            pod.set(&["spec", "serviceAccount"], Value::from(name));
            if mounts_token(pod, &account) {
                mount_token(pod);
            }
            take_pull_secrets(pod, &account);
            Ok(())
        }
        .boxed()
    }
}

fn check_mirror(request: &Request, pod: &Object) -> Result<()> {
    match pod.str_at(&["spec", "serviceAccountName"]) {
        "" => Ok(()),
        _ => Err(request.forbidden("a mirror pod may not reference service accounts")),
    }
}

async fn find(registry: &Registry, request: &Request<'_>, name: &str) -> Result<Object> {
    let namespace = request.namespace;
    let key = format!("serviceaccounts/{namespace}/{name}");
    let before = registry.store.revision();
    if let Some(account) = registry.peek(&key).await? {
        return Ok(account);
    }
    if name == DEFAULT
        && let Ok(mut watch) = registry.store.watch(&key, before)
    {
        // A controller makes it right after the Namespace; the timeout's error means only that it did not come.
        let _ = tokio::time::timeout(ACCOUNT_WAIT, watch.next()).await;
        if let Some(account) = registry.peek(&key).await? {
            return Ok(account);
        }
    }
    let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    Err(request.forbidden(&why))
}

fn mounts_token(pod: &Object, account: &Object) -> bool {
    let pod = pod.at(&["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    pod.or_else(|| account.at(&["automountServiceAccountToken"]).and_then(Value::as_bool)).unwrap_or(true)
}

/// Adds the token's volume, and its mount to every container that has nothing else there.
fn mount_token(pod: &mut Object) {
    let volume = meta::generated_name("kube-api-access-");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let there = container.at(&["volumeMounts"]).and_then(Value::as_array).into_iter().flatten();
            if there.into_iter().any(|mount| mount.str_at(&["mountPath"]) == TOKEN_PATH) {
                continue;
            }
            push(container, "volumeMounts", json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            mounted = true;
        }
    }
    if let Some(spec) = pod.get_mut("spec").filter(|_| mounted) {
        push(spec, "volumes", token_volume(&volume));
    }
}

fn push(owner: &mut Object, list: &str, item: Value) {
    match owner.get_mut(list).and_then(Value::as_array_mut) {
        Some(items) => items.push(item),
        None => owner.set(&[list], json!([item])),
    }
}

fn token_volume(name: &str) -> Value {
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE_S, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]);
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": sources}})
}

fn take_pull_secrets(pod: &mut Object, account: &Object) {
    let own = pod.at(&["spec", "imagePullSecrets"]).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let given = account.at(&["imagePullSecrets"]).and_then(Value::as_array).filter(|list| !list.is_empty());
    if let Some(secrets) = given.filter(|_| !own) {
        pod.set(&["spec", "imagePullSecrets"], Value::from(secrets.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_else_is() {
        let other = json!({"name": "own", "mountPath": TOKEN_PATH});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [other]}]}});
        mount_token(&mut pod);
        let volume = pod["spec"]["volumes"][0]["name"].as_str().unwrap().to_owned();
        assert!(volume.starts_with("kube-api-access-") && volume.len() == 21);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        let mut none = json!({"spec": {"containers": [pod["spec"]["containers"][1].clone()]}});
        mount_token(&mut none);
        assert!(none["spec"].get("volumes").is_none());
    }

    #[test]
    fn the_pods_word_on_mounting_counts_before_the_accounts() {
        let no = json!({"automountServiceAccountToken": false});
        assert!(mounts_token(&json!({}), &json!({})));
        assert!(!mounts_token(&json!({}), &no));
        assert!(mounts_token(&json!({"spec": {"automountServiceAccountToken": true}}), &no));
    }
}
