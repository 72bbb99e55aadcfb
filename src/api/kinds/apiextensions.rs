//! Rows of apiextensions.k8s.io/v1.

use super::Kind;
use super::policy;
use super::row::{API_EXTENSIONS, GET_PATCH_UPDATE, Row, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("apiextensions.k8s.io" "v1" "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", $($name)*)
    };
}

pub(super) static CUSTOM_RESOURCE_DEFINITION: Kind = Row {
    short_names: texts!["crd" "crds"],
    categories: API_EXTENSIONS,
    subresources: subresources!["status" "CustomResourceDefinition" GET_PATCH_UPDATE;],
    unconditional_update: false,
    strategy: &policy::StatusStrategy { generation: true },
    ..Row::cluster(kind!("CustomResourceDefinition" "customresourcedefinitions" "customresourcedefinition"))
}
.build();
