//! REST verbs over HTTPS, with a kubeconfig's or a node's credentials.
//! Answers are bytes of JSON; a watch is one line per event.

use super::kubeconfig::Access;
use super::reach::{CONNECT_TIMEOUT, Connector, Http, Reach, Secured};
use super::{Item, Items, Resource, WatchEvent};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::clock::Clock;
use crate::pki::time::ClockTime;
use crate::registry::{DeleteOptions, ListOptions, PatchType, Propagation};
use crate::sys::Stream;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// One line of a watch; larger ones end it.
const LINE_LIMIT_BYTES: usize = 8 << 20;

/// What we call ourselves.
const AGENT: &str = concat!("edgelet/", env!("CARGO_PKG_VERSION"));
/// What is read of an error.
const ERROR_LIMIT_BYTES: usize = 64 << 10;
/// Watches at a time. What is asked beyond must wait, and must not take the place of plain requests: the server
/// allows a node a thousand streams.
const WATCHES_LIMIT: usize = 900;
const GIVEN_UP: &str = "the connection to the server was given up";

/// A WebSocket to the API server.
pub type WebSocket = tokio_tungstenite::WebSocketStream<Secured>;

/// Speaks to an API server. Cheap to clone; clones share credentials and connections.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

struct Shared {
    session: ArcSwap<Session>,
    http: Http,
    /// Counts the sessions; requests of a former one are given up.
    sessions: watch::Sender<u64>,
    /// How long a connection may be silent, in seconds; 0 = for ever.
    idle_s: AtomicU64,
    /// Counts watches whose connection has died.
    deaths: watch::Sender<u64>,
    watches: Arc<Semaphore>,
    reach: Arc<dyn Reach>,
    clock: Clock,
}

/// Credentials, and the connections made with them.
struct Session {
    http: hyper_util::client::legacy::Client<Connector, Full<Bytes>>,
    connector: Connector,
    access: Arc<Access>,
}

impl Session {
    fn new(access: Arc<Access>, reach: Arc<dyn Reach>, clock: &Clock, idle_s: u64, http: Http) -> Result<Self> {
        let tls = Arc::new(client_config(&access, clock)?);
        // Unless it is asked for, the server's kernel keeps the connection alive.
        let idle = (idle_s > 0).then(|| Duration::from_secs(idle_s));
        let connector = Connector { reach, tls, idle };
        Ok(Self { http: connector.http(http), connector, access })
    }
}

/// An answer whose body comes as the server makes it.
pub struct Response(http::Response<Incoming>);

