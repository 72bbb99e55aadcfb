//! `edgelet apply`: makes the server's objects what the manifests say, as `kubectl apply` does.
//! What was applied last is kept in kubectl's own annotation, so the two can take turns.

use super::connect::Connection;
use super::{delete::of_object, get, manifest};
use crate::api::object::{Object, ObjectExt};
use crate::api::scheme::{self, Shape, TypeRef};
use crate::client::Remote;
use anyhow::Context;
use http::Method;
use serde_json::{Map, json};
use std::path::PathBuf;
use std::process::ExitCode;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, folders or `-`
    #[arg(short = 'f', long = "filename", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let mut code = ExitCode::SUCCESS;
    for object in manifest::read(&arguments.files)? {
        let about = format!("{} {:?}", object.kind(), object.name());
        // One bad document must not keep the others from being applied.
        if let Err(error) = apply(&remote, object, &namespace).await {
            eprintln!("error: apply {about}: {}", without_object(&super::chain(&error)));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Creates or patches one object and says which.
pub async fn apply(remote: &Remote, mut object: Object, namespace: &str) -> anyhow::Result<()> {
    let (kind, namespace, name) = of_object(&object, namespace)?;
    let label = format!("{}/{name}", get::qualified(&kind));
    object.unset(&["metadata", "annotations", LAST_APPLIED]);
    if kind.namespaced {
        object.set(&["metadata", "namespace"], json!(namespace));
    }
    let applied = format!("{object}\n");
    object.set(&["metadata", "annotations", LAST_APPLIED], json!(applied));
    let path = get::path(&kind, &namespace, &name);
    let live: Object = match remote.raw(Method::GET, &path, None).await {
        Err(status) if status.is_not_found() => {
            let collection =
                format!("{}?fieldManager=edgelet&fieldValidation=Strict", get::path(&kind, &namespace, ""));
            remote.raw(Method::POST, &collection, Some(object)).await?;
            println!("{label} created");
            return Ok(());
        }
        body => serde_json::from_slice(&body?)?,
    };
    let last: Object = match live.annotation(LAST_APPLIED) {
        Some(text) => serde_json::from_str(text).context("read the last-applied annotation")?,
        None => Object::Null,
    };
    let patch = patch(scheme::find(&kind.schema), &last, &object);
    let path = format!("{path}?fieldManager=edgelet&fieldValidation=Strict");
    let answer = remote.send_patch(&path, "application/strategic-merge-patch+json", &patch).await?;
    let after: Object = serde_json::from_slice(&answer)?;
    let done = if after.resource_version() == live.resource_version() { "unchanged" } else { "configured" };
    println!("{label} {done}");
    Ok(())
}

/// What is wrong with a patched object, without the whole object, which upstream's answer quotes before it.
fn without_object(text: &str) -> &str {
    let Some((_, quoted)) = text.split_once("patch: Invalid value: \"") else { return text };
    let mut escaped = false;
    let end = quoted.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    });
    end.and_then(|end| quoted[end..].strip_prefix("\": ")).unwrap_or(text)
}

/// The strategic merge patch that sets what `new` says and takes away what only `last` said.
fn patch(schema: Option<TypeRef>, last: &Object, new: &Object) -> Object {
    let (Some(fields), empty) = (new.as_object(), Map::new()) else { return new.clone() };
    let last = last.as_object().unwrap_or(&empty);
    let mut patch = Map::new();
    for (key, value) in fields {
        let field = schema.and_then(|schema| schema.field(key));
        let before = last.get(key).unwrap_or(&Object::Null);
        let part = match (field.map(|field| field.shape), value) {
            (Some(Shape::One(kind)), Object::Object(_)) => self::patch(kind.type_ref(), before, value),
            (Some(Shape::Map(kind)), Object::Object(_)) => self::patch(kind.type_ref(), before, value),
            (Some(Shape::List(kind)), Object::Array(items)) => {
                let key = field.map(|field| field.more().merge_key).unwrap_or_default();
                list_patch(kind.type_ref(), key, before, items)
            }
            _ => value.clone(),
        };
        patch.insert(key.clone(), part);
    }
    for key in last.keys().filter(|key| !fields.contains_key(*key)) {
        patch.insert(key.clone(), Object::Null);
    }
    Object::Object(patch)
}

/// Lists without a merge key are replaced whole; others are patched item by item.
fn list_patch(schema: Option<TypeRef>, merge_key: &str, last: &Object, items: &[Object]) -> Object {
    if merge_key.is_empty() {
        return Object::Array(items.to_vec());
    }
    let last = last.as_array().map(Vec::as_slice).unwrap_or_default();
    let same = |one: &Object, other: &Object| one.get(merge_key) == other.get(merge_key);
    let patched = items.iter().map(|item| {
        let before = last.iter().find(|before| same(before, item)).unwrap_or(&Object::Null);
        patch(schema, before, item)
    });
    let mut list: Vec<Object> = patched.collect();
    let gone = last.iter().filter(|before| !items.iter().any(|item| same(before, item)));
    list.extend(gone.map(|before| json!({"$patch": "delete", merge_key: before.get(merge_key)})));
    Object::Array(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_last_manifest_had_is_taken_away() {
        let schema = scheme::find("io.k8s.api.apps.v1.Deployment");
        let last = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [
            {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]}, {"name": "b", "image": "y"}]}}}});
        let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "z"}]}}}});
        let expected = json!({"spec": {"replicas": null, "template": {"spec": {"containers": [
            {"name": "a", "image": "z", "env": null}, {"$patch": "delete", "name": "b"}]}}}});
        assert_eq!(patch(schema, &last, &new), expected);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_whole_object() {
        let mut object = json!({"kind": "Deployment", "metadata": {"annotations": {"a": "\"quoted\" \\"}},
            "spec": {"replicsa": 2}});
        let deployment = scheme::find("io.k8s.api.apps.v1.Deployment").unwrap();
        let strict = crate::api::codec::FieldValidation::Strict;
        let refused = crate::api::codec::check_patched(deployment, &mut object, strict).unwrap_err();
        assert!(refused.message.contains("quoted"), "{}", refused.message);
        assert_eq!(without_object(&refused.message), "strict decoding error: unknown field \"spec.replicsa\"");
        assert_eq!(without_object("services \"web\" not found"), "services \"web\" not found");
    }

    #[test]
    fn lists_without_a_merge_key_are_replaced() {
        let schema = scheme::find("io.k8s.api.core.v1.Pod");
        let last = json!({"spec": {"tolerations": [{"key": "a"}]}});
        let new = json!({"spec": {"tolerations": [{"key": "b"}]}});
        assert_eq!(patch(schema, &last, &new), new);
    }
}
