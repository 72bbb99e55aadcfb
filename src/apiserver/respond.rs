//! Answers: an object, shared bytes, a `Status` or plain text, in the form the client asked for.

use super::negotiate::{Format, Representation};
use crate::api::codec;
use crate::api::object::ObjectExt;
use crate::api::scheme;
use crate::api::status::Status;
use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Answers at least this long are compressed when the client accepts it.
const GZIP_FROM_BYTES: usize = 128 << 10;
/// Small pieces of a body are gathered to this size; larger ones are sent as they are.
const CHUNK_BYTES: usize = 16 << 10;

pub const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// How this client wants its answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    pub representation: Representation,
    pub pretty: bool,
    pub gzip: bool,
}

impl Style {
    pub fn json(self) -> bool {
        self.representation.format == Format::Json
    }

    /// The same without compression, or for errors without a shape.
    pub fn plain(self) -> Self {
        let representation = Representation { format: self.representation.format, ..Representation::default() };
        Self { representation, ..self }
    }
}

/// Whether the client reads JSON with human eyes: asked for, or a browser or curl.
pub fn wants_pretty(parameter: Option<&str>, headers: &HeaderMap) -> bool {
    match parameter {
        Some(value) => !value.eq_ignore_ascii_case("false") && value != "0",
        None => {
            let agent = headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|browser| agent.starts_with(browser))
        }
    }
}

pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(http::header::ACCEPT_ENCODING);
    let mut encodings = accepted.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    encodings.any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|quality| quality == "q=0")
    })
}

/// One object that lives for this request only.
pub fn object(code: StatusCode, object: &Value, style: Style) -> Response {
    let mut style = style;
    if style.representation.format == Format::Protobuf {
        if let Some(schema) = scheme::find_kind(object.api_version(), object.kind()) {
            let encoded = codec::protobuf::encode(schema, object);
            return response(code, style.representation.content_type(), style.gzip, Pieces::one(encoded.into()));
        }
        style.representation.format = Format::Json;
    }
    response(code, style.representation.content_type(), style.gzip, Pieces::one(encode(object, style)))
}

/// One object as its stored JSON.
pub fn shared(code: StatusCode, json: &Bytes, style: Style) -> Response {
    if style.json() && !style.pretty {
        return response(code, style.representation.content_type(), style.gzip, Pieces::one(json.clone()));
    }
    match serde_json::from_slice(json) {
        Ok(value) => object(code, &value, style),
        Err(error) => status(&Status::internal(error), style),
    }
}

/// A list: pieces of JSON that follow each other.
pub fn pieces(code: StatusCode, pieces: Pieces, style: Style) -> Response {
    if style.json() && !style.pretty {
        return response(code, style.representation.content_type(), style.gzip, pieces);
    }
    shared(code, &pieces.join(), style)
}

pub fn status(status: &Status, style: Style) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let style = style.plain();
    let mut response = object(code, &status.to_object(), style);
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if code == StatusCode::FORBIDDEN {
        response.headers_mut().insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    }
    response
}

/// What Go's own HTTP server answers for paths nobody registered.
pub fn page_not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = response(code, "text/plain; charset=utf-8", false, Pieces::one(text.into()));
    response.headers_mut().insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    response
}

/// Bytes of a given type.
pub fn raw(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    response(code, content_type, false, Pieces::one(body.into()))
}

