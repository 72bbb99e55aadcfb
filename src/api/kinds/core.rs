//! Rows of the core group, v1.

mod config;
mod endpoints;
mod event;
mod namespace;
mod node;
mod service;

pub(super) use endpoints::EndpointSliceStrategy;
pub(super) use event::NewerEventStrategy;

pub use service::needs_health_check;

use super::apps::workload;
use super::pod;
use super::policy;
use super::print;
use super::row::{
    ALL, CREATE, CREATE_GET, GET, GET_LIST, GET_PATCH_UPDATE, PROXY, Row, UPDATE, fields, names, subresources, texts,
};
use super::storage;
use super::{DurabilityClass, Kind, NameRule, SelectableField, Text};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("" "v1" "io.k8s.api.core.v1", $($name)*)
    };
}

pub(super) static BINDING: Kind = Row::answered(kind!("Binding" "bindings" "binding"), true).build();

pub(super) static COMPONENT_STATUS: Kind = Row {
    short_names: texts!["cs"],
    verbs: GET_LIST,
    stored: false,
    printer: print::COMPONENT_STATUS,
    ..Row::cluster(kind!("ComponentStatus" "componentstatuses" "componentstatus"))
}
.build();

pub(super) static CONFIG_MAP: Kind = Row {
    short_names: texts!["cm"],
    printer: print::CONFIG_MAP,
    strategy: &config::ConfigMapStrategy,
    ..Row::namespaced(kind!("ConfigMap" "configmaps" "configmap"))
}
.build();

pub(super) static ENDPOINTS: Kind = Row {
    short_names: texts!["ep"],
    create_on_update: true,
    printer: print::ENDPOINTS,
    strategy: &endpoints::EndpointsStrategy,
    ..Row::namespaced(kind!("Endpoints" "endpoints" "endpoints"))
}
.build();

pub(super) static EVENT: Kind = Row {
    short_names: texts!["ev"],
    durability: DurabilityClass::Lazy,
    create_on_update: true,
    fields: EVENT_FIELDS,
    printer: print::EVENT,
    strategy: &event::EventStrategy,
    ..Row::namespaced(kind!("Event" "events" "event"))
}
.build();

pub(super) static LIMIT_RANGE: Kind = Row {
    short_names: texts!["limits"],
    create_on_update: true,
    ..Row::namespaced(kind!("LimitRange" "limitranges" "limitrange"))
}
.build();

pub(super) static NAMESPACE: Kind = Row {
    short_names: texts!["ns"],
    verbs: NAMESPACE_VERBS,
    name_rule: NameRule::Label,
    subresources: subresources![
        "finalize" "Namespace" UPDATE;
        "status" "Namespace" GET_PATCH_UPDATE;
    ],
    fields: fields!["status.phase" text ["status" "phase"];],
    printer: print::NAMESPACE,
    strategy: &namespace::NamespaceStrategy,
    ..Row::cluster(kind!("Namespace" "namespaces" "namespace"))
}
.build();

pub(super) static NODE: Kind = Row {
    short_names: texts!["no"],
    subresources: subresources![
        "proxy" "NodeProxyOptions" PROXY;
        "status" "Node" GET_PATCH_UPDATE;
    ],
    fields: fields!["spec.unschedulable" flag ["spec" "unschedulable"];],
    printer: print::NODE,
    strategy: &node::NodeStrategy,
    ..Row::cluster(kind!("Node" "nodes" "node"))
}
.build();

pub(super) static PERSISTENT_VOLUME_CLAIM: Kind = Row {
    short_names: texts!["pvc"],
    subresources: subresources!["status" "PersistentVolumeClaim" GET_PATCH_UPDATE;],
    printer: print::PERSISTENT_VOLUME_CLAIM,
    strategy: &storage::ClaimStrategy,
    ..Row::namespaced(kind!("PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim"))
}
.build();

pub(super) static PERSISTENT_VOLUME: Kind = Row {
    short_names: texts!["pv"],
    subresources: subresources!["status" "PersistentVolume" GET_PATCH_UPDATE;],
    printer: print::PERSISTENT_VOLUME,
    strategy: &storage::VolumeStrategy,
    ..Row::cluster(kind!("PersistentVolume" "persistentvolumes" "persistentvolume"))
}
.build();

