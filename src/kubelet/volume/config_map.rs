//! `configMap` volumes and projections.

use super::{DEFAULT_FILE_MODE, Files, Source, data, select};
use crate::api::view::pod::ConfigMapSource;
use crate::client::CONFIGMAPS;
use crate::kubelet::references::Key;

/// `outer_mode` is the projection's.
pub async fn files(wanted: &ConfigMapSource, outer_mode: Option<u32>, source: &Source<'_>) -> Result<Files, String> {
    let optional = wanted.optional == Some(true);
    let namespace = source.downward.pod.metadata.namespace.clone();
    let key = Key { resource: CONFIGMAPS, namespace, name: wanted.name.clone() };
    let mode = wanted.default_mode.or(outer_mode).unwrap_or(DEFAULT_FILE_MODE);
    match data(source.held, &key).await? {
        Some(data) => select(data, &wanted.items, mode, optional, "configmap references non-existent config key"),
        None if optional => Ok(Files::new()),
        None => Err(format!("configmap \"{}\" not found", wanted.name)),
    }
}
