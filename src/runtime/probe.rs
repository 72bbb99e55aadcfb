//! Probes over the network: HTTP, HTTPS without verification, TCP, gRPC health. Texts are the kubelet's.

use super::{NetworkProbe, ProbeOutcome};
use crate::network::resolve::Resolver;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const BODY_LIMIT_BYTES: usize = 10 << 10;
const REDIRECTS_LIMIT: usize = 10;
const GRPC_METHOD: &str = "/grpc.health.v1.Health/Check";

/// One probe, ended by its timeout at the latest. A host's name is the node's to resolve, as it is the kubelet's upstream.
pub async fn run(probe: &NetworkProbe, names: &Resolver, timeout: Duration) -> ProbeOutcome {
    let (attempt, late) = match probe {
        NetworkProbe::Http { host, port, path, https, headers } => {
            let request = Http { names, host, port: *port, https: *https, headers };
            let url = request.url(path);
            let late =
                format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
            (tokio::time::timeout(timeout, request.get(path)).await, late)
        }
        NetworkProbe::Tcp { host, port } => {
            let late = format!("dial tcp {}: i/o timeout", authority(host, *port));
            (tokio::time::timeout(timeout, tcp(names, host, *port)).await, late)
        }
        NetworkProbe::Grpc { host, port, service } => {
            let late = format!(
                "timeout: failed to connect service {:?} within {}s: context deadline exceeded",
                authority(host, *port),
                timeout.as_secs()
            );
            (tokio::time::timeout(timeout, grpc(names, host, *port, service)).await, late)
        }
    };
    match attempt {
        Ok(Ok(text)) => ProbeOutcome::Success(text),
        Ok(Err(text)) => ProbeOutcome::Failure(text),
        Err(_) => ProbeOutcome::Failure(late),
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn connect(names: &Resolver, host: &str, port: u16) -> Result<TcpStream, String> {
    let found = names.resolve(host, port).await.map_err(|error| lookup_text(host, &error))?;
    let Some(address) = found.first() else { return Err(format!("dial tcp: lookup {host}: no such host")) };
    let place = authority(&address.ip().to_string(), port);
    let connected = TcpStream::connect(found.as_slice()).await;
    connected.map_err(|error| format!("dial tcp {place}: connect: {}", text(&error)))
}

fn lookup_text(host: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("dial tcp: lookup {host}: no such host"),
        _ => format!("dial tcp: lookup {host}: {error}"),
    }
}

/// The kernel's text as Go prints it.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

async fn tcp(names: &Resolver, host: &str, port: u16) -> Result<String, String> {
    connect(names, host, port).await.map(|_| String::new())
}

struct Http<'a> {
    names: &'a Resolver,
    host: &'a str,
    port: u16,
    https: bool,
    headers: &'a [(String, String)],
}

impl Http<'_> {
    fn url(&self, path: &str) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{}{slash}{path}", authority(self.host, self.port))
    }

    async fn get(&self, path: &str) -> Result<String, String> {
        let mut path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        for _ in 0..REDIRECTS_LIMIT {
            let failed = |error: String| format!("Get \"{}\": {error}", self.url(&path));
            let (status, location, body) = self.request(&path).await.map_err(failed)?;
            match (status, location) {
                (200..=299, _) | (300..=399, None) => return Ok(body),
                (300..=399, Some(location)) => match self.local(&location) {
                    Some(next) => path = next,
                    // To another host: not this container's failure.
                    None => return Ok(body),
                },
                _ => return Err(format!("HTTP probe failed with statuscode: {status}")),
            }
        }
        Err(format!("Get \"{}\": stopped after 10 redirects", self.url(&path)))
    }

    fn local(&self, location: &str) -> Option<String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(location.to_owned());
        }
        let base = self.url("/");
        let rest = location.strip_prefix(base.trim_end_matches('/'))?;
        Some(if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") })
    }

    async fn request(&self, path: &str) -> Result<(u16, Option<String>, String), String> {
        let stream = connect(self.names, self.host, self.port).await?;
        if !self.https {
            return self.exchange(stream, path).await;
        }
        let name = self.host.parse::<IpAddr>().map(|ip| ServerName::IpAddress(ip.into()));
        let name = name.or_else(|_| ServerName::try_from(self.host.to_owned())).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(trusting_tls().ok_or("no TLS provider")?);
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        self.exchange(stream, path).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
    ) -> Result<(u16, Option<String>, String), String> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let driver = crate::supervise::spawn(connection);
        let mut request = http::Request::get(path);
        let given = |name: &str| self.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        if !given("host") {
            request = request.header("Host", authority(self.host, self.port));
        }
        if !given("user-agent") {
            request = request.header("User-Agent", concat!("kube-probe/edgelet-", env!("CARGO_PKG_VERSION")));
        }
        if !given("accept") {
            request = request.header("Accept", "*/*");
        }
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.header("Connection", "close").body(Empty::<Bytes>::new());
        let result = async {
            let request = request.map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(|error| hyper_text(&error))?;
            let status = response.status().as_u16();
            let location = response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
            let body = read_body(response.into_body()).await;
            Ok((status, location, body))
        };
        let result = result.await;
        driver.abort();
        result
    }
}

fn hyper_text(error: &hyper::Error) -> String {
    if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() }
}

