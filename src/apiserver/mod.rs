//! HTTP in, verbs of the registry out: who asks, may they, what do they ask, in which form do they want it.
//! Knows no kind by itself: the table of kinds says what is served. One order of filters, in `handle`.

pub mod auth;
mod body;
mod discovery;
mod health;
mod metrics;
mod negotiate;
mod openapi;
mod present;
mod query;
mod relay;
mod request_info;
mod respond;
mod rest;
mod serve;
mod streaming;
mod tls;
mod trust;
mod tunnel;
mod watch;

use crate::api::status::{Result, Status};
use crate::clock::{self, Clock};
use crate::pki::{Pki, ServerNames};
use crate::registry::{Registry, User};
use crate::supervise::Shutdown;
use crate::tunnel::Tunnels;
use crate::tunnel::switch::Switch;
use auth::Auth;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use metrics::Metrics;
use negotiate::{Shape, Shapes};
use query::Query;
use request_info::RequestInfo;
use respond::Style;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, watch as watch_channel};

pub use auth::Peer;
pub use serve::Listen;

/// Reads and writes that may run at once; watches and streams do not count.
const READS_LIMIT: usize = 200;
const WRITES_LIMIT: usize = 100;
/// Requests that wait for one of these to end, and for how long.
const WAITING_LIMIT: usize = 2_000;
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request that is neither watch nor stream may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// `ADDRESS:PORT` at which clients find this server.
    pub advertise: String,
    /// What the server certificate names.
    pub names: ServerNames,
    /// Whether requests without credentials are let in as `system:anonymous`.
    pub anonymous: bool,
    /// What joining nodes are told of the cluster.
    pub cluster: serde_json::Value,
}

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    config: ApiServerConfig,
    registry: Arc<Registry>,
    pki: Pki,
    tunnels: Tunnels,
    relays: OnceLock<Switch>,
    clock: Clock,
    auth: Auth,
    metrics: Metrics,
    reads: Semaphore,
    writes: Semaphore,
    /// Places of requests that wait for one of the former.
    waiting: Semaphore,
    certificate: tls::CurrentCertificate,
    /// What the server certificate names, now.
    names: watch_channel::Sender<ServerNames>,
    shutdown: Mutex<Option<Shutdown>>,
}

/// One request, as the filters have understood it.
pub(crate) struct Call {
    pub method: Method,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: User,
    /// The other end of the connection.
    pub peer: Peer,
    /// Present on connections that can be taken over (WebSocket).
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// Of a watch or a stream; a task that goes on with its connection holds it.
    pub open: Option<Arc<metrics::LongRunning>>,
}

impl Call {
    pub fn header(&self, name: &http::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The form of the answer; an error when the client takes none that we have.
    pub fn style(&self, shapes: Shapes) -> Result<Style> {
        // Text costs no encoding: protobuf is for those who take nothing else.
        let accept = self.header(&ACCEPT);
        let representation = negotiate::accept(accept, shapes, false);
        let representation = representation.or_else(|_| negotiate::accept(accept, shapes, true))?;
        Ok(Style { representation, ..self.error_style() })
    }

    /// As `style`, and JSON when the client takes nothing that we have: errors are always told.
    pub fn error_style(&self) -> Style {
        let representation = negotiate::accept(self.header(&ACCEPT), Shapes::Objects, false).unwrap_or_default();
        let pretty = respond::wants_pretty(self.query.get("pretty"), &self.headers);
        Style { representation, pretty, gzip: respond::accepts_gzip(&self.headers) }
    }
}

impl ApiServer {
    pub fn new(config: ApiServerConfig, registry: Arc<Registry>, pki: Pki, tunnels: Tunnels, clock: Clock) -> Self {
        registry.issue_tokens_with(pki.clone());
        let auth = Auth::new(registry.clone(), pki.clone(), clock.clone(), config.anonymous);
        registry.authorize_with(auth.roles());
        let names = watch_channel::Sender::new(config.names.clone());
        Self(Arc::new(Inner {
            config,
            registry,
            pki,
            tunnels,
            relays: OnceLock::new(),
            clock,
            auth,
            metrics: Metrics::default(),
            reads: Semaphore::new(READS_LIMIT),
            writes: Semaphore::new(WRITES_LIMIT),
            waiting: Semaphore::new(WAITING_LIMIT),
            certificate: tls::CurrentCertificate::default(),
            names,
            shutdown: Mutex::default(),
        }))
    }

