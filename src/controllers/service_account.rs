//! What every namespace holds: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use super::runner::{Reconcile, Source};
use super::{Authorities, Tools};
use crate::api::status::Result;
use crate::api::view::node::Namespace;
use crate::client::PatchType;
use crate::client::informer::{Change, Scope};
use crate::client::{CONFIGMAPS, Informer, NAMESPACES, Resource, SERVICEACCOUNTS};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

pub struct Controller {
    tools: Tools,
    authorities: Authorities,
    namespaces: Informer,
    accounts: Informer,
    /// Only the ConfigMaps of this name.
    certificates: Informer,
}

impl Controller {
    pub fn new(tools: &Tools, authorities: Authorities) -> (Arc<Self>, Vec<Source>) {
        let named = |name: &str| Scope { field_selector: format!("metadata.name={name}"), ..Scope::default() };
        let namespaces = tools.informers.all(NAMESPACES);
        let accounts = tools.informers.get(SERVICEACCOUNTS, named(ACCOUNT));
        let certificates = tools.informers.get(CONFIGMAPS, named(ROOT_CA));
        let of_namespace = |change: &Change| {
            let (namespace, _) = change.key.split_once('/').unwrap_or_default();
            vec![format!("/{namespace}")]
        };
        let mut sources = vec![
            Source::own(&namespaces),
            Source::new(&accounts, of_namespace),
            Source::new(&certificates, of_namespace),
        ];
        sources.extend(authorities.changes().map(|mark| Source::Woken(namespaces.clone(), mark)));
        let controller = Self { tools: tools.clone(), authorities, namespaces, accounts, certificates };
        (Arc::new(controller), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.namespaces.by_key(key) else { return Ok(None) };
        let namespace: Namespace = item.view()?;
        if namespace.metadata.is_deleting() {
            return Ok(None);
        }
        let name = &namespace.metadata.name;
        if self.accounts.get(name, ACCOUNT).is_none() {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
            self.create(SERVICEACCOUNTS, name, account).await?;
        }
        let data = json!({"ca.crt": self.authorities.pem()});
        match self.certificates.get(name, ROOT_CA).map(|item| item.object()).transpose()? {
            None => {
                let object =
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOT_CA}, "data": data});
                self.create(CONFIGMAPS, name, object).await?;
            }
            Some(existing) if existing.get("data") != Some(&data) => {
                // A JSON merge would keep keys that others added; the map is to hold the certificate alone.
                let mut patch = json!({"data": data});
                for key in existing.get("data").and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
                    if key != "ca.crt" {
                        patch["data"][key] = Value::Null;
                    }
                }
                self.tools.client.patch(CONFIGMAPS, name, ROOT_CA, "", PatchType::Merge, patch).await?;
            }
            Some(_) => {}
        }
        Ok(None)
    }

    async fn create(&self, resource: Resource, namespace: &str, object: Value) -> Result<()> {
        match self.tools.client.create(resource, namespace, object).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