impl Response {
    /// The next piece of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.next().await.map_err(unreachable_server)
    }

    async fn next(&mut self) -> hyper::Result<Option<Bytes>> {
        while let Some(frame) = self.0.body_mut().frame().await {
            // What is no data are trailers.
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    pub async fn bytes(self) -> Result<Bytes> {
        Ok(self.0.into_body().collect().await.map_err(unreachable_server)?.to_bytes())
    }
}

impl Remote {
    /// Makes a client; nothing is sent yet.
    pub fn new(access: Access, reach: impl Reach + 'static) -> Result<Self> {
        Self::with_clock(access, reach, Clock::real())
    }

    /// The same with the time that certificates are judged by.
    pub fn with_clock(access: Access, reach: impl Reach + 'static, clock: Clock) -> Result<Self> {
        Self::with(access, Arc::new(reach), clock, Http::Any)
    }

    /// A node's, for a server of edgelet: one connection for everything.
    pub fn for_node(access: Access, reach: impl Reach + 'static, clock: Clock) -> Result<Self> {
        Self::with(access, Arc::new(reach), clock, Http::Two)
    }

    fn with(access: Access, reach: Arc<dyn Reach>, clock: Clock, http: Http) -> Result<Self> {
        let session = Session::new(Arc::new(access), reach.clone(), &clock, 0, http)?;
        Ok(Self(Arc::new(Shared {
            session: ArcSwap::from_pointee(session),
            http,
            sessions: watch::Sender::new(0),
            idle_s: AtomicU64::new(0),
            deaths: watch::Sender::new(0),
            watches: Arc::new(Semaphore::new(WATCHES_LIMIT)),
            reach,
            clock,
        })))
    }

    /// How this client gets to its server.
    pub fn reach(&self) -> &Arc<dyn Reach> {
        &self.0.reach
    }

    pub fn access(&self) -> Arc<Access> {
        self.0.session.load().access.clone()
    }

    /// For streams that are no requests (WebSocket).
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.0.session.load().connector.tls.clone()
    }

    /// From now on speaks with these credentials; requests under way go on with the former ones.
    pub fn reload(&self, access: Access) -> Result<()> {
        let idle_s = self.0.idle_s.load(Ordering::Relaxed);
        let fresh = Session::new(Arc::new(access), self.0.reach.clone(), &self.0.clock, idle_s, self.0.http)?;
        self.0.session.store(Arc::new(fresh));
        Ok(())
    }

    /// From now on, connections that are silent for so long are kept alive, and found out when they are dead.
    pub fn keep_alive(&self, idle: Duration) -> Result<()> {
        self.0.idle_s.store(idle.as_secs(), Ordering::Relaxed);
        self.reload((*self.access()).clone())
    }

    /// Changes when a watch has lost its connection to silence, or because the other end did not know it any more.
    pub fn deaths(&self) -> watch::Receiver<u64> {
        self.0.deaths.subscribe()
    }

    /// Gives up all connections, and requests under way with them: the server is known not to hear them, or to be
    /// back after it did not. Whoever waits before trying again tries at once.
    pub fn reconnect(&self) -> Result<()> {
        self.reload((*self.access()).clone())?;
        self.0.sessions.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Waits until `reconnect` is called.
    pub async fn reconnected(&self) {
        let mut sessions = self.0.sessions.subscribe();
        // The sender lives as long as this client.
        let _ = sessions.changed().await;
    }

    /// Runs a request until its connection is given up.
    async fn held<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            answer = request => answer,
            () = self.reconnected() => Err(Status::unavailable(GIVEN_UP)),
        }
    }

    /// Any path, for what is no resource (`/version`, `/edgelet/v1/…`).
    pub async fn raw(&self, method: Method, path: &str, body: Option<Object>) -> Result<Bytes> {
        match body {
            Some(body) => self.send(method, path, "application/json", &body).await.map(|item| item.0),
            None => self.answer(self.request(method, path)).await,
        }
    }

    /// GET in another form (`Table`).
    pub async fn raw_as(&self, path: &str, accept: &str) -> Result<Bytes> {
        self.answer(self.request_as(Method::GET, path, accept)).await
    }

    /// The lines of a watch in another form.
    pub async fn lines_as(&self, path: &str, accept: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let place = self.place().await;
        let sessions = self.0.sessions.subscribe();
        let request = self.request_as(Method::GET, path, accept);
        Ok(self.lines(self.held(self.sent(request)).await?, sessions, place))
    }

    /// A response whose body goes on (logs).
    pub async fn stream(&self, path: &str) -> Result<Response> {
        self.held(self.sent(self.request_as(Method::GET, path, "*/*"))).await
    }

    /// PATCH by path, for kinds that are only known at run time.
    pub async fn send_patch(&self, path: &str, media_type: &str, patch: &Object) -> Result<Bytes> {
        self.send(Method::PATCH, path, media_type, patch).await.map(|item| item.0)
    }

    /// A WebSocket that speaks `protocol` (exec, attach, port-forward).
    pub async fn websocket(&self, path: &str, protocol: &'static str) -> Result<WebSocket> {
        let (stream, authority) = self.connect().await?;
        let mut request = format!("wss://{authority}{path}").into_client_request().map_err(Status::internal)?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", http::HeaderValue::from_static(protocol));
        let access = self.access();
        if !access.token.is_empty() {
            let token = format!("Bearer {}", access.token).try_into().map_err(Status::internal)?;
            request.headers_mut().insert(http::header::AUTHORIZATION, token);
        }
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => Err(refused(&response)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    /// A connection of its own that speaks HTTP/1.1, and the server's name and port.
    async fn connect(&self) -> Result<(Secured, String)> {
        let session = self.0.session.load_full();
        let uri: http::Uri = session.access.server.parse().map_err(Status::internal)?;
        let stream = session.connector.http_1(&uri).await.map_err(lost)?;
        Ok((stream, uri.authority().map_or_else(String::new, ToString::to_string)))
    }

    /// Asks the server to speak another protocol on a connection of its own (the tunnel).
    pub async fn upgrade(&self, path: &str, protocol: &'static str) -> Result<impl Stream + use<>> {
        let (stream, authority) = self.connect().await?;
        let broke = |error: hyper::Error| Status::unavailable(format!("speak to the server: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        crate::supervise::spawn(connection.with_upgrades());
        let request = http::Request::get(path)
            .header(http::header::HOST, authority)
            .header(http::header::CONNECTION, "Upgrade")
            .header(http::header::UPGRADE, protocol)
            .body(http_body_util::Empty::<Bytes>::new())
            .map_err(Status::internal)?;
        let response = tokio::time::timeout(CONNECT_TIMEOUT, sender.send_request(request)).await;
        let response = response.map_err(|_| Status::timeout("the server does not answer"))?.map_err(broke)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(broke)?));
        }
        let (head, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, ERROR_LIMIT_BYTES);
        let body = http_body_util::BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(error_of(head.status, &body))
    }

    /// Among the watches.
    async fn place(&self) -> OwnedSemaphorePermit {
        self.0.watches.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The lines of a body that goes on, until its connection is given up.
    fn lines(
        &self,
        response: Response,
        sessions: watch::Receiver<u64>,
        place: OwnedSemaphorePermit,
    ) -> BoxStream<'static, Result<Bytes>> {
        let shared = Arc::downgrade(&self.0);
        let state = (response, BytesMut::new(), sessions, place);
        let lines = stream::try_unfold(state, move |(mut response, mut buffer, mut sessions, place)| {
            let shared = shared.clone();
            async move {
                loop {
                    if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line = buffer.split_to(end + 1).freeze();
                        return Ok(Some((line, (response, buffer, sessions, place))));
                    }
                    if buffer.len() > LINE_LIMIT_BYTES {
                        return Err(Status::internal("a watch event is too large"));
                    }
                    let chunk = tokio::select! {
                        biased;
                        chunk = response.next() => chunk,
                        _ = sessions.changed() => return Err(Status::unavailable(GIVEN_UP)),
                    };
                    match chunk {
                        Ok(Some(chunk)) => buffer.extend_from_slice(&chunk),
                        Ok(None) => return Ok(None),
                        Err(error) => {
                            if let Some(shared) = shared.upgrade().filter(|_| is_death(&error)) {
                                shared.deaths.send_modify(|count| *count += 1);
                            }
                            return Err(unreachable_server(error));
                        }
                    }
                }
            }
        });
        lines.boxed()
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        self.request_as(method, path, "application/json")
    }

    fn request_as(&self, method: Method, path: &str, accept: &str) -> http::request::Builder {
        let access = self.access();
        let request = Request::builder().method(method).uri(format!("{}{path}", access.server));
        let request = request.header(ACCEPT, accept).header(USER_AGENT, AGENT);
        if access.token.is_empty() {
            request
        } else {
            request.header(AUTHORIZATION, format!("Bearer {}", access.token))
        }
    }

    async fn answer(&self, request: http::request::Builder) -> Result<Bytes> {
        self.answer_to(request, Bytes::new()).await
    }

    async fn answer_to(&self, request: http::request::Builder, body: Bytes) -> Result<Bytes> {
        let whole = async { self.sent_with(request, body).await?.bytes().await };
        let late = |_| Status::timeout(format!("the server does not answer within {} s", REQUEST_TIMEOUT.as_secs()));
        self.held(async { tokio::time::timeout(REQUEST_TIMEOUT, whole).await.map_err(late)? }).await
    }

    async fn sent(&self, request: http::request::Builder) -> Result<Response> {
        self.sent_with(request, Bytes::new()).await
    }

    async fn sent_with(&self, request: http::request::Builder, body: Bytes) -> Result<Response> {
        let http = self.0.session.load().http.clone();
        let request = request.body(Full::new(body)).map_err(Status::internal)?;
        checked(Response(http.request(request).await.map_err(unreachable_server)?)).await
    }

    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Item> {
        let path = path(resource, namespace, name, "");
        Ok(Item(self.answer(self.request(Method::GET, &path)).await?))
    }

    pub async fn list(&self, resource: Resource, namespace: &str, options: &ListOptions) -> Result<Items> {
        let path = format!("{}{}", path(resource, namespace, "", ""), query(options, false));
        let body = self.answer(self.request(Method::GET, &path)).await?;
        items(&body)
    }

    pub async fn watch(
        &self,
        resource: Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Result<WatchEvent>>> {
        let path = format!("{}{}", path(resource, namespace, "", ""), query(options, true));
        let place = self.place().await;
        let sessions = self.0.sessions.subscribe();
        let response = self.stream(&path).await?;
        Ok(self.lines(response, sessions, place).map(|line| event(&line?)).boxed())
    }

    pub async fn create(&self, resource: Resource, namespace: &str, object: Object) -> Result<Item> {
        self.send(Method::POST, &path(resource, namespace, "", ""), "application/json", &object).await
    }

    pub async fn update(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        self.send(Method::PUT, &path(resource, namespace, name, subresource), "application/json", &object).await
    }

    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: Object,
    ) -> Result<Item> {
        let mut path = path(resource, namespace, name, subresource);
        let media_type = match kind {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Apply { force } => {
                path = format!("{path}?fieldManager=edgelet&force={force}");
                "application/apply-patch+yaml"
            }
        };
        self.send(Method::PATCH, &path, media_type, &patch).await
    }

    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        let body = delete_body(options);
        self.send(Method::DELETE, &path(resource, namespace, name, ""), "application/json", &body).await.map(|_| ())
    }

    pub async fn create_subresource(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        self.send(Method::POST, &path(resource, namespace, name, subresource), "application/json", &object).await
    }

    async fn send(&self, method: Method, path: &str, media_type: &str, body: &Object) -> Result<Item> {
        let request = self.request(method, path).header(CONTENT_TYPE, media_type);
        Ok(Item(self.answer_to(request, Bytes::from(body.to_string())).await?))
    }
}

