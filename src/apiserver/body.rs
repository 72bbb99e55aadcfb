//! Request bodies: read with a limit, then decoded by the type of the kind they are for.

use super::negotiate;
use super::{Call, content_type};
use crate::api::codec::{self, MediaType};
use crate::api::kinds::{Kind, Subresource};
use crate::api::scheme::{self, TypeRef};
use crate::api::status::{Result, Status};
use crate::registry::{Decoded, FieldValidation, PatchType};
use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

const BODY_LIMIT_BYTES: usize = 3 << 20;

/// The whole body.
pub async fn read(body: Body) -> Result<Bytes> {
    match Limited::new(body, BODY_LIMIT_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("Request entity too large: limit is {BODY_LIMIT_BYTES}")))
        }
        Err(error) => Err(Status::bad_request(format!("unable to read the request body: {error}"))),
    }
}

/// The object of a create or update of `kind`, or of one of its subresources.
pub async fn object(
    call: &Call,
    body: Body,
    kind: &Kind,
    sub: Option<&Subresource>,
    validation: FieldValidation,
) -> Result<Decoded> {
    let media = negotiate::body_format(content_type(call))?;
    let bytes = read(body).await?;
    let (mut api_version, name) = expected(kind, sub);
    let schema_version = api_version.clone();
    // kubectl up to 1.21 evicts in words of the version before; the fields are the same.
    if name == "Eviction" && contains(&bytes, EVICTION_BETA) {
        api_version = EVICTION_BETA.to_owned();
    }
    // A subresource of the kind's own type has its schema, which custom kinds bring along.
    let schema = if name == kind.kind { scheme::find(&kind.schema) } else { scheme::find_kind(&schema_version, &name) };
    decode(media, &bytes, schema, &api_version, &name, validation)
}

const EVICTION_BETA: &str = "policy/v1beta1";

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The type of a body: the kind itself, or what the subresource exchanges.
fn expected(kind: &Kind, sub: Option<&Subresource>) -> (String, String) {
    let Some(sub) = sub else { return (kind.api_version(), kind.kind.to_string()) };
    let api_version = match (&*sub.group, &*sub.version) {
        (_, "") => kind.api_version(),
        ("", version) => version.to_owned(),
        (group, version) => format!("{group}/{version}"),
    };
    (api_version, sub.kind.to_string())
}

/// A patch as it was sent, parsed.
pub fn patch(patch_type: &PatchType, bytes: &[u8]) -> Result<Decoded> {
    let media = if matches!(patch_type, PatchType::Apply { .. }) { MediaType::Yaml } else { MediaType::Json };
    let decoded = codec::decode_patch(media, bytes)?;
    let wrong = |found: &str, wanted: &str| {
        Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type {wanted}"
        ))
    };
    match (patch_type, &decoded.object) {
        (PatchType::Json, Value::Array(_)) => {}
        (PatchType::Json, other) => return Err(wrong(type_name(other), "[]handlers.jsonPatchOp")),
        (_, Value::Object(_)) => {}
        (_, other) => return Err(wrong(type_name(other), "map[string]interface {}")),
    }
    Ok(decoded)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    }
}

/// The options of a delete; `None` when there is no body.
pub async fn delete_options(call: &Call, body: Body) -> Result<Option<Decoded>> {
    const TYPE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    let bytes = read(body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let media = negotiate::body_format(content_type(call))?;
    let schema = scheme::find(TYPE);
    decode(media, &bytes, schema, "v1", "DeleteOptions", FieldValidation::Ignore).map(Some)
}

fn decode(
    media: MediaType,
    bytes: &[u8],
    schema: Option<TypeRef>,
    api_version: &str,
    kind: &str,
    validation: FieldValidation,
) -> Result<Decoded> {
    codec::decode(media, bytes, schema, api_version, kind, validation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_must_have_the_form_of_their_type() {
        let message = |patch_type, text: &str| patch(&patch_type, text.as_bytes()).err().map(|error| error.message);
        assert_eq!(message(PatchType::Json, "[]"), None);
        assert_eq!(message(PatchType::Apply { force: false }, "a: 1"), None);
        let expected =
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp";
        assert_eq!(message(PatchType::Json, "{\"a\":1}").as_deref(), Some(expected));
        assert!(message(PatchType::Merge, "[]").is_some());
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let error = read(Body::from(vec![0; BODY_LIMIT_BYTES + 1])).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (413, "Request entity too large: limit is 3145728"));
    }
}
