//! Rows of certificates.k8s.io/v1.

mod request;

use super::Kind;
use super::print;
use super::row::{GET_PATCH_UPDATE, Row, fields, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("certificates.k8s.io" "v1" "io.k8s.api.certificates.v1", $($name)*)
    };
}

pub(super) static CERTIFICATE_SIGNING_REQUEST: Kind = Row {
    short_names: texts!["csr"],
    subresources: subresources![
        "approval" "CertificateSigningRequest" GET_PATCH_UPDATE;
        "status" "CertificateSigningRequest" GET_PATCH_UPDATE;
    ],
    fields: fields!["spec.signerName" text ["spec" "signerName"];],
    printer: print::CERTIFICATE_SIGNING_REQUEST,
    strategy: &request::RequestStrategy,
    ..Row::cluster(kind!("CertificateSigningRequest" "certificatesigningrequests" "certificatesigningrequest"))
}
.build();
