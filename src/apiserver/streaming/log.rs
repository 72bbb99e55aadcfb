//! `pods/log`: checks the options, then lets the kubelet's text through, as a body or as WebSocket messages.

use super::websocket::{self, Socket};
use super::{ask_node, container, encode_query, go_on, node_request, percent_encode, pod, refusal};
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::apiserver::query::Query;
use crate::apiserver::{ApiServer, Call, respond};
use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Method;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio_tungstenite::tungstenite::Message;

/// What the kubelet is told.
const PARAMETERS: [&str; 8] =
    ["follow", "previous", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "timestamps", "stream"];

const BASE64_PROTOCOL: &str = "base64.binary.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 3] = ["binary.k8s.io", BASE64_PROTOCOL, ""];

pub async fn answer(server: &ApiServer, mut call: Call) -> Result<Response> {
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    check(&call.query, name)?;
    let pod = pod(server, &call).await?;
    let container = container(&pod, name, call.query.get("container").unwrap_or_default())?;
    if pod.spec.node_name.is_empty() {
        return Ok(respond::no_content());
    }
    let pairs = PARAMETERS.iter().filter_map(|parameter| call.query.get(parameter).map(|value| (*parameter, value)));
    let path = [namespace, name, &container].map(|part| percent_encode(part)).join("/");
    let target = format!("/containerLogs/{path}?{}", encode_query(pairs));
    let request = node_request(Method::GET, &target).body(Full::<Bytes>::default()).map_err(Status::internal)?;
    let response = ask_node(server, &pod.spec.node_name, request).await?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    if !websocket::is_asked(&call) {
        return Ok(respond::stream("text/plain", Body::new(response.into_body())));
    }
    let handshake = websocket::handshake(&mut call, &WEBSOCKET_PROTOCOLS)?;
    let base64 = handshake.protocol == BASE64_PROTOCOL;
    let (switching, socket) = handshake.accept();
    go_on(&mut call, async move {
        if let Ok(socket) = socket.await {
            messages(socket, base64, response.into_body()).await;
        }
    });
    Ok(switching)
}

/// The text in messages, after an empty one that tells the client it is through.
async fn messages(socket: Socket, base64: bool, mut log: Incoming) {
    let (mut to_client, mut from_client) = socket.split();
    let message = |bytes: Bytes| if base64 { Message::text(STANDARD.encode(bytes)) } else { Message::binary(bytes) };
    let write = async {
        let mut next = Some(Bytes::new());
        while let Some(bytes) = next {
            if to_client.send(message(bytes)).await.is_err() {
                return;
            }
            next = match log.frame().await {
                Some(Ok(frame)) => Some(frame.into_data().unwrap_or_default()),
                _ => None,
            };
        }
    };
    let gone = async {
        while let Some(Ok(message)) = from_client.next().await {
            if message.is_close() {
                return;
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = gone => return,
    }
    websocket::close(to_client, from_client).await;
}

fn check(query: &Query, name: &str) -> Result<()> {
    let mut errors = Vec::new();
    let tail = query.integer("tailLines")?;
    if let Some(lines) = tail.filter(|lines| *lines < 0) {
        errors.push(FieldError::invalid("tailLines", lines, "must be greater than or equal to 0"));
    }
    let positive = "must be greater than 0";
    if let Some(bytes) = query.integer("limitBytes")?.filter(|bytes| *bytes < 1) {
        errors.push(FieldError::invalid("limitBytes", bytes, positive));
    }
    let since = query.integer("sinceSeconds")?;
    if since.is_some() && query.get("sinceTime").is_some_and(|time| !time.is_empty()) {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else if let Some(seconds) = since.filter(|seconds| *seconds < 1) {
        errors.push(FieldError::invalid("sinceSeconds", seconds, positive));
    }
    match query.get("stream").unwrap_or_default() {
        "" | "All" => {}
        "Stdout" | "Stderr" if tail.is_some() => {
            let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden("", detail));
        }
        "Stdout" | "Stderr" => {}
        other => errors.push(FieldError::not_supported("stream", other, &["All", "Stdout", "Stderr"])),
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(Subject { group: "", kind: "PodLogOptions", name }, errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let message = |query: &str| check(&Query::parse(query), "p").err().map(|error| (error.code, error.message));
        let invalid = |text: &str| Some((422, format!("PodLogOptions \"p\" is invalid: {text}")));
        assert_eq!(message("follow=true&tailLines=0&sinceSeconds=5&limitBytes=1"), None);
        assert_eq!(
            message("tailLines=-1"),
            invalid("tailLines: Invalid value: -1: must be greater than or equal to 0")
        );
        assert_eq!(message("sinceSeconds=0"), invalid("sinceSeconds: Invalid value: 0: must be greater than 0"));
        assert_eq!(message("tailLines=x").map(|error| error.0), Some(400));
    }
}
