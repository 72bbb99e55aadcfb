//! Rows of authorization.k8s.io/v1.

use super::Kind;
use super::row::{Row, names};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("authorization.k8s.io" "v1" "io.k8s.api.authorization.v1", $($name)*)
    };
}

pub(super) static LOCAL_SUBJECT_ACCESS_REVIEW: Kind =
    Row::answered(kind!("LocalSubjectAccessReview" "localsubjectaccessreviews" "localsubjectaccessreview"), true)
        .build();

pub(super) static SELF_SUBJECT_ACCESS_REVIEW: Kind =
    Row::answered(kind!("SelfSubjectAccessReview" "selfsubjectaccessreviews" "selfsubjectaccessreview"), false).build();

pub(super) static SELF_SUBJECT_RULES_REVIEW: Kind =
    Row::answered(kind!("SelfSubjectRulesReview" "selfsubjectrulesreviews" "selfsubjectrulesreview"), false).build();

pub(super) static SUBJECT_ACCESS_REVIEW: Kind =
    Row::answered(kind!("SubjectAccessReview" "subjectaccessreviews" "subjectaccessreview"), false).build();
