//! REST verbs by calling the registry in the same process: no HTTP, no authentication, all of admission.

use super::{Item, Items, Resource, WatchEvent};
use crate::api::kinds::{Kind, KindRef};
use crate::api::object::Object;
use crate::api::scheme;
use crate::api::status::{Result, Status};
use crate::registry::{
    Change, Context, Decoded, DeleteOptions, FieldValidation, ListOptions, PatchType, Registry, User,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::Arc;

/// Calls the registry as one component.
#[derive(Clone)]
pub struct Local {
    pub registry: Arc<Registry>,
    pub context: Context,
}

impl Local {
    /// `component` is the name the API knows it by: `kube-scheduler`, `node:board-1`, …
    pub fn new(registry: Arc<Registry>, component: &str) -> Self {
        let context = Context {
            user: User::system(component),
            field_manager: component.to_owned(),
            field_validation: FieldValidation::Ignore,
            dry_run: false,
        };
        Self { registry, context }
    }

    fn kind(&self, resource: Resource) -> Result<KindRef> {
        let kind = self.registry.kinds.resource(resource.group, resource.version, resource.plural);
        kind.ok_or_else(Status::page_not_found)
    }

    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Item> {
        let kind = self.kind(resource)?;
        let entry = self.registry.get(&kind, namespace, name).await?;
        Ok(Item(entry.bytes.clone()))
    }

    pub async fn list(&self, resource: Resource, namespace: &str, options: &ListOptions) -> Result<Items> {
        let kind = self.kind(resource)?;
        let list = self.registry.list(&kind, namespace, options).await?;
        Ok(Items {
            items: list.entries.iter().map(|entry| Item(entry.bytes.clone())).collect(),
            resource_version: list.revision.to_string(),
            continue_token: list.continue_token,
        })
    }

    pub async fn watch(
        &self,
        resource: Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Result<WatchEvent>>> {
        let changes = self.registry.watch(&self.kind(resource)?, namespace, options).await?;
        Ok(changes.map(event).boxed())
    }

    pub async fn create(&self, resource: Resource, namespace: &str, object: Object) -> Result<Item> {
        let kind = self.kind(resource)?;
        let written = self.registry.create(&self.context, &kind, namespace, pruned(&kind, object)).await?;
        Ok(Item(written.entry.bytes.clone()))
    }

    pub async fn update(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        let kind = self.kind(resource)?;
        // A Scale is not of the row's type.
        let decoded = if subresource == "scale" { object.into() } else { pruned(&kind, object) };
        let written = self.registry.update(&self.context, &kind, subresource, namespace, name, decoded).await?;
        Ok(Item(written.entry.bytes.clone()))
    }

    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch_type: PatchType,
        patch: Object,
    ) -> Result<Item> {
        let kind = self.kind(resource)?;
        let patched =
            self.registry.patch(&self.context, &kind, subresource, namespace, name, patch_type, patch.into()).await?;
        Ok(Item(patched.entry.bytes.clone()))
    }

    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        let kind = self.kind(resource)?;
        self.registry.delete(&self.context, &kind, namespace, name, options).await.map(drop)
    }

    pub async fn create_subresource(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Object,
    ) -> Result<Item> {
        let kind = self.kind(resource)?;
        let answer =
            self.registry.create_subresource(&self.context, &kind, subresource, namespace, name, object.into()).await?;
        Ok(Item(Bytes::from(serde_json::to_vec(&answer).map_err(Status::internal)?)))
    }
}

/// What a decode of the object's JSON would leave, so that a loop's object is stored like a client's.
fn pruned(kind: &Kind, mut object: Object) -> Decoded {
    if let Some(schema) = scheme::find(&kind.schema) {
        scheme::prune(schema, &mut object);
    }
    object.into()
}

fn event(change: Change) -> Result<WatchEvent> {
    Ok(match change {
        Change::Added(entry) => WatchEvent::Added(Item(entry.bytes.clone())),
        Change::Modified(entry) => WatchEvent::Modified(Item(entry.bytes.clone())),
        Change::Deleted(entry) => WatchEvent::Deleted(Item(entry.bytes.clone())),
        Change::Bookmark { revision, initial_events_end } => {
            WatchEvent::Bookmark { resource_version: revision.to_string(), initial_events_end }
        }
        Change::Error(status) => return Err(status),
    })
}
