//! Discovery documents, all derived from the table of kinds: classic and aggregated.

use crate::api::kinds::{Kind, KindRef, Kinds, Subresource};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A group with its versions in order of preference.
struct Group<'a> {
    name: &'a str,
    versions: Vec<&'a str>,
}

fn groups(rows: &[KindRef]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let group = match groups.iter_mut().find(|group| group.name == row.group) {
            Some(group) => group,
            None => {
                groups.push(Group { name: &row.group, versions: Vec::new() });
                groups.last_mut().expect("pushed just now")
            }
        };
        if !group.versions.contains(&row.version.as_ref()) {
            group.versions.push(&row.version);
        }
    }
    groups
}

fn rows_of<'a>(rows: &'a [KindRef], group: &'a str, version: &'a str) -> impl Iterator<Item = &'a KindRef> {
    rows.iter().filter(move |row| row.group == group && row.version == version)
}

/// `/api`. `server` is the address clients should use.
pub fn core_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server }],
    })
}

/// `/apis`.
pub fn group_list(kinds: &Kinds) -> Value {
    let rows = kinds.all();
    let groups = groups(&rows);
    let named = groups.iter().filter(|group| !group.name.is_empty());
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": named.map(group_value).collect::<Vec<_>>() })
}

/// `/apis/GROUP`.
pub fn group(kinds: &Kinds, name: &str) -> Option<Value> {
    let rows = kinds.all();
    let groups = groups(&rows);
    let mut value = group_value(groups.iter().find(|group| group.name == name && !name.is_empty())?);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn group_value(group: &Group) -> Value {
    let version = |version: &&str| json!({ "groupVersion": format!("{}/{version}", group.name), "version": version });
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({ "name": group.name, "preferredVersion": versions[0], "versions": versions })
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let rows = kinds.all();
    let mut resources = Vec::new();
    for row in rows_of(&rows, group, version) {
        resources.push(resource(row));
        resources.extend(row.subresources.iter().map(|sub| subresource(row, sub)));
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = json!({ "kind": "APIResourceList", "groupVersion": name, "resources": resources });
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    let known = !list["resources"].as_array().is_some_and(Vec::is_empty);
    known.then_some(list)
}

fn resource(row: &Kind) -> Value {
    let mut value = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
        "verbs": row.verbs,
    });
    add_names(&mut value, row);
    // What cannot be watched is not stored.
    if row.verbs.iter().any(|verb| verb == "watch") {
        value["storageVersionHash"] = storage_version_hash(row).into();
    }
    value
}

fn add_names(value: &mut Value, row: &Kind) {
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
}

fn subresource(row: &Kind, sub: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", row.plural, sub.name), "singularName": "", "namespaced": row.namespaced,
        "kind": sub.kind, "verbs": sub.verbs,
    });
    if !sub.version.is_empty() && (sub.group != row.group || sub.version != row.version) {
        value["version"] = json!(sub.version);
        if !sub.group.is_empty() {
            value["group"] = json!(sub.group);
        }
    }
    value
}

/// Changes when objects of this kind are stored differently; upstream's formula.
fn storage_version_hash(row: &Kind) -> String {
    let (group, version) = row.storage_version.split_once('/').unwrap_or(("", &row.storage_version));
    let digest = Sha256::digest(format!("{group}/{version}/{}", row.kind));
    STANDARD.encode(&digest[..8])
}

/// The aggregated form of `/api` (`core`) or `/apis`, in one of the two `apidiscovery.k8s.io` versions.
pub fn aggregated(kinds: &Kinds, core: bool, api_version: &str) -> Value {
    let rows = kinds.all();
    let groups = groups(&rows);
    let wanted = groups.iter().filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = wanted.map(|group| aggregated_group(&rows, group)).collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{api_version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_group(rows: &[KindRef], group: &Group) -> Value {
    let version = |version: &&str| {
        let resources: Vec<Value> = rows_of(rows, group.name, version).map(|row| aggregated_resource(row)).collect();
        json!({ "version": version, "resources": resources, "freshness": "Current" })
    };
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({ "name": group.name }) };
    json!({ "metadata": metadata, "versions": versions })
}

fn aggregated_resource(row: &Kind) -> Value {
    let kind_of = |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let mut value = json!({
        "resource": row.plural,
        "responseKind": kind_of("", "", &row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    add_names(&mut value, row);
    let subresource = |sub: &Subresource| {
        let same = sub.version.is_empty() || (sub.group == row.group && sub.version == row.version);
        let (group, version) = if same { ("", "") } else { (&*sub.group, &*sub.version) };
        json!({ "subresource": sub.name, "responseKind": kind_of(group, version, &sub.kind), "verbs": sub.verbs })
    };
    if !row.subresources.is_empty() {
        value["subresources"] = row.subresources.iter().map(subresource).collect();
    }
    value
}

/// The paths below `/api` and `/apis`, for the list at `/`.
pub fn paths(kinds: &Kinds) -> Vec<String> {
    let rows = kinds.all();
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned(), "/apis/".to_owned()];
    for group in groups(&rows) {
        let root = if group.name.is_empty() { "/api".to_owned() } else { format!("/apis/{}", group.name) };
        paths.extend(group.versions.iter().map(|version| format!("{root}/{version}")));
        if !group.name.is_empty() {
            paths.push(root);
        }
    }
    paths
}

/// A strong ETag: the hash of the document in upper-case hexadecimal, as upstream has it.
pub fn etag(document: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(66);
    text.push('"');
    for byte in Sha256::digest(document) {
        write!(text, "{byte:02X}").expect("a String takes every write");
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_version_hashes_are_upstreams() {
        let kinds = Kinds::default();
        let core = resource_list(&kinds, "", "v1").unwrap();
        let apps = resource_list(&kinds, "apps", "v1").unwrap();
        let cases = [
            (&core, "configmaps", "qFsyl6wFWjQ="),
            (&core, "nodes", "XwShjMxG9Fs="),
            (&apps, "deployments", "8aSe+NMegvE="),
        ];
        for (list, name, hash) in cases {
            let resources = list["resources"].as_array().unwrap();
            let resource = resources.iter().find(|resource| resource["name"] == name).unwrap();
            assert_eq!(resource["storageVersionHash"], hash, "{name}");
        }
    }

    #[test]
    fn unknown_groups_and_versions_have_no_document() {
        let kinds = Kinds::default();
        assert!(group(&kinds, "nope.io").is_none() && group(&kinds, "").is_none());
        assert!(resource_list(&kinds, "apps", "v9").is_none());
        assert_eq!(group(&kinds, "autoscaling").unwrap()["preferredVersion"]["version"], "v2");
    }
}
