//! Objects in the shape the client asked for: as they are, their metadata alone, or rows of a table.
//! Works on the stored bytes; one row's tree at a time.

use super::negotiate::Shape;
use super::query::Query;
use super::respond::Pieces;
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::api::table::{self, IncludeObject};
use crate::registry::List;
use crate::store::Entry;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// How objects of one kind are shown in one answer.
pub struct Presenter<'a> {
    pub kind: &'a Kind,
    pub shape: Shape,
    pub include: IncludeObject,
    pub now: Timestamp,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

impl<'a> Presenter<'a> {
    pub fn new(kind: &'a Kind, shape: Shape, query: &Query, now: Timestamp) -> Result<Self> {
        let include = match shape {
            Shape::Table(_) => IncludeObject::parse(query.get("includeObject").unwrap_or_default())?,
            _ => IncludeObject::default(),
        };
        Ok(Self { kind, shape, include, now })
    }

    /// One object by itself.
    pub fn object(&self, entry: &Entry) -> Result<Pieces> {
        let mut pieces = Pieces::default();
        match self.shape {
            Shape::Metadata(version) => pieces.push(partial(&entry.bytes, version)?),
            Shape::Table(version) => self.table_of_one(&mut pieces, version, entry, true)?,
            _ => pieces.push(entry.bytes.clone()),
        }
        Ok(pieces)
    }

    pub fn list(&self, list: &List) -> Result<Pieces> {
        let mut pieces = Pieces::default();
        let meta = list_meta(list);
        match self.shape {
            Shape::Table(version) => {
                pieces.push(table_head(&meta, version, &table::columns(self.kind)));
                join(&mut pieces, list, |entry| self.row(entry, version))?;
            }
            Shape::Metadata(version) => {
                let head = format!("\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/{version}\"");
                pieces.push(format!("{{{head},\"metadata\":{meta},\"items\":["));
                join(&mut pieces, list, |entry| partial(&entry.bytes, version))?;
            }
            _ => {
                let head =
                    format!("\"kind\":\"{}List\",\"apiVersion\":\"{}\"", self.kind.kind, self.kind.api_version());
                pieces.push(format!("{{{head},\"metadata\":{meta},\"items\":["));
                join(&mut pieces, list, |entry| Ok(entry.bytes.clone()))?;
            }
        }
        pieces.push(Bytes::from_static(b"]}"));
        Ok(pieces)
    }

    /// The object of a watch event. Only the first table of a watch defines its columns.
    pub fn event(&self, entry: &Entry, first: bool) -> Result<Pieces> {
        match self.shape {
            Shape::Table(version) => {
                let mut pieces = Pieces::default();
                self.table_of_one(&mut pieces, version, entry, first)?;
                Ok(pieces)
            }
            _ => self.object(entry),
        }
    }

    /// The object of a bookmark: nothing but a revision.
    pub fn bookmark(&self, revision: u64, initial_events_end: bool, first: bool) -> Result<Pieces> {
        let mut metadata = json!({ "creationTimestamp": null, "resourceVersion": revision.to_string() });
        if initial_events_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = json!({ "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata });
        let bytes = Bytes::from(object.to_string());
        let entry = Entry { key: "".into(), create_revision: 0, revision, bytes, splice_at: 0 };
        self.event(&entry, first)
    }

    fn table_of_one(&self, pieces: &mut Pieces, version: &str, entry: &Entry, columns: bool) -> Result<()> {
        let meta = json!({ "resourceVersion": entry.revision.to_string() });
        let columns = if columns { table::columns(self.kind) } else { Value::Null };
        pieces.push(table_head(&meta, version, &columns));
        pieces.push(self.row(entry, version)?);
        pieces.push(Bytes::from_static(b"]}"));
        Ok(())
    }

    fn row(&self, entry: &Entry, version: &str) -> Result<Bytes> {
        let object: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
        let row = table::row(self.kind, object, self.include, version, self.now);
        serde_json::to_vec(&row).map(Bytes::from).map_err(Status::internal)
    }
}

fn join(pieces: &mut Pieces, list: &List, piece: impl Fn(&Entry) -> Result<Bytes>) -> Result<()> {
    for (at, entry) in list.entries.iter().enumerate() {
        if at > 0 {
            pieces.push(Bytes::from_static(b","));
        }
        pieces.push(piece(entry)?);
    }
    Ok(())
}

fn list_meta(list: &List) -> Value {
    let mut meta = json!({ "resourceVersion": list.revision.to_string() });
    if !list.continue_token.is_empty() {
        meta["continue"] = list.continue_token.as_str().into();
        if let Some(remaining) = list.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta
}

/// `columns`: `null` but in the first table of a watch.
fn table_head(meta: &Value, version: &str, columns: &Value) -> String {
    format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{meta},\
         \"columnDefinitions\":{columns},\"rows\":["
    )
}

/// The object's metadata as it is stored, in an envelope of its own.
fn partial(object: &[u8], version: &str) -> Result<Bytes> {
    let meta: Meta = serde_json::from_slice(object).map_err(Status::internal)?;
    let head = format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":");
    Ok([head.as_bytes(), meta.metadata.get().as_bytes(), b"}"].concat().into())
}

/// The uid of a stored object.
pub fn uid(entry: &Entry) -> String {
    let object: Object = serde_json::from_slice(&entry.bytes).unwrap_or_default();
    object.uid().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Kinds;
    use std::sync::Arc;

    fn entry(name: &str) -> Arc<Entry> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": name, "namespace": "g1", "resourceVersion": "7", "creationTimestamp": "2026-11-23T00:50:15Z"},
        });
        let bytes = Bytes::from(object.to_string());
        Arc::new(Entry { key: "".into(), create_revision: 7, revision: 7, bytes, splice_at: 0 })
    }

    fn shown(shape: Shape, query: &str) -> Value {
        let kinds = Kinds::default();
        let kind = kinds.resource("", "v1", "configmaps").unwrap();
        let now = "2026-11-23T00:50:22Z".parse().unwrap();
        let presenter = Presenter::new(&kind, shape, &Query::parse(query), now).unwrap();
        let list =
            List { entries: vec![entry("a"), entry("b")], revision: 9, continue_token: "t".into(), remaining: Some(3) };
        serde_json::from_slice(&presenter.list(&list).unwrap().join()).unwrap()
    }

    #[test]
    fn lists_in_each_shape() {
        let meta = json!({"resourceVersion": "9", "continue": "t", "remainingItemCount": 3});
        let plain = shown(Shape::Object, "");
        assert_eq!((&plain["kind"], &plain["metadata"]), (&json!("ConfigMapList"), &meta));
        assert_eq!(plain["items"][1]["metadata"]["name"], "b");

        let partial = shown(Shape::Metadata("v1"), "");
        assert_eq!(partial["kind"], "PartialObjectMetadataList");
        assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
        assert!(partial["items"][0].get("data").is_none());

        let table = shown(Shape::Table("v1"), "");
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"], json!(["a", 1, "7s"]));
        assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "a");
        assert_eq!(shown(Shape::Table("v1"), "includeObject=None")["rows"][0]["object"], Value::Null);
    }

    #[test]
    fn what_rows_may_include_is_checked() {
        let kinds = Kinds::default();
        let kind = kinds.resource("", "v1", "configmaps").unwrap();
        let query = Query::parse("includeObject=Bogus");
        let error = Presenter::new(&kind, Shape::Table("v1"), &query, Timestamp::UNIX_EPOCH).err().unwrap();
        assert_eq!(error.code, 400);
        assert!(error.message.starts_with("Unable to convert to Table as requested: includeObject"));
    }
}
