//! `hostPath` volumes. Pure.

use crate::api::view::pod::HostPath;
use crate::runtime::VolumeContent;

pub fn content(wanted: &HostPath) -> VolumeContent {
    VolumeContent::HostPath { path: wanted.path.clone().into(), kind: wanted.r#type.clone() }
}
