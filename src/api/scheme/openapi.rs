//! OpenAPI documents, compressed when edgelet was built: read-only data, no heap until one is sent.
//! Definitions of CRDs are appended as further gzip members; the v2 protobuf merges so by itself.

use bytes::Bytes;

/// One document.
#[derive(Debug)]
pub struct Document {
    /// `api/v1`, `apis/apps/v1`; `v2` for the two forms of version 2.
    pub path: &'static str,
    /// Names the content: for ETags and for the `hash` parameter of v3.
    pub hash: &'static str,
    /// One gzip member in all; documents have pieces in common.
    pieces: &'static [&'static [u8]],
}

impl Document {
    /// One gzip member (RFC 1952).
    pub fn gzip(&self) -> Bytes {
        match self.pieces {
            [one] => Bytes::from_static(one),
            pieces => pieces.concat().into(),
        }
    }
}

mod data {
    use super::Document;
    include!(concat!(env!("OUT_DIR"), "/openapi.rs"));
}

/// `/openapi/v2` as JSON.
pub fn v2_json() -> &'static Document {
    &data::V2_JSON
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2.v1.0+protobuf`: clients ask for it with `@v1.0`,
/// but Go refuses an `@` in a Content-Type.
pub fn v2_protobuf() -> &'static Document {
    &data::V2_PROTOBUF
}

/// Every `/openapi/v3/PATH`, sorted by group and version.
pub fn v3() -> &'static [Document] {
    &data::V3
}

/// What `/openapi/v3` answers: the paths of the documents that `served` lets through.
pub fn v3_index(served: impl Fn(&str) -> bool) -> serde_json::Value {
    let entry = |document: &Document| {
        let url = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
        (document.path.to_owned(), serde_json::json!({ "serverRelativeURL": url }))
    };
    let paths = v3().iter().filter(|document| served(document.path)).map(entry);
    serde_json::json!({ "paths": paths.collect::<serde_json::Map<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use serde_json::Value;
    use std::io::Read;

    fn inflate(document: &Document) -> Vec<u8> {
        let mut out = Vec::new();
        // Not every client reads more than one member.
        GzDecoder::new(&*document.gzip()).read_to_end(&mut out).expect("valid gzip");
        out
    }

    fn json(document: &Document) -> Value {
        serde_json::from_slice(&inflate(document)).expect("valid JSON")
    }

    #[test]
    fn v2_says_what_kubectl_reads() {
        let v2 = json(v2_json());
        let ports = &v2["definitions"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
        assert_eq!(ports["x-kubernetes-list-map-keys"], serde_json::json!(["port", "protocol"]));
        assert_eq!(ports["items"]["$ref"], "#/definitions/io.k8s.api.core.v1.ServicePort");
        let patch = &v2["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names = patch["parameters"].as_array().expect("parameters").iter().map(|one| &one["name"]);
        assert!(names.clone().any(|name| name == "dryRun") && names.clone().any(|name| name == "fieldValidation"));
        let deployment = &v2["definitions"]["io.k8s.api.apps.v1.Deployment"];
        let gvk = serde_json::json!([{"group": "apps", "kind": "Deployment", "version": "v1"}]);
        assert_eq!(deployment["x-kubernetes-group-version-kind"], gvk);
    }

    #[test]
    fn every_reference_in_v3_resolves() {
        for document in v3() {
            let body = json(document);
            let schemas = body["components"]["schemas"].as_object().expect("schemas");
            let text = body.to_string();
            for target in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
                let name = target.split('"').next().unwrap_or_default();
                assert!(schemas.contains_key(name), "{}: {name}", document.path);
            }
        }
    }

    #[test]
    fn the_index_names_each_document_and_its_hash() {
        let index = v3_index(|path| path != "apis/apps/v1");
        let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("api/v1 is served");
        assert!(url.starts_with("/openapi/v3/api/v1?hash="));
        assert!(index["paths"].get("apis/apps/v1").is_none());
        assert_eq!(index["paths"].as_object().expect("paths").len(), v3().len() - 1);
    }

    /// The budget of the binary: all documents together.
    #[test]
    fn documents_stay_small() {
        let pieces = v3().iter().chain([v2_json(), v2_protobuf()]).flat_map(|one| one.pieces);
        let different: std::collections::BTreeMap<_, _> = pieces.map(|one| (one.as_ptr(), one.len())).collect();
        let size: usize = different.values().sum();
        assert!(size < 640 << 10, "{size} bytes");
    }
}
