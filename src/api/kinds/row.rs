//! Short notation for the static rows of the table: a `Row` is a `Kind` of plain references with
//! the usual defaults, so that a row states only what is special about it.

use super::print::{self, Printer};
use super::{Column, Convert, DurabilityClass, Kind, NameRule, Plain, SelectableField, Strategy, Subresource, Text};
use crate::api::object::{Object, ObjectExt};
use serde_json::Value;
use std::borrow::Cow;

#[derive(Clone, Copy)]
pub(super) struct Row {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [Text],
    pub categories: &'static [Text],
    pub namespaced: bool,
    pub verbs: &'static [Text],
    pub subresources: &'static [Subresource],
    pub schema: &'static str,
    pub storage_prefix: &'static str,
    /// Empty: the row's own `apiVersion`.
    pub storage_version: &'static str,
    pub convert: Option<&'static dyn Convert>,
    pub name_rule: NameRule,
    pub stored: bool,
    pub sealed: bool,
    pub durability: DurabilityClass,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub printer: Printer,
    pub fields: &'static [SelectableField],
    pub strategy: &'static dyn Strategy,
}

impl Row {
    /// A namespaced kind with all verbs.
    pub const fn namespaced(names: Names) -> Self {
        Self {
            group: names.group,
            version: names.version,
            kind: names.kind,
            plural: names.plural,
            singular: names.singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            verbs: ALL_VERBS,
            subresources: &[],
            schema: names.schema,
            storage_prefix: names.storage_prefix,
            storage_version: names.api_version,
            convert: None,
            name_rule: NameRule::Subdomain,
            stored: true,
            sealed: false,
            durability: DurabilityClass::Durable,
            create_on_update: false,
            unconditional_update: true,
            printer: print::DEFAULT,
            fields: &[],
            strategy: &Plain,
        }
    }

    /// A cluster-scoped kind with all verbs.
    pub const fn cluster(names: Names) -> Self {
        Self { namespaced: false, ..Self::namespaced(names) }
    }

    /// A kind that is answered, never stored: reviews and bindings.
    pub const fn answered(names: Names, namespaced: bool) -> Self {
        Self { namespaced, verbs: CREATE, stored: false, ..Self::namespaced(names) }
    }

    pub const fn build(self) -> Kind {
        Kind {
            group: Text::Borrowed(self.group),
            version: Text::Borrowed(self.version),
            kind: Text::Borrowed(self.kind),
            plural: Text::Borrowed(self.plural),
            singular: Text::Borrowed(self.singular),
            short_names: Cow::Borrowed(self.short_names),
            categories: Cow::Borrowed(self.categories),
            namespaced: self.namespaced,
            verbs: Cow::Borrowed(self.verbs),
            subresources: Cow::Borrowed(self.subresources),
            schema: Text::Borrowed(self.schema),
            storage_prefix: Text::Borrowed(self.storage_prefix),
            storage_version: Text::Borrowed(self.storage_version),
            convert: self.convert,
            name_rule: self.name_rule,
            stored: self.stored,
            sealed: self.sealed,
            durability: self.durability,
            create_on_update: self.create_on_update,
            unconditional_update: self.unconditional_update,
            columns: Cow::Borrowed(self.printer.columns),
            cells: self.printer.cells,
            row_conditions: self.printer.conditions,
            fields: Cow::Borrowed(self.fields),
            strategy: self.strategy,
        }
    }
}

/// What the `names!` macro derives from a kind's names.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub group: &'static str,
    pub version: &'static str,
    pub api_version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub schema: &'static str,
    pub storage_prefix: &'static str,
}

/// `names!("apps" "v1" "io.k8s.api.apps.v1", "Deployment" "deployments" "deployment")`
macro_rules! names {
    ("" $version:literal $package:literal, $kind:literal $plural:literal $singular:literal) => {
        $crate::api::kinds::row::Names {
            group: "",
            version: $version,
            api_version: $version,
            kind: $kind,
            plural: $plural,
            singular: $singular,
            schema: concat!($package, ".", $kind),
            storage_prefix: $plural,
        }
    };
    ($group:literal $version:literal $package:literal, $kind:literal $plural:literal $singular:literal) => {
        $crate::api::kinds::row::Names {
            group: $group,
            version: $version,
            api_version: concat!($group, "/", $version),
            kind: $kind,
            plural: $plural,
            singular: $singular,
            schema: concat!($package, ".", $kind),
            storage_prefix: concat!($plural, ".", $group),
        }
    };
}

