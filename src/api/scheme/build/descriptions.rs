//! Reads the descriptions of types and fields out of the doc comments of k8s-openapi's published sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// By type, then by field (the type's own under the empty name). Fields are keyed by their letters
/// alone, in lower case: Rust and JSON spell them differently.
#[derive(Default)]
pub struct Descriptions(BTreeMap<String, BTreeMap<String, String>>);

impl Descriptions {
    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.get("").map(String::as_str)
    }

    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.0.get(name)?.get(&letters(field)).map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Empty when the sources are not found.
pub fn read() -> Descriptions {
    let mut found = Descriptions::default();
    if let Some(folder) = sources() {
        read_folder(&folder, &mut found);
    }
    found
}

/// In cargo's registry, or vendored beside the project.
fn sources() -> Option<PathBuf> {
    let lock = std::fs::read_to_string("Cargo.lock").ok()?;
    let after = lock.split("name = \"k8s-openapi\"\nversion = \"").nth(1)?;
    let version = after.split('"').next()?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = registries.map(|one| one.path().join(format!("k8s-openapi-{version}"))).collect();
    places.sort();
    places.push(PathBuf::from("vendor/k8s-openapi"));
    places.into_iter().map(|place| place.join("src/v1_36")).find(|place| place.is_dir())
}

fn read_folder(folder: &Path, found: &mut Descriptions) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    // Two groups may have a type of one name: the same one must win on every machine.
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_folder(&path, found);
        } else if let Ok(source) = std::fs::read_to_string(&path) {
            read_source(&source, found);
        }
    }
}

/// One file describes one type, named in its first line. What follows the struct is code.
fn read_source(source: &str, found: &mut Descriptions) {
    let mut lines = source.lines();
    let Some(name) = lines.next().and_then(|line| line.strip_prefix("// Generated from definition ")) else { return };
    let mut fields = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in lines {
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
            continue;
        }
        if line.starts_with("impl") {
            break;
        }
        let Some(item) = line.strip_prefix("pub ") else { continue };
        let text = plain(&std::mem::take(&mut comment));
        if item.starts_with("struct ") || item.starts_with("enum ") {
            fields.insert(String::new(), text);
        } else if let Some((field, _)) = item.split_once(':') {
            fields.insert(letters(field.trim_start_matches("r#")), text);
        }
    }
    found.0.insert(name.to_owned(), fields);
}

fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Without the escapes that rustdoc needs.
fn plain(comment: &[&str]) -> String {
    let text = comment.join("\n").trim().replace("\n\n", "\n");
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let escape = c == '\\' && chars.peek().is_some_and(|next| "<>[]`*_\\#|".contains(*next));
        if !escape {
            out.push(c);
        } else if let Some(next) = chars.next() {
            out.push(next);
        }
    }
    out
}
