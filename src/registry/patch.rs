//! PATCH: read, patch, replace; again when somebody else was faster and the patch names no revision.

use super::update::{ATTEMPTS, Target};
use super::{Context, Decoded, Outcome, PatchType, Registry, encode, meta, scale, schema};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};

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
                let mut scale = scale::scale_of(kind, &old)?;
                apply(kind, &patch_type, &mut scale, &patch)?;
                return self.update_scale(target, Decoded { object: scale, warnings }).await;
            }
            let mut new = old.clone();
            apply(kind, &patch_type, &mut new, &patch)?;
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

fn apply(_kind: &Kind, patch_type: &PatchType, object: &mut Object, patch: &Object) -> Result<()> {
    match patch_type {
        PatchType::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(object, &operations).map_err(|_| rejected())
        }
        PatchType::Merge => {
            json_patch::merge(object, patch);
            Ok(())
        }
        PatchType::Strategic => {
            json_patch::merge(object, patch);
            Ok(())
        }
        PatchType::Apply { .. } => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        )),
    }
}

fn rejected() -> Status {
    Status::new(422, "Invalid", "the server rejected our request due to an error in our request")
}
