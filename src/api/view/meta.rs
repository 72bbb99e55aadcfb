//! Views of the metadata and conditions every kind has.

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

impl LabelSelector {
    /// Whether the labels satisfy every requirement. An empty selector matches everything.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl Requirement {
    /// All operators of label selectors and of node selectors (`Gt`, `Lt`). Unknown operators match nothing.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => self.compare(value).is_some_and(|(actual, bound)| actual > bound),
            "Lt" => self.compare(value).is_some_and(|(actual, bound)| actual < bound),
            _ => false,
        }
    }

    fn compare(&self, value: Option<&String>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_match_as_upstream() {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "4".to_owned())]);
        for (key, operator, values, expected) in [
            ("disk", "In", vec!["ssd", "nvme"], true),
            ("disk", "In", vec!["hdd"], false),
            ("none", "In", vec!["x"], false),
            ("disk", "NotIn", vec!["hdd"], true),
            ("none", "NotIn", vec!["x"], true),
            ("disk", "Exists", vec![], true),
            ("none", "DoesNotExist", vec![], true),
            ("cores", "Gt", vec!["3"], true),
            ("cores", "Lt", vec!["4"], false),
            ("disk", "Gt", vec!["3"], false),
            ("none", "Gt", vec!["3"], false),
            ("disk", "Like", vec!["ssd"], false),
        ] {
            let values: Vec<String> = values.into_iter().map(str::to_owned).collect();
            let requirement = Requirement { key: key.into(), operator: operator.into(), values };
            assert_eq!(requirement.matches(&labels), expected, "{requirement:?}");
        }
    }
}
