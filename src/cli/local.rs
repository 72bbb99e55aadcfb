//! `--local`: what this board knows by itself, with no server: its replica, and its kubelet if that runs.

use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::Selector;
use crate::api::table::{self, IncludeObject};
use crate::client::replica::{KeySource, Replica, ReplicaError};
use crate::client::{PODS, Resource};
use crate::clock::Clock;
use crate::sys::tpm::Tpm;
use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::io::ErrorKind;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Local {
    /// Ask this board instead of the server: works with no server
    #[arg(long)]
    pub local: bool,
    /// Folder of this board's node, for --local
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgelet", requires = "local")]
    data_dir: PathBuf,
    /// Folder of this board's sockets, for --local
    #[arg(long, value_name = "DIR", default_value = "/run/edgelet", requires = "local")]
    run_dir: PathBuf,
}

impl Local {
    /// The objects of a kind in a namespace (empty: all), with this name (empty: any).
    pub async fn objects(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        selector: &str,
    ) -> anyhow::Result<Vec<Object>> {
        let selector = Selector::parse(selector)?;
        let resource = Resource::of(kind);
        let live = if resource == PODS { self.live_pods().await } else { None };
        let mut objects = match live {
            Some(pods) => pods,
            None => self.stored(resource)?,
        };
        objects.retain(|object| {
            (namespace.is_empty() || !kind.namespaced || object.namespace() == namespace)
                && (name.is_empty() || object.name() == name)
                && selector.matches_object(object)
        });
        if objects.is_empty() && !name.is_empty() {
            bail!("this board has no {} \"{name}\"", kind.plural);
        }
        Ok(objects)
    }

    fn stored(&self, resource: Resource) -> anyhow::Result<Vec<Object>> {
        let node = self.data_dir.join("node");
        let key_file = node.join("node.key");
        let key = KeySource::read(&key_file, &Tpm::of_board()).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => anyhow::Error::new(error).context(format!(
                "read {} (on the server's own board leave --local out; else run as root)",
                key_file.display()
            )),
            _ => error.into(),
        })?;
        let stored = match Replica::read(&Replica::folder(&node), &key, resource) {
            Err(ReplicaError::Absent(folder)) => bail!("this board has no replica in {} yet", folder.display()),
            stored => stored?,
        };
        Ok(stored.iter().map(|(_, item)| item.object()).collect::<Result<_, _>>()?)
    }

    /// `None`: the kubelet does not answer.
    async fn live_pods(&self) -> Option<Vec<Object>> {
        let body = self.ask("/pods").await.ok()?.collect().await.ok()?.to_bytes();
        let mut list: Object = serde_json::from_slice(&body).ok()?;
        let items = list.get_mut("items").and_then(Object::as_array_mut).map(std::mem::take);
        items.map(|mut items| {
            for item in &mut items {
                item["apiVersion"] = json!("v1");
                item["kind"] = json!("Pod");
            }
            items
        })
    }

    /// GET from this board's kubelet.
    pub async fn ask(&self, path: &str) -> anyhow::Result<Incoming> {
        let socket = crate::node::socket(&self.run_dir);
        let stream = tokio::net::UnixStream::connect(&socket).await;
        let stream = stream.with_context(|| format!("connect to {} (does edgelet run here?)", socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        crate::supervise::spawn(connection);
        let request =
            http::Request::get(path).header(http::header::HOST, "kubelet").body(Empty::<bytes::Bytes>::new())?;
        let response = sender.send_request(request).await.context("ask the kubelet")?;
        let code = response.status();
        if !code.is_success() {
            let text = response.into_body().collect().await?.to_bytes();
            bail!("{}", String::from_utf8_lossy(&text).trim());
        }
        Ok(response.into_body())
    }
}

/// Objects as the server's table of them.
pub fn table(kind: &Kind, objects: Vec<Object>) -> Object {
    let now = Clock::real().now();
    let row = |object| table::row(kind, object, IncludeObject::Metadata, "v1", now);
    let rows: Vec<Object> = objects.into_iter().map(row).collect();
    json!({"columnDefinitions": table::columns(kind), "rows": rows})
}
