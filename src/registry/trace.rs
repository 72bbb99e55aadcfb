//! The steps of a pod's way that the registry sees, for `edgelet trace`.

use super::Registry;
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::telemetry::Moment;
use serde_json::Value;

const ROOM: &str = "apiserver";

/// A step, and what is true of a pod that has taken it.
type Mark = (&'static str, fn(&Object) -> bool);

/// What a write of a pod means; nothing for other kinds.
pub(super) fn steps(kind: &Kind, old: Option<&Object>, new: &Object) -> Vec<&'static str> {
    if kind.storage_prefix != "pods" {
        return Vec::new();
    }
    let Some(old) = old else { return vec!["created"] };
    let marks: [Mark; 4] = [
        ("bound", |pod| !pod.str_at(&["spec", "nodeName"]).is_empty()),
        ("status Running", |pod| pod.str_at(&["status", "phase"]) == "Running"),
        ("Ready", is_ready),
        ("deletion requested", |pod| pod.deletion_timestamp().is_some()),
    ];
    marks.into_iter().filter(|(_, holds)| holds(new) && !holds(old)).map(|(step, _)| step).collect()
}

fn is_ready(pod: &Object) -> bool {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|one| one.str_at(&["type"]) == "Ready" && one.str_at(&["status"]) == "True")
}

impl Registry {
    /// To be taken before the write.
    pub(super) fn moment(&self) -> Moment {
        self.trace.moment(&self.clock)
    }

    pub(super) fn mark(&self, moment: Moment, uid: &str, steps: &[&'static str]) {
        for step in steps {
            self.trace.mark_at(moment, uid, ROOM, step);
        }
    }

    pub(super) fn mark_deleted(&self, moment: Moment, kind: &Kind, uid: &str) {
        if kind.storage_prefix == "pods" {
            self.mark(moment, uid, &["deleted"]);
        }
    }
}
