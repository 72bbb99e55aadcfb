//! Which node needs which objects: pods by their node, and what each pod refers to, counted per node.

use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;

/// A mirror pod is the node's own word: it opens nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// An object that a pod needs: `secrets/NAMESPACE/NAME` and the like; a pod needs itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Need(Arc<str>);

impl Need {
    /// `None` for kinds that pods do not refer to.
    pub fn of(resource: &str, namespace: &str, name: &str) -> Option<Self> {
        const KINDS: [&str; 5] = ["pods", "secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts"];
        let known = KINDS.contains(&resource) && !namespace.is_empty();
        known.then(|| Self(format!("{resource}/{namespace}/{name}").into()))
    }
}

struct Placed {
    node: Arc<str>,
    needs: Box<[Need]>,
}

#[derive(Default)]
pub(super) struct Graph {
    /// By store key.
    pods: HashMap<Box<str>, Placed>,
    nodes: HashMap<Arc<str>, HashMap<Need, u32>>,
}

impl Graph {
    pub fn has(&self, node: &str, need: &Need) -> bool {
        self.nodes.get(node).is_some_and(|needs| needs.contains_key(need))
    }

    /// Takes in a pod as it is now. What does not decode opens nothing.
    pub fn put(&mut self, key: &str, bytes: &[u8]) {
        let pod: Pod = serde_json::from_slice(bytes).unwrap_or_default();
        let unchanged = |placed: &Placed| *placed.node == *pod.spec.node_name;
        // What a pod refers to is fixed when it is bound, but for ephemeral containers.
        if self.pods.get(key).is_some_and(unchanged) && pod.spec.ephemeral_containers.is_empty() {
            return;
        }
        self.remove(key);
        if pod.spec.node_name.is_empty() {
            return;
        }
        let node = match self.nodes.get_key_value(&*pod.spec.node_name) {
            Some((node, _)) => node.clone(),
            None => Arc::from(&*pod.spec.node_name),
        };
        let needs = self.nodes.entry(node.clone()).or_default();
        let mut kept = Vec::new();
        for need in pod.needs() {
            let shared = needs.get_key_value(&need).map(|(known, _)| known.clone()).unwrap_or(need);
            *needs.entry(shared.clone()).or_default() += 1;
            kept.push(shared);
        }
        self.pods.insert(key.into(), Placed { node, needs: kept.into() });
    }

    pub fn remove(&mut self, key: &str) {
        let Some(placed) = self.pods.remove(key) else { return };
        let Some(needs) = self.nodes.get_mut(&placed.node) else { return };
        for need in &placed.needs {
            if let Some(count) = needs.get_mut(need) {
                *count -= 1;
                if *count == 0 {
                    needs.remove(need);
                }
            }
        }
        if needs.is_empty() {
            self.nodes.remove(&placed.node);
        }
    }
}

