//! The OpenAPI documents, compressed: v2 as JSON and protobuf, v3 as one document per group and version.
//! Paths are as few as kubectl needs to find kinds and to learn that dryRun and fieldValidation work.

use crate::descriptions::Descriptions;
use crate::facts::{Facts, Root};
use crate::json::Json;
use crate::protobuf::Message;
use crate::schema::{Schema, Version, definitions, group_version_kind};
use flate2::{Compress, Compression, Crc, FlushCompress};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

const TITLE: &str = "Kubernetes";
const RELEASE: &str = "v1.36.2";
const GVK: &str = "x-kubernetes-group-version-kind";

/// Before deflated data (RFC 1952): no name, no time.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff];

/// Writes the documents and `openapi.rs`, which includes them.
pub fn write(facts: &Facts, descriptions: &Descriptions, out: &Path) {
    let packages = packages(facts);
    let v2 = definitions(facts, &packages, descriptions, Version::V2);
    let mut writer = Writer { out, rust: String::new() };
    for (name, content) in
        [("V2_JSON", v2_json(facts, &v2).to_string().into_bytes()), ("V2_PROTOBUF", v2_protobuf(facts, &v2).0)]
    {
        let gzip = [GZIP_HEADER.to_vec(), deflate(&content, FlushCompress::Finish), gzip_trailer(&content)].concat();
        let piece = writer.piece(&format!("{}.gz", name.to_lowercase()), &gzip);
        let document = document("v2", &content, &[piece]);
        writeln!(writer.rust, "pub static {name}: Document = {document};").expect("strings grow");
    }
    let documents = v3_documents(facts, &definitions(facts, &packages, descriptions, Version::V3), &mut writer);
    writeln!(writer.rust, "pub static V3: [Document; {}] = [{}];", documents.len(), documents.join(","))
        .expect("strings grow");
    std::fs::write(out.join("openapi.rs"), writer.rust).expect("OUT_DIR is writable");
}

struct Writer<'a> {
    out: &'a Path,
    rust: String,
}

impl Writer<'_> {
    /// The Rust expression for a file with this content.
    fn piece(&mut self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.out.join(name), content).expect("OUT_DIR is writable");
        format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))")
    }
}

fn document(path: &str, content: &[u8], pieces: &[String]) -> String {
    format!("Document {{ path: {path:?}, hash: \"{:016X}\", pieces: &[{}] }}", hash(content), pieces.join(","))
}

/// Schemas that the same documents have are compressed once, and stand in each of them: as blocks of deflate that look
/// back at nothing before them. A document's own schemas come last.
fn v3_documents(facts: &Facts, definitions: &BTreeMap<String, Schema>, writer: &mut Writer) -> Vec<String> {
    let versions: BTreeSet<(&str, &str)> = facts.roots.iter().map(|one| (&*one.group, &*one.version)).collect();
    let roots_of = |(group, version): (&str, &str)| {
        facts.roots.iter().filter(|one| one.group == group && one.version == version).collect::<Vec<&Root>>()
    };
    let mut used: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (number, version) in versions.iter().enumerate() {
        for name in closure(&roots_of(*version), definitions) {
            used.entry(name).or_default().insert(number);
        }
    }
    let mut packs: BTreeMap<&BTreeSet<usize>, Vec<String>> = BTreeMap::new();
    for (name, documents) in &used {
        let (name, schema) = (Json::text(name).to_string(), definitions[*name].json(Version::V3).to_string());
        packs.entry(documents).or_default().push(format!("{name}:{schema}"));
    }
    let mut shared = Vec::new();
    for (number, (documents, schemas)) in packs.iter().filter(|(documents, _)| documents.len() > 1).enumerate() {
        let content = schemas.join(",") + ",";
        let piece = writer.piece(&format!("v3.{number}.deflate"), &deflate(content.as_bytes(), FlushCompress::Full));
        writeln!(writer.rust, "static SHARED_{number}: &[u8] = {piece};").expect("strings grow");
        shared.push((*documents, content, format!("SHARED_{number}")));
    }
    let mut documents = Vec::new();
    for (number, (group, version)) in versions.iter().enumerate() {
        let path = prefix(group, version);
        let empty = v3_json(&roots_of((group, version))).to_string();
        let head = empty.strip_suffix("}}}").expect("schemas stand last");
        let own = packs.get(&BTreeSet::from([number])).expect("lists are of one version only");
        let tail = own.join(",") + "}}}";
        let among = shared.iter().filter(|(documents, _, _)| documents.contains(&number));
        let content = [head].into_iter().chain(among.clone().map(|(_, content, _)| &**content)).chain([&*tail]);
        let content: String = content.collect();
        let name = path.replace('/', ".");
        let first = [GZIP_HEADER.to_vec(), deflate(head.as_bytes(), FlushCompress::Full)].concat();
        let last = [deflate(tail.as_bytes(), FlushCompress::Finish), gzip_trailer(content.as_bytes())].concat();
        let mut pieces = vec![writer.piece(&format!("v3.{name}.head"), &first)];
        pieces.extend(among.map(|(_, _, name)| name.clone()));
        pieces.push(writer.piece(&format!("v3.{name}.tail"), &last));
        documents.push(document(&path, content.as_bytes(), &pieces));
    }
    documents
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

/// Ends at a byte: other blocks may follow after `Full`, nothing after `Finish`.
fn deflate(content: &[u8], end: FlushCompress) -> Vec<u8> {
    let best = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let level = if best { Compression::best() } else { Compression::new(6) };
    let (mut compress, mut out) = (Compress::new(level, false), Vec::with_capacity(content.len() + 1024));
    compress.compress_vec(content, &mut out, end).expect("there is room for everything");
    assert_eq!(compress.total_in(), content.len() as u64, "there is room for everything");
    out
}

/// The sum and the length of what was deflated.
fn gzip_trailer(content: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(content);
    [crc.sum().to_le_bytes(), crc.amount().to_le_bytes()].concat()
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

/// Without schemas, which stand last.
fn v3_json(roots: &[&Root]) -> Json {
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
    Json::object([
        ("openapi", Json::text("3.0.0")),
        ("info", info()),
        ("paths", Json::Object(paths)),
        ("components", Json::object([("schemas", Json::Object(Vec::new()))])),
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
