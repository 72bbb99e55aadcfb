//! Printers of what makes pods: apps, batch, replication controllers, autoscaling, policy.

use super::{
    NONE, Printer, UNKNOWN, UNSET, age, condition, containers, flag, human_duration, label_selector, labels, list,
    number, or, quantity, since,
};
use crate::api::kinds::row::{AGE, NAME, boolean, columns, integer, string, wide};
use crate::api::kinds::{Column, Convert};
use crate::api::object::{Object, ObjectExt};
use jiff::Timestamp;
use serde_json::Value;

const CONTAINERS: Column = wide("Containers", "Names of the template's containers.");
const IMAGES: Column = wide("Images", "Images of the template's containers.");
const SELECTOR: Column = wide("Selector", "Labels of the pods it looks after.");
const TEMPLATE_SPEC: &[&str] = &["spec", "template", "spec"];

pub(in crate::api::kinds) const DEPLOYMENT: Printer = Printer::new(
    columns![
        NAME,
        string("Ready", "Pods that are ready, of those wanted."),
        string("Up-to-date", "Pods of the newest template."),
        string("Available", "Pods that have been ready long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |object, now| {
        let (names, images) = containers(object, TEMPLATE_SPEC);
        cells![
            object.name(),
            ready_of_wanted(object),
            number(object, &["status", "updatedReplicas"]),
            number(object, &["status", "availableReplicas"]),
            age(object, now),
            names,
            images,
            label_selector(object.at(&["spec", "selector"])),
        ]
    },
);

fn ready_of_wanted(object: &Object) -> String {
    format!("{}/{}", number(object, &["status", "readyReplicas"]), number(object, &["spec", "replicas"]))
}

pub(in crate::api::kinds) const REPLICA_SET: Printer =
    Printer::new(REPLICAS, |object, now| replicas(object, now, label_selector(object.at(&["spec", "selector"]))));

pub(in crate::api::kinds) const REPLICATION_CONTROLLER: Printer =
    Printer::new(REPLICAS, |object, now| replicas(object, now, labels(object.at(&["spec", "selector"]))));

const REPLICAS: &[Column] = columns![
    NAME,
    integer("Desired", "Pods wanted."),
    integer("Current", "Pods there are."),
    integer("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn replicas(object: &Object, now: Timestamp, selector: String) -> Vec<Value> {
    let (names, images) = containers(object, TEMPLATE_SPEC);
    cells![
        object.name(),
        number(object, &["spec", "replicas"]),
        number(object, &["status", "replicas"]),
        number(object, &["status", "readyReplicas"]),
        age(object, now),
        names,
        images,
        selector,
    ]
}

pub(in crate::api::kinds) const STATEFUL_SET: Printer = Printer::new(
    columns![NAME, string("Ready", "Pods that are ready, of those wanted."), AGE, CONTAINERS, IMAGES],
    |object, now| {
        let (names, images) = containers(object, TEMPLATE_SPEC);
        cells![object.name(), ready_of_wanted(object), age(object, now), names, images]
    },
);

pub(in crate::api::kinds) const DAEMON_SET: Printer = Printer::new(
    columns![
        NAME,
        integer("Desired", "Nodes that should run the pod."),
        integer("Current", "Nodes that run it."),
        integer("Ready", "Nodes whose pod is ready."),
        integer("Up-to-date", "Nodes whose pod is of the newest template."),
        integer("Available", "Nodes whose pod has been ready long enough."),
        string("Node Selector", "Labels of the nodes it runs on."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |object, now| {
        let (names, images) = containers(object, TEMPLATE_SPEC);
        let status = |field| number(object, &["status", field]);
        cells![
            object.name(),
            status("desiredNumberScheduled"),
            status("currentNumberScheduled"),
            status("numberReady"),
            status("updatedNumberScheduled"),
            status("numberAvailable"),
            labels(object.at(&["spec", "template", "spec", "nodeSelector"])),
            age(object, now),
            names,
            images,
            label_selector(object.at(&["spec", "selector"])),
        ]
    },
);

pub(in crate::api::kinds) const CONTROLLER_REVISION: Printer = Printer::new(
    columns![
        NAME,
        string("Controller", "What the revision belongs to."),
        string("Revision", "Number of the revision."),
        AGE,
    ],
    |object, now| {
        let controller = object.controller_ref().map(|owner| {
            let group = owner.str_at(&["apiVersion"]).split_once('/').map(|(group, _)| format!(".{group}"));
            let kind = owner.str_at(&["kind"]).to_lowercase();
            format!("{kind}{}/{}", group.unwrap_or_default(), owner.str_at(&["name"]))
        });
        let controller = controller.unwrap_or_else(|| NONE.to_owned());
        cells![object.name(), controller, number(object, &["revision"]), age(object, now)]
    },
);

pub(in crate::api::kinds) const POD_TEMPLATE: Printer = Printer::new(
    columns![
        NAME,
        string("Containers", "Names of the template's containers."),
        string("Images", "Images of the template's containers."),
        string("Pod Labels", "Labels of pods made from it."),
    ],
    |object, _| {
        let (names, images) = containers(object, &["template", "spec"]);
        cells![object.name(), names, images, labels(object.at(&["template", "metadata", "labels"]))]
    },
);

pub(in crate::api::kinds) const JOB: Printer = Printer::new(
    columns![
        NAME,
        string("Status", "What the job goes through now."),
        string("Completions", "Pods that ended well, of those wanted."),
        string("Duration", "Time from start to end, or until now."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |job, now| {
        let (names, images) = containers(job, TEMPLATE_SPEC);
        cells![
            job.name(),
            job_status(job),
            completions(job),
            job_duration(job, now),
            age(job, now),
            names,
            images,
            label_selector(job.at(&["spec", "selector"])),
        ]
    },
);

fn job_status(job: &Object) -> &'static str {
    let has = |r#type| condition(job, r#type) == "True";
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if job.deletion_timestamp().is_some() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Object) -> String {
    let succeeded = number(job, &["status", "succeeded"]);
    match (job.int_at(&["spec", "completions"]), number(job, &["spec", "parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Object, now: Timestamp) -> String {
    let Ok(start) = job.str_at(&["status", "startTime"]).parse::<Timestamp>() else {
        return String::new();
    };
    let end = job.str_at(&["status", "completionTime"]).parse().unwrap_or(now);
    human_duration(end.duration_since(start).as_secs())
}

pub(in crate::api::kinds) const CRON_JOB: Printer = Printer::new(
    columns![
        NAME,
        string("Schedule", "When it runs, as cron writes it."),
        string("Timezone", "Time zone of the schedule."),
        boolean("Suspend", "Whether it rests."),
        integer("Active", "Jobs that run now."),
        string("Last Schedule", "Time since it ran last."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |object, now| {
        let (names, images) = containers(object, &["spec", "jobTemplate", "spec", "template", "spec"]);
        let last = match object.str_at(&["status", "lastScheduleTime"]) {
            "" => NONE.to_owned(),
            time => since(time, now),
        };
        let suspend = match object.at(&["spec", "suspend"]) {
            None | Some(Value::Null) => UNSET,
            Some(_) if flag(object, &["spec", "suspend"]) => "True",
            Some(_) => "False",
        };
        cells![
            object.name(),
            object.str_at(&["spec", "schedule"]),
            or(object, &["spec", "timeZone"], NONE),
            suspend,
            list(object, &["status", "active"]).len(),
            last,
            age(object, now),
            names,
            images,
            label_selector(object.at(&["spec", "jobTemplate", "spec", "selector"])),
        ]
    },
);

pub(in crate::api::kinds) const POD_DISRUPTION_BUDGET: Printer = Printer::new(
    columns![
        NAME,
        string("Min Available", "Pods that must stay available."),
        string("Max Unavailable", "Pods that may be unavailable."),
        integer("Allowed Disruptions", "Pods that may be evicted now."),
        AGE,
    ],
    |object, now| {
        let bound = |field| match object.at(&["spec", field]) {
            Some(Value::String(percent)) => percent.clone(),
            Some(Value::Number(count)) => count.to_string(),
            _ => "N/A".to_owned(),
        };
        let allowed = number(object, &["status", "disruptionsAllowed"]);
        cells![object.name(), bound("minAvailable"), bound("maxUnavailable"), allowed, age(object, now)]
    },
);

const HPA_COLUMNS: &[Column] = columns![
    NAME,
    string("Reference", "What is scaled."),
    string("Targets", "Metrics: their values now and those aimed at."),
    string("MinPods", "Least number of pods."),
    string("MaxPods", "Greatest number of pods."),
    string("Replicas", "Pods there are."),
    AGE,
];

pub(in crate::api::kinds) const HORIZONTAL_POD_AUTOSCALER: Printer = Printer::new(HPA_COLUMNS, autoscaler);

pub(in crate::api::kinds) const HORIZONTAL_POD_AUTOSCALER_V1: Printer = Printer::new(HPA_COLUMNS, |object, now| {
    let mut object = object.clone();
    crate::api::kinds::autoscaling::v1::Conversion.to_storage(&mut object);
    autoscaler(&object, now)
});

fn autoscaler(object: &Object, now: Timestamp) -> Vec<Value> {
    let target = |field| object.str_at(&["spec", "scaleTargetRef", field]);
    let least = object.int_at(&["spec", "minReplicas"]).map_or(UNSET.to_owned(), |least| least.to_string());
    cells![
        object.name(),
        format!("{}/{}", target("kind"), target("name")),
        metrics(object),
        least,
        number(object, &["spec", "maxReplicas"]),
        number(object, &["status", "currentReplicas"]),
        age(object, now),
    ]
}

fn metrics(object: &Object) -> String {
    let (wanted, current) = (list(object, &["spec", "metrics"]), list(object, &["status", "currentMetrics"]));
    let texts: Vec<String> = wanted.iter().enumerate().map(|(place, one)| metric(one, current.get(place))).collect();
    match texts.len() {
        0 => NONE.to_owned(),
        1 | 2 => texts.join(", "),
        many => format!("{} + {} more...", texts[..2].join(", "), many - 2),
    }
}

fn metric(wanted: &Value, current: Option<&Value>) -> String {
    let (source, is_resource) = match wanted.str_at(&["type"]) {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let target = |field| wanted.at(&[source, "target", field]).filter(|value| !value.is_null());
    let now = |field| current.and_then(|one| one.at(&[source, "current", field])).filter(|value| !value.is_null());
    let amounts = |field| {
        let current = now(field).map_or(UNKNOWN.to_owned(), |value| quantity(Some(value)));
        format!("{current}/{}", quantity(target(field)))
    };
    if is_resource {
        let name = wanted.str_at(&[source, "name"]);
        if target("averageValue").is_some() {
            return format!("{name}: {}", amounts("averageValue"));
        }
        let percent = |value: Option<&Value>, none: &str| value.map_or(none.to_owned(), |value| format!("{value}%"));
        let current = percent(now("averageUtilization"), UNKNOWN);
        return format!("{name}: {current}/{}", percent(target("averageUtilization"), "<auto>"));
    }
    match (source, target("averageValue").is_some()) {
        ("pods", _) => amounts("averageValue"),
        (_, true) => format!("{} (avg)", amounts("averageValue")),
        (_, false) => amounts("value"),
    }
}