pub fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An endless or proxied body.
pub fn stream(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The same answer; `held` is dropped with its body, whether it is read to its end or not.
pub fn holding(response: Response, held: impl Send + 'static) -> Response {
    response.map(|body| {
        let keep = move |frame| {
            let _held = &held;
            frame
        };
        Body::new(body.map_frame(keep))
    })
}

fn response(code: StatusCode, content_type: &'static str, gzip: bool, pieces: Pieces) -> Response {
    let compress = gzip && pieces.len_bytes >= GZIP_FROM_BYTES;
    let length = pieces.len_bytes;
    let body = if compress { Body::new(Compressed::new(pieces)) } else { Body::new(pieces) };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if compress {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    } else {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn encode(value: &Value, style: Style) -> Bytes {
    let encoded = match style.representation.format {
        Format::Yaml => codec::to_yaml(value).into_bytes(),
        _ if style.pretty => serde_json::to_vec_pretty(value).unwrap_or_default(),
        _ => serde_json::to_vec(value).unwrap_or_default(),
    };
    Bytes::from(encoded)
}

/// `Warning: 299 - "…"` for each text.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    /// More than anybody reads.
    const WARNINGS_LIMIT: usize = 50;
    for warning in warnings.iter().take(WARNINGS_LIMIT) {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// Headers that every answer has.
pub fn finish(mut response: Response, audit_id: &str) -> Response {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(audit_id) {
        headers.insert(HeaderName::from_static("audit-id"), value);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    response
}

/// A body of shared pieces: nothing is copied but what is small.
#[derive(Default)]
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    len_bytes: usize,
}

impl Pieces {
    pub fn one(piece: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(piece);
        pieces
    }

    pub fn push(&mut self, piece: impl Into<Bytes>) {
        let piece = piece.into();
        if !piece.is_empty() {
            self.len_bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    pub fn join(mut self) -> Bytes {
        if self.pieces.len() == 1 {
            return self.pieces.pop_front().expect("there is one");
        }
        let mut out = BytesMut::with_capacity(self.len_bytes);
        self.pieces.iter().for_each(|piece| out.put_slice(piece));
        out.freeze()
    }

    /// The next chunk: one large piece, or small ones gathered.
    fn next_chunk(&mut self) -> Option<Bytes> {
        let first = self.pieces.pop_front()?;
        let next_fits = |gathered: usize, pieces: &VecDeque<Bytes>| {
            pieces.front().is_some_and(|next| gathered + next.len() <= CHUNK_BYTES)
        };
        let chunk = if next_fits(first.len(), &self.pieces) {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES.min(self.len_bytes));
            chunk.put_slice(&first);
            while next_fits(chunk.len(), &self.pieces) {
                chunk.put_slice(&self.pieces.pop_front().expect("looked at just now"));
            }
            chunk.freeze()
        } else {
            first
        };
        self.len_bytes -= chunk.len();
        Some(chunk)
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.next_chunk().map(|chunk| Ok(http_body::Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.len_bytes as u64)
    }
}

/// The same, compressed chunk by chunk as the client reads it.
struct Compressed {
    pieces: Pieces,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Compressed {
    fn new(pieces: Pieces) -> Self {
        Self { pieces, encoder: Some(GzEncoder::new(Vec::with_capacity(CHUNK_BYTES), Compression::fast())) }
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(chunk) = self.pieces.next_chunk() else {
                let rest = self.encoder.take()?.finish().expect("a Vec takes every write");
                return (!rest.is_empty()).then(|| rest.into());
            };
            encoder.write_all(&chunk).expect("a Vec takes every write");
            if encoder.get_ref().len() >= CHUNK_BYTES / 2 {
                return Some(std::mem::replace(encoder.get_mut(), Vec::with_capacity(CHUNK_BYTES)).into());
            }
        }
    }
}

impl http_body::Body for Compressed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.next_chunk().map(|chunk| Ok(http_body::Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Read;

    async fn body(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    fn long_list() -> Pieces {
        let mut pieces = Pieces::default();
        for at in 0..20_000 {
            pieces.push(format!("{{\"at\":{at}}},"));
        }
        pieces.push(vec![b'x'; 40_000]);
        pieces
    }

    #[tokio::test]
    async fn a_long_answer_is_compressed_when_accepted() {
        let plain = body(pieces(StatusCode::OK, long_list(), Style::default())).await;
        let response = pieces(StatusCode::OK, long_list(), Style { gzip: true, ..Style::default() });
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let compressed = body(response).await;
        assert!(compressed.len() * 2 < plain.len());
        let mut inflated = Vec::new();
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut inflated).unwrap();
        assert_eq!(inflated, plain);
    }

    #[test]
    fn small_pieces_are_gathered_and_large_ones_kept() {
        let mut list = long_list();
        let lengths: Vec<usize> = std::iter::from_fn(|| list.next_chunk()).map(|chunk| chunk.len()).collect();
        assert!(lengths.len() < 30, "{lengths:?}");
        assert_eq!(lengths.last(), Some(&40_000));
    }

    #[tokio::test]
    async fn yaml_and_pretty_are_made_from_the_stored_bytes() {
        let json = Bytes::from_static(br#"{"kind":"X","size":1}"#);
        let yaml = Representation { format: Format::Yaml, ..Representation::default() };
        let style = Style { representation: yaml, ..Style::default() };
        assert_eq!(body(shared(StatusCode::OK, &json, style)).await, "kind: X\nsize: 1\n");
        let style = Style { pretty: true, ..Style::default() };
        assert_eq!(body(shared(StatusCode::OK, &json, style)).await, "{\n  \"kind\": \"X\",\n  \"size\": 1\n}");
    }

    #[test]
    fn errors_carry_retry_after() {
        let response = status(&Status::too_many_requests("later", 1), Style::default());
        assert_eq!((response.status().as_u16(), response.headers()[RETRY_AFTER].to_str().unwrap()), (429, "1"));
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = no_content();
        add_warnings(&mut response, &["unknown field \"bogus\"".into()]);
        assert_eq!(response.headers()[http::header::WARNING], "299 - \"unknown field \\\"bogus\\\"\"");
    }
}
