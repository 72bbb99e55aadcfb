//! `downwardAPI` volumes and projections. Pure.

use super::{DEFAULT_FILE_MODE, Files};
use crate::api::view::pod::{DownwardApi, DownwardFile};
use crate::kubelet::downward::{Downward, field, resource};
use crate::runtime::VolumeFile;

/// `outer_mode` is the projection's.
pub fn files(wanted: &DownwardApi, outer_mode: Option<u32>, downward: &Downward) -> Result<Files, String> {
    let mode = wanted.default_mode.or(outer_mode).unwrap_or(DEFAULT_FILE_MODE);
    let file = |item: &DownwardFile| {
        let text = text(item, downward)?;
        Ok((item.path.clone(), VolumeFile { bytes: text.into(), mode: item.mode.unwrap_or(mode) }))
    };
    wanted.items.iter().map(file).collect()
}

fn text(item: &DownwardFile, downward: &Downward) -> Result<String, String> {
    match (&item.field_ref, &item.resource_field_ref) {
        (Some(reference), _) => field(downward, &reference.field_path),
        (_, Some(reference)) => resource(downward, reference, ""),
        _ => Err(format!("file {} has no source", item.path)),
    }
}
