//! Printers: the cells kubectl shows, one function per kind, in a file per group of kinds.
//! A cell is what upstream's printer answers: text, or a number where its column counts.

use super::Column;
use super::row::{self, NAME};
use crate::api::object::{Object, ObjectExt};
use jiff::Timestamp;
use serde_json::Value;

/// What a kind without a printer shows.
pub(super) const DEFAULT_COLUMNS: &[Column] =
    &[NAME, row::string("Created At", "When the object was created, by the server's clock.")];

pub(super) fn default_cells(object: &Object, _now: Timestamp) -> Vec<Value> {
    vec![object.name().into(), object.str_at(&["metadata", "creationTimestamp"]).into()]
}
