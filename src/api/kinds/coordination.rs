//! Rows of coordination.k8s.io/v1.

use super::policy;
use super::print;
use super::row::{Row, names};
use super::{DurabilityClass, Kind};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("coordination.k8s.io" "v1" "io.k8s.api.coordination.v1", $($name)*)
    };
}

pub(super) static LEASE: Kind = Row {
    durability: DurabilityClass::LazyRenewal,
    create_on_update: true,
    unconditional_update: false,
    printer: print::LEASE,
    strategy: &policy::LeaseStrategy,
    ..Row::namespaced(kind!("Lease" "leases" "lease"))
}
.build();
