//! Rows of authentication.k8s.io/v1.

use super::Kind;
use super::row::{Row, names};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("authentication.k8s.io" "v1" "io.k8s.api.authentication.v1", $($name)*)
    };
}

pub(super) static SELF_SUBJECT_REVIEW: Kind =
    Row::answered(kind!("SelfSubjectReview" "selfsubjectreviews" "selfsubjectreview"), false).build();

pub(super) static TOKEN_REVIEW: Kind = Row::answered(kind!("TokenReview" "tokenreviews" "tokenreview"), false).build();
