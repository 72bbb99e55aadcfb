//! Stories over the verbs, on the in-memory store: what a client sees, in upstream's words.

mod admission;
mod bootstrap;
mod deletes;
mod lists;
mod writes;

use super::*;
use crate::api::kinds::KindRef;
use crate::store::MemoryStore;
use serde_json::{Value, json};

/// A registry on a simulated clock, and shorthands for its verbs.
struct Cluster {
    registry: Registry,
    context: Context,
}

impl Cluster {
    async fn new() -> Self {
        Self::on(Arc::new(MemoryStore::default())).await
    }

    async fn on(store: Arc<dyn Store>) -> Self {
        let clock = Clock::simulated("2026-11-23T00:00:00Z".parse().unwrap());
        let registry = Registry::new(RegistryConfig::default(), store, Kinds::default(), clock, Arc::default());
        let cluster = Self { registry, context: Context { user: User::system("test"), ..Context::default() } };
        for name in ["default", "g1"] {
            cluster.create("v1", "Namespace", "", json!({"metadata": {"name": name}})).await.unwrap();
            cluster.create("v1", "ServiceAccount", name, json!({"metadata": {"name": "default"}})).await.unwrap();
        }
        cluster
    }

    fn kind(&self, api_version: &str, kind: &str) -> KindRef {
        self.registry.kinds.kind(api_version, kind).unwrap()
    }

    async fn create(&self, api_version: &str, kind: &str, namespace: &str, object: Value) -> Result<Value> {
        let kind = self.kind(api_version, kind);
        let written = self.registry.create(&self.context, &kind, namespace, object.into()).await?;
        Ok(decoded(&written.entry))
    }

    async fn update(&self, kind: &str, subresource: &str, name: &str, object: Value) -> Result<Value> {
        let kind = self.kind(api_version(kind), kind);
        let written = self.registry.update(&self.context, &kind, subresource, "g1", name, object.into()).await?;
        Ok(decoded(&written.entry))
    }

    async fn merge(&self, kind: &str, subresource: &str, name: &str, patch: Value) -> Result<Value> {
        let kind = self.kind(api_version(kind), kind);
        let patched =
            self.registry.patch(&self.context, &kind, subresource, "g1", name, PatchType::Merge, patch.into()).await?;
        Ok(decoded(&patched.entry))
    }

    async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let kind = self.kind(api_version(kind), kind);
        let namespace = if kind.namespaced { "g1" } else { "" };
        self.registry.get(&kind, namespace, name).await.map(|entry| decoded(&entry))
    }

    async fn delete(&self, kind: &str, name: &str, options: DeleteOptions) -> Result<Deleted> {
        let kind = self.kind(api_version(kind), kind);
        let namespace = if kind.namespaced { "g1" } else { "" };
        self.registry.delete(&self.context, &kind, namespace, name, &options).await
    }

    async fn config_map(&self, name: &str) -> Value {
        let object = json!({"metadata": {"name": name}, "data": {"a": "1"}});
        self.create("v1", "ConfigMap", "g1", object).await.unwrap()
    }
}

fn api_version(kind: &str) -> &'static str {
    if matches!(kind, "Deployment" | "ReplicaSet") { "apps/v1" } else { "v1" }
}

fn decoded(entry: &Entry) -> Value {
    serde_json::from_slice(&entry.bytes).unwrap()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

fn deployment(name: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "n", "image": "i"}]}});
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template}})
}
