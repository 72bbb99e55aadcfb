//! edgelet's own certificate authority, the certificates and kubeconfigs it gives out, and the key
//! that signs ServiceAccount tokens. All of it is files in one directory; private ones have mode 0600.
//! Calls block on small files: open it before the loops start, re-issue from `spawn_blocking`.

pub mod certificate;
pub mod files;
pub mod kubeconfig;
pub mod token;

use crate::clock::Clock;
use certificate::{Authority, Credentials};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use token::TokenKey;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}")]
    Certificate {
        what: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error("parse {path}: {why}")]
    Malformed { path: PathBuf, why: String },
}

/// What the names in the server certificate are derived from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The first address of the Service range, at which pods reach the API.
    pub service_ip: Option<IpAddr>,
    /// Host names and addresses of this machine, and whatever the user adds.
    pub extra: Vec<String>,
}

impl ServerNames {
    /// Every subject alternative name, in order and without repetition.
    pub fn subject_names(&self) -> BTreeSet<String> {
        let in_cluster = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
        let mut names: BTreeSet<String> = in_cluster.into();
        if !self.cluster_domain.is_empty() {
            names.insert(format!("kubernetes.default.svc.{}", self.cluster_domain));
        }
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        names.extend(self.service_ip.map(|ip| ip.to_string()));
        names.extend(self.extra.iter().filter(|name| !name.is_empty()).cloned());
        names
    }
}

/// The trust of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Pki {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    clock: Clock,
    authority: Authority,
    token_key: TokenKey,
}

impl Pki {
    /// Opens the directory, and makes the authority and the token key at the first start.
    /// `issuer` names this cluster in ServiceAccount tokens.
    pub fn open(dir: &Path, issuer: &str, clock: Clock) -> Result<Self, PkiError> {
        files::make_private_dir(dir)?;
        let authority = Authority::open(dir, clock.now())?;
        let token_key = TokenKey::open(&dir.join("service-account.key"), issuer)?;
        let dir = dir.to_owned();
        Ok(Self { inner: Arc::new(Inner { dir, clock, authority, token_key }) })
    }

    /// The authority's certificate, for clients to trust.
    pub fn ca_pem(&self) -> &str {
        self.inner.authority.pem()
    }

    pub fn ca_der(&self) -> &rustls_pki_types::CertificateDer<'static> {
        self.inner.authority.der()
    }

    pub fn token_key(&self) -> &TokenKey {
        &self.inner.token_key
    }

    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The server's certificate for exactly these names: the one on disk while it fits, else a new one.
    pub fn server_credentials(&self, names: &ServerNames) -> Result<Credentials, PkiError> {
        let request = certificate::Request::server(names.subject_names());
        self.kept_or_issued("server", &request)
    }

    /// A client certificate kept under `file` (`admin`): user and group become CN and O.
    pub fn client_credentials(&self, file: &str, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        self.kept_or_issued(file, &certificate::Request::client(user, group))
    }

    /// A client certificate that is not kept on disk.
    pub fn issue_client(&self, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        let request = certificate::Request::client(user, group);
        self.inner.authority.issue(&request, self.inner.clock.now())
    }

    /// Writes the administrator's kubeconfig (mode 0600) for the server at `url`.
    pub fn write_admin_kubeconfig(&self, path: &Path, url: &str) -> Result<(), PkiError> {
        let credentials = self.client_credentials("admin", "edgelet-admin", Some("system:masters"))?;
        let text = kubeconfig::render(&kubeconfig::Kubeconfig {
            name: "edgelet",
            server: url,
            ca_pem: self.ca_pem(),
            user: "edgelet-admin",
            credentials: &credentials,
        });
        files::write_private(path, text.as_bytes())
    }

    fn kept_or_issued(&self, name: &str, request: &certificate::Request) -> Result<Credentials, PkiError> {
        let inner = &*self.inner;
        let certificate = inner.dir.join(format!("{name}.crt"));
        let key = inner.dir.join(format!("{name}.key"));
        let now = inner.clock.now();
        if let Some(kept) = certificate::load(&certificate, &key)?
            && inner.authority.still_fits(&kept, request, now)
        {
            return Ok(kept);
        }
        let issued = inner.authority.issue(request, now)?;
        // The key first: a crash in between leaves a pair that does not match, which is issued again.
        files::write_private(&key, issued.key_pem.as_bytes())?;
        files::write_private(&certificate, issued.certificate_pem.as_bytes())?;
        Ok(issued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{SignedDuration, Timestamp};
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &Path, at: &str) -> Pki {
        let start: Timestamp = at.parse().unwrap();
        Pki::open(dir, "https://kubernetes.default.svc.cluster.local", Clock::simulated(start)).unwrap()
    }

    fn names() -> ServerNames {
        ServerNames {
            cluster_domain: "cluster.local".into(),
            service_ip: Some("10.43.0.1".parse().unwrap()),
            extra: vec!["board".into(), "192.168.1.5".into()],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn server_certificate_is_kept_until_names_change_or_its_end_nears() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), "2026-11-23T00:00:00Z");
        let first = pki.server_credentials(&names()).unwrap();
        let pki = open(dir.path(), "2027-01-01T00:00:00Z");
        assert_eq!(pki.server_credentials(&names()).unwrap().certificate_pem, first.certificate_pem);

        let more = ServerNames { extra: vec!["other".into()], ..names() };
        let second = pki.server_credentials(&more).unwrap();
        assert_ne!(second.certificate_pem, first.certificate_pem);

        let nearly = second.not_after - SignedDuration::from_hours(24 * 30);
        let pki = open(dir.path(), &nearly.to_string());
        let third = pki.server_credentials(&more).unwrap();
        assert!(third.not_after > second.not_after);
    }

    #[tokio::test(start_paused = true)]
    async fn a_board_whose_clock_starts_at_the_epoch_still_gets_usable_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), "1970-01-01T00:01:00Z");
        let client = pki.issue_client("x", None).unwrap();
        assert!(client.not_after > "2026-12-01T00:00:00Z".parse().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn private_files_are_private_and_a_second_open_keeps_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), "2026-11-23T00:00:00Z");
        let config = dir.path().join("admin.kubeconfig");
        pki.write_admin_kubeconfig(&config, "https://127.0.0.1:6443").unwrap();
        for file in ["ca.key", "service-account.key", "admin.key", "admin.kubeconfig"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let again = open(dir.path(), "2026-11-24T00:00:00Z");
        assert_eq!(pki.ca_pem(), again.ca_pem());
        assert_eq!(pki.token_key().key_id(), again.token_key().key_id());
        let text = std::fs::read_to_string(&config).unwrap();
        let value: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(value["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_of_another_authority_are_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), "2026-11-23T00:00:00Z").server_credentials(&names()).unwrap();
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let second = open(dir.path(), "2026-11-23T00:00:00Z").server_credentials(&names()).unwrap();
        assert_ne!(first.certificate_pem, second.certificate_pem);
    }
}
