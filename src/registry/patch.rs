//! PATCH: read, patch, replace; again when somebody else was faster and the patch names no revision.

use super::update::{ATTEMPTS, Target};
use super::{Context, Decoded, Outcome, PatchType, Registry, encode, meta, scale, schema};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::api::{patch, scheme};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

impl Registry {
    /// `patch` as sent, parsed: an array for JSON Patch, an object otherwise.
    #[allow(clippy::too_many_arguments, reason = "the parts of one request line")]
    pub async fn patch(
        &self,
        context: &Context,
        kind: &Kind,
        subresource: &str,
        namespace: &str,
        name: &str,
        patch_type: PatchType,
        patch: Decoded,
    ) -> Outcome {
        let target = Target { context, kind, subresource, namespace, name };
        let Decoded { object: patch, warnings } = patch;
        for _ in 0..ATTEMPTS {
            let existing = self.stored(kind, namespace, name).await?.ok_or_else(|| target.not_found())?;
            let old = encode::decode(kind, &existing)?;
            if subresource == "scale" {
                let scale = apply(SCALE, &patch_type, scale::scale_of(kind, &old)?, &patch)?;
                match self.update_scale(target, Decoded { object: scale, warnings: warnings.clone() }).await {
                    // The patched Scale carries the revision that was read; the patch itself insists on none.
                    Err(error) if error.is_conflict() && patch.resource_version().is_empty() => continue,
                    outcome => return outcome,
                }
            }
            let mut new = apply(&kind.schema, &patch_type, old.clone(), &patch)?;
            meta::set_name(name, &mut new)?;
            meta::set_namespace(kind, namespace, &mut new)?;
            encode::type_meta(kind, &mut new);
            let unknown = schema::check_patched(kind, &mut new, context.field_validation)?;
            meta::check_preconditions(kind, &existing, &new, &old)?;
            if let Some(mut written) = self.replace(target, &existing, &old, new).await? {
                written.warnings.splice(0..0, warnings.into_iter().chain(unknown));
                return Ok(written);
            }
            if !patch.resource_version().is_empty() {
                break;
            }
        }
        Err(target.modified())
    }
}

/// `schema` is the type of `object`; kinds without one take no strategic patch.
fn apply(schema: &str, patch_type: &PatchType, object: Object, patch: &Object) -> Result<Object> {
    match (patch_type, scheme::find(schema)) {
        (PatchType::Json, _) => patch::json::apply(object, patch),
        (PatchType::Merge, _) => patch::merge::apply(object, patch),
        (PatchType::Strategic, Some(schema)) => patch::strategic::apply(object, patch, schema),
        (PatchType::Strategic, None) => Err(unsupported("application/json-patch+json, application/merge-patch+json")),
        (PatchType::Apply { .. }, _) => Err(unsupported(
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        )),
    }
}

fn unsupported(accepted: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}
