//! What boards and administrators ask about trust itself: the authorities, the signed time, and their rotation.

use super::negotiate::Shapes;
use super::{ApiServer, Call, respond};
use crate::api::status::{Result, Status, Subject};
use crate::clock::rfc3339;
use crate::pki::certificate::validity;
use crate::pki::trust::{RotationError, Trust};
use crate::pki::{hex, time};
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

const PEM: &str = "application/x-pem-file";

impl ApiServer {
    /// `None`: another path. Who may ask has been decided: everybody about the first two, masters about the others.
    pub(super) async fn answer_trust(&self, call: &Call, path: &str) -> Result<Option<Response>> {
        let answer = match (&call.method, path) {
            (&Method::GET | &Method::HEAD, "/cacerts") => {
                respond::raw(StatusCode::OK, PEM, self.pki().trust().offered_pem())
            }
            (&Method::GET, "/edgelet/v1/time") => self.signed_time(call)?,
            (&Method::GET, "/edgelet/v1/authorities") => {
                respond::object(StatusCode::OK, &self.authorities(), call.style(Shapes::Plain)?)
            }
            (&Method::POST, "/edgelet/v1/authorities/rotate") => {
                self.rotate(call.query.text("from")).await?;
                respond::object(StatusCode::OK, &self.authorities(), call.style(Shapes::Plain)?)
            }
            (&Method::POST, "/edgelet/v1/authorities/finish") => {
                let pki = self.pki().clone();
                blocking(move || pki.finish_rotation()).await?.map_err(Status::internal)?;
                respond::object(StatusCode::OK, &self.authorities(), call.style(Shapes::Plain)?)
            }
            (&Method::POST, "/edgelet/v1/certificates/rotate") => {
                self.reissue().await?;
                respond::object(StatusCode::OK, &self.authorities(), call.style(Shapes::Plain)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    /// For boards without a clock: only good for the nonce that was asked with.
    fn signed_time(&self, call: &Call) -> Result<Response> {
        let nonce = call.query.get("nonce").unwrap_or_default();
        if !time::is_nonce(nonce) {
            return Err(Status::bad_request("nonce: must be 16 to 128 hexadecimal digits"));
        }
        let trust = self.pki().trust();
        let authorities: Vec<_> = trust.all().map(AsRef::as_ref).collect();
        let statement = time::sign(&authorities, nonce, self.clock().now()).map_err(Status::internal)?;
        let body = serde_json::to_vec(&statement).map_err(Status::internal)?;
        let mut response = respond::raw(StatusCode::OK, "application/json", body);
        response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    fn authorities(&self) -> Value {
        described(&self.pki().trust(), self.server_certificate_ends())
    }

    async fn rotate(&self, from: String) -> Result<()> {
        let pki = self.pki().clone();
        let rotated = blocking(move || pki.rotate(&from)).await?;
        let subject = Subject { group: "", kind: "authorities", name: "current" };
        rotated.map_err(|error| match error {
            RotationError::Pki(error) => Status::internal(error),
            refused => Status::conflict(subject, &refused.to_string()),
        })?;
        tracing::info!(authority = hex(self.pki().trust().current.key_hash()), "the authority is rotated");
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)
}

fn described(trust: &Trust, server_certificate_ends: Option<jiff::Timestamp>) -> Value {
    let one = |authority: &crate::pki::authority::Authority| {
        let ends = validity(authority.der()).map(|(_, to)| rfc3339(to));
        json!({"key": hex(authority.key_hash()), "notAfter": ends})
    };
    let former = trust.former.iter().map(|former| {
        let mut value = one(&former.authority);
        value["since"] = rfc3339(former.since).into();
        value["trusted"] = former.trusted.into();
        value
    });
    json!({
        "current": one(&trust.current), "former": former.collect::<Value>(),
        "serverCertificate": {"notAfter": server_certificate_ends.map(rfc3339)},
    })
}