macro_rules! parts {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[derive(Debug, Default, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            struct $name { $(#[serde(deserialize_with = "crate::api::view::null_as_default")] $field: $type,)* }
        )*
    };
}

parts! {
    Pod { metadata: Meta, spec: Spec, }
    Meta { name: String, namespace: String, annotations: HashMap<String, String>, }
    Spec {
        node_name: String,
        service_account_name: String,
        image_pull_secrets: Vec<Named>,
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        ephemeral_containers: Vec<Container>,
        volumes: Vec<Volume>,
    }
    Named { name: String, }
    Container { env: Vec<Env>, env_from: Vec<EnvFrom>, }
    Env { value_from: ValueFrom, }
    ValueFrom { secret_key_ref: Named, config_map_key_ref: Named, }
    EnvFrom { secret_ref: Named, config_map_ref: Named, }
    Volume {
        name: String,
        secret: SecretVolume,
        config_map: Named,
        projected: Projected,
        persistent_volume_claim: ClaimVolume,
        ephemeral: Option<serde::de::IgnoredAny>,
        csi: Csi,
        flex_volume: Flex,
    }
    SecretVolume { secret_name: String, }
    ClaimVolume { claim_name: String, }
    Projected { sources: Vec<Projection>, }
    Projection { secret: Named, config_map: Named, }
    Csi { node_publish_secret_ref: Named, }
    Flex { secret_ref: Named, }
}

impl Pod {
    /// Everything the pod's node may read for it, each once.
    fn needs(&self) -> Vec<Need> {
        let Self { metadata, spec } = self;
        let mut needs = Vec::new();
        let mut add = |resource: &str, name: &str| {
            let need = Need::of(resource, &metadata.namespace, name).filter(|_| !name.is_empty());
            if let Some(need) = need.filter(|need| !needs.contains(need)) {
                needs.push(need);
            }
        };
        add("pods", &metadata.name);
        if metadata.annotations.contains_key(MIRROR) {
            return needs;
        }
        add("serviceaccounts", &spec.service_account_name);
        spec.image_pull_secrets.iter().for_each(|secret| add("secrets", &secret.name));
        let containers = spec.containers.iter().chain(&spec.init_containers).chain(&spec.ephemeral_containers);
        for container in containers {
            for env in &container.env {
                add("secrets", &env.value_from.secret_key_ref.name);
                add("configmaps", &env.value_from.config_map_key_ref.name);
            }
            for source in &container.env_from {
                add("secrets", &source.secret_ref.name);
                add("configmaps", &source.config_map_ref.name);
            }
        }
        for volume in &spec.volumes {
            volume.needs(&metadata.name, &mut add);
        }
        needs
    }
}

impl Volume {
    fn needs(&self, pod: &str, add: &mut impl FnMut(&str, &str)) {
        let secrets =
            [&self.secret.secret_name, &self.csi.node_publish_secret_ref.name, &self.flex_volume.secret_ref.name];
        secrets.into_iter().for_each(|name| add("secrets", name));
        add("configmaps", &self.config_map.name);
        add("persistentvolumeclaims", &self.persistent_volume_claim.claim_name);
        if self.ephemeral.is_some() {
            add("persistentvolumeclaims", &format!("{pod}-{}", self.name));
        }
        for source in &self.projected.sources {
            add("secrets", &source.secret.name);
            add("configmaps", &source.config_map.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, volumes: Value) -> Vec<u8> {
        let env = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}, {"name": "B", "value": "x"}]);
        let object = json!({"metadata": {"name": name, "namespace": "g1"}, "spec": {"nodeName": node,
            "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "env": env, "envFrom": [{"configMapRef": {"name": "from"}}]}],
            "volumes": volumes}});
        object.to_string().into_bytes()
    }

    fn has(graph: &Graph, node: &str, resource: &str, name: &str) -> bool {
        graph.has(node, &Need::of(resource, "g1", name).unwrap())
    }

    #[test]
    fn a_node_needs_what_its_pods_refer_to_while_they_are_there() {
        let volumes = json!([
            {"name": "a", "secret": {"secretName": "volume"}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "projected"}}, {"serviceAccountToken": {}}]}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "d", "ephemeral": {"volumeClaimTemplate": {}}},
        ]);
        let mut graph = Graph::default();
        graph.put("pods/g1/p", &pod("p", "", volumes.clone()));
        assert!(!has(&graph, "", "secrets", "env"), "an unbound pod is on no node");
        graph.put("pods/g1/p", &pod("p", "one", volumes.clone()));
        let all = [
            ("pods", "p"),
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("secrets", "env"),
            ("configmaps", "from"),
            ("secrets", "volume"),
            ("configmaps", "projected"),
            ("persistentvolumeclaims", "claim"),
            ("persistentvolumeclaims", "p-d"),
        ];
        for (resource, name) in all {
            assert!(has(&graph, "one", resource, name), "{resource} {name}");
            assert!(!has(&graph, "two", resource, name), "{resource} {name}");
        }
        assert!(!has(&graph, "one", "secrets", "other"));
        graph.put("pods/g1/q", &pod("q", "one", json!([])));
        graph.remove("pods/g1/p");
        assert!(has(&graph, "one", "secrets", "env"), "another pod needs it still");
        assert!(!has(&graph, "one", "secrets", "volume"));
        graph.remove("pods/g1/q");
        assert!(graph.nodes.is_empty() && graph.pods.is_empty());
    }

    #[test]
    fn a_mirror_pod_opens_nothing() {
        let mut graph = Graph::default();
        let mut mirror: Value = serde_json::from_slice(&pod("p", "one", json!([]))).unwrap();
        mirror["metadata"]["annotations"] = json!({MIRROR: "hash"});
        graph.put("pods/g1/p", mirror.to_string().as_bytes());
        assert!(has(&graph, "one", "pods", "p") && !has(&graph, "one", "secrets", "env"));
    }
}
