//! Manifest files: YAML or JSON documents, from files, folders or standard input.

use crate::api::object::{Object, ObjectExt};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Reads every document of the files; a `List` is taken apart.
pub fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for file in files {
        for path in expand(file)? {
            let (name, text) = text(&path)?;
            for document in serde_yaml::Deserializer::from_str(&text) {
                let object = Object::deserialize(document).with_context(|| format!("parse {name}"))?;
                take(object, &name, &mut objects)?;
            }
        }
    }
    if objects.is_empty() {
        bail!("no objects in the files given");
    }
    Ok(objects)
}

fn take(object: Object, name: &str, objects: &mut Vec<Object>) -> anyhow::Result<()> {
    if object.is_null() {
        return Ok(()); // A document of comments only.
    }
    if object.kind().is_empty() || object.api_version().is_empty() {
        bail!("{name}: a document has no apiVersion or no kind");
    }
    if object.kind() == "List"
        && let Some(items) = object.at(&["items"]).and_then(Object::as_array)
    {
        return items.iter().try_for_each(|item| take(item.clone(), name, objects));
    }
    objects.push(object);
    Ok(())
}

/// A folder means the manifests in it, in name order.
fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path.as_os_str() == "-" || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("read folder {}", path.display()))?;
    let manifest =
        |path: &PathBuf| path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(manifest).collect();
    found.sort();
    Ok(found)
}

fn text(path: &Path) -> anyhow::Result<(String, String)> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(("standard input".into(), text));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok((path.display().to_string(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_comments_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("a.yaml"),
            "# only a comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("b.json"), r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#)
            .unwrap();
        let names: Vec<String> =
            read(&[folder.path().to_owned()]).unwrap().iter().map(|object| object.name().to_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_document_without_a_kind_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, "metadata: {}\n").unwrap();
        let error = read(std::slice::from_ref(&path)).unwrap_err().to_string();
        assert!(error.ends_with("x.yaml: a document has no apiVersion or no kind"), "{error}");
    }
}
