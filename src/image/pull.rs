//! Pulls from a registry: token authentication, digests checked, the platform's manifest chosen.
//! Each layer streams from the network through the hash into the file system; memory stays small.
//! Source: OCI distribution spec 1.1; Docker token authentication.

use super::manifest::{Config, Descriptor, Manifest, Platform};
use super::reference::Reference;
use super::unpack::{Hashing, digest};
use super::{ImageError, ImageStore, Result};
use base64::Engine;
use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// A manifest or config larger than this is no manifest.
const DOCUMENT_LIMIT_BYTES: usize = 4 << 20;
/// Chunks between the network and the unpacking thread.
const CHUNKS_LIMIT: usize = 8;
const LAYER_TRIES: u32 = 3;
/// Time without a byte after which a transfer has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Credentials for a registry, in the order they are tried.
#[derive(Clone, Default)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub token: String,
}

/// How to reach registries.
#[derive(Clone)]
pub struct Puller {
    client: Client,
    /// Registries that speak plain HTTP, beside loopback ones.
    insecure: Arc<Vec<String>>,
}

/// Pulls under way by reference: a second request waits for the first.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl InFlight {
    fn gate(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.0.lock().expect("no panic while the pulls are locked");
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(name.to_owned()).or_default().clone()
    }
}

impl Puller {
    /// `resolve` finds addresses: a static binary must not call getaddrinfo.
    pub fn new(
        resolve: Arc<dyn reqwest::dns::Resolve>,
        insecure: Vec<String>,
    ) -> std::result::Result<Self, reqwest::Error> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("edgelet/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(resolve.clone())
                .connect_timeout(Duration::from_secs(15))
                .read_timeout(READ_TIMEOUT)
                .pool_max_idle_per_host(4)
                .pool_idle_timeout(Duration::from_secs(30))
        };
        // A machine without root certificates still runs the images it has, and pulls over plain HTTP.
        let client = builder().build().or_else(|error| {
            tracing::warn!(%error, "no root certificates: registries over HTTPS are not trusted");
            builder().tls_certs_only([]).build()
        })?;
        Ok(Self { client, insecure: Arc::new(insecure) })
    }

    /// Returns once the registry has answered, whatever it says. Nothing is asked of it but its version.
    pub async fn reach(&self, name: &str) -> Result<()> {
        let reference = Reference::parse(name)?;
        let asked = self.client.head(format!("{}/", self.base(&reference.registry))).send().await;
        let failed = |error| ImageError::Pull { reference: name.to_owned(), why: described(&error), transient: true };
        asked.map(drop).map_err(failed)
    }

    fn base(&self, registry: &str) -> String {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let loopback = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        let scheme = if loopback || self.insecure.iter().any(|one| one == registry) { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        format!("{scheme}://{host}/v2")
    }
}

impl ImageStore {
    /// Pulls an image (a present one is asked for again: its tag may have moved); returns its id.
    /// At most one pull per reference at a time.
    pub async fn pull(&self, puller: &Puller, name: &str, credentials: &[Credentials]) -> Result<String> {
        let reference = Reference::parse(name)?;
        let gate = self.inner.pulls.gate(&reference.to_string());
        let _turn = gate.lock().await;
        let store = self.clone();
        let _adding = blocking(move || store.adding()).await?;
        let mut last = None;
        // Without credentials last: a public image must not fail for a stale password.
        let anonymous = [Credentials::default()];
        for credentials in credentials.iter().chain(&anonymous) {
            let mut session = Session { puller, reference: &reference, credentials, authorization: String::new() };
            match self.pull_with(&mut session).await {
                Ok(id) => return Ok(id),
                Err(error @ ImageError::Pull { transient: true, .. }) => return Err(error),
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.expect("the anonymous attempt sets an error"))
    }

    async fn pull_with(&self, session: &mut Session<'_>) -> Result<String> {
        let host = Platform::host();
        let (manifest, top_digest) = session.manifest(session.reference.manifest_name()).await?;
        let manifest = if manifest.is_index() {
            let Some(chosen) = manifest.choose(&host) else {
                let why = format!("no match for platform in manifest: not found: {}/{}", host.os, host.architecture);
                return Err(session.failed(why, false));
            };
            // What an index pins by another algorithm could not be checked.
            if !super::is_digest(&chosen.digest) {
                return Err(session.failed(format!("{:?} in its index is not a sha256 digest", chosen.digest), false));
            }
            session.manifest(&chosen.digest).await?.0
        } else {
            manifest
        };
        let Some(config) = &manifest.config else {
            return Err(session.failed("its manifest has no config".into(), false));
        };
        let config = session.document(config).await?;
        let parsed = Config::parse(&config).map_err(|why| session.failed(why, false))?;
        if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(session.failed("config and manifest count different layers".into(), false));
        }
        for (diff_id, layer) in parsed.rootfs.diff_ids.iter().zip(&manifest.layers) {
            if !self.has_layer(diff_id) {
                self.pull_layer(session, layer, diff_id).await?;
            }
        }
        let size_bytes = manifest.layers.iter().map(|layer| layer.size).sum();
        let tag = if session.reference.tag.is_empty() {
            String::new()
        } else {
            Reference { digest: String::new(), ..session.reference.clone() }.to_string()
        };
        let store = self.clone();
        let digest = session.reference.at_digest(&top_digest);
        blocking(move || store.add_image(&config, &tag, &digest, size_bytes)).await
    }

