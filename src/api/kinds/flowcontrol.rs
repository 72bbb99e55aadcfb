//! Rows of flowcontrol.apiserver.k8s.io/v1.

use super::Kind;
use super::policy;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, names, subresources};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("flowcontrol.apiserver.k8s.io" "v1" "io.k8s.api.flowcontrol.v1", $($name)*)
    };
}

pub(super) static FLOW_SCHEMA: Kind = Row {
    subresources: subresources!["status" "FlowSchema" GET_PATCH_UPDATE;],
    printer: print::FLOW_SCHEMA,
    strategy: &policy::StatusStrategy { generation: true },
    ..Row::cluster(kind!("FlowSchema" "flowschemas" "flowschema"))
}
.build();

pub(super) static PRIORITY_LEVEL_CONFIGURATION: Kind = Row {
    subresources: subresources!["status" "PriorityLevelConfiguration" GET_PATCH_UPDATE;],
    printer: print::PRIORITY_LEVEL,
    strategy: &policy::StatusStrategy { generation: true },
    ..Row::cluster(kind!("PriorityLevelConfiguration" "prioritylevelconfigurations" "prioritylevelconfiguration"))
}
.build();
