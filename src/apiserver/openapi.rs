//! OpenAPI v2 and v3, straight from precompressed read-only data.

use super::{ApiServer, Call, respond};
use crate::api::status::Result;
use axum::response::Response;

pub fn answer(_server: &ApiServer, _call: &Call, _path: &str) -> Result<Response> {
    Ok(respond::page_not_found())
}
