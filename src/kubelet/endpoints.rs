//! While the server is away nobody writes EndpointSlices: the endpoints of this node's own pods are shown as
//! their probes say, in the informer alone. Others' stay as they were. The server's next word undoes it.

use super::Kubelet;
use crate::api::object::{Object, ObjectExt};
use crate::api::view::service::Service;
use crate::client::Item;
use bytes::Bytes;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What is known here of a pod as an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub ready: bool,
    pub terminating: bool,
    pub ips: Vec<String>,
}

/// Runs until it is dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    let mut changes = kubelet.slices.subscribe();
    let mut contact = kubelet.slices.contact();
    loop {
        tokio::select! {
            change = changes.next() => kubelet.amend(change.new),
            () = kubelet.endpoints_changed.notified() => kubelet.amend_all(),
            Ok(()) = contact.changed() => kubelet.amend_all(),
        }
    }
}

impl Kubelet {
    /// `None`: nothing of the pod is left.
    pub(super) fn set_local_endpoint(&self, uid: &str, local: Option<Local>) {
        let mut all = self.endpoints.lock().expect("no panic while the endpoints are locked");
        let changed = match local {
            Some(local) if all.get(uid) == Some(&local) => false,
            Some(local) => {
                all.insert(uid.to_owned(), local);
                true
            }
            None => all.remove(uid).is_some(),
        };
        if changed && !self.slices.is_connected() {
            self.endpoints_changed.notify_one();
        }
    }

    fn amend_all(&self) {
        if !self.slices.is_connected() {
            self.slices.list().into_iter().for_each(|slice| self.amend(Some(slice)));
        }
    }

    fn amend(&self, slice: Option<Item>) {
        let Some(slice) = slice.filter(|_| !self.slices.is_connected()) else { return };
        let Ok(mut object) = slice.object() else { return };
        let service = self.services.get(object.namespace(), object.label(SERVICE_LABEL).unwrap_or_default());
        let service: Option<Service> = service.and_then(|item| item.view().ok());
        let not_ready_too = service.is_some_and(|service| service.spec.publish_not_ready_addresses);
        let all = self.endpoints.lock().expect("no panic while the endpoints are locked").clone();
        if mend(&mut object, &self.config.node_name, not_ready_too, &all) {
            let key = format!("{}/{}", object.namespace(), object.name());
            self.slices.amend(&key, Item(Bytes::from(object.to_string())));
        }
    }
}

/// Sets this node's endpoints right; whether that changed any.
fn mend(slice: &mut Object, node: &str, not_ready_too: bool, all: &HashMap<String, Local>) -> bool {
    let mut changed = false;
    let endpoints = slice.get_mut("endpoints").and_then(Object::as_array_mut);
    for endpoint in endpoints.into_iter().flatten().filter(|one| one.str_at(&["nodeName"]) == node) {
        let local = all.get(endpoint.str_at(&["targetRef", "uid"])).cloned().unwrap_or_default();
        let wanted = json!({"ready": not_ready_too || (local.ready && !local.terminating),
            "serving": local.ready, "terminating": local.terminating});
        let mut one = endpoint.clone();
        one["conditions"] = wanted;
        if !local.ips.is_empty() {
            one["addresses"] = json!(local.ips);
        }
        changed |= *endpoint != one;
        *endpoint = one;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_node_s_endpoints_are_mended() {
        let endpoint = |node: &str, uid: &str, ip: &str, ready: bool| {
            json!({"nodeName": node, "targetRef": {"uid": uid}, "addresses": [ip],
                "conditions": {"ready": ready, "serving": ready, "terminating": false}})
        };
        let slice = |endpoints: &[Object]| json!({"endpoints": endpoints});
        let up = Local { ready: true, terminating: false, ips: vec!["10.42.0.7".into()] };
        let all = HashMap::from([("a".to_owned(), up)]);
        let away = endpoint("other", "z", "10.42.1.9", true);
        let mut object =
            slice(&[endpoint("own", "a", "10.42.0.2", false), endpoint("own", "b", "10.42.0.3", true), away.clone()]);
        assert!(mend(&mut object, "own", false, &all));
        let want = [endpoint("own", "a", "10.42.0.7", true), endpoint("own", "b", "10.42.0.3", false), away];
        assert_eq!(object, slice(&want));
        assert!(!mend(&mut object, "own", false, &all), "it is so already");
        let mut published = slice(&[endpoint("own", "b", "10.42.0.3", false)]);
        assert!(mend(&mut published, "own", true, &HashMap::new()));
        assert_eq!(published.pointer("/endpoints/0/conditions/ready"), Some(&json!(true)));
    }
}
