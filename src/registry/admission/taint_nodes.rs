//! A new node takes no pods before it has said that it is ready.

use super::{Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::Result;
use crate::registry::Registry;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn handles(&self, request: &Request) -> bool {
        request.creates("nodes")
    }

    fn admit<'a>(
        &'a self,
        _registry: &'a Registry,
        _request: &'a Request<'a>,
        node: &'a mut Object,
    ) -> BoxFuture<'a, Result<()>> {
        let taints = node.at(&["spec", "taints"]).and_then(Value::as_array).cloned().unwrap_or_default();
        let there = |taint: &Value| taint.str_at(&["key"]) == NOT_READY && taint.str_at(&["effect"]) == "NoSchedule";
        if !taints.iter().any(there) {
            let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
            node.set(&["spec", "taints"], taints.into_iter().chain([taint]).collect());
        }
        ready(Ok(())).boxed()
    }
}
