//! Rows of apiregistration.k8s.io/v1.

use super::Kind;
use super::policy;
use super::print;
use super::row::{API_EXTENSIONS, GET_PATCH_UPDATE, Row, names, subresources};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("apiregistration.k8s.io" "v1" "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1", $($name)*)
    };
}

pub(super) static API_SERVICE: Kind = Row {
    categories: API_EXTENSIONS,
    subresources: subresources!["status" "APIService" GET_PATCH_UPDATE;],
    unconditional_update: false,
    printer: print::API_SERVICE,
    strategy: &policy::StatusStrategy { generation: false },
    ..Row::cluster(kind!("APIService" "apiservices" "apiservice"))
}
.build();
