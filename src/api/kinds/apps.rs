//! Rows of apps/v1.

pub(super) mod replicas;
pub(super) mod workload;

use super::Kind;
use super::print;
use super::row::{ALL, GET_PATCH_UPDATE, Row, fields, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("apps" "v1" "io.k8s.api.apps.v1", $($name)*)
    };
}

pub(super) static CONTROLLER_REVISION: Kind = Row {
    printer: print::CONTROLLER_REVISION,
    strategy: &workload::ControllerRevisionStrategy,
    ..Row::namespaced(kind!("ControllerRevision" "controllerrevisions" "controllerrevision"))
}
.build();

pub(super) static DAEMON_SET: Kind = Row {
    short_names: texts!["ds"],
    categories: ALL,
    subresources: subresources!["status" "DaemonSet" GET_PATCH_UPDATE;],
    printer: print::DAEMON_SET,
    strategy: &workload::DaemonSetStrategy,
    ..Row::namespaced(kind!("DaemonSet" "daemonsets" "daemonset"))
}
.build();

pub(super) static DEPLOYMENT: Kind = Row {
    short_names: texts!["deploy"],
    categories: ALL,
    subresources: subresources![
        "scale" "Scale" ["autoscaling" "v1"] GET_PATCH_UPDATE;
        "status" "Deployment" GET_PATCH_UPDATE;
    ],
    printer: print::DEPLOYMENT,
    strategy: &workload::DeploymentStrategy,
    ..Row::namespaced(kind!("Deployment" "deployments" "deployment"))
}
.build();

pub(super) static REPLICA_SET: Kind = Row {
    short_names: texts!["rs"],
    categories: ALL,
    subresources: subresources![
        "scale" "Scale" ["autoscaling" "v1"] GET_PATCH_UPDATE;
        "status" "ReplicaSet" GET_PATCH_UPDATE;
    ],
    fields: fields!["status.replicas" number ["status" "replicas"];],
    printer: print::REPLICA_SET,
    strategy: &workload::ReplicaSetStrategy,
    ..Row::namespaced(kind!("ReplicaSet" "replicasets" "replicaset"))
}
.build();

pub(super) static STATEFUL_SET: Kind = Row {
    short_names: texts!["sts"],
    categories: ALL,
    subresources: subresources![
        "scale" "Scale" ["autoscaling" "v1"] GET_PATCH_UPDATE;
        "status" "StatefulSet" GET_PATCH_UPDATE;
    ],
    printer: print::STATEFUL_SET,
    strategy: &workload::StatefulSetStrategy,
    ..Row::namespaced(kind!("StatefulSet" "statefulsets" "statefulset"))
}
.build();
