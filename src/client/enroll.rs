//! How a node comes by its certificate: a signing request, then the wait for what the server decides.
//! Also what is asked of a server that is not trusted yet: its authorities, and what time it is.

use super::reach::{Connector, Http, Reach};
use super::{CERTIFICATESIGNINGREQUESTS, Client, Item, WatchEvent};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::registry::ListOptions;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT_BYTES: usize = 256 << 10;

/// Asks for a certificate of the node and waits for it; PEM.
pub async fn certificate(client: &Client, node: &str, request_pem: &str) -> Result<String> {
    let wanted = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": format!("{node}-")},
        "spec": {"signerName": SIGNER, "request": STANDARD.encode(request_pem),
            "usages": ["digital signature", "client auth"]},
    });
    let made = client.create(CERTIFICATESIGNINGREQUESTS, "", wanted).await?.object()?;
    let decided = tokio::time::timeout(DECISION_TIMEOUT, decision(client, made)).await;
    decided.map_err(|_| Status::timeout("the server did not sign the node's certificate in time: see its log"))?
}

async fn decision(client: &Client, made: Object) -> Result<String> {
    let options = ListOptions {
        field_selector: format!("metadata.name={}", made.name()),
        resource_version: made.resource_version().to_owned(),
        ..ListOptions::default()
    };
    if let Some(decided) = decided(&made) {
        return decided;
    }
    let mut events = client.watch(CERTIFICATESIGNINGREQUESTS, "", &options).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(item) | WatchEvent::Modified(item) => {
                if let Some(decided) = decided(&object(&item)?) {
                    return decided;
                }
            }
            WatchEvent::Deleted(_) => return Err(Status::unavailable("the signing request was deleted: try again")),
            WatchEvent::Bookmark { .. } => {}
        }
    }
    Err(Status::unavailable("the server ended the watch of the signing request: try again"))
}

fn object(item: &Item) -> Result<Object> {
    item.object()
}

/// The certificate, or why there is none; `None` while nothing is decided.
fn decided(request: &Object) -> Option<Result<String>> {
    let conditions = request.at(&["status", "conditions"]).and_then(Object::as_array);
    let refused = conditions.into_iter().flatten().find(|one| one["type"] == "Denied" || one["type"] == "Failed");
    if let Some(refused) = refused {
        let message = refused["message"].as_str().unwrap_or("the server denied the signing request");
        return Some(Err(Status::new(403, "Forbidden", message.to_owned())));
    }
    let encoded = request.str_at(&["status", "certificate"]);
    if encoded.is_empty() {
        return None;
    }
    let text = STANDARD.decode(encoded).map_err(Status::internal);
    Some(text.and_then(|bytes| String::from_utf8(bytes).map_err(Status::internal)))
}

/// GET from a server that proves nothing yet: the answer must be checked by other means.
pub async fn from_stranger(server: &str, path: &str, reach: Arc<dyn Reach>) -> Result<Bytes> {
    let late = |_| Status::timeout(format!("{server} does not answer within {} s", ANSWER_TIMEOUT.as_secs()));
    tokio::time::timeout(ANSWER_TIMEOUT, asked(server, path, reach)).await.map_err(late)?
}

async fn asked(server: &str, path: &str, reach: Arc<dyn Reach>) -> Result<Bytes> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Status::internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let http = Connector { reach, tls: Arc::new(tls), idle: None }.http(Http::Any);
    let request = http::Request::get(format!("{server}{path}")).body(Full::default()).map_err(Status::internal)?;
    let answer = http.request(request).await.map_err(super::remote::unreachable_server)?;
    let code = answer.status();
    if !code.is_success() {
        return Err(Status::new(code.as_u16(), "Unknown", format!("{server}{path} answers {code}")));
    }
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => Status::internal("the answer is too large: this is no edgelet server"),
        false => Status::unavailable(error.to_string()),
    })
}

/// Accepts every certificate; signatures are checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        assert!(decided(&json!({"status": {}})).is_none());
        let signed = json!({"status": {"certificate": STANDARD.encode("PEM")}});
        assert_eq!(decided(&signed).unwrap().unwrap(), "PEM");
        let conditions = json!([{"type": "Approved"}, {"type": "Denied", "message": "run `edgelet node forget a`"}]);
        let denied = decided(&json!({"status": {"conditions": conditions}})).unwrap().unwrap_err();
        assert_eq!(denied.message, "run `edgelet node forget a`");
    }
}
