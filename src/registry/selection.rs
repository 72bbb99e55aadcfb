//! Which objects of a kind a list or watch is about: namespace, label selector, field selector.
//! Stored bytes are decoded only as far as the selectors need.

use super::{ListOptions, encode};
use crate::api::kinds::Kind;
use crate::api::selector::{FieldSelector, Selector};
use crate::api::status::Result;
use crate::store::Entry;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

pub(super) struct Selection {
    labels: Selector,
    fields: FieldSelector,
}

#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    metadata: Labels<'a>,
}

#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(borrow, default)]
    labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

impl Selection {
    pub fn parse(kind: &Kind, options: &ListOptions) -> Result<Self> {
        let labels = Selector::parse(&options.label_selector)?;
        let fields = FieldSelector::parse_for(kind, &options.field_selector)?;
        Ok(Self { labels, fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// What the keys of all matches begin with. An empty namespace means all.
    pub fn prefix(&self, kind: &Kind, namespace: &str) -> String {
        let namespace = match self.fields.exact("metadata.namespace") {
            Some(only) if namespace.is_empty() => only,
            _ => namespace,
        };
        match self.fields.exact("metadata.name") {
            Some(name) if !kind.namespaced || !namespace.is_empty() => kind.key(namespace, name),
            _ if namespace.is_empty() => format!("{}/", kind.storage_prefix),
            _ => format!("{}/{namespace}/", kind.storage_prefix),
        }
    }

    pub fn matches(&self, kind: &Kind, entry: &Entry) -> bool {
        self.matches_labels(entry) && self.matches_fields(kind, entry)
    }

    fn matches_labels(&self, entry: &Entry) -> bool {
        if self.labels.is_empty() {
            return true;
        }
        let labelled: Option<Labelled> = serde_json::from_slice(&entry.bytes).ok();
        labelled.is_some_and(|object| self.labels.matches(|key| object.metadata.labels.get(key).map(|value| &**value)))
    }

    fn matches_fields(&self, kind: &Kind, entry: &Entry) -> bool {
        if self.fields.is_empty() {
            return true;
        }
        if self.fields.exact("metadata.name").is_some_and(|name| entry.namespaced_name().1 != name) {
            return false;
        }
        encode::decode(kind, entry).is_ok_and(|object| self.fields.matches(kind, &object))
    }
}
