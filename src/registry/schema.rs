//! What the scheme's data says about an object: defaults, and the form a decode into types would leave.
//! A kind without a type in the scheme is left as it is.

use super::FieldValidation;
use crate::api::codec;
use crate::api::kinds::Kind;
use crate::api::object::Object;
use crate::api::scheme;
use crate::api::status::Result;

/// The scheme's defaults, then the strategy's.
pub(super) fn default(kind: &Kind, object: &mut Object) {
    if let Some(schema) = scheme::find(&kind.schema) {
        scheme::apply_defaults(schema, object);
    }
    kind.strategy.default(object);
}

/// Checks and prunes what a patch made; the warnings to send.
pub(super) fn check_patched(kind: &Kind, object: &mut Object, validation: FieldValidation) -> Result<Vec<String>> {
    match scheme::find(&kind.schema) {
        Some(schema) => codec::check_patched(schema, object, validation),
        None => Ok(Vec::new()),
    }
}
