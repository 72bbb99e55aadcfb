//! LIST: which revision to show, which entries match, where the next page begins.

use super::selection::Selection;
use super::{List, ListOptions, Registry, encode, store_error, token, too_large_revision};
use crate::api::kinds::Kind;
use crate::api::status::{FieldError, FieldErrorKind, Result, Status, Subject};
use crate::store::{Entry, StoreError};
use serde_json::Value;
use std::sync::Arc;

/// Entries read at a time while a selector is looking for matches.
const SCAN_CHUNK: usize = 500;

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. \
    You can start a new list without the continue parameter, or use the continue token in this response to retrieve \
    the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that \
    were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// What a list request comes down to.
struct Plan {
    prefix: String,
    after: String,
    at: Option<u64>,
    /// The token this page was asked for with, if any.
    continued: bool,
}

impl Registry {
    /// An empty namespace lists all namespaces.
    pub async fn list(&self, kind: &Kind, namespace: &str, options: &ListOptions) -> Result<List> {
        let selection = Selection::parse(kind, options)?;
        let plan = self.plan_list(selection.prefix(kind, namespace), options)?;
        let page = if selection.is_everything() {
            self.store.list(&plan.prefix, &plan.after, options.limit, plan.at).await.map(|page| Found {
                more: page.remaining > 0,
                remaining: Some(page.remaining).filter(|remaining| *remaining > 0),
                entries: page.entries,
                revision: page.revision,
            })
        } else {
            self.scan(kind, &selection, &plan, options.limit).await
        };
        let found = page.map_err(|error| list_error(kind, &plan, error))?;
        let continue_token = match found.entries.last() {
            Some(last) if found.more => token::encode(&plan.prefix, &last.key, Some(found.revision)),
            _ => String::new(),
        };
        let entries: Result<Vec<_>> = found.entries.iter().map(|entry| encode::shown(kind, entry)).collect();
        Ok(List { entries: entries?, revision: found.revision, continue_token, remaining: found.remaining })
    }

    fn plan_list(&self, prefix: String, options: &ListOptions) -> Result<Plan> {
        check_list_options(options)?;
        let asked = parse_revision(&options.resource_version)
            .map_err(|why| Status::bad_request(format!("invalid resource version: {why}")))?;
        if !options.continue_token.is_empty() {
            if asked > 0 {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let position = token::decode(&prefix, &options.continue_token)?;
            return Ok(Plan { prefix, after: position.after, at: position.revision, continued: true });
        }
        let newest = self.store.revision();
        if asked > newest {
            return Err(too_large_revision(asked, newest));
        }
        // Without a match, a page of a named revision is exact, as it was before there were matches.
        let exact = match &*options.resource_version_match {
            "Exact" => true,
            "" => options.limit > 0,
            _ => false,
        };
        Ok(Plan { prefix, after: String::new(), at: (exact && asked > 0).then_some(asked), continued: false })
    }

    /// Reads on until a page of matches is full, and looks whether there is one more.
    async fn scan(&self, kind: &Kind, selection: &Selection, plan: &Plan, limit: usize) -> Result<Found, StoreError> {
        let mut found = Found { entries: Vec::new(), revision: 0, more: false, remaining: None };
        let mut at = plan.at;
        let mut after = plan.after.clone();
        loop {
            let chunk = if limit == 0 { 0 } else { SCAN_CHUNK };
            let indexed = if at.is_none() { selection.indexed(kind, &plan.prefix, &*self.store) } else { None };
            let page = match indexed {
                Some(page) => page,
                None => self.store.list(&plan.prefix, &after, chunk, at).await?,
            };
            found.revision = page.revision;
            at = Some(page.revision);
            for entry in &page.entries {
                if selection.matches(kind, entry) {
                    if limit > 0 && found.entries.len() == limit {
                        found.more = true;
                        return Ok(found);
                    }
                    found.entries.push(entry.clone());
                }
            }
            match page.entries.last() {
                Some(last) if page.remaining > 0 => after = last.key.to_string(),
                _ => return Ok(found),
            }
        }
    }
}

struct Found {
    entries: Vec<Arc<Entry>>,
    revision: u64,
    more: bool,
    remaining: Option<u64>,
}

fn list_error(kind: &Kind, plan: &Plan, error: StoreError) -> Status {
    match error {
        StoreError::Compacted(..) if plan.continued => {
            let mut status = Status::expired(EXPIRED_CONTINUE);
            status.continue_token = Some(token::encode(&plan.prefix, &plan.after, None).into());
            status
        }
        StoreError::Compacted(..) => Status::expired("The resourceVersion for the provided list is too old."),
        other => store_error(kind, "", other),
    }
}

/// 0 for an empty one.
pub(super) fn parse_revision(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            std::num::IntErrorKind::PosOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let cause = format!("strconv.ParseUint: parsing {text:?}: {why}");
        FieldError::invalid("resourceVersion", text, cause).to_string()
    })
}

fn check_list_options(options: &ListOptions) -> Result<()> {
    const FIELD: &str = "resourceVersionMatch";
    let given = &*options.resource_version_match;
    let mut errors = Vec::new();
    if options.send_initial_events.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if !given.is_empty() {
        if options.resource_version.is_empty() {
            errors.push(FieldError::forbidden(
                FIELD,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !options.continue_token.is_empty() {
            errors.push(FieldError::forbidden(FIELD, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if given != "Exact" && given != "NotOlderThan" {
            errors.push(unsupported_match(given, "\"Exact\", \"NotOlderThan\", \"\""));
        }
        if given == "Exact" && options.resource_version == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden(FIELD, why));
        }
    }
    refuse_options(errors)
}

/// Upstream lists these values unsorted.
pub(super) fn unsupported_match(given: &str, supported: &str) -> FieldError {
    FieldError {
        kind: FieldErrorKind::NotSupported,
        field: "resourceVersionMatch".to_owned(),
        value: Value::from(given),
        detail: format!("supported values: {supported}"),
    }
}

pub(super) fn refuse_options(errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(Subject { group: "meta.k8s.io", kind: "ListOptions", name: "" }, errors))
}
