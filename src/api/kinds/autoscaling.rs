//! Rows of autoscaling: v2, which is stored, and v1, converted from and to it.

mod scaling;
pub(super) mod v1;

use super::Kind;
use super::print;
use super::row::{ALL, GET_PATCH_UPDATE, Row, names, subresources, texts};

pub(super) static HORIZONTAL_POD_AUTOSCALER: Kind = Row {
    short_names: texts!["hpa"],
    categories: ALL,
    subresources: subresources!["status" "HorizontalPodAutoscaler" GET_PATCH_UPDATE;],
    printer: print::HORIZONTAL_POD_AUTOSCALER,
    strategy: &scaling::AutoscalerStrategy,
    ..Row::namespaced(names!("autoscaling" "v2" "io.k8s.api.autoscaling.v2",
        "HorizontalPodAutoscaler" "horizontalpodautoscalers" "horizontalpodautoscaler"))
}
.build();

pub(super) static HORIZONTAL_POD_AUTOSCALER_V1: Kind = Row {
    short_names: texts!["hpa"],
    categories: ALL,
    subresources: subresources!["status" "HorizontalPodAutoscaler" GET_PATCH_UPDATE;],
    storage_version: "autoscaling/v2",
    convert: Some(&v1::Conversion),
    printer: print::HORIZONTAL_POD_AUTOSCALER_V1,
    strategy: &scaling::AutoscalerV1Strategy,
    ..Row::namespaced(names!("autoscaling" "v1" "io.k8s.api.autoscaling.v1",
        "HorizontalPodAutoscaler" "horizontalpodautoscalers" "horizontalpodautoscaler"))
}
.build();