async fn read_body(mut body: hyper::body::Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(BODY_LIMIT_BYTES - bytes.len())]);
        }
        if bytes.len() >= BODY_LIMIT_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `grpc.health.v1`: one field in, one field out, so the messages are written by hand.
async fn grpc(names: &Resolver, host: &str, port: u16, service: &str) -> Result<String, String> {
    let place = authority(host, port);
    let failed = |error: &str| format!("error: failed to connect service {place:?}: {error}");
    let stream = connect(names, host, port).await.map_err(|error| failed(&error))?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&error.to_string()))?;
    let driver = crate::supervise::spawn(connection);
    let request = http::Request::post(format!("http://{place}{GRPC_METHOD}"))
        .header("Content-Type", "application/grpc")
        .header("TE", "trailers")
        .header("User-Agent", "kube-probe/edgelet")
        .body(Full::new(grpc_request(service)))
        .map_err(|error| failed(&error.to_string()))?;
    let result = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error.to_string()))?;
        let headers = response.headers().clone();
        let collected = response.into_body().collect().await.map_err(|error| failed(&error.to_string()))?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let status = trailers.get("grpc-status").or_else(|| headers.get("grpc-status"));
        match status.and_then(|status| status.to_str().ok()) {
            None | Some("0") => {}
            Some("12") => {
                return Err(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()
                );
            }
            Some(code) => return Err(format!("error: health rpc failed: rpc error: code = {code}")),
        }
        match grpc_status(&collected.to_bytes()) {
            1 => Ok("service healthy (responded with SERVING)".to_owned()),
            2 => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            3 => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
            _ => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        }
    };
    let result = result.await;
    driver.abort();
    result
}

fn grpc_request(service: &str) -> Bytes {
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, length-delimited; a length below 128 is one byte.
        message.extend_from_slice(&[0x0a, u8::try_from(service.len()).expect("cut to 127")]);
        message.extend_from_slice(service);
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).expect("at most 129").to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// Field 1 of the answer, a small enum; 0 when absent.
fn grpc_status(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

/// TLS to whoever answers, verified or not. `None` when the provider has no protocol version.
pub fn trusting_tls() -> Option<Arc<rustls::ClientConfig>> {
    static CONFIG: OnceLock<Option<Arc<rustls::ClientConfig>>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let verifier = Arc::new(Trusting(provider));
        let config = builder.ok()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Some(Arc::new(config))
    };
    CONFIG.get_or_init(make).clone()
}

/// A probe asks whether something answers, not who: the kubelet skips verification too.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers each connection with the next of these.
    async fn server(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.expect("read");
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = answer.replace("{line}", request.lines().next().unwrap_or_default());
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        });
        port
    }

    async fn get(port: u16, path: &str) -> ProbeOutcome {
        let probe =
            NetworkProbe::Http { host: "127.0.0.1".into(), port, path: path.into(), https: false, headers: vec![] };
        run(&probe, &Resolver::default(), SECOND).await
    }

    fn failure(text: impl Into<String>) -> ProbeOutcome {
        ProbeOutcome::Failure(text.into())
    }

    #[tokio::test]
    async fn http_answers_are_judged_by_status() {
        let port = server(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{line} fine...",
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 302 Go\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
            "",
        ])
        .await;
        let ProbeOutcome::Success(body) = get(port, "/ok").await else { panic!("it failed") };
        assert!(body.starts_with("GET /ok HTTP/1.1"), "{body}");
        assert_eq!(get(port, "x").await, failure("HTTP probe failed with statuscode: 500"));
        assert_eq!(get(port, "/go").await, failure("HTTP probe failed with statuscode: 404"));
        assert_eq!(get(port, "/").await, failure(format!("Get \"http://127.0.0.1:{port}/\": EOF")));
        let refused =
            format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(get(port, "/").await, failure(refused));
    }

    #[tokio::test]
    async fn tcp_connects_or_says_why_not() {
        let port = server(&["x"]).await;
        let probe = NetworkProbe::Tcp { host: "127.0.0.1".into(), port };
        assert_eq!(run(&probe, &Resolver::default(), SECOND).await, ProbeOutcome::Success(String::new()));
        let probe = NetworkProbe::Tcp { host: "127.0.0.1".into(), port: 1 };
        assert_eq!(
            run(&probe, &Resolver::default(), SECOND).await,
            failure("dial tcp 127.0.0.1:1: connect: connection refused")
        );
    }

    #[tokio::test]
    async fn a_probe_may_name_its_host() {
        let port = server(&["x"]).await;
        let probe = |host: &str| NetworkProbe::Tcp { host: host.into(), port };
        let names = Resolver::default();
        assert_eq!(run(&probe("localhost"), &names, SECOND).await, ProbeOutcome::Success(String::new()));
        let ProbeOutcome::Failure(text) = run(&probe("nobody.invalid"), &names, SECOND).await else {
            panic!("a name that cannot be")
        };
        assert!(text.starts_with("dial tcp"), "{text}");
    }

    #[test]
    fn grpc_messages_are_framed() {
        assert_eq!(&grpc_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&grpc_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(grpc_status(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(grpc_status(&[0, 0, 0, 0, 0]), 0);
    }
}
