//! Pods and their tokens: a node ends and reports its own pods, makes mirror pods that refer to nothing, and asks for
//! tokens of the accounts its pods run as.

use super::{Check, Operation};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::Result;
use crate::api::validation::check::list;
use crate::api::validation::same;
use serde_json::Value;

const MIRROR: &str = "kubernetes.io/config.mirror";

impl Check<'_> {
    pub(super) async fn check_pod(&self, subresource: &str) -> Result<()> {
        let node = self.node;
        match (subresource, self.request.operation) {
            ("", Operation::Create) => self.check_mirror(),
            ("", Operation::Delete) if !self.is_own(self.object) => {
                self.refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            ("", Operation::Delete) => Ok(()),
            ("", Operation::Update) => self.refuse(format!(
                "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
            )),
            ("status", Operation::Update) => self.check_status(),
            ("eviction", Operation::Create) => self.check_eviction().await,
            ("status" | "eviction", _) => self.refuse("unexpected operation"),
            (other, _) => {
                self.refuse(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
        }
    }

    fn is_own(&self, pod: &Object) -> bool {
        pod.str_at(&["spec", "nodeName"]) == self.node
    }

    fn check_status(&self) -> Result<()> {
        let (node, old) = (self.node, self.request.old);
        if !old.is_some_and(|old| self.is_own(old)) {
            return self
                .refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
        }
        let path = ["metadata", "labels"];
        if !same(old.and_then(|old| old.at(&path)), self.object.at(&path)) {
            return self.refuse(format!("node {node:?} cannot update labels through pod status"));
        }
        Ok(())
    }

    async fn check_eviction(&self) -> Result<()> {
        let node = self.node;
        let pod = self.pod(self.request.name).await?;
        // That it is gone is for the eviction to say.
        if pod.is_none_or(|pod| self.is_own(&pod)) {
            return Ok(());
        }
        self.refuse(format!("node {node} can only create evictions for pods with spec.nodeName set to itself"))
    }

    async fn pod(&self, name: &str) -> Result<Option<Object>> {
        self.registry.peek(&format!("pods/{}/{name}", self.request.namespace)).await
    }

    fn check_mirror(&self) -> Result<()> {
        let (node, pod) = (self.node, self.object);
        if pod.annotation(MIRROR).is_none() {
            return self
                .refuse(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
        }
        if !self.is_own(pod) {
            return self.refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        self.check_owner(pod)?;
        if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
            return self.refuse(format!("node {node:?} can not create pods that reference a service account"));
        }
        let spec = pod.get("spec").cloned().unwrap_or_default();
        for (what, fields) in REFERENCES {
            if fields.iter().any(|field| mentions(&spec, field)) {
                return self.refuse(format!("node {node:?} can not create pods that reference {what}"));
            }
        }
        Ok(())
    }

    fn check_owner(&self, pod: &Object) -> Result<()> {
        let node = self.node;
        let owner = match pod.owner_references() {
            [] => return Ok(()),
            [owner] => owner,
            _ => {
                return self
                    .refuse(format!("node {node:?} can only create pods with a single owner reference set to itself"));
            }
        };
        if owner.api_version() != "v1" || owner.kind() != "Node" || owner.str_at(&["name"]) != node {
            return self.refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        if owner.at(&["controller"]) != Some(&Value::Bool(true)) {
            return self
                .refuse(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
        }
        if owner.at(&["blockOwnerDeletion"]) == Some(&Value::Bool(true)) {
            return self.refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        Ok(())
    }

    pub(super) async fn check_token(&self) -> Result<()> {
        let reference = self.object.at(&["spec", "boundObjectRef"]).cloned().unwrap_or_default();
        let (name, uid) = (reference.str_at(&["name"]), reference.str_at(&["uid"]));
        if reference.api_version() != "v1" || reference.kind() != "Pod" || name.is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        if uid.is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let Some(pod) = self.pod(name).await? else { return self.refuse(format!("pod {name:?} not found")) };
        if pod.uid() != uid {
            return self.refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            ));
        }
        if !self.is_own(&pod) {
            return self.refuse("node requested token bound to a pod scheduled on a different node");
        }
        self.check_audience(&pod)
    }

    /// A token for others is asked for only where the pod mounts one for them.
    fn check_audience(&self, pod: &Object) -> Result<()> {
        let spec = self.object.get("spec").cloned().unwrap_or_default();
        let audience = match list(&spec, "audiences") {
            [] => return Ok(()),
            [audience] => audience.as_str().unwrap_or_default(),
            _ => return self.refuse("node may only request 0 or 1 audiences"),
        };
        let wanted = pod.get("spec").cloned().unwrap_or_default();
        let mounted = list(&wanted, "volumes").iter().filter_map(|volume| volume.get("projected")).any(|projected| {
            let tokens = list(projected, "sources").iter().filter_map(|source| source.get("serviceAccountToken"));
            tokens.into_iter().any(|token| token.str_at(&["audience"]) == audience)
        });
        if mounted || audience.is_empty() {
            return Ok(());
        }
        let node = self.node;
        self.refuse(format!(
            "audience {audience:?} not found in pod spec volume, system:node:{node} is not authorized to request tokens for \
             this audience"
        ))
    }
}

/// Field names that only stand for references of one sort, wherever in a pod they are.
const REFERENCES: [(&str, &[&str]); 4] = [
    ("secrets", &["imagePullSecrets", "secretKeyRef", "secretRef", "secret", "secretName", "nodePublishSecretRef"]),
    ("configmaps", &["configMapKeyRef", "configMapRef", "configMap"]),
    ("persistentvolumeclaims", &["persistentVolumeClaim", "ephemeral"]),
    ("resourceclaims", &["resourceClaims"]),
];

/// Whether a field of this name is anywhere in it.
fn mentions(value: &Value, field: &str) -> bool {
    match value {
        Value::Object(members) => {
            members.iter().any(|(key, value)| (key == field && !value.is_null()) || mentions(value, field))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, field)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_they_are() {
        let spec = json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "a"}}}]}],
            "volumes": [{"projected": {"sources": [{"configMap": {"name": "b"}}]}}]});
        let found: Vec<&str> = REFERENCES
            .iter()
            .filter(|(_, fields)| fields.iter().any(|field| mentions(&spec, field)))
            .map(|(what, _)| *what)
            .collect();
        assert_eq!(found, ["secrets", "configmaps"]);
        assert!(!mentions(&json!({"hostPath": {"path": "/secret"}}), "secret"));
    }
}
