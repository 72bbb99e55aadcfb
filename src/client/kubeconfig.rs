//! Kubeconfig files, as far as edgelet's own commands need them: one context's server and credentials.
//! Source: client-go clientcmd api v1 (field names); exec plugins and auth providers are not supported.

use crate::api::status::{Result, Status};
use base64::Engine;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where and as whom to speak to an API server. No `Debug`: it holds a key.
#[derive(Clone, Default)]
pub struct Access {
    /// `https://host:port`, without a slash at the end.
    pub server: String,
    /// PEM; empty = the system's roots.
    pub ca_pem: Vec<u8>,
    pub client_certificate_pem: Vec<u8>,
    pub client_key_pem: Vec<u8>,
    pub token: String,
    /// The namespace of the context, `default` when it names none.
    pub namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct File {
    current_context: String,
    clusters: Vec<Named<ClusterEntry>>,
    contexts: Vec<Named<ContextEntry>>,
    users: Vec<Named<UserEntry>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct ClusterEntry {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ContextEntry {
    cluster: String,
    user: String,
    namespace: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct UserEntry {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
}

impl Access {
    /// Reads a kubeconfig file's current context (or the one named).
    pub fn load(path: &Path, context: Option<&str>) -> Result<Self> {
        let fail = |why: String| Status::bad_request(format!("kubeconfig {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let file: File = serde_yaml::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let wanted = context.unwrap_or(&file.current_context);
        let find = |what: &str, name: &str| fail(format!("no {what} named {name:?}"));
        let context =
            &file.contexts.iter().find(|one| one.name == wanted).ok_or_else(|| find("context", wanted))?.value;
        let cluster = file.clusters.iter().find(|one| one.name == context.cluster);
        let cluster = &cluster.ok_or_else(|| find("cluster", &context.cluster))?.value;
        let user = file.users.iter().find(|one| one.name == context.user);
        let user = &user.ok_or_else(|| find("user", &context.user))?.value;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let pem = |data: &str, file: &str| material(&folder, data, file).map_err(fail);
        Ok(Self {
            server: cluster.server.trim_end_matches('/').to_owned(),
            ca_pem: pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?,
            client_certificate_pem: pem(&user.client_certificate_data, &user.client_certificate)?,
            client_key_pem: pem(&user.client_key_data, &user.client_key)?,
            token: user.token.clone(),
            namespace: if context.namespace.is_empty() { "default".into() } else { context.namespace.clone() },
        })
    }
}

/// Inline data wins over a file, whose path is relative to the kubeconfig's folder.
fn material(folder: &Path, data: &str, file: &str) -> std::result::Result<Vec<u8>, String> {
    if !data.is_empty() {
        return base64::engine::general_purpose::STANDARD.decode(data).map_err(|error| error.to_string());
    }
    if file.is_empty() {
        return Ok(Vec::new());
    }
    let path: PathBuf = folder.join(file);
    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_is_read_with_inline_data_and_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "CA").unwrap();
        let path = folder.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: b\nclusters:\n- name: c\n  cluster: {server: 'https://h:1/', certificate-authority: ca.pem}\ncontexts:\n- name: b\n  context: {cluster: c, user: u}\nusers:\n- name: u\n  user: {client-key-data: S0VZ, token: t}\n";
        std::fs::write(&path, text).unwrap();
        let access = Access::load(&path, None).unwrap();
        assert_eq!((access.server.as_str(), access.namespace.as_str()), ("https://h:1", "default"));
        assert_eq!((access.ca_pem.as_slice(), access.client_key_pem.as_slice()), (&b"CA"[..], &b"KEY"[..]));
        let error = Access::load(&path, Some("none")).err().unwrap();
        assert!(error.message.ends_with("no context named \"none\""), "{}", error.message);
    }
}
