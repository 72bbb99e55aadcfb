//! The OpenAPI documents, compressed: v2 as JSON and protobuf, v3 as one document per group and version.
//! Paths are as few as kubectl needs to find kinds and to learn that dryRun and fieldValidation work.

use crate::descriptions::Descriptions;
use crate::facts::{Facts, Root};
use crate::json::Json;
use crate::protobuf::Message;
use crate::schema::{Schema, Version, definitions, group_version_kind};
use flate2::{Compression, GzBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

const TITLE: &str = "Kubernetes";
const RELEASE: &str = "v1.36.2";
const GVK: &str = "x-kubernetes-group-version-kind";

/// Writes the documents and `openapi.rs`, which includes them.
pub fn write(facts: &Facts, descriptions: &Descriptions, out: &Path) {
    let mut rust = String::new();
    let packages = packages(facts);
    let v2 = definitions(facts, &packages, descriptions, Version::V2);
    let save = |name: &str, content: &[u8]| {
        std::fs::write(out.join(name), compress(content)).expect("OUT_DIR is writable");
        let bytes = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))");
        format!("Document {{ path: {{PATH}}, hash: \"{:016X}\", gzip: {bytes} }}", hash(content))
    };
    let json = save("openapi.v2.json.gz", v2_json(facts, &v2).to_string().as_bytes());
    let protobuf = save("openapi.v2.pb.gz", &v2_protobuf(facts, &v2).0);
    for (name, text) in [("V2_JSON", json), ("V2_PROTOBUF", protobuf)] {
        let text = text.replace("{PATH}", "\"v2\"");
        writeln!(rust, "pub static {name}: Document = {text};").expect("strings grow");
    }
    let v3 = definitions(facts, &packages, descriptions, Version::V3);
    let versions: BTreeSet<(&str, &str)> = facts.roots.iter().map(|one| (&*one.group, &*one.version)).collect();
    writeln!(rust, "pub static V3: [Document; {}] = [", versions.len()).expect("strings grow");
    for (group, version) in versions {
        let path = prefix(group, version);
        let roots: Vec<&Root> = facts.roots.iter().filter(|one| one.group == group && one.version == version).collect();
        let name = format!("openapi.v3.{}.json.gz", path.replace('/', "."));
        let text = save(&name, v3_json(&roots, &v3).to_string().as_bytes());
        writeln!(rust, "{},", text.replace("{PATH}", &format!("{path:?}"))).expect("strings grow");
    }
    rust.push_str("];\n");
    std::fs::write(out.join("openapi.rs"), rust).expect("OUT_DIR is writable");
}

/// Which group and version a package of types is.
fn packages(facts: &Facts) -> BTreeMap<String, (String, String)> {
    let package = |root: &Root| root.type_name.rsplit_once('.').expect("names have a package").0.to_owned();
    facts.roots.iter().map(|root| (package(root), (root.group.clone(), root.version.clone()))).collect()
}

/// `api/v1` or `apis/apps/v1`.
fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn collection_path(root: &Root) -> String {
    let namespace = if root.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("/{}{namespace}/{}", prefix(&root.group, &root.version), root.plural)
}

