//! REST verbs over HTTPS, with a kubeconfig's or a node's credentials.

use super::{Item, Items, Resource, WatchEvent};
use crate::api::object::Object;
use crate::api::status::Result;
use crate::registry::{DeleteOptions, ListOptions, PatchType};
use futures_util::stream::BoxStream;

/// Speaks to an API server.
#[derive(Clone)]
pub struct Remote {}

impl Remote {
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
