//! Rows of scheduling.k8s.io/v1.

use super::Kind;
use super::policy;
use super::print;
use super::row::{Row, names, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("scheduling.k8s.io" "v1" "io.k8s.api.scheduling.v1", $($name)*)
    };
}

pub(super) static PRIORITY_CLASS: Kind = Row {
    short_names: texts!["pc"],
    create_on_update: true,
    printer: print::PRIORITY_CLASS,
    strategy: &policy::PriorityClassStrategy,
    ..Row::cluster(kind!("PriorityClass" "priorityclasses" "priorityclass"))
}
.build();
