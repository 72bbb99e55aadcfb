//! `emptyDir` volumes. Pure.

use crate::api::quantity::Quantity;
use crate::api::view::pod::EmptyDir;
use crate::runtime::VolumeContent;

pub fn content(wanted: &EmptyDir, fs_group: Option<i64>) -> VolumeContent {
    let limit = wanted.size_limit.as_ref().and_then(|limit| Quantity::from_value(limit).ok());
    let size_limit_bytes = limit.map_or(0, |limit| limit.value().max(0).unsigned_abs());
    VolumeContent::EmptyDir { memory: wanted.medium == "Memory", size_limit_bytes, fs_group }
}
