//! edgelet's own certificate authority, the certificates and kubeconfigs it gives out, and the key
//! that signs ServiceAccount tokens. All of it is files in one directory; private ones have mode 0600.
//! Calls block on small files: open it before the loops start, re-issue from `spawn_blocking`.

pub mod at_rest;
pub mod authority;
pub mod bootstrap;
pub mod certificate;
mod der;
pub mod files;
pub mod join_token;
pub mod kubeconfig;
pub mod node_identity;
pub mod node_key;
pub mod request;
pub mod time;
pub mod token;
pub mod trust;

use crate::clock::Clock;
use arc_swap::ArcSwap;
use certificate::Credentials;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use token::TokenKey;
use tokio::sync::watch;
use trust::{RotationError, Trust};

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
    #[error("get random bytes from the kernel")]
    Random,
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
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
    trust: ArcSwap<Trust>,
    /// Held while the authorities change.
    rotating: Mutex<()>,
    /// Counts changes of the authorities.
    changes: watch::Sender<u64>,
    token_key: TokenKey,
}

impl Pki {
    /// Opens the directory, and makes the authority and the token key at the first start.
    /// `issuer` names this cluster in ServiceAccount tokens.
    pub fn open(dir: &Path, issuer: &str, clock: Clock) -> Result<Self, PkiError> {
        files::make_private_dir(dir)?;
        let trust = ArcSwap::from_pointee(Trust::open(dir, clock.now())?);
        let token_key = TokenKey::open(&dir.join("service-account.key"), issuer)?;
        let (dir, changes) = (dir.to_owned(), watch::Sender::new(0));
        Ok(Self { inner: Arc::new(Inner { dir, clock, trust, rotating: Mutex::default(), changes, token_key }) })
    }

    /// The authorities as they are now.
    pub fn trust(&self) -> Arc<Trust> {
        self.inner.trust.load_full()
    }

    /// Marked whenever the authorities change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The certificates of the authorities that clients are to trust: one, or two while a rotation is under way.
    pub fn ca_pem(&self) -> String {
        self.trust().bundle_pem()
    }

    /// Makes a new authority the current one, if `expected` (the hash of its key, in hexadecimal) still is. Blocks.
    pub fn rotate(&self, expected: &str) -> Result<(), RotationError> {
        let _alone = self.inner.rotating.lock().expect("no panic while rotating");
        let next = self.trust().rotated(expected, self.inner.clock.now())?;
        self.replace(next)?;
        Ok(())
    }

    /// Ends the rotation: certificates of former authorities count no longer. Blocks.
    pub fn finish_rotation(&self) -> Result<(), PkiError> {
        let _alone = self.inner.rotating.lock().expect("no panic while rotating");
        self.replace(self.trust().finished())
    }

    fn replace(&self, next: Trust) -> Result<(), PkiError> {
        next.save(&self.inner.dir)?;
        self.inner.trust.store(Arc::new(next));
        self.inner.changes.send_modify(|count| *count += 1);
        Ok(())
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

    /// The next server certificate is a new one.
    pub fn forget_server_credentials(&self) -> Result<(), PkiError> {
        files::remove(&self.inner.dir.join("server.crt"))
    }

    /// A client certificate kept under `file` (`admin`): user and group become CN and O.
    pub fn client_credentials(&self, file: &str, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        self.kept_or_issued(file, &certificate::Request::client(user, group))
    }

    /// A client certificate that is not kept on disk.
    pub fn issue_client(&self, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        let request = certificate::Request::client(user, group);
        self.trust().current.issue(&request, self.inner.clock.now())
    }

    /// Writes the administrator's kubeconfig (mode 0600) for the server at `url`; when to write the next one.
    pub fn write_admin_kubeconfig(&self, path: &Path, url: &str) -> Result<jiff::Timestamp, PkiError> {
        let credentials = self.client_credentials("admin", "edgelet-admin", Some("system:masters"))?;
        let text = kubeconfig::render(&kubeconfig::Kubeconfig {
            name: "edgelet",
            server: url,
            ca_pem: &self.ca_pem(),
            user: "edgelet-admin",
            credentials: &credentials,
        });
        if files::read_text(path)?.as_deref() != Some(&text) {
            files::write_private(path, text.as_bytes())?;
        }
        Ok(credentials.renew_at())
    }

    fn kept_or_issued(&self, name: &str, request: &certificate::Request) -> Result<Credentials, PkiError> {
        let (inner, authority) = (&*self.inner, self.trust().current.clone());
        let certificate = inner.dir.join(format!("{name}.crt"));
        let key = inner.dir.join(format!("{name}.key"));
        let now = inner.clock.now();
        if let Some(kept) = certificate::load(&certificate, &key)?
            && authority.still_fits(&kept, request, now)
        {
            return Ok(kept);
        }
        let issued = authority.issue(request, now)?;
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
    async fn a_clock_that_was_years_ahead_leaves_no_certificate_of_tomorrow_behind() {
        let dir = tempfile::tempdir().unwrap();
        let ahead = open(dir.path(), "2036-11-23T00:00:00Z").server_credentials(&names()).unwrap();
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let back = open(dir.path(), &now.to_string()).server_credentials(&names()).unwrap();
        assert_ne!(back.certificate_pem, ahead.certificate_pem);
        let (from, to) = certificate::validity(&back.der().unwrap().0).unwrap();
        assert!(from <= now && now < to);
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
    async fn a_rotation_keeps_the_old_authority_beside_the_new_one_until_it_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), "2026-11-23T00:00:00Z");
        let old = pki.trust().current.clone();
        let before = pki.server_credentials(&names()).unwrap();
        let hash = hex(old.key_hash());
        pki.rotate(&hash).unwrap();
        assert!(matches!(pki.rotate(&hash), Err(RotationError::Moved { .. })), "a rotation asked for twice is one");
        let trust = pki.trust();
        assert!(matches!(pki.rotate(&hex(trust.current.key_hash())), Err(RotationError::UnderWay(_))));
        assert_eq!(pki.ca_pem(), format!("{}{}", trust.current.pem(), old.pem()));
        assert_ne!(pki.server_credentials(&names()).unwrap().certificate_pem, before.certificate_pem);
        assert!(!dir.path().join("ca.key").exists(), "the old key is in one file only");

        let again = open(dir.path(), "2026-11-24T00:00:00Z");
        assert_eq!(again.ca_pem(), pki.ca_pem());
        again.finish_rotation().unwrap();
        assert_eq!(again.ca_pem(), again.trust().current.pem());
        let known = certificate::bundle(old.pem().as_bytes()).unwrap();
        let offered = certificate::bundle(again.trust().offered_pem().as_bytes()).unwrap();
        let trusted = join_token::vouched(&known, &offered);
        assert!(trusted.contains(again.trust().current.der()), "who knows the old one alone can follow");
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
