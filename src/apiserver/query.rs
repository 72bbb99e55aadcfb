//! The query string and the option objects it stands for, with upstream's errors for what does not parse.

use super::request_info::percent_decode;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::registry::{DeleteOptions, FieldValidation, ListOptions, Propagation};
use std::str::FromStr;

/// More parameters than any request has.
const PARAMETERS_LIMIT: usize = 512;

/// Decoded parameters in the order they were sent.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(PARAMETERS_LIMIT);
        Self(pairs.map(decode_pair).collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// Go's way with booleans: absent, `false` and `0` are false, anything else is true.
    pub fn flag(&self, name: &str) -> bool {
        self.tristate(name).unwrap_or(false)
    }

    pub fn tristate(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    /// An integer; `None` when absent or empty.
    pub fn integer(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(value) => parse_integer(value).map(Some).map_err(Status::bad_request),
        }
    }
}

fn decode_pair(pair: &str) -> (String, String) {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let decode = |text: &str| percent_decode(&text.replace('+', " "));
    (decode(name), decode(value))
}

/// Go's `strconv.ParseInt` and its words.
pub fn parse_integer(text: &str) -> Result<i64, String> {
    i64::from_str(text).map_err(|error| {
        let why = match error.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.ParseInt: parsing {text:?}: {why}")
    })
}

/// `metav1.ListOptions`.
pub fn list_options(query: &Query) -> Result<ListOptions> {
    let limit = query.integer("limit")?.unwrap_or(0);
    let timeout_s = query.integer("timeoutSeconds")?;
    Ok(ListOptions {
        label_selector: query.text("labelSelector"),
        field_selector: query.text("fieldSelector"),
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.text("continue"),
        resource_version: query.text("resourceVersion"),
        resource_version_match: query.text("resourceVersionMatch"),
        allow_bookmarks: query.flag("allowWatchBookmarks"),
        send_initial_events: query.tristate("sendInitialEvents"),
        timeout_s: timeout_s.and_then(|seconds| u64::try_from(seconds).ok()),
    })
}

/// What the query says about a write.
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
}

/// `kind` names the option type in errors: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
pub fn write_options(query: &Query, kind: &str) -> Result<WriteOptions> {
    let mut errors = Vec::new();
    let dry_run = dry_run(query.all("dryRun"), &mut errors);
    let field_manager = query.text("fieldManager");
    check_field_manager(&field_manager, &mut errors);
    let field_validation = field_validation(query.get("fieldValidation").unwrap_or_default(), &mut errors);
    refuse(kind, errors)?;
    Ok(WriteOptions { dry_run, field_manager, field_validation, force: query.tristate("force") })
}

fn refuse(kind: &str, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(Subject { group: "meta.k8s.io", kind, name: "" }, errors))
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let mut all = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value == "All" {
            all = true;
        } else {
            errors.push(FieldError::not_supported("dryRun", serde_json::json!([value]), &["All"]));
        }
    }
    all
}

fn check_field_manager(name: &str, errors: &mut Vec<FieldError>) {
    if name.chars().count() > 128 {
        errors.push(FieldError::too_long("fieldManager", 128));
    }
    for (at, letter) in name.chars().enumerate().filter(|(_, letter)| letter.is_control()) {
        let detail = format!("should only contain printable characters (letter {at} is {letter:?})");
        errors.push(FieldError::invalid("fieldManager", name, detail));
    }
}

fn field_validation(value: &str, errors: &mut Vec<FieldError>) -> FieldValidation {
    match value {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            errors.push(FieldError::not_supported("fieldValidation", other, &["Ignore", "Warn", "Strict"]));
            FieldValidation::Warn
        }
    }
}

/// Delete options and whether they ask for a dry run: from the body when there is one, else the query.
pub fn delete_options(query: &Query, body: Option<&Object>) -> Result<(DeleteOptions, bool)> {
    let mut errors = Vec::new();
    let (options, dry, policy) = match body {
        Some(body) => delete_options_of_body(body, &mut errors),
        None => delete_options_of_query(query, &mut errors)?,
    };
    if !policy.is_empty() && options.orphan_dependents.is_some() {
        let detail = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid("propagationPolicy", policy.as_str(), detail));
    } else if !policy.is_empty() && options.propagation.is_none() {
        let known = ["Foreground", "Background", "Orphan", "nil"];
        errors.push(FieldError::not_supported("propagationPolicy", policy.as_str(), &known));
    }
    refuse("DeleteOptions", errors)?;
    Ok((options, dry))
}

fn delete_options_of_body(body: &Object, errors: &mut Vec<FieldError>) -> (DeleteOptions, bool, String) {
    let text = |path: &[&str]| body.at(path).and_then(|value| value.as_str()).map(str::to_owned);
    let policy = text(&["propagationPolicy"]).unwrap_or_default();
    let listed = body.at(&["dryRun"]).and_then(|value| value.as_array());
    let dry = dry_run(listed.into_iter().flatten().filter_map(|value| value.as_str()), errors);
    let options = DeleteOptions {
        grace_s: body.int_at(&["gracePeriodSeconds"]),
        propagation: propagation(&policy),
        orphan_dependents: body.at(&["orphanDependents"]).and_then(|value| value.as_bool()),
        uid: text(&["preconditions", "uid"]),
        resource_version: text(&["preconditions", "resourceVersion"]),
    };
    (options, dry, policy)
}

fn delete_options_of_query(query: &Query, errors: &mut Vec<FieldError>) -> Result<(DeleteOptions, bool, String)> {
    let policy = query.text("propagationPolicy");
    let dry = dry_run(query.all("dryRun"), errors);
    let options = DeleteOptions {
        grace_s: query.integer("gracePeriodSeconds")?,
        propagation: propagation(&policy),
        orphan_dependents: query.tristate("orphanDependents"),
        ..DeleteOptions::default()
    };
    Ok((options, dry, policy))
}

fn propagation(policy: &str) -> Option<Propagation> {
    match policy {
        "Orphan" => Some(Propagation::Orphan),
        "Background" => Some(Propagation::Background),
        "Foreground" => Some(Propagation::Foreground),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_decode_and_booleans_are_gos() {
        let query = Query::parse("labelSelector=a%20in%20(b)&watch=1&x=false&command=a&command=b+c");
        assert_eq!(query.get("labelSelector"), Some("a in (b)"));
        assert!(query.flag("watch") && !query.flag("x") && !query.flag("y"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a", "b c"]);
    }

    #[test]
    fn a_bad_limit_has_gos_words() {
        let error = list_options(&Query::parse("limit=x")).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (400, r#"strconv.ParseInt: parsing "x": invalid syntax"#));
        assert_eq!(list_options(&Query::parse("limit=-1")).unwrap().limit, 0);
    }

    #[test]
    fn delete_options_that_contradict_each_other() {
        let body = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
        let error = delete_options(&Query::default(), Some(&body)).unwrap_err();
        let expected = "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": \
                        orphanDependents and deletionPropagation cannot be both set";
        assert_eq!((error.code, error.message.as_str()), (422, expected));
    }

    #[test]
    fn delete_options_from_the_query() {
        let query = Query::parse("gracePeriodSeconds=0&propagationPolicy=Foreground&dryRun=All");
        let (options, dry) = delete_options(&query, None).unwrap();
        assert_eq!((options.grace_s, options.propagation, dry), (Some(0), Some(Propagation::Foreground), true));
    }
}
