//! `pods/exec` and `pods/attach`: finds where the command runs, then joins the client's channels (WebSocket) or
//! streams (SPDY) with the frames of the kubelet.

mod channels;
mod streams;

use super::websocket::Protocol;
use super::{Target, container, encode_query, go_on, open, percent_encode, pod, spdy, websocket};
use crate::api::status::{Result, Status};
use crate::apiserver::{ApiServer, Call};
use axum::response::Response;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Exec,
    Attach,
}

/// Best first. Clients that name none speak the oldest.
const WEBSOCKET_PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "base64.channel.k8s.io",
    "channel.k8s.io",
    "",
];
const SPDY_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// What the client wants to be joined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(call: &Call) -> Result<Self> {
        let [stdin, stdout, stderr, tty] = ["stdin", "stdout", "stderr", "tty"].map(|name| call.query.flag(name));
        if !(stdin || stdout || stderr) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        // A terminal has one output.
        Ok(Self { stdin, stdout, stderr: stderr && !tty, tty })
    }

    fn pairs<'a>(self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let all = [("stdin", self.stdin), ("stdout", self.stdout), ("stderr", self.stderr), ("tty", self.tty)];
        all.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (name, "true"))
    }
}

pub async fn answer(server: &ApiServer, mut call: Call, verb: Verb) -> Result<Response> {
    let wanted = Wanted::of(&call)?;
    let target = target(server, &call, verb, wanted).await?;
    if spdy::is_asked(&call) {
        let handshake = spdy::handshake(&mut call, &SPDY_PROTOCOLS)?;
        let node = open(server, &target).await?;
        let protocol = handshake.protocol;
        let (response, client) = handshake.accept();
        go_on(&mut call, async move {
            let (Ok(client), Ok(node)) = (client.await, node.await) else { return };
            spdy::serve(client, |streams| streams::join(streams, wanted, protocol, TokioIo::new(node))).await;
        });
        return Ok(response);
    }
    let handshake = websocket::handshake(&mut call, &WEBSOCKET_PROTOCOLS)?;
    let node = open(server, &target).await?;
    let protocol = Protocol::of(handshake.protocol);
    let (response, socket) = handshake.accept();
    go_on(&mut call, async move {
        let (Ok(socket), Ok(node)) = (socket.await, node.await) else { return };
        channels::join(socket, protocol, wanted, TokioIo::new(node)).await;
    });
    Ok(response)
}

/// Where the kubelet is asked, after all that can be checked here.
async fn target(server: &ApiServer, call: &Call, verb: Verb, wanted: Wanted) -> Result<Target> {
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let pod = pod(server, call).await?;
    let container = container(&pod, name, call.query.get("container").unwrap_or_default())?;
    if pod.spec.node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let phase = &*pod.status.phase;
    if verb == Verb::Exec && matches!(phase, "Succeeded" | "Failed") {
        let why = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(Status::bad_request(why));
    }
    let commands = call.query.all("command").map(|part| ("command", part));
    if verb == Verb::Exec && call.query.get("command").is_none() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let word = if verb == Verb::Exec { "exec" } else { "attach" };
    let path = [namespace, name, &container].map(|part| percent_encode(part)).join("/");
    let query = encode_query(commands.chain(wanted.pairs()));
    Ok(Target { node: pod.spec.node_name, path: format!("/{word}/{path}?{query}") })
}

/// The end of a command as the client reads it: a `Status`, or in old protocols only the message of a failure.
fn error_text(as_status: bool, status: &[u8]) -> Bytes {
    if as_status {
        return Bytes::copy_from_slice(status);
    }
    let value: serde_json::Value = serde_json::from_slice(status).unwrap_or_else(|_| json!({}));
    if value["status"] == "Success" {
        return Bytes::new();
    }
    value["message"].as_str().unwrap_or_default().to_owned().into()
}

/// What is told when the node ends without having said how.
fn lost() -> Bytes {
    Status::internal("the connection to the node was lost").to_object().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_protocols_tell_only_the_message_of_a_failure() {
        let failure = br#"{"status":"Failure","message":"exit status 7"}"#;
        assert_eq!(error_text(true, failure), failure[..]);
        assert_eq!(error_text(false, failure), "exit status 7");
        assert_eq!(error_text(false, br#"{"status":"Success"}"#), "");
    }
}
