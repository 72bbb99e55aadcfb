//! What says that the server lives, is ready, which version it is and which paths it has.

use super::{ApiServer, discovery, respond};
use crate::api::KUBERNETES;
use crate::apiserver::query::Query;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

const STORE_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// One named check; the error is for the log, never for the client.
const CHECKS: [&str; 3] = ["ping", "log", "store"];

/// `/version`. Build metadata keeps it a semantic version that clients can compare.
pub fn version() -> Value {
    let (platform, minor) = (format!("linux/{}", architecture()), KUBERNETES.split('.').nth(1).unwrap_or_default());
    json!({
        "major": "1", "minor": minor,
        "emulationMajor": "1", "emulationMinor": minor, "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": format!("v{KUBERNETES}+edgelet-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": option_env!("EDGELET_COMMIT").unwrap_or_default(),
        "gitTreeState": "clean", "buildDate": option_env!("EDGELET_BUILD_DATE").unwrap_or_default(),
        "goVersion": "", "compiler": "rustc", "platform": platform,
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/`: every path that is served.
pub fn root(server: &ApiServer) -> Value {
    let mut paths = discovery::paths(&server.registry().kinds);
    let fixed = ["/.well-known/openid-configuration", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks"];
    paths.extend(fixed.map(str::to_owned));
    paths.push("/version".to_owned());
    for endpoint in ["/healthz", "/livez", "/readyz"] {
        paths.push(endpoint.to_owned());
        paths.extend(checks(endpoint).map(|check| format!("{endpoint}/{check}")));
    }
    paths.sort();
    json!({ "paths": paths })
}

fn checks(endpoint: &str) -> impl Iterator<Item = &'static str> {
    let last = (endpoint == "/readyz").then_some("shutdown");
    CHECKS.into_iter().chain(last)
}

/// `/healthz`, `/livez`, `/readyz`, and one check of each; `None` for paths that are none of these.
pub async fn answer(server: &ApiServer, path: &str, query: &Query) -> Option<Response> {
    let endpoint = ["/healthz", "/livez", "/readyz"].into_iter().find(|endpoint| path.starts_with(endpoint))?;
    let rest = &path[endpoint.len()..];
    if rest.is_empty() || rest == "/" {
        return Some(all(server, endpoint, query).await);
    }
    let wanted = rest.strip_prefix('/')?;
    let check = checks(endpoint).find(|check| *check == wanted)?;
    Some(match run(server, check).await {
        true => respond::text(StatusCode::OK, "ok"),
        false => respond::text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: check failed\n"),
    })
}

async fn all(server: &ApiServer, endpoint: &str, query: &Query) -> Response {
    let mut report = String::new();
    let mut failed = false;
    for check in checks(endpoint) {
        let line = if query.all("exclude").any(|excluded| excluded == check) {
            format!("[+]{check} excluded: ok")
        } else if run(server, check).await {
            format!("[+]{check} ok")
        } else {
            failed = true;
            format!("[-]{check} failed: reason withheld")
        };
        writeln!(report, "{line}").expect("a String takes every write");
    }
    let name = &endpoint[1..];
    if failed {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{name} check failed\n"));
    }
    let verbose = query.get("verbose").is_some();
    let text = if verbose { format!("{report}{name} check passed\n") } else { "ok".to_owned() };
    respond::text(StatusCode::OK, text)
}

async fn run(server: &ApiServer, check: &str) -> bool {
    match check {
        "store" => {
            let read = server.registry().store.get("namespaces//default");
            matches!(tokio::time::timeout(STORE_CHECK_TIMEOUT, read).await, Ok(Ok(_)))
        }
        "shutdown" => !server.is_ending(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_api_level_with_build_metadata() {
        let version = super::version();
        let text = version["gitVersion"].as_str().unwrap();
        assert!(text.starts_with("v1.36.2+edgelet-"), "{text}");
        assert_eq!((&version["major"], &version["minor"]), (&"1".into(), &"36".into()));
    }
}
