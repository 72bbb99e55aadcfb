//! Rows of policy/v1.

mod budget;

pub(super) use budget::{Counted, LeaseStrategy, PriorityClassStrategy, StatusStrategy};

use super::Kind;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("policy" "v1" "io.k8s.api.policy.v1", $($name)*)
    };
}

pub(super) static POD_DISRUPTION_BUDGET: Kind = Row {
    short_names: texts!["pdb"],
    subresources: subresources!["status" "PodDisruptionBudget" GET_PATCH_UPDATE;],
    unconditional_update: false,
    printer: print::POD_DISRUPTION_BUDGET,
    strategy: &budget::BudgetStrategy,
    ..Row::namespaced(kind!("PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget"))
}
.build();
