//! The kubeconfig file that a user or a component gets: one cluster, one user, data embedded.

use super::certificate::Credentials;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub struct Kubeconfig<'a> {
    /// Name of the cluster and of the context.
    pub name: &'a str,
    pub server: &'a str,
    pub ca_pem: &'a str,
    pub user: &'a str,
    pub credentials: &'a Credentials,
}

/// The file's text. JSON strings are YAML strings, so names need no other quoting.
pub fn render(config: &Kubeconfig) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (name, user, server) = (quoted(config.name), quoted(config.user), quoted(config.server));
    let ca = STANDARD.encode(config.ca_pem);
    let certificate = STANDARD.encode(&config.credentials.certificate_pem);
    let key = STANDARD.encode(&config.credentials.key_pem);
    format!(
        "apiVersion: v1\nkind: Config\n\
         clusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
         users:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {user}\n\
         current-context: {name}\n"
    )
}
