//! A pod's priority is the number its PriorityClass stands for.

use super::{Plugin, Request};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::registry::Registry;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

const PREFIX: &str = "priorityclasses.scheduling.k8s.io/";
const PREEMPT: &str = "PreemptLowerPriority";

pub struct Priority;

/// What a class gives to a pod.
struct Given {
    class: String,
    value: i64,
    preemption: String,
}

impl Plugin for Priority {
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
            let given = match pod.str_at(&["spec", "priorityClassName"]) {
                "" => default_class(registry).await?,
                name => named_class(registry, request, name).await?,
            };
            give(request, pod, given)
        }
        .boxed()
    }
}

fn give(request: &Request, pod: &mut Object, given: Given) -> Result<()> {
    if let Some(asked) = pod.int_at(&["spec", "priority"]).filter(|asked| *asked != given.value) {
        let why = format!(
            "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller \
             computed {} from the given PriorityClass name",
            given.value
        );
        return Err(request.forbidden(&why));
    }
    if !given.class.is_empty() {
        pod.set(&["spec", "priorityClassName"], Value::from(given.class));
    }
    pod.set(&["spec", "priority"], Value::from(given.value));
    let own = pod.str_at(&["spec", "preemptionPolicy"]);
    if !own.is_empty() && own != given.preemption {
        let why = format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission \
             controller computed {} from the given PriorityClass name",
            given.preemption
        );
        return Err(request.forbidden(&why));
    }
    pod.set(&["spec", "preemptionPolicy"], Value::from(given.preemption));
    Ok(())
}

fn of_class(class: &Object) -> Given {
    let preemption = match class.str_at(&["preemptionPolicy"]) {
        "" => PREEMPT,
        policy => policy,
    };
    Given {
        class: class.name().to_owned(),
        value: class.int_at(&["value"]).unwrap_or(0),
        preemption: preemption.to_owned(),
    }
}

async fn named_class(registry: &Registry, request: &Request<'_>, name: &str) -> Result<Given> {
    let class: Option<Object> = registry.peek(&format!("{PREFIX}/{name}")).await?;
    let class = class.ok_or_else(|| request.forbidden(&format!("no PriorityClass with name {name} was found")))?;
    Ok(of_class(&class))
}

/// The lowest of the classes that are marked as the default, else 0.
async fn default_class(registry: &Registry) -> Result<Given> {
    let page = registry.store.list(PREFIX, "", 0, None).await.map_err(Status::internal)?;
    let mut default = None;
    for entry in page.entries {
        let class: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
        let lower = default.as_ref().is_none_or(|given: &Given| class.int_at(&["value"]).unwrap_or(0) < given.value);
        if class.at(&["globalDefault"]) == Some(&Value::Bool(true)) && lower {
            default = Some(of_class(&class));
        }
    }
    Ok(default.unwrap_or(Given { class: String::new(), value: 0, preemption: PREEMPT.to_owned() }))
}
