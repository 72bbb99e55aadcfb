//! Views of the metadata and conditions every kind has.

use super::views;
use std::collections::BTreeMap;

views! {
    Meta {
        name: String,
        generate_name: String,
        namespace: String,
        uid: String,
        resource_version: String,
        generation: i64,
        creation_timestamp: String,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        finalizers: Vec<String>,
        owner_references: Vec<OwnerReference>,
    }

    OwnerReference {
        api_version: String,
        kind: String,
        name: String,
        uid: String,
        controller: Option<bool>,
        block_owner_deletion: Option<bool>,
    }

    LabelSelector { match_labels: BTreeMap<String, String>, match_expressions: Vec<Requirement>, }

    Requirement { key: String, operator: String, values: Vec<String>, }

    Condition {
        r#type: String,
        status: String,
        reason: String,
        message: String,
        last_transition_time: Option<String>,
        last_probe_time: Option<String>,
        last_update_time: Option<String>,
        observed_generation: Option<i64>,
    }

    /// A view of any object.
    Any { api_version: String, kind: String, metadata: Meta, }
}

impl Meta {
    /// The owner reference with `controller: true`.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller == Some(true))
    }
    /// `namespace/name`; `/name` for cluster-scoped objects.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}