pub(super) static POD: Kind = Row {
    short_names: texts!["po"],
    categories: ALL,
    subresources: subresources![
        "attach" "PodAttachOptions" CREATE_GET;
        "binding" "Binding" CREATE;
        "ephemeralcontainers" "Pod" GET_PATCH_UPDATE;
        "eviction" "Eviction" ["policy" "v1"] CREATE;
        "exec" "PodExecOptions" CREATE_GET;
        "log" "Pod" GET;
        "portforward" "PodPortForwardOptions" CREATE_GET;
        "proxy" "PodProxyOptions" PROXY;
        "resize" "Pod" GET_PATCH_UPDATE;
        "status" "Pod" GET_PATCH_UPDATE;
    ],
    fields: fields![
        "spec.nodeName" text ["spec" "nodeName"];
        "spec.restartPolicy" text ["spec" "restartPolicy"];
        "spec.schedulerName" text ["spec" "schedulerName"];
        "spec.serviceAccountName" text ["spec" "serviceAccountName"];
        "spec.hostNetwork" flag ["spec" "hostNetwork"];
        "status.phase" text ["status" "phase"];
        "status.podIP" text ["status" "podIP"];
        "status.nominatedNodeName" text ["status" "nominatedNodeName"];
    ],
    printer: print::POD,
    strategy: &pod::PodStrategy,
    ..Row::namespaced(kind!("Pod" "pods" "pod"))
}
.build();

pub(super) static POD_TEMPLATE: Kind = Row {
    printer: print::POD_TEMPLATE,
    strategy: &workload::PodTemplateStrategy,
    ..Row::namespaced(kind!("PodTemplate" "podtemplates" "podtemplate"))
}
.build();

pub(super) static REPLICATION_CONTROLLER: Kind = Row {
    short_names: texts!["rc"],
    categories: ALL,
    subresources: subresources![
        "scale" "Scale" ["autoscaling" "v1"] GET_PATCH_UPDATE;
        "status" "ReplicationController" GET_PATCH_UPDATE;
    ],
    fields: fields!["status.replicas" number ["status" "replicas"];],
    printer: print::REPLICATION_CONTROLLER,
    strategy: &workload::ReplicationControllerStrategy,
    ..Row::namespaced(kind!("ReplicationController" "replicationcontrollers" "replicationcontroller"))
}
.build();

pub(super) static RESOURCE_QUOTA: Kind = Row {
    short_names: texts!["quota"],
    subresources: subresources!["status" "ResourceQuota" GET_PATCH_UPDATE;],
    printer: print::RESOURCE_QUOTA,
    strategy: &policy::StatusStrategy { generation: false },
    ..Row::namespaced(kind!("ResourceQuota" "resourcequotas" "resourcequota"))
}
.build();

pub(super) static SECRET: Kind = Row {
    sealed: true,
    fields: fields!["type" text ["type"];],
    printer: print::SECRET,
    strategy: &config::SecretStrategy,
    ..Row::namespaced(kind!("Secret" "secrets" "secret"))
}
.build();

pub(super) static SERVICE_ACCOUNT: Kind = Row {
    short_names: texts!["sa"],
    subresources: subresources!["token" "TokenRequest" ["authentication.k8s.io" "v1"] CREATE;],
    printer: print::NAME_AND_AGE,
    ..Row::namespaced(kind!("ServiceAccount" "serviceaccounts" "serviceaccount"))
}
.build();

pub(super) static SERVICE: Kind = Row {
    short_names: texts!["svc"],
    categories: ALL,
    name_rule: NameRule::Label1035,
    subresources: subresources![
        "proxy" "ServiceProxyOptions" PROXY;
        "status" "Service" GET_PATCH_UPDATE;
    ],
    create_on_update: true,
    fields: fields![
        "spec.clusterIP" text ["spec" "clusterIP"];
        "spec.type" text ["spec" "type"];
    ],
    printer: print::SERVICE,
    strategy: &service::ServiceStrategy,
    ..Row::namespaced(kind!("Service" "services" "service"))
}
.build();

/// Namespaces cannot be deleted as a collection.
const NAMESPACE_VERBS: &[Text] = texts!["create" "delete" "get" "list" "patch" "update" "watch"];

const EVENT_FIELDS: &[SelectableField] = fields![
    "involvedObject.kind" text ["involvedObject" "kind"];
    "involvedObject.namespace" text ["involvedObject" "namespace"];
    "involvedObject.name" text ["involvedObject" "name"];
    "involvedObject.uid" text ["involvedObject" "uid"];
    "involvedObject.apiVersion" text ["involvedObject" "apiVersion"];
    "involvedObject.resourceVersion" text ["involvedObject" "resourceVersion"];
    "involvedObject.fieldPath" text ["involvedObject" "fieldPath"];
    "reason" text ["reason"];
    "reportingComponent" text ["reportingComponent"];
    "source" text ["source" "component"];
    "type" text ["type"];
];
