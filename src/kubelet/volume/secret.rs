//! `secret` volumes and projections.

use super::{DEFAULT_FILE_MODE, Files, Source, data, select};
use crate::api::view::pod::SecretSource;
use crate::client::SECRETS;
use crate::kubelet::references::Key;

/// `outer_mode` is the projection's.
pub async fn files(wanted: &SecretSource, outer_mode: Option<u32>, source: &Source<'_>) -> Result<Files, String> {
    let optional = wanted.optional == Some(true);
    let name = if wanted.secret_name.is_empty() { &wanted.name } else { &wanted.secret_name };
    let namespace = source.downward.pod.metadata.namespace.clone();
    let key = Key { resource: SECRETS, namespace, name: name.clone() };
    let mode = wanted.default_mode.or(outer_mode).unwrap_or(DEFAULT_FILE_MODE);
    match data(source.held, &key).await? {
        Some(data) => select(data, &wanted.items, mode, optional, "references non-existent secret key"),
        None if optional => Ok(Files::new()),
        None => Err(format!("secret \"{name}\" not found")),
    }
}