fn compress(content: &[u8]) -> Vec<u8> {
    let best = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let level = if best { Compression::best() } else { Compression::new(6) };
    let mut encoder = GzBuilder::new().write(Vec::new(), level);
    encoder.write_all(content).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// FNV-1a: names a content, protects nothing.
fn hash(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn parameters(method: &str) -> Vec<&'static str> {
    match method {
        "get" => Vec::new(),
        "patch" => vec!["dryRun", "fieldManager", "fieldValidation", "force"],
        _ => vec!["dryRun", "fieldManager", "fieldValidation"],
    }
}

fn kind_of(root: &Root) -> Json {
    group_version_kind(&root.group, &root.version, &root.kind)
}

fn patchable(facts: &Facts) -> impl Iterator<Item = &Root> {
    facts.roots.iter().filter(|root| root.verbs.iter().any(|verb| verb == "patch"))
}

fn info() -> Json {
    Json::object([("title", Json::text(TITLE)), ("version", Json::text(RELEASE))])
}

fn responses() -> Json {
    Json::object([("200", Json::object([("description", Json::text("OK"))]))])
}

/// `definitions` stands last, so that those of CRDs can be appended.
fn v2_json(facts: &Facts, definitions: &BTreeMap<String, Schema>) -> Json {
    let query = |name: &str| {
        let r#type = if name == "force" { "boolean" } else { "string" };
        Json::object([("in", Json::text("query")), ("name", Json::text(name)), ("type", Json::text(r#type))])
    };
    let paths = patchable(facts).map(|root| {
        let operation = Json::object([
            ("parameters", Json::Array(parameters("patch").into_iter().map(query).collect())),
            ("responses", responses()),
            (GVK, kind_of(root)),
        ]);
        (format!("{}/{{name}}", collection_path(root)), Json::object([("patch", operation)]))
    });
    let definitions = definitions.iter().map(|(name, one)| (name.clone(), one.json(Version::V2)));
    Json::object([
        ("swagger", Json::text("2.0")),
        ("info", info()),
        ("paths", Json::Object(paths.collect())),
        ("definitions", Json::Object(definitions.collect())),
    ])
}

/// `openapi.v2.Document`.
fn v2_protobuf(facts: &Facts, definitions: &BTreeMap<String, Schema>) -> Message {
    let mut info = Message::default();
    info.text(1, TITLE);
    info.text(2, RELEASE);
    let mut paths = Message::default();
    for root in patchable(facts) {
        let mut item = Message::default();
        item.message(8, &v2_operation(root));
        paths.message(2, &Message::named(&format!("{}/{{name}}", collection_path(root)), &item));
    }
    let mut all = Message::default();
    for (name, one) in definitions {
        all.message(1, &Message::named(name, &one.protobuf()));
    }
    let mut document = Message::default();
    document.text(1, "2.0");
    document.message(2, &info);
    document.message(8, &paths);
    document.message(9, &all);
    document
}

/// `Operation` ⊃ `ParametersItem` ⊃ `Parameter` ⊃ `NonBodyParameter` ⊃ `QueryParameterSubSchema`.
fn v2_operation(root: &Root) -> Message {
    let wrap = |tag: u64, inner: &Message| {
        let mut out = Message::default();
        out.message(tag, inner);
        out
    };
    let mut operation = Message::default();
    for name in parameters("patch") {
        let mut query = Message::default();
        query.text(2, "query");
        query.text(4, name);
        query.text(6, if name == "force" { "boolean" } else { "string" });
        operation.message(8, &wrap(1, &wrap(2, &wrap(3, &query))));
    }
    let mut ok = Message::default();
    ok.text(1, "OK");
    operation.message(9, &wrap(1, &Message::named("200", &wrap(1, &ok))));
    operation.message(13, &Message::extension(GVK, &kind_of(root)));
    operation
}

fn v3_json(roots: &[&Root], definitions: &BTreeMap<String, Schema>) -> Json {
    let mut paths = Vec::new();
    for root in roots {
        let at = |verbs: &[(&str, &str)]| {
            let served = verbs.iter().filter(|(verb, _)| root.verbs.iter().any(|one| one == verb));
            served.map(|(_, method)| ((*method).to_owned(), v3_operation(root, method))).collect::<Vec<_>>()
        };
        let collection = collection_path(root);
        for (path, operations) in [
            (collection.clone(), at(&[("list", "get"), ("create", "post")])),
            (format!("{collection}/{{name}}"), at(&[("get", "get"), ("update", "put"), ("patch", "patch")])),
        ] {
            if !operations.is_empty() {
                paths.push((path, Json::Object(operations)));
            }
        }
    }
    let schemas = closure(roots, definitions).into_iter();
    let schemas = schemas.map(|name| (name.to_owned(), definitions[name].json(Version::V3))).collect();
    Json::object([
        ("openapi", Json::text("3.0.0")),
        ("info", info()),
        ("paths", Json::Object(paths)),
        ("components", Json::object([("schemas", Json::Object(schemas))])),
    ])
}

fn v3_operation(root: &Root, method: &str) -> Json {
    let query = |name: &str| {
        let r#type = if name == "force" { "boolean" } else { "string" };
        Json::object([
            ("name", Json::text(name)),
            ("in", Json::text("query")),
            ("schema", Json::object([("type", Json::text(r#type)), ("uniqueItems", Json::Bool(true))])),
        ])
    };
    let mut members = Vec::new();
    let queries: Vec<Json> = parameters(method).into_iter().map(query).collect();
    if !queries.is_empty() {
        members.push(("parameters".to_owned(), Json::Array(queries)));
    }
    members.push(("responses".to_owned(), responses()));
    members.push((GVK.to_owned(), kind_of(root)));
    Json::Object(members)
}

/// The types of a group and version, and all that they refer to.
fn closure<'a>(roots: &[&Root], definitions: &'a BTreeMap<String, Schema>) -> BTreeSet<&'a str> {
    let package = |name: &str| name.rsplit_once('.').map(|(package, _)| package.to_owned());
    let packages: BTreeSet<_> = roots.iter().map(|root| package(&root.type_name)).collect();
    let mut todo: Vec<&str> =
        definitions.keys().filter(|name| packages.contains(&package(name))).map(String::as_str).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if found.insert(name) {
            definitions.get(name).expect("every reference has its definition").references(&mut todo);
        }
    }
    found
}