/// The REST path of a collection, an object or a subresource.
pub fn path(resource: Resource, namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    if !namespace.is_empty() {
        path = format!("{path}/namespaces/{namespace}");
    }
    for part in [resource.plural, name, subresource] {
        if !part.is_empty() {
            path = format!("{path}/{part}");
        }
    }
    path
}

fn query(options: &ListOptions, watch: bool) -> String {
    let mut pairs: Vec<(&str, String)> = vec![
        ("labelSelector", options.label_selector.clone()),
        ("fieldSelector", options.field_selector.clone()),
        ("continue", options.continue_token.clone()),
        ("resourceVersion", options.resource_version.clone()),
        ("resourceVersionMatch", options.resource_version_match.clone()),
    ];
    pairs.retain(|(_, value)| !value.is_empty());
    if options.limit > 0 {
        pairs.push(("limit", options.limit.to_string()));
    }
    if watch {
        pairs.push(("watch", "true".into()));
        pairs.push(("allowWatchBookmarks", options.allow_bookmarks.to_string()));
        if let Some(initial) = options.send_initial_events {
            pairs.push(("sendInitialEvents", initial.to_string()));
        }
    }
    if let Some(timeout_s) = options.timeout_s {
        pairs.push(("timeoutSeconds", timeout_s.to_string()));
    }
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// A query value.
pub fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}

