//! Between objects in flight and stored bytes: one encoding, compact and canonical, without `resourceVersion`.
//! Kinds served in several versions are stored in one and converted at the edges.

use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::store::{Entry, splice};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;

/// What the store takes.
pub(super) struct Encoded {
    pub bytes: Bytes,
    pub splice_at: usize,
}

impl Encoded {
    /// Whether the stored entry says the same.
    pub fn equals(&self, entry: &Entry) -> bool {
        self.splice_at == entry.splice_at && splice::equals(&entry.bytes, entry.splice_at, &self.bytes)
    }

    /// An entry that is not in the store (dry runs, last states): revision 0 = none.
    pub fn unsaved(self, key: &str, revision: u64) -> Arc<Entry> {
        let bytes = if revision == 0 { self.bytes } else { splice::insert(&self.bytes, self.splice_at, revision) };
        Arc::new(Entry { key: key.into(), create_revision: 0, revision, bytes, splice_at: self.splice_at })
    }
}

/// Encodes an object of the version of `kind` as it is stored.
pub(super) fn encode(kind: &Kind, mut object: Object) -> Result<Encoded> {
    if let Some(convert) = kind.convert {
        convert.to_storage(&mut object);
    }
    encode_as_is(object)
}

pub(super) fn encode_as_is(mut object: Object) -> Result<Encoded> {
    let metadata = object.metadata_mut();
    metadata.remove("resourceVersion");
    metadata.remove("selfLink");
    let bytes = serde_json::to_vec(&object).map_err(Status::internal)?;
    let splice_at = splice::metadata_offset(&bytes).ok_or_else(|| Status::internal("object has no metadata"))?;
    Ok(Encoded { bytes: Bytes::from(bytes), splice_at })
}

/// Decodes a stored entry into the version of `kind`, with its `resourceVersion`.
pub(super) fn decode(kind: &Kind, entry: &Entry) -> Result<Object> {
    let mut object: Object = serde_json::from_slice(&entry.bytes).map_err(Status::internal)?;
    if let Some(convert) = kind.convert {
        convert.from_storage(&mut object);
    }
    Ok(object)
}

/// The entry as clients of this version see it; the stored bytes themselves when the versions agree.
pub(super) fn shown(kind: &Kind, entry: &Arc<Entry>) -> Result<Arc<Entry>> {
    if kind.convert.is_none() {
        return Ok(entry.clone());
    }
    let object = decode(kind, entry)?;
    Ok(encode_as_is(object)?.unsaved(&entry.key, entry.revision))
}

/// `apiVersion` and `kind` of the row, whatever the client left out.
pub(super) fn type_meta(kind: &Kind, object: &mut Object) {
    object.set(&["apiVersion"], Value::from(kind.api_version()));
    object.set(&["kind"], Value::from(&*kind.kind));
}