/// A static list of texts.
macro_rules! texts {
    ($($text:literal)*) => {{
        const TEXTS: &[$crate::api::kinds::Text] = &[$($crate::api::kinds::Text::Borrowed($text)),*];
        TEXTS
    }};
}

/// `subresources![status "Pod", scale, "log" "Pod" ["get"]]`
macro_rules! subresources {
    ($($name:literal $kind:literal $([$group:literal $version:literal])? $verbs:ident;)*) => {{
        const LIST: &[$crate::api::kinds::Subresource] = &[$($crate::api::kinds::row::subresource(
            $name, $kind, subresources!(@group $([$group $version])?), $verbs,
        )),*];
        LIST
    }};
    (@group) => { ("", "") };
    (@group [$group:literal $version:literal]) => { ($group, $version) };
}

/// `fields!["spec.nodeName" string, "spec.unschedulable" bool]`: the label is the path.
macro_rules! fields {
    ($($label:literal $read:ident [$($part:literal)*];)*) => {{
        const FIELDS: &[$crate::api::kinds::SelectableField] = &[$($crate::api::kinds::SelectableField {
            label: $crate::api::kinds::Text::Borrowed($label),
            value: |object| $crate::api::kinds::row::$read(object, &[$($part),*]),
        }),*];
        FIELDS
    }};
}

/// A static list of columns.
macro_rules! columns {
    ($($column:expr),* $(,)?) => {{
        const COLUMNS: &[$crate::api::kinds::Column] = &[$($column),*];
        COLUMNS
    }};
}

pub(super) use {columns, fields, names, subresources, texts};

const ALL_VERBS: &[Text] = texts!["create" "delete" "deletecollection" "get" "list" "patch" "update" "watch"];
pub(super) const CREATE: &[Text] = texts!["create"];
pub(super) const CREATE_GET: &[Text] = texts!["create" "get"];
pub(super) const GET: &[Text] = texts!["get"];
pub(super) const GET_LIST: &[Text] = texts!["get" "list"];
pub(super) const GET_PATCH_UPDATE: &[Text] = texts!["get" "patch" "update"];
pub(super) const PROXY: &[Text] = texts!["create" "delete" "get" "patch" "update"];
pub(super) const UPDATE: &[Text] = texts!["update"];
/// The category of what `kubectl get all` lists.
pub(super) const ALL: &[Text] = texts!["all"];
pub(super) const API_EXTENSIONS: &[Text] = texts!["api-extensions"];

pub(super) const fn subresource(
    name: &'static str,
    kind: &'static str,
    (group, version): (&'static str, &'static str),
    verbs: &'static [Text],
) -> Subresource {
    Subresource {
        name: Text::Borrowed(name),
        kind: Text::Borrowed(kind),
        group: Text::Borrowed(group),
        version: Text::Borrowed(version),
        verbs: Cow::Borrowed(verbs),
    }
}

/// A column shown always.
pub(super) const fn string(name: &'static str, description: &'static str) -> Column {
    column(name, "string", description)
}
pub(super) const fn integer(name: &'static str, description: &'static str) -> Column {
    column(name, "integer", description)
}
pub(super) const fn date(name: &'static str, description: &'static str) -> Column {
    column(name, "date", description)
}
pub(super) const fn boolean(name: &'static str, description: &'static str) -> Column {
    column(name, "boolean", description)
}

/// A column shown with `-o wide`.
pub(super) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column {
        name: Text::Borrowed(name),
        r#type: Text::Borrowed("string"),
        format: Text::Borrowed(""),
        description: Text::Borrowed(description),
        priority: 1,
    }
}
pub(super) const NAME: Column = Column {
    name: Text::Borrowed("Name"),
    r#type: Text::Borrowed("string"),
    format: Text::Borrowed("name"),
    description: Text::Borrowed("Name of the object, unique for its kind within its namespace."),
    priority: 0,
};
pub(super) const AGE: Column = string("Age", "Time since the object was created.");

const fn column(name: &'static str, r#type: &'static str, description: &'static str) -> Column {
    Column {
        name: Text::Borrowed(name),
        r#type: Text::Borrowed(r#type),
        format: Text::Borrowed(""),
        description: Text::Borrowed(description),
        priority: 0,
    }
}

/// Readers of selectable fields: what is missing reads as the type's zero.
pub(super) fn text(object: &Object, path: &[&str]) -> String {
    object.str_at(path).to_owned()
}
pub(super) fn flag(object: &Object, path: &[&str]) -> String {
    object.at(path).and_then(Value::as_bool).unwrap_or(false).to_string()
}
pub(super) fn number(object: &Object, path: &[&str]) -> String {
    object.int_at(path).unwrap_or(0).to_string()
}
