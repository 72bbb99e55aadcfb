//! The three kinds of patch that need no field ownership: RFC 6902, RFC 7386 and strategic merge.
//! Each makes a new document; the codec checks afterwards that it still has its type.

pub mod json;
pub mod merge;
pub mod strategic;

use crate::api::status::{Details, Status};

/// A patch that cannot be applied to this document.
fn rejected() -> Status {
    let mut status = Status::new(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = Some(Box::<Details>::default());
    status
}
