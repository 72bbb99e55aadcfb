//! CREATE: default → admit → prepare → validate → encode once → store.

use super::admission::{self, Operation, Request};
use super::{Context, Decoded, Outcome, Registry, Written, encode, events, meta, schema, store_error, subject, trace};
use crate::api::kinds::{DurabilityClass, HookContext, Kind};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::api::validation;
use crate::store::{Durability, Entry, Expected, StoreError, Write};
use serde_json::Value;
use std::sync::Arc;

/// Names tried for one `generateName`.
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    pub async fn create(&self, context: &Context, kind: &Kind, namespace: &str, object: Decoded) -> Outcome {
        let Decoded { mut object, mut warnings } = object;
        if !kind.stored && kind.verbs.len() == 1 {
            return Err(Status::method_not_allowed(format!("{} are answered, not stored", kind.plural)));
        }
        self.begin(kind, namespace, &mut object).await?;
        let now = self.clock.now();
        let name = object.name().to_owned();
        let request = Request {
            context,
            kind,
            subresource: "",
            operation: Operation::Create,
            namespace,
            name: &name,
            old: None,
            now,
        };
        admission::admit(self, &request, &mut object).await?;
        let hook = HookContext { now, user: &context.user.name, subresource: "" };
        meta::begin(kind, &mut object, now);
        kind.strategy.prepare_create(&hook, &mut object);
        let mut errors = validation::metadata(kind, &object);
        errors.extend(kind.strategy.validate(&hook, &object));
        errors.extend(kind.strategy.validate_create(&hook, &object));
        meta::refuse_invalid(kind, &name, errors)?;
        let _addresses = self.assign_addresses(kind, &mut object, None).await?;
        admission::validate(self, &request, &object).await?;
        warnings.extend(kind.strategy.warnings(&object, None));
        let entry = self.store_new(context, kind, namespace, &name, object).await?;
        Ok(Written { entry, created: true, warnings })
    }

    /// Identity and defaults.
    async fn begin(&self, kind: &Kind, namespace: &str, object: &mut Object) -> Result<()> {
        if !matches!(object.resource_version(), "" | "0") {
            return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        meta::set_namespace(kind, namespace, object)?;
        encode::type_meta(kind, object);
        schema::default(kind, object);
        if object.name().is_empty() && !object.str_at(&["metadata", "generateName"]).is_empty() {
            let name = self.free_name(kind, namespace, object.str_at(&["metadata", "generateName"])).await?;
            object.metadata_mut().insert("name".to_owned(), name.into());
        }
        Ok(())
    }

    async fn free_name(&self, kind: &Kind, namespace: &str, prefix: &str) -> Result<String> {
        let mut name = meta::generated_name(prefix);
        for _ in 1..NAME_ATTEMPTS {
            if self.stored(kind, namespace, &name).await?.is_none() {
                break;
            }
            name = meta::generated_name(prefix);
        }
        Ok(name)
    }

    async fn store_new(
        &self,
        context: &Context,
        kind: &Kind,
        namespace: &str,
        name: &str,
        object: Object,
    ) -> Result<Arc<Entry>> {
        let key = kind.key(namespace, name);
        let uid = object.uid().to_owned();
        let steps = trace::steps(kind, None, &object);
        let durability = durability(kind, None, &object);
        let encoded = encode::encode(kind, object)?;
        if context.dry_run {
            if let Some(existing) = self.stored(kind, namespace, name).await? {
                return Err(exists(kind, name, &existing));
            }
            return encode::shown(kind, &encoded.unsaved(&key, 0));
        }
        let write = Write {
            key: key.into(),
            expected: Expected::Absent,
            value: Some(encoded.bytes),
            splice_at: encoded.splice_at,
            durability,
        };
        let moment = self.moment();
        let entry = self.store.write(write).await.map_err(|error| match error {
            StoreError::Exists(existing) => exists(kind, name, &existing),
            other => store_error(kind, name, other),
        })?;
        self.mark(moment, &uid, &steps);
        if kind.storage_prefix == events::PREFIX {
            self.expire_events(&entry).await;
        }
        encode::shown(kind, &entry)
    }
}

fn exists(kind: &Kind, name: &str, existing: &Entry) -> Status {
    let mut status = Status::already_exists(subject(kind, name));
    if encode::decode(kind, existing).is_ok_and(|object| object.deletion_timestamp().is_some()) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// Whether this write may wait for the next durable one: what is renewed every few seconds, and Events.
pub(super) fn durability(kind: &Kind, old: Option<&Object>, new: &Object) -> Durability {
    let lazy = match kind.durability {
        DurabilityClass::Lazy => true,
        DurabilityClass::LazyRenewal => {
            old.is_some_and(|old| old.at(&["spec", "holderIdentity"]) == new.at(&["spec", "holderIdentity"]))
        }
        DurabilityClass::Durable => old.is_some_and(|old| is_heartbeat(kind, old, new)),
    };
    if lazy { Durability::Lazy } else { Durability::Durable }
}

/// Whether a node only says that it is still as it was.
fn is_heartbeat(kind: &Kind, old: &Object, new: &Object) -> bool {
    if kind.storage_prefix != "nodes" {
        return false;
    }
    let without_times = |node: &Object| {
        let mut node = node.clone();
        let conditions = node.get_mut("status").and_then(|status| status.get_mut("conditions"));
        for condition in conditions.and_then(Value::as_array_mut).into_iter().flatten() {
            condition.unset(&["lastHeartbeatTime"]);
        }
        node
    };
    without_times(old) == {
        let mut new = without_times(new);
        new.set(&["metadata", "resourceVersion"], Value::from(old.resource_version()));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Kinds;
    use serde_json::json;

    #[test]
    fn renewals_and_heartbeats_may_wait_and_changes_may_not() {
        let kinds = Kinds::default();
        let lease = kinds.kind("coordination.k8s.io/v1", "Lease").unwrap();
        let held = |by: &str, at: &str| json!({"spec": {"holderIdentity": by, "renewTime": at}});
        assert_eq!(durability(&lease, None, &held("a", "1")), Durability::Durable);
        assert_eq!(durability(&lease, Some(&held("a", "1")), &held("a", "2")), Durability::Lazy);
        assert_eq!(durability(&lease, Some(&held("a", "1")), &held("b", "2")), Durability::Durable);
        let node = kinds.kind("v1", "Node").unwrap();
        let ready = |revision: &str, status: &str, at: &str| {
            let condition = json!({"type": "Ready", "status": status, "lastHeartbeatTime": at});
            json!({"metadata": {"resourceVersion": revision}, "status": {"conditions": [condition]}})
        };
        let old = ready("5", "True", "1");
        assert_eq!(durability(&node, Some(&old), &ready("", "True", "2")), Durability::Lazy);
        assert_eq!(durability(&node, Some(&old), &ready("5", "False", "2")), Durability::Durable);
        let event = kinds.kind("v1", "Event").unwrap();
        assert_eq!(durability(&event, None, &json!({})), Durability::Lazy);
    }
}
