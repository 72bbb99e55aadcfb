//! `projected` volumes: several sources in one directory.

use super::{DEFAULT_FILE_MODE, Files, Source, config_map, downward_api, secret};
use crate::api::view::pod::{Projected, Projection, TokenProjection};
use crate::runtime::VolumeFile;

/// Of a token file when the pod has a group that it is shared by, as upstream.
const SHARED_TOKEN_MODE: u32 = 0o600;

pub async fn files(wanted: &Projected, source: &Source<'_>) -> Result<Files, String> {
    let mut all = Files::new();
    for projection in &wanted.sources {
        all.extend(one(projection, wanted.default_mode, source).await?);
    }
    Ok(all)
}

async fn one(projection: &Projection, mode: Option<u32>, source: &Source<'_>) -> Result<Files, String> {
    if let Some(wanted) = &projection.config_map {
        config_map::files(wanted, mode, source).await
    } else if let Some(wanted) = &projection.secret {
        secret::files(wanted, mode, source).await
    } else if let Some(wanted) = &projection.downward_api {
        downward_api::files(wanted, mode, &source.downward)
    } else if let Some(wanted) = &projection.service_account_token {
        token(wanted, mode, source).await
    } else {
        Err("projected volume has a source that is not supported by this node".to_owned())
    }
}

async fn token(wanted: &TokenProjection, mode: Option<u32>, source: &Source<'_>) -> Result<Files, String> {
    let pod = source.downward.pod;
    let token = source.tokens.get(pod, wanted).await?;
    let shared = pod.spec.security_context.fs_group.is_some();
    let mode = if shared { SHARED_TOKEN_MODE } else { mode.unwrap_or(DEFAULT_FILE_MODE) };
    Ok(Files::from([(wanted.path.clone(), VolumeFile { bytes: token.into(), mode })]))
}