    /// One layer, tried again from its start when the connection breaks.
    async fn pull_layer(&self, session: &mut Session<'_>, layer: &Descriptor, diff_id: &str) -> Result<()> {
        let mut backoff = Duration::from_millis(500);
        for attempt in 1.. {
            match self.pull_layer_once(session, layer, diff_id).await {
                Err(ImageError::Pull { transient: true, why, .. }) if attempt < LAYER_TRIES => {
                    tracing::debug!(layer = %layer.digest, attempt, why, "layer pull failed; trying again");
                    self.inner.clock.sleep(backoff).await;
                    backoff *= 2;
                }
                done => return done,
            }
        }
        unreachable!("the loop returns at its last attempt")
    }

    async fn pull_layer_once(&self, session: &mut Session<'_>, layer: &Descriptor, diff_id: &str) -> Result<()> {
        let mut response = session.get(&format!("blobs/{}", layer.digest), "*/*").await?;
        let (chunks, reader) = mpsc::channel(CHUNKS_LIMIT);
        let store = self.clone();
        let (expected, wanted_diff_id) = (layer.digest.clone(), diff_id.to_owned());
        let unpacking = blocking(move || store.unpack_checked(ChunkReader::new(reader), &expected, &wanted_diff_id));
        let feeding = async {
            loop {
                match response.chunk().await {
                    Ok(Some(bytes)) => {
                        if chunks.send(Ok(bytes)).await.is_err() {
                            return Ok(()); // The unpacking thread failed; its error counts.
                        }
                    }
                    Ok(None) => {
                        drop(chunks);
                        return Ok(());
                    }
                    Err(error) => {
                        let _ = chunks.send(Err(io::Error::other("transfer broke"))).await;
                        return Err(session.failed(described(&error), true));
                    }
                }
            }
        };
        let (fed, unpacked) = tokio::join!(feeding, unpacking);
        fed?;
        unpacked
    }

    /// Unpacks a layer whose compressed bytes must have the expected digest. Blocking.
    fn unpack_checked(&self, input: ChunkReader, expected: &str, diff_id: &str) -> Result<()> {
        let mut hashing = Hashing::new(input);
        let staging = self.staging("layer")?;
        let unpacked = super::unpack::decompress(&mut hashing)
            .and_then(|reader| super::unpack::unpack(reader, &staging.path))
            .map_err(super::disk(&staging.path))?;
        let (actual, _) = hashing.finish().map_err(super::disk(&staging.path))?;
        if actual != expected {
            return Err(ImageError::Archive(format!("layer has digest {actual}, expected {expected}")));
        }
        if unpacked.diff_id != diff_id {
            let why = format!("layer has diff id {}, expected {diff_id}", unpacked.diff_id);
            return Err(ImageError::Archive(why));
        }
        self.keep_layer(staging, diff_id)
    }
}

/// Runs blocking work off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Archive(format!("worker ended: {error}"))),
    }
}

/// One pull's conversation with its registry.
struct Session<'a> {
    puller: &'a Puller,
    reference: &'a Reference,
    credentials: &'a Credentials,
    /// The `Authorization` header that worked last.
    authorization: String,
}

