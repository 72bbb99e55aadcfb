//! Rows of admissionregistration.k8s.io/v1.

use super::Kind;
use super::policy;
use super::print;
use super::row::{API_EXTENSIONS, GET_PATCH_UPDATE, Row, names, subresources};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("admissionregistration.k8s.io" "v1" "io.k8s.api.admissionregistration.v1", $($name)*)
    };
}

pub(super) static MUTATING_ADMISSION_POLICY: Kind = Row {
    categories: API_EXTENSIONS,
    unconditional_update: false,
    printer: print::MUTATING_POLICY,
    strategy: &policy::Counted,
    ..Row::cluster(kind!("MutatingAdmissionPolicy" "mutatingadmissionpolicies" "mutatingadmissionpolicy"))
}
.build();

pub(super) static MUTATING_ADMISSION_POLICY_BINDING: Kind = Row {
    categories: API_EXTENSIONS,
    unconditional_update: false,
    printer: print::POLICY_BINDING,
    strategy: &policy::Counted,
    ..Row::cluster(
        kind!("MutatingAdmissionPolicyBinding" "mutatingadmissionpolicybindings" "mutatingadmissionpolicybinding"),
    )
}
.build();

pub(super) static MUTATING_WEBHOOK_CONFIGURATION: Kind = Row {
    categories: API_EXTENSIONS,
    unconditional_update: false,
    printer: print::WEBHOOK_CONFIGURATION,
    strategy: &policy::Counted,
    ..Row::cluster(kind!("MutatingWebhookConfiguration" "mutatingwebhookconfigurations" "mutatingwebhookconfiguration"))
}
.build();

pub(super) static VALIDATING_ADMISSION_POLICY: Kind = Row {
    categories: API_EXTENSIONS,
    subresources: subresources!["status" "ValidatingAdmissionPolicy" GET_PATCH_UPDATE;],
    unconditional_update: false,
    printer: print::VALIDATING_POLICY,
    strategy: &policy::StatusStrategy { generation: true },
    ..Row::cluster(kind!("ValidatingAdmissionPolicy" "validatingadmissionpolicies" "validatingadmissionpolicy"))
}
.build();

pub(super) static VALIDATING_ADMISSION_POLICY_BINDING: Kind = Row {
    categories: API_EXTENSIONS,
    unconditional_update: false,
    printer: print::POLICY_BINDING, strategy: &policy::Counted, ..Row::cluster(kind!("ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybindings" "validatingadmissionpolicybinding"))
}
.build();

pub(super) static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Row {
    categories: API_EXTENSIONS,
    unconditional_update: false,
    printer: print::WEBHOOK_CONFIGURATION,
    strategy: &policy::Counted,
    ..Row::cluster(
        kind!("ValidatingWebhookConfiguration" "validatingwebhookconfigurations" "validatingwebhookconfiguration"),
    )
}
.build();
