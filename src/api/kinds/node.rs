//! Rows of node.k8s.io/v1.

use super::Kind;
use super::print;
use super::row::{Row, names};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("node.k8s.io" "v1" "io.k8s.api.node.v1", $($name)*)
    };
}

pub(super) static RUNTIME_CLASS: Kind = Row {
    unconditional_update: false,
    printer: print::RUNTIME_CLASS,
    ..Row::cluster(kind!("RuntimeClass" "runtimeclasses" "runtimeclass"))
}
.build();
