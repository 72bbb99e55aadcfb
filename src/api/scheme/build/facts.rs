//! Reads types.txt and defaults.txt (their heads describe the format) into one value.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Facts {
    pub roots: Vec<Root>,
    pub types: BTreeMap<String, Type>,
}

pub struct Root {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    pub type_name: String,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
}

pub struct Subresource {
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

#[derive(Default)]
pub struct Type {
    pub atomic: bool,
    pub fields: BTreeMap<String, Field>,
    pub defaults: Vec<Default>,
    /// Whether the walk for defaults finds anything at or below this type.
    pub filled: bool,
}

#[derive(Default, Clone)]
pub struct Field {
    pub container: Container,
    /// A scalar's word or the name of a type.
    pub kind: String,
    pub tags: Vec<u8>,
    pub required: bool,
    pub pointer: bool,
    pub always: bool,
    pub go_type: String,
    pub list: String,
    pub list_keys: Vec<String>,
    pub map_atomic: bool,
    pub patch: Vec<String>,
    pub merge_key: String,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Container {
    #[default]
    One,
    List,
    Map,
}

pub struct Default {
    pub path: Vec<String>,
    /// Compact JSON.
    pub value: String,
    pub when: Option<(String, Vec<String>)>,
    pub unless: Option<String>,
}

pub fn parse(types: &str, defaults: &str) -> Facts {
    let mut facts = Facts::default();
    let mut current = String::new();
    for line in types.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words[0], line.starts_with(' ')) {
            ("root", false) => facts.roots.push(root(&words)),
            ("type", false) => {
                current = words[1].to_owned();
                let atomic = words.get(2) == Some(&"atomic");
                facts.types.insert(current.clone(), Type { atomic, ..Type::default() });
            }
            (name, _) if name.starts_with('/') => {
                let owner = facts.roots.last_mut().expect("a subresource follows its root");
                owner.subresources.push(subresource(&words));
            }
            (name, _) => {
                let owner = facts.types.get_mut(&current).expect("a field follows its type");
                owner.fields.insert(name.to_owned(), field(&words));
            }
        }
    }
    add_defaults(&mut facts, defaults);
    mark_filled(&mut facts);
    facts
}

fn root(words: &[&str]) -> Root {
    let (group, version) = group_version(words[1]);
    Root {
        group,
        version,
        kind: words[2].to_owned(),
        plural: words[3].to_owned(),
        namespaced: words[4] == "namespaced",
        type_name: words[5].to_owned(),
        verbs: list(words[6]),
        subresources: Vec::new(),
    }
}

fn subresource(words: &[&str]) -> Subresource {
    let (group, version) = group_version(words[1]);
    let name = words[0].trim_start_matches('/').to_owned();
    Subresource { name, group, version, kind: words[2].to_owned(), verbs: list(words[3]) }
}

fn group_version(text: &str) -> (String, String) {
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    (group.to_owned(), version.to_owned())
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn field(words: &[&str]) -> Field {
    let (container, kind) = match (words[1].strip_prefix("[]"), words[1].strip_prefix("{}")) {
        (Some(item), _) => (Container::List, item),
        (_, Some(item)) => (Container::Map, item),
        _ => (Container::One, words[1]),
    };
    let mut field = Field { container, kind: kind.to_owned(), ..Field::default() };
    for word in &words[2..] {
        flag(&mut field, word);
    }
    field
}

fn flag(field: &mut Field, word: &str) {
    match (word.as_bytes()[0], word.split_once('=')) {
        (b'!', _) => field.required = true,
        (b'*', _) => field.pointer = true,
        (b'+', _) => field.always = true,
        (b':', _) => field.go_type = word[1..].to_owned(),
        (b'@', _) => {
            field.tags = word[1..].split('.').map(|tag| tag.parse().expect("tags are below 256")).collect();
        }
        (_, Some(("list", value))) => match value.strip_prefix("map(") {
            Some(keys) => {
                field.list = "map".to_owned();
                field.list_keys = list(keys.trim_end_matches(')'));
            }
            None => field.list = value.to_owned(),
        },
        (_, Some(("map", value))) => field.map_atomic = value == "atomic",
        (_, Some(("patch", value))) => field.patch = list(value),
        (_, Some(("key", value))) => field.merge_key = value.to_owned(),
        _ => panic!("types.txt: unknown flag {word}"),
    }
}

fn add_defaults(facts: &mut Facts, text: &str) {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let mut prefix = "";
    for line in lines {
        if let Some(package) = line.strip_prefix("package ") {
            prefix = package.trim();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let owner = facts.types.get_mut(&format!("{prefix}.{}", words[0]));
        let owner = owner.unwrap_or_else(|| panic!("defaults.txt: no type {prefix}.{}", words[0]));
        let path = words[1].split('.').map(str::to_owned).collect::<Vec<_>>();
        assert!(owner.fields.contains_key(&path[0]), "defaults.txt: no field {line}");
        let mut one = Default { path, value: words[2].to_owned(), when: None, unless: None };
        match words.get(3..) {
            Some(["when", condition]) => {
                let (field, values) = condition.split_once('=').expect("when FIELD=VALUE|VALUE");
                one.when = Some((field.to_owned(), values.split('|').map(str::to_owned).collect()));
            }
            Some(["unless", field]) => one.unless = Some((*field).to_owned()),
            Some([]) => {}
            _ => panic!("defaults.txt: {line}"),
        }
        owner.defaults.push(one);
    }
}

/// Types with something to fill in, and those that lead to them.
fn mark_filled(facts: &mut Facts) {
    let fills = |one: &Type| !one.defaults.is_empty() || one.fields.values().any(Field::fills);
    let mut filled: BTreeSet<String> =
        facts.types.iter().filter(|(_, one)| fills(one)).map(|(name, _)| name.clone()).collect();
    loop {
        let leads = |one: &Type| one.fields.values().any(|field| filled.contains(&field.kind));
        let more: Vec<String> = facts
            .types
            .iter()
            .filter(|(name, one)| !filled.contains(*name) && leads(one))
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        filled.extend(more);
    }
    for (name, one) in &mut facts.types {
        one.filled = filled.contains(name);
    }
}

impl Field {
    /// Whether Go prints this field when nobody set it: plain structs and scalars without `omitempty`.
    pub fn fills(&self) -> bool {
        let plain = self.container == Container::One && !self.pointer && self.always;
        plain && (self.kind.contains('.') || matches!(self.kind.as_str(), "string" | "int32" | "int64" | "bool"))
    }
}
