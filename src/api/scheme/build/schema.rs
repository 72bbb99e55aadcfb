//! Schemas as OpenAPI has them, made from the facts, and their three forms: JSON for v2, JSON for v3,
//! protobuf for v2 (gnostic's `openapi.v2.Document`).

use crate::descriptions::Descriptions;
use crate::facts::{Container, Facts, Field};
use crate::json::Json;
use crate::protobuf::Message;
use std::collections::BTreeMap;

/// Kinds with a definition of their own: word, name, type and format in v2, form in v3.
const SPECIAL: [(&str, &str, &str, &str); 11] = [
    ("quantity", "io.k8s.apimachinery.pkg.api.resource.Quantity", "string", ""),
    ("time", "io.k8s.apimachinery.pkg.apis.meta.v1.Time", "string", "date-time"),
    ("micro-time", "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "string", "date-time"),
    ("fields-v1", "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "object", ""),
    ("raw", "io.k8s.apimachinery.pkg.runtime.RawExtension", "object", ""),
    ("int-or-string", "io.k8s.apimachinery.pkg.util.intstr.IntOrString", "string", "int-or-string"),
    ("json", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "", ""),
    ("schema-or-array", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "", ""),
    ("schema-or-bool", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "", ""),
    (
        "schema-or-strings",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        "",
        "",
    ),
    ("strings", "", "array", ""),
];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V2,
    V3,
}

#[derive(Default)]
pub struct Schema {
    pub reference: String,
    r#type: &'static str,
    format: &'static str,
    description: String,
    items: Option<Box<Schema>>,
    values: Option<Box<Schema>>,
    properties: Vec<(String, Schema)>,
    required: Vec<String>,
    extensions: Vec<(String, Json)>,
    one_of: &'static [&'static str],
}

