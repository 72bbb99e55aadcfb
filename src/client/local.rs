//! REST verbs by calling the registry in the same process: no HTTP, no authentication, all of admission.

use super::{Item, Items, Resource, WatchEvent};
use crate::api::object::Object;
use crate::api::status::Result;
use crate::registry::{Context, Registry};
use crate::registry::{DeleteOptions, ListOptions, PatchType};
use futures_util::stream::BoxStream;
use std::sync::Arc;

/// Calls the registry as one component.
#[derive(Clone)]
pub struct Local {
    pub registry: Arc<Registry>,
    pub context: Context,
}

impl Local {
    pub async fn get(&self, _resource: Resource, _namespace: &str, _name: &str) -> Result<Item> {
        unimplemented!()
    }
    pub async fn list(&self, _resource: Resource, _namespace: &str, _options: &ListOptions) -> Result<Items> {
        unimplemented!()
    }
    pub async fn watch(
        &self,
        _resource: Resource,
        _namespace: &str,
        _options: &ListOptions,
    ) -> Result<BoxStream<'static, Result<WatchEvent>>> {
        unimplemented!()
    }
    pub async fn create(&self, _resource: Resource, _namespace: &str, _object: Object) -> Result<Item> {
        unimplemented!()
    }
    pub async fn update(
        &self,
        _resource: Resource,
        _namespace: &str,
        _name: &str,
        _subresource: &str,
        _object: Object,
    ) -> Result<Item> {
        unimplemented!()
    }
    pub async fn patch(
        &self,
        _resource: Resource,
        _namespace: &str,
        _name: &str,
        _subresource: &str,
        _kind: PatchType,
        _patch: Object,
    ) -> Result<Item> {
        unimplemented!()
    }
    pub async fn delete(
        &self,
        _resource: Resource,
        _namespace: &str,
        _name: &str,
        _options: &DeleteOptions,
    ) -> Result<()> {
        unimplemented!()
    }
    pub async fn create_subresource(
        &self,
        _resource: Resource,
        _namespace: &str,
        _name: &str,
        _subresource: &str,
        _object: Object,
    ) -> Result<Item> {
        unimplemented!()
    }
}
