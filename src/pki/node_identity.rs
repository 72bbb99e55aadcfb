//! What a joined node keeps of its cluster, in one private directory: its key, which never leaves it, its
//! certificate, the authorities it trusts and where the server is.

use super::certificate::{self, Credentials};
use super::{PkiError, files};
use rcgen::{CertificateParams, DnType, KeyPair};
use std::path::{Path, PathBuf};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITIES: &str = "ca.crt";
const SERVER: &str = "server";

/// The directory; what is missing in it is asked for when it is read.
#[derive(Clone, Debug)]
pub struct NodeIdentity(PathBuf);

/// A node that has joined. Holds a key, so it has no `Debug`.
pub struct Joined {
    pub credentials: Credentials,
    pub ca_pem: String,
    /// `https://host:port`.
    pub server: String,
}

impl Joined {
    /// The node the certificate was given to.
    pub fn node_name(&self) -> Option<String> {
        let (certificate, _) = self.credentials.der().ok()?;
        let (user, _) = certificate::identity(&certificate)?;
        user.strip_prefix("system:node:").map(str::to_owned)
    }
}

impl NodeIdentity {
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// What the node joined with; `None` when it has not.
    pub fn load(&self) -> Result<Option<Joined>, PkiError> {
        let credentials = certificate::load(&self.0.join(CERTIFICATE), &self.0.join(KEY))?;
        let (ca_pem, server) = (files::read_text(&self.0.join(AUTHORITIES))?, files::read_text(&self.0.join(SERVER))?);
        let all = credentials.zip(ca_pem).zip(server);
        Ok(all.map(|((credentials, ca_pem), server)| Joined { credentials, ca_pem, server: server.trim().to_owned() }))
    }

    /// The key, made at the first call; PEM.
    pub fn key(&self) -> Result<String, PkiError> {
        files::make_private_dir(&self.0)?;
        if let Some(pem) = files::read_text(&self.0.join(KEY))? {
            return Ok(pem);
        }
        let failed = |source| PkiError::Certificate { what: "make the node's key", source };
        let pem = KeyPair::generate().map_err(failed)?.serialize_pem();
        files::write_private(&self.0.join(KEY), pem.as_bytes())?;
        Ok(pem)
    }

    /// A signing request for the node's certificate, with the key that is kept; PEM.
    pub fn request(&self, node: &str) -> Result<String, PkiError> {
        let failed = |source| PkiError::Certificate { what: "make a signing request", source };
        let key = KeyPair::from_pem(&self.key()?).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
        let request = params.serialize_request(&key).map_err(failed)?;
        request.pem().map_err(failed)
    }

    /// Keeps a new certificate; a crash leaves the old one or the new one.
    pub fn store_certificate(&self, pem: &str) -> Result<(), PkiError> {
        files::write_private(&self.0.join(CERTIFICATE), pem.as_bytes())
    }

    pub fn store_authorities(&self, pem: &str) -> Result<(), PkiError> {
        files::make_private_dir(&self.0)?;
        files::write_private(&self.0.join(AUTHORITIES), pem.as_bytes())
    }

    /// The authorities it trusts; PEM.
    pub fn authorities(&self) -> Result<Option<String>, PkiError> {
        files::read_text(&self.0.join(AUTHORITIES))
    }

    /// Belongs to no cluster from now on; only the key is kept. The authorities go last: while they are there,
    /// it can be seen that more was to be forgotten.
    pub fn leave(&self, and: impl FnOnce() -> Result<(), PkiError>) -> Result<(), PkiError> {
        files::remove(&self.0.join(SERVER))?;
        files::remove(&self.0.join(CERTIFICATE))?;
        and()?;
        files::remove(&self.0.join(AUTHORITIES))
    }

    /// The last step of joining: from now on the node has joined.
    pub fn store_server(&self, url: &str) -> Result<(), PkiError> {
        files::write_private(&self.0.join(SERVER), format!("{url}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::request::SigningRequest;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_node_asks_with_its_kept_key_and_has_joined_once_all_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let identity = NodeIdentity::new(&directory.path().join("node"));
        assert!(identity.load().unwrap().is_none());
        let first = identity.request("a").unwrap();
        let request = SigningRequest::parse(first.as_bytes()).unwrap();
        assert_eq!(request.common_name, "system:node:a");
        let again = SigningRequest::parse(identity.request("a").unwrap().as_bytes()).unwrap();
        assert_eq!(request.key_hash, again.key_hash);
        let mode = std::fs::metadata(identity.directory().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        identity.store_authorities("CA").unwrap();
        identity.store_server("https://a:6443").unwrap();
        assert!(identity.load().unwrap().is_none(), "no certificate yet");
    }
}
