//! Label selectors: `a=b,c in (d,e),!f,g>1`.

use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Status};
use crate::api::validation::{Path, name};
use crate::api::view::meta;
use std::collections::BTreeMap;
use std::fmt;

/// A conjunction of requirements. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, each once.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// A selector in a request that does not parse is a 400.
impl From<SelectorError> for Status {
    fn from(error: SelectorError) -> Self {
        Self::bad_request(error.0)
    }
}

impl Selector {
    /// The string form of list and watch requests.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(text).selector().map_err(SelectorError)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements })
    }

    /// The form of specs. An empty one matches everything; what an absent one matches, the caller knows.
    pub fn from_view(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let labels = selector.match_labels.iter();
        let mut requirements: Vec<Requirement> = labels
            .map(|(key, value)| Requirement::new(key, Operator::Equals, vec![value.clone()]))
            .collect::<Result<_, _>>()
            .map_err(SelectorError)?;
        for expression in &selector.match_expressions {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
            };
            let requirement = Requirement::new(&expression.key, operator, expression.values.clone());
            requirements.push(requirement.map_err(SelectorError)?);
        }
        Ok(Self { requirements })
    }

    /// All of these labels with these values, as `spec.selector` of Services.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: labels.iter().map(requirement).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }

    pub fn matches_object(&self, object: &Object) -> bool {
        self.matches(|key| object.label(key))
    }
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        values.sort();
        values.dedup();
        let mut errors = Vec::new();
        key_problems(&Path::Root("key"), key, &mut errors);
        let list = Path::Root("values");
        let why = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                "for 'in', 'notin' operators, values set can't be empty"
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                "exact-match compatibility requires one single value"
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                "values set must be empty for exists and does not exist"
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                "for 'Gt', 'Lt' operators, exactly one value is required"
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(list.index(0), values[0].clone(), why));
                ""
            }
            _ => "",
        };
        if !why.is_empty() {
            errors.push(FieldError::invalid(list, values.clone(), why));
        }
        for (place, value) in values.iter().enumerate() {
            let problems = name::label_value(value);
            if !problems.is_empty() {
                let path = list.index(place);
                errors.push(FieldError::invalid(path.key(key), value.clone(), problems.join("; ")));
            }
        }
        match errors.as_slice() {
            [] => Ok(Self { key: key.to_owned(), operator, values }),
            [one] => Err(one.to_string()),
            many => Err(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
        }
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let is_listed = |value: &str| self.values.iter().any(|one| one == value);
        match self.operator {
            Operator::In | Operator::Equals => label.is_some_and(is_listed),
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(is_listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => self.numbers(label).is_some_and(|(label, bound)| label > bound),
            Operator::LessThan => self.numbers(label).is_some_and(|(label, bound)| label < bound),
        }
    }

    fn numbers(&self, label: Option<&str>) -> Option<(i64, i64)> {
        Some((label?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

fn key_problems(path: &Path, key: &str, errors: &mut Vec<FieldError>) {
    let problems = name::qualified(key);
    if !problems.is_empty() {
        errors.push(FieldError::invalid(path, key, problems.join("; ")));
    }
}

/// The string form, as kubectl prints it: `a=b,c in (d,e)`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, requirement) in self.requirements.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Identifier(&'a str),
    /// `=`, `==`, `!=`, `!`, `<`, `>`, `(`, `)`, `,`
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Identifier(text) | Self::Symbol(text) => text,
            Self::End => "",
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

type Parsed<T> = Result<T, String>;
const SYMBOLS: &[char] = &['=', '!', '(', ')', ',', '>', '<'];

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn next(&mut self) -> Token<'a> {
        let text = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = text.chars().next() else {
            self.rest = text;
            return Token::End;
        };
        if SYMBOLS.contains(&first) {
            let length = if text.starts_with("==") || text.starts_with("!=") { 2 } else { 1 };
            let (symbol, rest) = text.split_at(length);
            self.rest = rest;
            return Token::Symbol(symbol);
        }
        let ends = |c: char| SYMBOLS.contains(&c) || matches!(c, ' ' | '\t' | '\r' | '\n');
        let (word, rest) = text.split_at(text.find(ends).unwrap_or(text.len()));
        self.rest = rest;
        Token::Identifier(word)
    }

    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }

    fn selector(&mut self) -> Parsed<Vec<Requirement>> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                Token::Identifier(_) | Token::Symbol("!") => {}
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text())),
            }
            let requirement = self.requirement();
            requirements.push(requirement.map_err(|error| format!("unable to parse requirement: {error}"))?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => match self.peek() {
                    Token::Identifier(_) | Token::Symbol("!") => {}
                    other => return Err(format!("found '{}', expected: identifier after ','", other.text())),
                },
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Identifier(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let mut errors = Vec::new();
        // Upstream prints the path it does not have.
        key_problems(&Path::Root("<nil>"), key, &mut errors);
        if let Some(error) = errors.first() {
            return Err(error.to_string());
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn operator(&mut self) -> Parsed<Operator> {
        Ok(match self.next() {
            Token::Identifier("in") => Operator::In,
            Token::Identifier("notin") => Operator::NotIn,
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
        })
    }

    /// `(a, b)`; empty places are empty values.
    fn values(&mut self) -> Parsed<Vec<String>> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        match self.peek() {
            Token::Identifier(_) | Token::Symbol(",") => {}
            Token::Symbol(")") => {
                self.next();
                return Ok(Vec::new());
            }
            other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        let mut values = Vec::new();
        loop {
            let value = match self.peek() {
                Token::Identifier(value) => {
                    self.next();
                    value
                }
                _ => "",
            };
            values.push(value.to_owned());
            match self.next() {
                Token::Symbol(")") => return Ok(values),
                Token::Symbol(",") => {}
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }

    fn exact_value(&mut self) -> Parsed<String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Identifier(value) => Ok(value.to_owned()),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Selector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}")).matches_map(&labels)
    }

    #[test]
    fn every_operator_matches_as_upstream() {
        let labels = [("app", "web"), ("n", "5"), ("in", "x"), ("empty", "")];
        for selector in [
            "",
            "app",
            "app=web",
            "app == web",
            "app!=db",
            "other!=x",
            "!other",
            "! other",
            "app in (web, db)",
            "app notin (db)",
            "other notin (db)",
            "n>4",
            "n<6",
            "app=web,n=5",
            "in in (x)",
            "empty=",
            "empty in (,a)",
            "app in (web,)",
            "empty,app",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in [
            "other",
            "app=db",
            "app!=web",
            "!app",
            "app in (db)",
            "app notin (web)",
            "n>5",
            "app>1",
            "other>1",
            "app=web,!n",
        ] {
            assert!(!matches(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn syntax_errors_are_worded_as_upstream() {
        let cases = [
            ("a in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=(", "unable to parse requirement: found '(', expected: identifier"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("!=a", "found '!=', expected: !, identifier, or 'end of string'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
            ),
        ];
        for (selector, message) in cases {
            assert_eq!(Selector::parse(selector).map_err(|error| error.0), Err(message.to_owned()), "{selector}");
        }
        let error = Selector::parse("a/b/c=d").expect_err("three parts").0;
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a qualified name "),
            "{error}"
        );
        let error = Selector::parse("a=-").expect_err("no label value").0;
        assert!(
            error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label "),
            "{error}"
        );
    }

    #[test]
    fn the_form_of_specs_matches_and_prints() {
        let view = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"},
        ]});
        let view: meta::LabelSelector = serde_json::from_value(view).expect("a view");
        let selector = Selector::from_view(&view).expect("valid");
        assert_eq!(selector.to_string(), "b=1,a in (x,y),!c");
        assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "x", "b": "1"}}})));
        assert!(!selector.matches_object(&json!({"metadata": {"labels": {"a": "x", "b": "1", "c": ""}}})));
        let wrong: meta::LabelSelector =
            serde_json::from_value(json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})).expect("a view");
        assert_eq!(
            Selector::from_view(&wrong),
            Err(SelectorError("\"Gt\" is not a valid label selector operator".into()))
        );
    }
}
