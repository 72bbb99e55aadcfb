//! When a request is done with: an hour after its answer, a day after it was made when nobody answered, and when the
//! certificate in it has ended. Pure. Source: upstream's certificate cleaner (behaviour).

use super::super::timestamp;
use super::sign::has;
use crate::api::object::{Object, ObjectExt};
use crate::api::validation::check::list;
use crate::pki::certificate::{bundle, validity};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};

const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// When to delete it.
pub fn due(request: &Object) -> Option<Timestamp> {
    let answered = ["Approved", "Denied", "Failed"].iter().filter_map(|kind| since(request, kind)).min();
    let is_answered = ["Approved", "Denied", "Failed"].iter().any(|kind| has(request, kind));
    let after_answer = answered.map(|at| at + ANSWERED);
    let after_creation = (!is_answered).then(|| made(request)).flatten().map(|at| at + PENDING);
    [after_answer, after_creation, certificate_end(request)].into_iter().flatten().min()
}

fn made(request: &Object) -> Option<Timestamp> {
    timestamp(request.str_at(&["metadata", "creationTimestamp"]))
}

fn since(request: &Object, kind: &str) -> Option<Timestamp> {
    let conditions = request.get("status").map(|status| list(status, "conditions")).unwrap_or_default();
    let condition = conditions.iter().find(|one| one.str_at(&["type"]) == kind)?;
    timestamp(condition.str_at(&["lastUpdateTime"]))
}

fn certificate_end(request: &Object) -> Option<Timestamp> {
    let pem = STANDARD.decode(request.str_at(&["status", "certificate"])).ok()?;
    let (_, end) = validity(bundle(&pem).ok()?.first()?)?;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_go_in_time() {
        let with = |conditions: serde_json::Value| json!({"metadata": {"creationTimestamp": "2026-11-23T00:00:00Z"}, "status": {"conditions": conditions}});
        let condition =
            |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-11-23T02:00:00Z"}]);
        let cases = [
            (with(json!([])), "2026-11-24T00:00:00Z"),
            (with(condition("Approved")), "2026-11-23T03:00:00Z"),
            (with(condition("Denied")), "2026-11-23T03:00:00Z"),
            (with(condition("Failed")), "2026-11-23T03:00:00Z"),
            (with(condition("Other")), "2026-11-24T00:00:00Z"),
        ];
        for (request, expected) in cases {
            assert_eq!(due(&request), timestamp(expected), "{request}");
        }
    }
}
