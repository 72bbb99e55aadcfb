//! Rows of discovery.k8s.io/v1.

use super::Kind;
use super::core;
use super::print;
use super::row::{Row, names};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("discovery.k8s.io" "v1" "io.k8s.api.discovery.v1", $($name)*)
    };
}

pub(super) static ENDPOINT_SLICE: Kind = Row {
    printer: print::ENDPOINT_SLICE,
    strategy: &core::EndpointSliceStrategy,
    ..Row::namespaced(kind!("EndpointSlice" "endpointslices" "endpointslice"))
}
.build();
