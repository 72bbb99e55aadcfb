//! Rows of resource.k8s.io/v1.

use super::Kind;
use super::policy;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, fields, names, subresources};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("resource.k8s.io" "v1" "io.k8s.api.resource.v1", $($name)*)
    };
}

pub(super) static DEVICE_CLASS: Kind = Row {
    printer: print::NAME_AND_AGE,
    strategy: &policy::Counted,
    ..Row::cluster(kind!("DeviceClass" "deviceclasses" "deviceclass"))
}
.build();

pub(super) static RESOURCE_CLAIM: Kind = Row {
    subresources: subresources!["status" "ResourceClaim" GET_PATCH_UPDATE;],
    printer: print::RESOURCE_CLAIM,
    strategy: &policy::StatusStrategy { generation: false },
    ..Row::namespaced(kind!("ResourceClaim" "resourceclaims" "resourceclaim"))
}
.build();

pub(super) static RESOURCE_CLAIM_TEMPLATE: Kind = Row {
    printer: print::NAME_AND_AGE,
    ..Row::namespaced(kind!("ResourceClaimTemplate" "resourceclaimtemplates" "resourceclaimtemplate"))
}
.build();

pub(super) static RESOURCE_SLICE: Kind = Row {
    fields: fields![
        "spec.nodeName" text ["spec" "nodeName"];
        "spec.driver" text ["spec" "driver"];
    ],
    printer: print::RESOURCE_SLICE,
    ..Row::cluster(kind!("ResourceSlice" "resourceslices" "resourceslice"))
}
.build();
