//! Writes the facts as Rust statics, which the linker puts into read-only data: no heap, no start-up.

use crate::facts::{Container, Default, Facts, Field, Root, Type};
use std::collections::BTreeMap;
use std::fmt::Write;

pub fn rust(facts: &Facts) -> String {
    let ids: BTreeMap<&str, usize> = facts.types.keys().enumerate().map(|(id, name)| (name.as_str(), id)).collect();
    let mut out = String::new();
    writeln!(out, "pub static TYPES: [Type; {}] = [", facts.types.len()).expect("strings grow");
    for (name, one) in &facts.types {
        out.push_str(&type_row(name, one, &ids));
    }
    out.push_str("];\n");
    writeln!(out, "pub static ROOTS: [Root; {}] = [", facts.roots.len()).expect("strings grow");
    for root in &facts.roots {
        out.push_str(&root_row(root, &ids));
    }
    out.push_str("];\n");
    out
}

fn type_row(name: &str, one: &Type, ids: &BTreeMap<&str, usize>) -> String {
    let fields: String = one.fields.iter().map(|(name, field)| field_row(name, field, ids)).collect();
    let defaults: String = one.defaults.iter().map(default_row).collect();
    format!(
        "Type {{ name: {name:?}, atomic: {}, filled: {}, fields: &[{fields}], defaults: &[{defaults}] }},\n",
        one.atomic, one.filled
    )
}

fn field_row(name: &str, field: &Field, ids: &BTreeMap<&str, usize>) -> String {
    let shape = match field.container {
        Container::One => "One",
        Container::List => "List",
        Container::Map => "Map",
    };
    let mut tags = field.tags.clone();
    tags.resize(3, 0);
    let flags =
        [(field.required, "REQUIRED"), (field.pointer, "POINTER"), (field.always, "ALWAYS"), (field.fills(), "FILLS")];
    let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, word)| format!(" | Field::{word}")).collect();
    format!(
        "Field {{ name: {name:?}, shape: Shape::{shape}(Kind::{}), tags: {tags:?}, flags: 0{flags}, more: {} }},",
        kind(&field.kind, ids),
        more(field)
    )
}

fn kind(word: &str, ids: &BTreeMap<&str, usize>) -> String {
    if word.contains('.') {
        return format!("Ref({})", ids.get(word).unwrap_or_else(|| panic!("types.txt: no type {word}")));
    }
    word.split('-').map(|part| part[..1].to_uppercase() + &part[1..]).collect()
}

fn more(field: &Field) -> String {
    let plain = field.go_type.is_empty() && field.list.is_empty() && !field.map_atomic && field.patch.is_empty();
    if plain {
        return "&More::NONE".to_owned();
    }
    let list = match field.list.as_str() {
        "map" => "Map",
        "set" => "Set",
        "atomic" => "Atomic",
        _ => "Unset",
    };
    let has = |word: &str| field.patch.iter().any(|one| one == word);
    format!(
        "&More {{ go_type: {:?}, list: ListType::{list}, list_keys: &{:?}, map_atomic: {}, \
         merge: {}, replace: {}, retain_keys: {}, merge_key: {:?} }}",
        field.go_type,
        field.list_keys,
        field.map_atomic,
        has("merge"),
        has("replace"),
        has("retainKeys"),
        field.merge_key
    )
}

fn default_row(one: &Default) -> String {
    let when = one.when.as_ref().map(|(field, values)| format!("({field:?}, &{values:?} as &[&str])"));
    let when = when.map_or("None".to_owned(), |when| format!("Some({when})"));
    let unless = one.unless.as_deref().unwrap_or_default();
    format!("Default {{ path: &{:?}, value: {:?}, when: {when}, unless: {unless:?} }},", one.path, one.value)
}

fn root_row(root: &Root, ids: &BTreeMap<&str, usize>) -> String {
    let subresources: String = root
        .subresources
        .iter()
        .map(|sub| {
            format!(
                "RootSubresource {{ name: {:?}, group: {:?}, version: {:?}, kind: {:?}, verbs: &{:?} }},",
                sub.name, sub.group, sub.version, sub.kind, sub.verbs
            )
        })
        .collect();
    format!(
        "Root {{ group: {:?}, version: {:?}, kind: {:?}, plural: {:?}, namespaced: {}, schema: {}, verbs: &{:?}, \
         subresources: &[{subresources}] }},\n",
        root.group,
        root.version,
        root.kind,
        root.plural,
        root.namespaced,
        ids[root.type_name.as_str()],
        root.verbs
    )
}
