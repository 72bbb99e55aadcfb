//! TLS of the server: its certificate, which follows its names and its authority, and the judgement of clients'.
//! A client certificate of ours whose only fault is its date gets through the handshake: who it is then, and how
//! little it may do, is decided per request.

use super::serve::ServeError;
use crate::clock::Clock;
use crate::pki::Pki;
use crate::pki::certificate::{Credentials, validity};
use crate::pki::trust::Trust;
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// The certificate that new connections are answered with.
#[derive(Clone, Debug, Default)]
pub(super) struct CurrentCertificate(Arc<ArcSwapOption<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl CurrentCertificate {
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.0.load().as_ref().and_then(|key| key.cert.first().cloned())
    }

    /// Answers with these from now on. Former authorities' signatures of the current one go along, for clients that
    /// know no newer authority.
    pub fn set(&self, credentials: &Credentials, trust: &Trust) -> Result<(), ServeError> {
        let (certificate, key) = credentials.der()?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        let crosses = trust.former.iter().map(|former| former.cross.clone());
        let chain = std::iter::once(certificate).chain(crosses).collect();
        self.0.store(Some(Arc::new(CertifiedKey::new(chain, key))));
        Ok(())
    }
}

/// rustls asks our clock, so that simulated time holds for certificates too.
#[derive(Debug)]
struct ClockTime(Clock);

impl rustls::time_provider::TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

pub(super) fn server_config(
    clients: Arc<ClientVerifier>,
    certificate: CurrentCertificate,
    clock: &Clock,
) -> Result<rustls::ServerConfig, ServeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock.clone())))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // kubectl resumes no session; kept ones would only cost memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Judges client certificates by the authorities as they are now.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    inner: ArcSwap<Inner>,
}

#[derive(Debug)]
struct Inner(Arc<dyn ClientCertVerifier>);

impl ClientVerifier {
    pub fn new(pki: &Pki) -> Result<Self, ServeError> {
        Ok(Self { inner: ArcSwap::from_pointee(Inner(verifier(&pki.trust())?)) })
    }

    /// To be called when the authorities have changed.
    pub fn follow(&self, trust: &Trust) -> Result<(), ServeError> {
        self.inner.store(Arc::new(Inner(verifier(trust)?)));
        Ok(())
    }
}

/// By every authority of the cluster; which of them still count is asked per request.
fn verifier(trust: &Trust) -> Result<Arc<dyn ClientCertVerifier>, ServeError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in trust.all() {
        roots.add(authority.der().clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated().build()?)
}

fn is_about_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let rustls::Error::InvalidCertificate(why) = error else { return false };
    matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints could not follow a rotation, and no client of ours needs them.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let inner = self.inner.load();
        match inner.0.verify_client_cert(end_entity, intermediates, now) {
            Err(error) if is_about_time(&error) => {
                let (_, to) = validity(end_entity).ok_or(error)?;
                let seconds = u64::try_from(to.as_second()).unwrap_or_default();
                let then = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
                // Everything else about it must be right.
                inner.0.verify_client_cert(end_entity, intermediates, then)
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.load().0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.load().0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.load().0.supported_verify_schemes()
    }
}

/// What a failed handshake says about the client's certificate, if it is about that.
pub(super) fn certificate_fault(error: &std::io::Error) -> Option<rustls::Error> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(inner, rustls::Error::InvalidCertificate(_)).then(|| inner.clone())
}