    /// Nodes may send packets of their pods through this. Once only.
    pub fn relay_through(&self, switch: Switch) {
        let _ = self.0.relays.set(switch);
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    pub(crate) fn tunnels(&self) -> &Tunnels {
        &self.0.tunnels
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.0.pki
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.0.auth
    }

    /// What the server certificate names now.
    pub fn names(&self) -> ServerNames {
        self.0.names.borrow().clone()
    }

    /// Names and addresses of this machine as they are now; a certificate for them is issued if they have changed.
    pub fn set_names(&self, extra: Vec<String>) {
        self.0.names.send_if_modified(|names| {
            let changed = names.extra != extra;
            names.extra = extra;
            changed
        });
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.shutdown().is_some_and(|shutdown| shutdown.is_requested())
    }

    /// The signal that long answers end at; `None` while nothing serves (tests).
    pub(crate) fn shutdown(&self) -> Option<Shutdown> {
        self.0.shutdown.lock().expect("no panic while the signal is locked").clone()
    }

    /// The service behind every connection; tests drive it without one.
    pub fn router(&self) -> Router {
        Router::new().fallback(handle).with_state(self.clone())
    }

    /// Who asks, and whether they may.
    async fn admit(&self, call: &mut Call, peer: &Peer) -> Result<()> {
        let auth = self.auth();
        let user = auth.authenticate(&mut call.headers, peer).await?;
        call.user = auth.impersonate(user, &call.headers, &call.info).await?;
        auth.authorize_request(&call.user, &call.info).await
    }

    async fn dispatch(&self, call: Call, body: Body) -> Result<Response> {
        if call.info.is_long_running() {
            let open = Arc::new(self.0.metrics.open());
            let call = Call { open: Some(open.clone()), ..call };
            return Ok(respond::holding(self.route(call, body).await?, open));
        }
        let limit = if call.info.is_read_only() { &self.0.reads } else { &self.0.writes };
        let _permit = self.turn(limit).await?;
        let timeout = requested_timeout(&call.query).unwrap_or(REQUEST_TIMEOUT);
        let late = |_| Status::timeout("request did not complete within the allotted timeout");
        tokio::time::timeout(timeout, self.route(call, body)).await.map_err(late)?
    }

    /// A burst, such as a fleet that comes back, waits for its turn; a flood is refused.
    async fn turn<'a>(&'a self, limit: &'a Semaphore) -> Result<SemaphorePermit<'a>> {
        if let Ok(permit) = limit.try_acquire() {
            return Ok(permit);
        }
        let busy = || Status::too_many_requests("too many requests, please try again later", 1);
        let _place = self.0.waiting.try_acquire().map_err(|_| busy())?;
        let turn = tokio::time::timeout(TURN_TIMEOUT, limit.acquire()).await;
        turn.map_err(|_| busy())?.map_err(Status::internal)
    }

    async fn route(&self, call: Call, body: Body) -> Result<Response> {
        if call.info.is_resource {
            return rest::answer(self, call, body).await;
        }
        let path = call.info.path.trim_end_matches('/').to_owned();
        if path == crate::tunnel::PATH {
            return tunnel::answer(self, call).await;
        }
        if path == crate::tunnel::relay::PATH {
            return relay::answer(self, call);
        }
        if path == "/edgelet/v1/cluster" {
            return Ok(pretty_json(&self.0.config.cluster));
        }
        if let Some(answer) = self.answer_trust(&call, &path).await? {
            return Ok(answer);
        }
        if path.starts_with("/edgelet/") {
            return self.trace(&call, &path).await;
        }
        if !matches!(call.method, Method::GET | Method::HEAD) {
            return Ok(respond::page_not_found());
        }
        match path.as_str() {
            "" => Ok(pretty_json(&health::root(self))),
            "/version" => Ok(pretty_json(&health::version())),
            "/metrics" => Ok(self.metrics()),
            "/api" | "/apis" => self.discover_groups(&call, path == "/api"),
            "/.well-known/openid-configuration" => Ok(self.openid_configuration()),
            "/openid/v1/jwks" => self.key_set(&call),
            _ if path.starts_with("/api") => self.discover_resources(&call, &path),
            _ if path.starts_with("/openapi/") => openapi::answer(self, &call, &path),
            _ => Ok(health::answer(self, &path, &call.query).await.unwrap_or_else(respond::page_not_found)),
        }
    }

    fn discover_groups(&self, call: &Call, core: bool) -> Result<Response> {
        let kinds = &self.registry().kinds;
        let style = call.style(Shapes::Discovery)?;
        let Shape::Discovery(version) = style.representation.shape else {
            let classic =
                if core { discovery::core_versions(&self.0.config.advertise) } else { discovery::group_list(kinds) };
            return Ok(respond::object(StatusCode::OK, &classic, style));
        };
        let document = discovery::aggregated(kinds, core, version);
        let etag = discovery::etag(document.to_string().as_bytes());
        let mut response = if call.header(&IF_NONE_MATCH) == etag {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            respond::object(StatusCode::OK, &document, style)
        };
        let headers = response.headers_mut();
        headers.insert(ETAG, HeaderValue::from_str(&etag).expect("hexadecimal digits in quotes"));
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(response)
    }

    /// `/api/V`, `/apis/G` and `/apis/G/V`.
    fn discover_resources(&self, call: &Call, path: &str) -> Result<Response> {
        let kinds = &self.registry().kinds;
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let document = match parts.as_slice() {
            ["api", version] => discovery::resource_list(kinds, "", version),
            ["apis", group] => discovery::group(kinds, group),
            ["apis", group, version] => discovery::resource_list(kinds, group, version),
            _ => None,
        };
        let style = call.style(Shapes::Plain)?;
        Ok(document.map_or_else(respond::page_not_found, |value| respond::object(StatusCode::OK, &value, style)))
    }

    fn metrics(&self) -> Response {
        #[allow(clippy::cast_precision_loss, reason = "gauges are floating point by their format")]
        let text = self.0.metrics.render(&[
            ("process_resident_memory_bytes", "Resident memory.", metrics::resident_bytes() as f64),
            ("edgelet_store_revision", "Newest revision of the store.", self.registry().store.revision() as f64),
        ]);
        respond::raw(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
    }

    fn openid_configuration(&self) -> Response {
        let key = self.pki().token_key();
        let document = serde_json::json!({
            "issuer": key.issuer(),
            "jwks_uri": format!("https://{}/openid/v1/jwks", self.0.config.advertise),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        cacheable(respond::raw(StatusCode::OK, "application/json", document.to_string()))
    }

    fn key_set(&self, call: &Call) -> Result<Response> {
        const TYPE: &str = "application/jwk-set+json";
        let accept = call.header(&ACCEPT);
        let accepted =
            |range: &str| [TYPE, "application/*", "*/*", ""].contains(&negotiate::media_type(range).as_str());
        if !accept.is_empty() && !accept.split(',').any(accepted) {
            return Err(negotiate::not_acceptable(&[TYPE]));
        }
        Ok(cacheable(respond::raw(StatusCode::OK, TYPE, self.pki().token_key().key_set().to_string())))
    }

    /// `/edgelet/v1/trace/NAMESPACE/POD`: the pod's way through the workflow. Needs `get` on the pod.
    async fn trace(&self, call: &Call, path: &str) -> Result<Response> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let ["edgelet", "v1", "trace", namespace, name] = parts.as_slice() else {
            return Ok(respond::page_not_found());
        };
        let info = RequestInfo {
            is_resource: true,
            verb: "get",
            version: "v1".into(),
            resource: "pods".into(),
            namespace: (*namespace).into(),
            name: (*name).into(),
            ..RequestInfo::default()
        };
        self.auth().authorize(&call.user, &info).await?;
        let pod = rest::get_pod(self, namespace, name).await?;
        let uid = serde_json::from_slice::<crate::api::object::Object>(&pod.bytes).map_err(Status::internal)?;
        let uid = crate::api::object::ObjectExt::uid(&uid).to_owned();
        let steps = self.registry().trace.steps(&uid);
        let document = serde_json::json!({ "uid": uid, "steps": steps });
        Ok(respond::object(StatusCode::OK, &document, call.style(Shapes::Plain)?))
    }
}

/// The order of the filters. Every answer, error or not, leaves through here.
async fn handle(State(server): State<ApiServer>, request: Request) -> Response {
    let started = clock::monotonic();
    let (mut parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let peer = parts.extensions.remove::<Peer>().unwrap_or_default();
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let audit_id = audit_id(&parts.headers);
    let (method, headers) = (parts.method, parts.headers);
    let user = User::default();
    let mut call = Call { method, info, query, headers, user, peer: peer.clone(), upgrade, open: None };
    let style = call.error_style();
    let info = call.info.clone();

    let admitted = server.admit(&mut call, &peer).await;
    let who = call.user.name.clone();
    let result = match admitted {
        Ok(()) => server.dispatch(call, body).await,
        Err(status) => Err(status),
    };
    if let Err(status) = &result {
        let what = if info.path == crate::tunnel::PATH { "tunnel" } else { "request" };
        if what == "tunnel" || matches!(status.code, 408 | 413 | 504) {
            server.auth().refusals().log(what, &who, status);
        }
    }
    let response = result.unwrap_or_else(|status| respond::status(&status, style));
    let known = server.registry().kinds.resource(&info.group, &info.version, &info.resource).is_some();
    server.0.metrics.observe(&info, known, response.status().as_u16(), started.elapsed());
    respond::finish(response, &audit_id)
}

/// The client's own id when it sends one that fits in a header and a log line.
fn audit_id(headers: &HeaderMap) -> String {
    let sent = headers.get("audit-id").and_then(|id| id.to_str().ok()).filter(|id| (1..=64).contains(&id.len()));
    sent.map_or_else(random_uuid, str::to_owned)
}

/// A version 4 UUID.
pub(crate) fn random_uuid() -> String {
    let bits = (fastrand::u128(..) & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `timeout=30s` and the like, never longer than the default.
fn requested_timeout(query: &Query) -> Option<Duration> {
    let seconds: u64 = query.get("timeout")?.strip_suffix('s')?.parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(REQUEST_TIMEOUT))
}

fn pretty_json(value: &serde_json::Value) -> Response {
    let text = serde_json::to_vec_pretty(value).expect("a value of strings and lists");
    respond::raw(StatusCode::OK, "application/json", text)
}

fn cacheable(mut response: Response) -> Response {
    let value = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, value);
    response
}

/// The `Content-Type` of the request's body.
pub(crate) fn content_type(call: &Call) -> &str {
    call.header(&CONTENT_TYPE)
}

#[cfg(test)]
mod tests;