impl Session<'_> {
    fn failed(&self, why: String, transient: bool) -> ImageError {
        ImageError::Pull { reference: self.reference.to_string(), why, transient }
    }

    async fn manifest(&mut self, name: &str) -> Result<(Manifest, String)> {
        let response = self.get(&format!("manifests/{name}"), ACCEPTED).await?;
        let bytes = self.body(response).await?;
        let actual = digest(Sha256::new_with_prefix(&bytes));
        if super::is_digest(name) && name != actual {
            return Err(self.failed(format!("manifest {name} has digest {actual}"), false));
        }
        let manifest =
            serde_json::from_slice(&bytes).map_err(|error| self.failed(format!("manifest: {error}"), false))?;
        Ok((manifest, actual))
    }

    async fn document(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let response = self.get(&format!("blobs/{}", descriptor.digest), "*/*").await?;
        let bytes = self.body(response).await?;
        let actual = digest(Sha256::new_with_prefix(&bytes));
        if actual != descriptor.digest {
            return Err(self.failed(format!("config {} has digest {actual}", descriptor.digest), false));
        }
        Ok(bytes)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(described(&error), true))? {
            if bytes.len() + chunk.len() > DOCUMENT_LIMIT_BYTES {
                return Err(self.failed(format!("document is larger than {DOCUMENT_LIMIT_BYTES} bytes"), false));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// GET below the repository; a 401 is answered with a token or a password once.
    async fn get(&mut self, path: &str, accept: &str) -> Result<Response> {
        let url = format!("{}/{}/{path}", self.puller.base(&self.reference.registry), self.reference.repository);
        for attempt in 0..2 {
            let mut request = self.puller.client.get(&url).header(ACCEPT, accept);
            if !self.authorization.is_empty() {
                request = request.header(AUTHORIZATION, &self.authorization);
            }
            let response = request.send().await.map_err(|error| self.failed(described(&error), true))?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if attempt == 0 => self.authorize(&response).await?,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let why = "pull access denied, repository does not exist or may require authorization";
                    return Err(self.failed(format!("{why}: {}", response.status()), false));
                }
                StatusCode::NOT_FOUND => return Err(self.failed(format!("{url}: not found"), false)),
                status => {
                    let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    return Err(
                        self.failed(format!("unexpected status from GET request to {url}: {status}"), transient)
                    );
                }
            }
        }
        Err(self.failed("authorization failed".into(), false))
    }

    async fn authorize(&mut self, response: &Response) -> Result<()> {
        let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let challenge = challenge.unwrap_or_default().to_owned();
        let Some(parameters) = challenge.strip_prefix("Bearer ").or_else(|| challenge.strip_prefix("bearer ")) else {
            self.authorization = self.basic().unwrap_or_default();
            return Ok(());
        };
        let parameters = parse_challenge(parameters);
        let Some(realm) = parameters.get("realm") else {
            return Err(self.failed("its registry asks for a token but names no realm".into(), false));
        };
        let scope = format!("repository:{}:pull", self.reference.repository);
        let service = parameters.get("service").map(String::as_str).unwrap_or_default();
        let url = format!("{realm}?service={}&scope={}", encoded(service), encoded(&scope));
        let mut request = self.puller.client.get(url);
        if let Some(basic) = self.basic() {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = request.send().await.map_err(|error| self.failed(described(&error), true))?;
        if !response.status().is_success() {
            return Err(self.failed(format!("failed to fetch token: {}", response.status()), false));
        }
        let body = self.body(response).await?;
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let token = answer.get("token").or_else(|| answer.get("access_token")).and_then(|token| token.as_str());
        let Some(token) = token else {
            return Err(self.failed("the token answer holds no token".into(), false));
        };
        self.authorization = format!("Bearer {token}");
        Ok(())
    }

    fn basic(&self) -> Option<String> {
        let Credentials { username, password, token } = self.credentials;
        if !token.is_empty() {
            return Some(format!("Bearer {token}"));
        }
        if username.is_empty() {
            return None;
        }
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
        Some(format!("Basic {pair}"))
    }
}

/// The error with its causes: "error sending request" alone tells a user nothing.
fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// `key="value",key2=value2` (RFC 9110 §11.2).
fn parse_challenge(parameters: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = parameters.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key, value.to_owned());
        rest = next;
    }
    found
}

fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}

/// The unpacking thread's end of the channel.
struct ChunkReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl ChunkReader {
    fn new(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed_with_commas_in_quotes() {
        let found =
            parse_challenge(r#"realm="https://auth.example.com/token",service="registry",scope="a:b:pull,push""#);
        assert_eq!(found["realm"], "https://auth.example.com/token");
        assert_eq!(found["service"], "registry");
        assert_eq!(found["scope"], "a:b:pull,push");
    }
}