fn delete_body(options: &DeleteOptions) -> Object {
    let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
    if let Some(grace_s) = options.grace_s {
        body["gracePeriodSeconds"] = json!(grace_s);
    }
    if let Some(propagation) = options.propagation {
        body["propagationPolicy"] = json!(match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        });
    }
    if let Some(uid) = &options.uid {
        body.set(&["preconditions", "uid"], json!(uid));
    }
    if let Some(resource_version) = &options.resource_version {
        body.set(&["preconditions", "resourceVersion"], json!(resource_version));
    }
    body
}

fn lost(error: std::io::Error) -> Status {
    let text = format!("connect to the server: {error}");
    if error.kind() == std::io::ErrorKind::TimedOut { Status::timeout(text) } else { Status::unavailable(text) }
}

/// What the server said instead of switching protocols.
fn refused(response: &http::Response<Option<Vec<u8>>>) -> Status {
    error_of(response.status(), response.body().as_deref().unwrap_or_default())
}

/// A response that is no error; an error's body is a `Status` as a rule.
async fn checked(response: Response) -> Result<Response> {
    let code = response.0.status();
    if code.is_success() || code == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let body = response.bytes().await.unwrap_or_default();
    Err(error_of(code, &body))
}

fn error_of(code: StatusCode, body: &[u8]) -> Status {
    let unknown = |_| Status::new(code.as_u16(), "Unknown", String::from_utf8_lossy(body).trim().to_owned());
    serde_json::from_slice(body).unwrap_or_else(unknown)
}

