//! A client whose line can be cut, for tests: a server that is away answers nothing and ends what it was sending.

use super::{Client, Item, Items, Resource, WatchEvent};
use crate::api::object::Object;
use crate::api::status::{Result, Status};
use crate::registry::{DeleteOptions, ListOptions, PatchType};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use tokio::sync::watch;

/// Cheap to clone; clones share the line.
#[derive(Clone)]
pub struct Cut {
    client: Arc<Client>,
    line: watch::Sender<bool>,
}

impl Cut {
    /// The line is whole.
    pub fn new(client: Client) -> Self {
        Self { client: Arc::new(client), line: watch::Sender::new(true) }
    }

    pub fn cut(&self) {
        self.line.send_replace(false);
    }

    pub fn mend(&self) {
        self.line.send_replace(true);
    }

    fn open(&self) -> Result<&Client> {
        if *self.line.borrow() { Ok(&self.client) } else { Err(gone()) }
    }

    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Item> {
        Box::pin(self.open()?.get(resource, namespace, name)).await
    }

    pub async fn list(&self, resource: Resource, namespace: &str, options: &ListOptions) -> Result<Items> {
        Box::pin(self.open()?.list(resource, namespace, options)).await
    }

    pub async fn watch(
        &self,
        resource: Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Result<WatchEvent>>> {
        let events = Box::pin(self.open()?.watch(resource, namespace, options)).await?;
        let mut line = self.line.subscribe();
        let cut = async move {
            // The sender lives as long as the client.
            let _ = line.wait_for(|whole| !whole).await;
        };
        let end = stream::once(async { Err(gone()) });
        Ok(events.take_until(cut).chain(end).boxed())
    }

    pub async fn create(&self, resource: Resource, namespace: &str, object: Object) -> Result<Item> {
        Box::pin(self.open()?.create(resource, namespace, object)).await
    }

    pub async fn update(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        Box::pin(self.open()?.update(resource, namespace, name, subresource, object)).await
    }

    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: Object,
    ) -> Result<Item> {
        Box::pin(self.open()?.patch(resource, namespace, name, subresource, kind, patch)).await
    }

    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        Box::pin(self.open()?.delete(resource, namespace, name, options)).await
    }

    pub async fn create_subresource(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        Box::pin(self.open()?.create_subresource(resource, namespace, name, subresource, object)).await
    }
}

fn gone() -> Status {
    Status::unavailable("connect to the server: the line is cut")
}
