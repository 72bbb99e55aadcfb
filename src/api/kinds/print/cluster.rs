//! Printers of what the cluster's own machinery reads: access, admission, scheduling, flow control.

use super::{NONE, Printer, UNSET, age, condition, flag, human_duration, label_selector, list, number, or};
use crate::api::kinds::Column;
use crate::api::kinds::row::{AGE, NAME, boolean, columns, date, integer, string, wide};
use crate::api::object::{Object, ObjectExt};
use jiff::Timestamp;
use serde_json::Value;

pub(in crate::api::kinds) const ROLE_BINDING: Printer = Printer::new(
    columns![
        NAME,
        string("Role", "Role that is granted."),
        AGE,
        wide("Users", "Users it is granted to."),
        wide("Groups", "Groups it is granted to."),
        wide("ServiceAccounts", "Service accounts it is granted to."),
    ],
    |binding, now| {
        let subjects = |kind: &str| {
            let subjects = list(binding, &["subjects"]).iter().filter(|one| one.str_at(&["kind"]) == kind);
            let name = |one: &Value| match kind {
                "ServiceAccount" => format!("{}/{}", one.str_at(&["namespace"]), one.str_at(&["name"])),
                _ => one.str_at(&["name"]).to_owned(),
            };
            subjects.map(name).collect::<Vec<_>>().join(", ")
        };
        let role = format!("{}/{}", binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
        cells![binding.name(), role, age(binding, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
    },
);

pub(in crate::api::kinds) const CERTIFICATE_SIGNING_REQUEST: Printer = Printer::new(
    columns![
        NAME,
        AGE,
        string("SignerName", "Signer that is asked."),
        string("Requestor", "User who asks."),
        string("RequestedDuration", "How long the certificate shall last."),
        string("Condition", "Whether it is approved and issued."),
    ],
    |request, now| {
        let duration = request.int_at(&["spec", "expirationSeconds"]).map_or(NONE.to_owned(), human_duration);
        cells![
            request.name(),
            age(request, now),
            or(request, &["spec", "signerName"], NONE),
            request.str_at(&["spec", "username"]),
            duration,
            request_condition(request),
        ]
    },
);

fn request_condition(request: &Object) -> String {
    let has = |r#type| !condition(request, r#type).is_empty();
    let decision = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if request.str_at(&["status", "certificate"]).is_empty() { "" } else { ",Issued" };
    format!("{decision}{failed}{issued}")
}

pub(in crate::api::kinds) const LEASE: Printer =
    Printer::new(columns![NAME, string("Holder", "Who holds the lease."), AGE], |lease, now| {
        cells![lease.name(), lease.str_at(&["spec", "holderIdentity"]), age(lease, now)]
    });

pub(in crate::api::kinds) const PRIORITY_CLASS: Printer = Printer::new(
    columns![
        NAME,
        integer("Value", "The priority: more goes first."),
        boolean("Global-Default", "Whether pods without a class get it."),
        AGE,
        string("PreemptionPolicy", "Whether its pods may displace others."),
    ],
    |class, now| {
        cells![
            class.name(),
            number(class, &["value"]),
            flag(class, &["globalDefault"]),
            age(class, now),
            class.str_at(&["preemptionPolicy"]),
        ]
    },
);

pub(in crate::api::kinds) const RUNTIME_CLASS: Printer =
    Printer::new(columns![NAME, string("Handler", "Runtime that runs its pods."), AGE], |class, now| {
        cells![class.name(), class.str_at(&["handler"]), age(class, now)]
    });

pub(in crate::api::kinds) const WEBHOOK_CONFIGURATION: Printer =
    Printer::new(columns![NAME, integer("Webhooks", "Number of webhooks."), AGE], |object, now| {
        cells![object.name(), list(object, &["webhooks"]).len(), age(object, now)]
    });

const PARAM_KIND: Column = string("ParamKind", "Kind of the objects with parameters.");

pub(in crate::api::kinds) const VALIDATING_POLICY: Printer =
    Printer::new(columns![NAME, integer("Validations", "Number of rules."), PARAM_KIND, AGE], |object, now| {
        policy(object, "validations", now)
    });

pub(in crate::api::kinds) const MUTATING_POLICY: Printer =
    Printer::new(columns![NAME, integer("Mutations", "Number of mutations."), PARAM_KIND, AGE], |object, now| {
        policy(object, "mutations", now)
    });

fn policy(object: &Object, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = match object.at(&["spec", "paramKind"]).filter(|kind| kind.is_object()) {
        Some(kind) => format!("{}/{}", kind.str_at(&["apiVersion"]), kind.str_at(&["kind"])),
        None => UNSET.to_owned(),
    };
    cells![object.name(), list(object, &["spec", rules]).len(), kind, age(object, now)]
}

pub(in crate::api::kinds) const POLICY_BINDING: Printer = Printer::new(
    columns![NAME, string("PolicyName", "Policy that is bound."), string("ParamRef", "Objects with parameters."), AGE,],
    |object, now| {
        let parameters = object.at(&["spec", "paramRef"]).filter(|one| one.is_object());
        let parameters = parameters.map(|one| match (one.str_at(&["namespace"]), one.str_at(&["name"])) {
            ("", "") => label_selector(one.get("selector")),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        });
        let parameters = parameters.unwrap_or_else(|| UNSET.to_owned());
        cells![object.name(), object.str_at(&["spec", "policyName"]), parameters, age(object, now)]
    },
);

pub(in crate::api::kinds) const API_SERVICE: Printer = Printer::new(
    columns![
        NAME,
        string("Service", "Service that serves the version; Local for the server itself."),
        string("Available", "Whether it answers."),
        date("Age", "Time since the object was created."),
    ],
    |object, now| {
        let service = match object.at(&["spec", "service"]).filter(|service| service.is_object()) {
            Some(service) => format!("{}/{}", service.str_at(&["namespace"]), service.str_at(&["name"])),
            None => "Local".to_owned(),
        };
        let conditions = list(object, &["status", "conditions"]);
        let available = conditions.iter().find(|one| one.str_at(&["type"]) == "Available");
        let available = match available.map(|one| (one.str_at(&["status"]), one.str_at(&["reason"]))) {
            None => "Unknown".to_owned(),
            Some(("True", _)) => "True".to_owned(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        cells![object.name(), service, available, age(object, now)]
    },
);

pub(in crate::api::kinds) const FLOW_SCHEMA: Printer = Printer::new(
    columns![
        NAME,
        string("PriorityLevel", "Level its requests go to."),
        integer("MatchingPrecedence", "Less is tried first."),
        string("DistinguisherMethod", "What makes requests one flow."),
        AGE,
        string("MissingPL", "Whether the level is missing."),
    ],
    |object, now| {
        let missing = match condition(object, "Dangling") {
            "" => "?",
            status => status,
        };
        cells![
            object.name(),
            object.str_at(&["spec", "priorityLevelConfiguration", "name"]),
            number(object, &["spec", "matchingPrecedence"]),
            or(object, &["spec", "distinguisherMethod", "type"], NONE),
            age(object, now),
            missing,
        ]
    },
);

pub(in crate::api::kinds) const PRIORITY_LEVEL: Printer = Printer::new(
    columns![
        NAME,
        string("Type", "Exempt or Limited."),
        integer("NominalConcurrencyShares", "Share of all seats."),
        integer("Queues", "Number of queues."),
        integer("HandSize", "Queues dealt to a flow."),
        integer("QueueLengthLimit", "Requests that may wait in a queue."),
        AGE,
    ],
    |object, now| {
        let setting = |path: &[&str]| match object.at(path).filter(|value| !value.is_null()) {
            Some(value) => value.clone(),
            None => NONE.into(),
        };
        let queuing = |field| setting(&["spec", "limited", "limitResponse", "queuing", field]);
        let kind = object.str_at(&["spec", "type"]);
        let shares =
            setting(&["spec", if kind == "Exempt" { "exempt" } else { "limited" }, "nominalConcurrencyShares"]);
        cells![
            object.name(),
            kind,
            shares,
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            age(object, now),
        ]
    },
);

pub(in crate::api::kinds) const RESOURCE_CLAIM: Printer =
    Printer::new(columns![NAME, string("State", "Whether its devices are allocated."), AGE], |claim, now| {
        let mut states = Vec::new();
        let is_deleted = claim.deletion_timestamp().is_some();
        if is_deleted {
            states.push("deleted");
        }
        if claim.at(&["status", "allocation"]).is_some_and(|allocation| !allocation.is_null()) {
            states.push("allocated");
            if !list(claim, &["status", "reservedFor"]).is_empty() {
                states.push("reserved");
            }
        } else if !is_deleted {
            states.push("pending");
        }
        cells![claim.name(), states.join(","), age(claim, now)]
    });

pub(in crate::api::kinds) const RESOURCE_SLICE: Printer = Printer::new(
    columns![
        NAME,
        string("Node", "Node that has the devices."),
        string("Driver", "Driver of the devices."),
        string("Pool", "Pool the devices belong to."),
        AGE,
    ],
    |slice, now| {
        cells![
            slice.name(),
            slice.str_at(&["spec", "nodeName"]),
            slice.str_at(&["spec", "driver"]),
            slice.str_at(&["spec", "pool", "name"]),
            age(slice, now),
        ]
    },
);