/// The server could not be asked, or its answer broke off. The whole chain of causes, each said once.
pub(super) fn unreachable_server(error: impl std::error::Error + 'static) -> Status {
    let (mut text, mut late) = (error.to_string(), false);
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        let io = cause.downcast_ref::<std::io::Error>();
        late |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
        source = cause.source();
    }
    if late { Status::timeout(text) } else { Status::unavailable(text) }
}

/// The items of a list body; each is cut out of it as its own bytes.
fn items(body: &Bytes) -> Result<Items> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(default)]
        metadata: ListMeta,
        #[serde(default, borrow)]
        items: Vec<&'a serde_json::value::RawValue>,
    }
    #[derive(serde::Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct ListMeta {
        resource_version: String,
        r#continue: String,
    }
    let parsed: Body = serde_json::from_slice(body).map_err(Status::internal)?;
    let items = parsed.items.iter().map(|raw| Item(body.slice_ref(raw.get().as_bytes()))).collect();
    Ok(Items { items, resource_version: parsed.metadata.resource_version, continue_token: parsed.metadata.r#continue })
}

/// Whether the connection was found dead, by silence or by an other end that has forgotten it.
fn is_death(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let io = cause.downcast_ref::<std::io::Error>();
        let io = io.or_else(|| cause.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        if let Some(io) = io {
            return matches!(io.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::ConnectionReset);
        }
        source = cause.source();
    }
    false
}

fn event(line: &Bytes) -> Result<WatchEvent> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        r#type: String,
        #[serde(borrow)]
        object: &'a serde_json::value::RawValue,
    }
    let parsed: Line = serde_json::from_slice(line).map_err(Status::internal)?;
    let object = line.slice_ref(parsed.object.get().as_bytes());
    match parsed.r#type.as_str() {
        "ADDED" => Ok(WatchEvent::Added(Item(object))),
        "MODIFIED" => Ok(WatchEvent::Modified(Item(object))),
        "DELETED" => Ok(WatchEvent::Deleted(Item(object))),
        "BOOKMARK" => {
            let object: Object = serde_json::from_slice(&object).map_err(Status::internal)?;
            let end = object.annotation("k8s.io/initial-events-end") == Some("true");
            Ok(WatchEvent::Bookmark { resource_version: object.resource_version().to_owned(), initial_events_end: end })
        }
        _ => Err(serde_json::from_slice(&object).unwrap_or_else(Status::internal)),
    }
}

/// TLS 1.3 as this access asks for it.
fn client_config(access: &Access, clock: &Clock) -> Result<rustls::ClientConfig> {
    let fail = |error: &dyn std::fmt::Display| Status::bad_request(format!("client credentials: {error}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&access.ca_pem) {
        let certificate = certificate.map_err(|error| fail(&error))?;
        roots.add(certificate).map_err(|error| fail(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_details(provider, Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| fail(&error))?
        .with_root_certificates(roots);
    if access.client_key_pem.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = CertificateDer::pem_slice_iter(&access.client_certificate_pem)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| fail(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&access.client_key_pem).map_err(|error| fail(&error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{DEPLOYMENTS, NODES, PODS};

    #[test]
    fn paths_name_group_namespace_and_subresource() {
        assert_eq!(path(PODS, "a", "b", "log"), "/api/v1/namespaces/a/pods/b/log");
        assert_eq!(path(NODES, "", "n", "status"), "/api/v1/nodes/n/status");
        assert_eq!(path(DEPLOYMENTS, "", "", ""), "/apis/apps/v1/deployments");
    }

    #[test]
    fn list_items_share_the_body_s_bytes() {
        let body =
            Bytes::from_static(br#"{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[{"a":1},{"b":2}]}"#);
        let found = items(&body).unwrap();
        assert_eq!(found.resource_version, "7");
        assert_eq!(found.items[1].0, Bytes::from_static(br#"{"b":2}"#));
        assert!(std::ptr::eq(found.items[0].0.as_ptr(), &body[found_at(&body, b"{\"a\"")]));
    }

    fn found_at(body: &[u8], what: &[u8]) -> usize {
        body.windows(what.len()).position(|window| window == what).unwrap()
    }

    #[test]
    fn an_error_event_ends_the_watch_with_its_status() {
        let line = Bytes::from_static(
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#,
        );
        assert!(event(&line).unwrap_err().is_expired());
    }
}
