//! Field selectors: `status.phase!=Running,spec.nodeName=a`. Which labels a kind has is in its row.

use super::SelectorError;
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use std::fmt;

/// A conjunction of terms. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equals: bool,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text).into_iter().filter(|part| !part.is_empty()) {
            let Some((field, equals, value)) = split_term(part) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            terms.push(Term { field: field.to_owned(), value: unescape(value)?, equals });
        }
        Ok(Self { terms })
    }

    /// Parses and checks that the kind has all the fields named.
    pub fn parse_for(kind: &Kind, text: &str) -> Result<Self, SelectorError> {
        let selector = Self::parse(text)?;
        selector.check(kind)?;
        Ok(selector)
    }

    fn check(&self, kind: &Kind) -> Result<(), SelectorError> {
        let is_known = |field: &str| {
            field == "metadata.name" || (kind.namespaced && field == "metadata.namespace") || has_field(kind, field)
        };
        match self.terms.iter().find(|term| !is_known(&term.field)) {
            None => Ok(()),
            Some(term) if kind.fields.is_empty() => Err(SelectorError(format!(
                "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                term.field
            ))),
            Some(term) => Err(SelectorError(format!("field label not supported: {}", term.field))),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, so that a name can be looked up instead of searched.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equals && term.field == field).map(|term| term.value.as_str())
    }

    /// The field and the value it must have, when nothing else is asked for.
    pub fn only(&self) -> Option<(&str, &str)> {
        match self.terms.as_slice() {
            [term] if term.equals => Some((&term.field, &term.value)),
            _ => None,
        }
    }

    pub fn matches(&self, kind: &Kind, object: &Object) -> bool {
        self.terms.iter().all(|term| term.matches(kind, object))
    }
}

impl Term {
    fn matches(&self, kind: &Kind, object: &Object) -> bool {
        let same = match self.field.as_str() {
            "metadata.name" => object.name() == self.value,
            "metadata.namespace" => object.namespace() == self.value,
            label => {
                let field = kind.fields.iter().find(|field| field.label == label);
                field.is_some_and(|field| (field.value)(object) == self.value)
            }
        };
        same == self.equals
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, term) in self.terms.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let operator = if term.equals { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

fn has_field(kind: &Kind, label: &str) -> bool {
    kind.fields.iter().any(|field| field.label == label)
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (place, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The field, whether it must be equal, and the value still escaped.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (place, _) in term.char_indices() {
        for (operator, equals) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = term[place..].strip_prefix(operator) {
                return Some((&term[..place], equals, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: {sequence}")));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Kinds;
    use serde_json::json;

    #[test]
    fn selectors_match_the_fields_of_a_row() {
        let kind = Kinds::default().kind("v1", "Pod").expect("pods");
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {"phase": "Running"}});
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.namespace!=n", false),
            ("spec.nodeName==x", true),
            ("status.phase!=Running,spec.nodeName=x", false),
            ("spec.hostNetwork=false", true),
            ("status.podIP=", true),
        ] {
            let selector = FieldSelector::parse_for(&kind, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches(&kind, &pod), expected, "{text}");
        }
        let selector = FieldSelector::parse("metadata.name=a\\,b").expect("escaped");
        assert_eq!(
            (selector.exact("metadata.name"), selector.to_string()),
            (Some("a,b"), "metadata.name=a\\,b".into())
        );
    }

    #[test]
    fn errors_are_worded_as_recorded() {
        let kinds = Kinds::default();
        let cases = [
            ("ConfigMap", "a", "invalid selector: 'a'; can't understand 'a'"),
            ("Pod", "spec.bogus=1", "field label not supported: spec.bogus"),
            (
                "ConfigMap",
                "data=1",
                "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
            ("Pod", "metadata.name=a=b", "invalid field selector: unescaped character in value: ="),
            ("Pod", "metadata.name=a\\b", "invalid field selector: invalid escape sequence: \\b"),
        ];
        for (kind, text, message) in cases {
            let kind = kinds.kind("v1", kind).expect("a built-in kind");
            assert_eq!(FieldSelector::parse_for(&kind, text), Err(SelectorError(message.to_owned())), "{text}");
        }
    }
}
