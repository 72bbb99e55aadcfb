//! OpenAPI v2 and v3, straight from compressed read-only data: passed through to clients that take gzip,
//! inflated as it is sent for the few that do not.

use super::negotiate;
use super::{ApiServer, Call, discovery, respond};
use crate::api::scheme::openapi::{self, Document};
use crate::api::status::Result;
use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use flate2::read::GzDecoder;
use futures_util::stream;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderValue, StatusCode};
use std::convert::Infallible;
use std::io::Read;

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// How older clients ask for the same.
const PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const JSON: &str = "application/json";
const CHUNK_BYTES: usize = 16 << 10;

pub fn answer(server: &ApiServer, call: &Call, path: &str) -> Result<Response> {
    match path {
        "/openapi/v2" => v2(call),
        "/openapi/v3" => Ok(index(server)),
        _ => Ok(path.strip_prefix("/openapi/v3/").map_or_else(respond::page_not_found, |part| v3(call, part))),
    }
}

/// JSON unless the client asks for protobuf first.
fn v2(call: &Call) -> Result<Response> {
    let ranges = call.header(&ACCEPT).split(',').map(negotiate::media_type);
    let known = ranges.filter_map(|range| match range.as_str() {
        PROTOBUF | PROTOBUF_OLD => Some((openapi::v2_protobuf(), PROTOBUF)),
        JSON | "application/*" | "*/*" => Some((openapi::v2_json(), JSON)),
        _ => None,
    });
    let chosen = known.into_iter().next();
    let (document, content_type) = chosen.ok_or_else(|| negotiate::not_acceptable(&[JSON, PROTOBUF]))?;
    Ok(send(call, document, content_type))
}

/// Where each group's document is; the hash in the address lets clients keep it for good.
fn index(server: &ApiServer) -> Response {
    let paths = discovery::paths(&server.registry().kinds);
    let served = |path: &str| paths.iter().any(|known| known.strip_prefix('/') == Some(path));
    respond::raw(StatusCode::OK, JSON, openapi::v3_index(served).to_string())
}

fn v3(call: &Call, path: &str) -> Response {
    let Some(document) = openapi::v3().iter().find(|document| document.path == path) else {
        return respond::page_not_found();
    };
    let hash = call.query.get("hash").unwrap_or_default();
    if !hash.is_empty() && hash != document.hash {
        let current = format!("/openapi/v3/{path}?hash={}", document.hash);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        response.headers_mut().insert(LOCATION, current.parse().expect("paths and digits"));
        return response;
    }
    let mut response = send(call, document, JSON);
    if !hash.is_empty() {
        let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
        response.headers_mut().insert(CACHE_CONTROL, forever);
    }
    response
}

fn send(call: &Call, document: &'static Document, content_type: &'static str) -> Response {
    let etag = format!("\"{}\"", document.hash);
    let gzip = respond::accepts_gzip(&call.headers);
    let mut response = if call.header(&IF_NONE_MATCH) == etag {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if gzip {
        let mut response = respond::raw(StatusCode::OK, content_type, document.gzip());
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        respond::stream(content_type, inflated(document.gzip()))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(ETAG, etag.parse().expect("digits in quotes"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn inflated(gzip: Bytes) -> Body {
    let chunks = stream::unfold(GzDecoder::new(gzip.reader()), |mut decoder| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = decoder.read(&mut chunk).expect("the data was compressed at build time");
        chunk.truncate(length);
        (length > 0).then(|| (Ok::<Bytes, Infallible>(chunk.into()), decoder))
    });
    Body::from_stream(chunks)
}
