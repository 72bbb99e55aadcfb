//! Which objects of a kind a list or watch is about: namespace, label selector, field selector.
//! Stored bytes are decoded only as far as the selectors need.

use super::{ListOptions, encode};
use crate::api::kinds::Kind;
use crate::api::selector::{FieldSelector, Selector};
use crate::api::status::Result;
use crate::store::{Entry, Page, Store, StoreError, Subject};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The store finds these by their tag: every node asks for its own pods, and there are many nodes.
const TAGGED: (&str, &str) = ("pods", "spec.nodeName");

/// The tag of an entry, for the store.
pub(super) fn tag_of(resource: &str, bytes: &[u8]) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct Bound<'a> {
        #[serde(borrow)]
        spec: Spec<'a>,
    }
    #[derive(Deserialize)]
    struct Spec<'a> {
        #[serde(borrow, rename = "nodeName", default)]
        node_name: Option<Cow<'a, str>>,
    }
    if resource != TAGGED.0 {
        return None;
    }
    let bound: Bound = serde_json::from_slice(bytes).ok()?;
    bound.spec.node_name.filter(|name| !name.is_empty()).map(|name| name.into())
}

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
        let namespace = self.namespace(namespace);
        match self.key(kind, namespace) {
            Some(key) => key,
            None if namespace.is_empty() => format!("{}/", kind.storage_prefix),
            None => format!("{}/{namespace}/", kind.storage_prefix),
        }
    }

    fn namespace<'a>(&'a self, asked: &'a str) -> &'a str {
        self.fields.exact("metadata.namespace").filter(|_| asked.is_empty()).unwrap_or(asked)
    }

    /// The only key that can match.
    fn key(&self, kind: &Kind, namespace: &str) -> Option<String> {
        let name = self.fields.exact("metadata.name")?;
        (!kind.namespaced || !namespace.is_empty()).then(|| kind.key(namespace, name))
    }

    /// The tag that all matches bear.
    fn tag(&self, kind: &Kind) -> Option<&str> {
        let exact = (kind.storage_prefix == TAGGED.0).then(|| self.fields.exact(TAGGED.1))?;
        exact.filter(|value| !value.is_empty())
    }

    /// What has to be watched to see all matches.
    pub fn subject(&self, kind: &Kind, namespace: &str) -> Subject {
        let prefix = self.prefix(kind, namespace).into();
        match self.tag(kind) {
            Some(tag) => Subject::Tagged { prefix, tag: tag.into() },
            None if self.key(kind, self.namespace(namespace)).is_some() => Subject::Key(prefix),
            None => Subject::Prefix(prefix),
        }
    }

    /// The newest state of all that may match under a prefix, without looking through everything.
    pub fn indexed(&self, kind: &Kind, prefix: &str, store: &dyn Store) -> Option<Page> {
        self.tag(kind).map(|tag| store.list_tagged(prefix, tag))
    }

    /// The newest state of all that may match.
    pub async fn candidates(&self, kind: &Kind, prefix: &str, store: &dyn Store) -> Result<Page, StoreError> {
        match self.indexed(kind, prefix, store) {
            Some(page) => Ok(page),
            None => store.list(prefix, "", 0, None).await,
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
        // What nodes ask for is answered without decoding whole objects.
        match self.fields.only() {
            Some(("metadata.name", name)) => return entry.namespaced_name().1 == name,
            Some((field, value)) if (&*kind.storage_prefix, field) == TAGGED && !value.is_empty() => {
                return tag_of(TAGGED.0, &entry.bytes).as_deref() == Some(value);
            }
            _ => {}
        }
        if self.fields.exact("metadata.name").is_some_and(|name| entry.namespaced_name().1 != name) {
            return false;
        }
        encode::decode(kind, entry).is_ok_and(|object| self.fields.matches(kind, &object))
    }
}
