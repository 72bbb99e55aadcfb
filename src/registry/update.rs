//! UPDATE, and what every change of an existing object goes through: `replace`.

use super::admission::{self, Operation, Request};
use super::{Context, Decoded, Outcome, Registry, Written, create, encode, events, meta, schema, store_error, subject};
use super::{subresource, trace};
use crate::api::kinds::{HookContext, Kind};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status};
use crate::api::validation;
use crate::store::{Entry, Expected, StoreError, Write};
use serde_json::Value;
use std::sync::Arc;

/// Attempts of a change that does not insist on a revision.
pub(super) const ATTEMPTS: usize = 5;

/// What is being changed, and by whom.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub context: &'a Context,
    pub kind: &'a Kind,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Target<'_> {
    pub fn not_found(&self) -> Status {
        Status::not_found(subject(self.kind, self.name))
    }
    pub fn modified(&self) -> Status {
        Status::modified(subject(self.kind, self.name))
    }
}

impl Registry {
    /// `subresource`: empty, `status`, `scale`, `ephemeralcontainers`, `resize`, `finalize`, …
    pub async fn update(
        &self,
        context: &Context,
        kind: &Kind,
        subresource: &str,
        namespace: &str,
        name: &str,
        object: Decoded,
    ) -> Outcome {
        let target = Target { context, kind, subresource, namespace, name };
        if subresource == "scale" {
            return self.update_scale(target, object).await;
        }
        let Decoded { mut object, warnings } = object;
        meta::set_name(name, &mut object)?;
        meta::set_namespace(kind, namespace, &mut object)?;
        encode::type_meta(kind, &mut object);
        let conditional = !matches!(object.resource_version(), "" | "0");
        for _ in 0..ATTEMPTS {
            let Some(existing) = self.stored(kind, namespace, name).await? else {
                return self.create_by_update(target, object, warnings).await;
            };
            let old = encode::decode(kind, &existing)?;
            meta::check_preconditions(kind, &existing, &object, &old)?;
            let new = if conditional { std::mem::take(&mut object) } else { object.clone() };
            if let Some(mut written) = self.replace(target, &existing, &old, new).await? {
                written.warnings.splice(0..0, warnings);
                return Ok(written);
            }
            if conditional {
                break;
            }
        }
        Err(target.modified())
    }

    async fn create_by_update(&self, target: Target<'_>, object: Object, warnings: Vec<String>) -> Outcome {
        let wants_existing = !matches!(object.resource_version(), "" | "0") || !object.uid().is_empty();
        if !target.kind.create_on_update || !target.subresource.is_empty() || wants_existing {
            return Err(target.not_found());
        }
        self.create(target.context, target.kind, target.namespace, Decoded { object, warnings }).await
    }

    /// Puts `new` in the place of `old`, the decoded `existing`. `None`: somebody else was faster.
    pub(super) async fn replace(
        &self,
        target: Target<'_>,
        existing: &Arc<Entry>,
        old: &Object,
        new: Object,
    ) -> Result<Option<Written>> {
        let Target { context, kind, subresource, namespace, name } = target;
        let now = self.clock.now();
        let mut new = subresource::merge(kind, subresource, new, old)?;
        meta::carry_over(&mut new, old);
        schema::default(kind, &mut new);
        let request =
            Request { context, kind, subresource, operation: Operation::Update, namespace, name, old: Some(old), now };
        admission::admit(self, &request, &mut new).await?;
        let hook = HookContext { now, user: &context.user.name, subresource };
        kind.strategy.prepare_update(&hook, &mut new, old);
        count_generation(kind, subresource, &mut new, old);
        let _addresses = self.assign_addresses(kind, &mut new, Some(old)).await?;
        meta::refuse_invalid(kind, name, problems(kind, &hook, &new, old))?;
        admission::validate(self, &request, &new).await?;
        let warnings = kind.strategy.warnings(&new, Some(old));
        let entry = self.store_changed(target, existing, old, new).await?;
        Ok(entry.map(|entry| Written { entry, created: false, warnings }))
    }

    /// Writes, or deletes what was only waiting for this change, or finds that nothing changed.
    pub(super) async fn store_changed(
        &self,
        target: Target<'_>,
        existing: &Arc<Entry>,
        old: &Object,
        new: Object,
    ) -> Result<Option<Arc<Entry>>> {
        let kind = target.kind;
        let finished = meta::is_finished(kind, &new);
        let steps = trace::steps(kind, Some(old), &new);
        let durability = create::durability(kind, Some(old), &new);
        let encoded = encode::encode(kind, new)?;
        if !finished && encoded.equals(existing) {
            return encode::shown(kind, existing).map(Some);
        }
        let value = (!finished).then(|| encoded.bytes.clone());
        let write = Write {
            key: existing.key.clone(),
            expected: Expected::Revision(existing.revision),
            value,
            splice_at: encoded.splice_at,
            durability,
        };
        let unsaved = (finished || target.context.dry_run).then(|| encoded.unsaved(&existing.key, existing.revision));
        if target.context.dry_run {
            return unsaved.map(|entry| encode::shown(kind, &entry)).transpose();
        }
        let moment = self.moment();
        let stored = match self.store.write(write).await {
            Ok(stored) => stored,
            Err(StoreError::Conflict(_) | StoreError::Absent) => return Ok(None),
            Err(error) => return Err(store_error(kind, target.name, error)),
        };
        self.mark(moment, old.uid(), &steps);
        if finished {
            self.mark_deleted(moment, kind, old.uid());
        } else if kind.storage_prefix == events::PREFIX {
            self.expire_events(&stored).await;
        }
        encode::shown(kind, &unsaved.unwrap_or(stored)).map(Some)
    }
}

/// Counts changes of what is wanted. Some strategies count more; binding a pod is not counted.
fn count_generation(kind: &Kind, subresource: &str, new: &mut Object, old: &Object) {
    let counts = kind.strategy.has_generation() && subresource != "binding";
    if counts && new.generation() == old.generation() && !meta::same_specification(new, old) {
        let next = old.generation() + 1;
        new.metadata_mut().insert("generation".to_owned(), Value::from(next));
    }
}

fn problems(kind: &Kind, hook: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = validation::metadata_update(kind, new, old);
    match hook.subresource {
        "binding" => {}
        "status" => errors.extend(kind.strategy.validate_status_update(hook, new, old)),
        _ => {
            errors.extend(kind.strategy.validate(hook, new));
            errors.extend(kind.strategy.validate_update(hook, new, old));
        }
    }
    errors
}
