//! A pod leaves a node that stays away for five minutes, unless it says otherwise.

use super::{Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::Result;
use crate::registry::Registry;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde_json::{Value, json};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const TOLERATION_S: u32 = 300;

pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn handles(&self, request: &Request) -> bool {
        request.creates("pods")
    }

    fn admit<'a>(
        &'a self,
        _registry: &'a Registry,
        _request: &'a Request<'a>,
        pod: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        add(pod);
        ready(Ok(())).boxed()
    }
}

fn add(pod: &mut Object) {
    let own = pod.at(&["spec", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let tolerates = |key: &str| {
        own.iter().any(|one| {
            matches!(one.str_at(&["effect"]), "" | "NoExecute")
                && (one.str_at(&["key"]) == key || one.str_at(&["key"]).is_empty())
        })
    };
    let missing = TAINTS.into_iter().filter(|key| !tolerates(key));
    let added: Vec<Value> = missing
        .map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_S}))
        .collect();
    if !added.is_empty() {
        pod.set(&["spec", "tolerations"], own.into_iter().chain(added).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_tolerated_yet_is_added() {
        let keys = |mut pod: Object| -> Vec<String> {
            add(&mut pod);
            let list = pod["spec"]["tolerations"].as_array().unwrap();
            list.iter().map(|one| one.str_at(&["key"]).to_owned()).collect()
        };
        assert_eq!(keys(json!({"spec": {}})), TAINTS);
        let own = json!({"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute"});
        assert_eq!(keys(json!({"spec": {"tolerations": [own]}})), TAINTS);
        assert_eq!(keys(json!({"spec": {"tolerations": [{"operator": "Exists"}]}})), [""]);
    }
}