/// Every definition by name. `packages` gives the group and version of a package's kinds.
pub fn definitions(
    facts: &Facts,
    packages: &BTreeMap<String, (String, String)>,
    descriptions: &Descriptions,
    version: Version,
) -> BTreeMap<String, Schema> {
    let mut out = BTreeMap::new();
    for (_, name, r#type, format) in SPECIAL.into_iter().filter(|(_, name, ..)| !name.is_empty()) {
        let mut schema = Schema { r#type, format, ..Schema::default() };
        schema.description = descriptions.of_type(name).unwrap_or_default().to_owned();
        match (version, name.rsplit('.').next()) {
            (Version::V3, Some("Quantity")) => (schema.r#type, schema.one_of) = ("", &["string", "number"]),
            (Version::V3, Some("IntOrString")) => (schema.r#type, schema.one_of) = ("", &["integer", "string"]),
            _ => {}
        }
        out.insert(name.to_owned(), schema);
    }
    for (name, one) in &facts.types {
        let mut schema = Schema { r#type: "object", ..Schema::default() };
        let (package, short) = name.rsplit_once('.').expect("names have a package");
        schema.description = descriptions.of_type(name).map_or_else(|| list_description(short), str::to_owned);
        for (field_name, field) in &one.fields {
            let mut property = property(field);
            property.description = describe(descriptions, name, field_name);
            schema.properties.push((field_name.clone(), property));
        }
        let required = one.fields.iter().filter(|(_, field)| field.required);
        schema.required = required.map(|(name, _)| name.clone()).collect();
        let has = |field: &str| one.fields.contains_key(field);
        let is_object = has("kind") && has("apiVersion") && has("metadata");
        if let Some((group, version)) = packages.get(package).filter(|_| is_object) {
            let gvk = Json::Array(vec![group_version_kind(group, version, short)]);
            schema.extensions.push(("x-kubernetes-group-version-kind".to_owned(), gvk));
        }
        if one.atomic {
            schema.extensions.push(("x-kubernetes-map-type".to_owned(), Json::text("atomic")));
        }
        out.insert(name.clone(), schema);
    }
    out
}

pub fn group_version_kind(group: &str, version: &str, kind: &str) -> Json {
    Json::object([("group", Json::text(group)), ("kind", Json::text(kind)), ("version", Json::text(version))])
}

fn list_description(short: &str) -> String {
    short.strip_suffix("List").map(|item| format!("A list of {item} objects.")).unwrap_or_default()
}

/// k8s-openapi has no fields for what its traits and its generic list supply.
fn describe(descriptions: &Descriptions, name: &str, field: &str) -> String {
    let own = descriptions.of_field(name, field).filter(|text| !text.is_empty());
    let general = match field {
        _ if descriptions.is_empty() => "",
        "apiVersion" => "The group and version of the schema that this object follows.",
        "kind" => "The kind of this object, in CamelCase.",
        "metadata" => "Standard metadata of every object, or of the list.",
        "items" => "The objects of the list.",
        _ => "",
    };
    own.unwrap_or(general).to_owned()
}

fn property(field: &Field) -> Schema {
    let inner = scalar(&field.kind);
    let mut schema = match field.container {
        Container::One => inner,
        Container::List => Schema { r#type: "array", items: Some(Box::new(inner)), ..Schema::default() },
        Container::Map => Schema { r#type: "object", values: Some(Box::new(inner)), ..Schema::default() },
    };
    let mut extend = |name: &str, value: Json| schema.extensions.push((format!("x-kubernetes-{name}"), value));
    if !field.list_keys.is_empty() {
        extend("list-map-keys", Json::Array(field.list_keys.iter().map(|key| Json::text(key)).collect()));
    }
    if !field.list.is_empty() {
        extend("list-type", Json::text(&field.list));
    }
    if field.map_atomic {
        extend("map-type", Json::text("atomic"));
    }
    if !field.merge_key.is_empty() {
        extend("patch-merge-key", Json::text(&field.merge_key));
    }
    if !field.patch.is_empty() {
        extend("patch-strategy", Json::text(&field.patch.join(",")));
    }
    schema
}

fn scalar(kind: &str) -> Schema {
    let plain = |r#type, format| Schema { r#type, format, ..Schema::default() };
    match kind {
        "string" => plain("string", ""),
        "bytes" => plain("string", "byte"),
        "int32" => plain("integer", "int32"),
        "int64" => plain("integer", "int64"),
        "double" => plain("number", "double"),
        "bool" => plain("boolean", ""),
        "strings" => Schema { items: Some(Box::new(scalar("string"))), ..plain("array", "") },
        word => {
            let special = SPECIAL.iter().find(|(one, ..)| *one == word);
            let reference = special.map_or(word, |(_, name, ..)| name).to_owned();
            Schema { reference, ..Schema::default() }
        }
    }
}

impl Schema {
    /// The names of the definitions that this one refers to.
    pub fn references<'a>(&'a self, out: &mut Vec<&'a str>) {
        if !self.reference.is_empty() {
            out.push(&self.reference);
        }
        let inner = self.items.iter().chain(&self.values).map(AsRef::as_ref);
        inner.chain(self.properties.iter().map(|(_, property)| property)).for_each(|one| one.references(out));
    }

    pub fn json(&self, version: Version) -> Json {
        let mut out: Vec<(String, Json)> = Vec::new();
        let mut put = |name: &str, value: Json| out.push((name.to_owned(), value));
        if !self.description.is_empty() {
            put("description", Json::text(&self.description));
        }
        if !self.reference.is_empty() {
            match version {
                Version::V2 => put("$ref", Json::Text(format!("#/definitions/{}", self.reference))),
                // In v3 nothing may stand beside a reference.
                Version::V3 => {
                    let target = Json::Text(format!("#/components/schemas/{}", self.reference));
                    put("allOf", Json::Array(vec![Json::object([("$ref", target)])]));
                }
            }
        }
        for (name, text) in [("type", self.r#type), ("format", self.format)] {
            if !text.is_empty() {
                put(name, Json::text(text));
            }
        }
        if !self.one_of.is_empty() {
            let one = |r#type: &&str| Json::object([("type", Json::text(r#type))]);
            put("oneOf", Json::Array(self.one_of.iter().map(one).collect()));
        }
        if let Some(items) = &self.items {
            put("items", items.json(version));
        }
        if let Some(values) = &self.values {
            put("additionalProperties", values.json(version));
        }
        if !self.properties.is_empty() {
            let properties = self.properties.iter().map(|(name, one)| (name.clone(), one.json(version)));
            put("properties", Json::Object(properties.collect()));
        }
        if !self.required.is_empty() {
            put("required", Json::Array(self.required.iter().map(|name| Json::text(name)).collect()));
        }
        out.extend(self.extensions.iter().cloned());
        Json::Object(out)
    }

    /// `openapi.v2.Schema`.
    pub fn protobuf(&self) -> Message {
        let mut out = Message::default();
        if !self.reference.is_empty() {
            out.text(1, &format!("#/definitions/{}", self.reference));
        }
        out.text(2, self.format);
        out.text(4, &self.description);
        for name in &self.required {
            out.text(19, name);
        }
        if let Some(values) = &self.values {
            let mut item = Message::default();
            item.message(1, &values.protobuf());
            out.message(21, &item);
        }
        if !self.r#type.is_empty() {
            let mut item = Message::default();
            item.text(1, self.r#type);
            out.message(22, &item);
        }
        if let Some(items) = &self.items {
            let mut item = Message::default();
            item.message(1, &items.protobuf());
            out.message(23, &item);
        }
        if !self.properties.is_empty() {
            let mut properties = Message::default();
            for (name, one) in &self.properties {
                properties.message(1, &Message::named(name, &one.protobuf()));
            }
            out.message(25, &properties);
        }
        for (name, value) in &self.extensions {
            out.message(31, &Message::extension(name, value));
        }
        out
    }
}
