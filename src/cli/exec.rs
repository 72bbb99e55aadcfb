//! `edgelet exec`: a command in a container, over the same WebSocket protocol as `kubectl exec`.
//! Exits with the command's own exit code.

use super::connect::Connection;
use crate::api::object::{Object, ObjectExt};
use crate::client::PODS;
use crate::client::remote::{encoded, path};
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

// Channels of `v5.channel.k8s.io`.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

#[derive(clap::Args)]
pub struct Arguments {
    /// POD or pod/POD
    pod: String,
    /// Container [default: the first]
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    connection: Connection,
    /// The command, after `--`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let tty = arguments.tty && std::io::stdin().is_terminal();
    let mut query: Vec<String> = arguments.command.iter().map(|part| format!("command={}", encoded(part))).collect();
    query.push(format!("stdin={}&stdout=true&stderr={}&tty={tty}", arguments.stdin, !tty));
    if let Some(container) = &arguments.container {
        query.push(format!("container={}", encoded(container)));
    }
    let pod = arguments.pod.rsplit('/').next().unwrap_or_default();
    let path = format!("{}?{}", path(PODS, &namespace, pod, "exec"), query.join("&"));
    let socket = remote.websocket(&path, "v5.channel.k8s.io").await?;
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    converse(socket, arguments.stdin, tty).await
}

/// Copies both ways until the command has ended.
async fn converse(socket: crate::client::remote::WebSocket, with_stdin: bool, tty: bool) -> anyhow::Result<ExitCode> {
    let (mut send, mut receive) = socket.split();
    let mut resized = signal(SignalKind::window_change()).context("watch the terminal's size")?;
    let mut input = tokio::io::stdin();
    let mut reading = with_stdin;
    let mut buffer = vec![0u8; 16 << 10];
    if tty {
        send.send(size_message()?).await?;
    }
    loop {
        tokio::select! {
            message = receive.next() => {
                let Some(message) = message else { bail!("the server closed the connection") };
                match message.context("read from the server")? {
                    Message::Binary(frame) => if let Some(code) = show(&frame)? { return Ok(code) },
                    Message::Close(_) => bail!("the server closed the connection"),
                    _ => {}
                }
            }
            count = input.read(&mut buffer), if reading => match count.context("read standard input")? {
                0 => {
                    reading = false;
                    send.send(Message::Binary(Bytes::from_static(&[CLOSE, STDIN]))).await?;
                }
                count => send.send(message(STDIN, &buffer[..count])).await?,
            },
            _ = resized.recv(), if tty => send.send(size_message()?).await?,
        }
    }
}

/// Prints a frame; the exit code when it was the last one.
fn show(frame: &[u8]) -> anyhow::Result<Option<ExitCode>> {
    let Some((channel, payload)) = frame.split_first() else { return Ok(None) };
    match *channel {
        STDOUT => std::io::stdout().write_all(payload).and_then(|()| std::io::stdout().flush())?,
        STDERR => std::io::stderr().write_all(payload)?,
        ERROR => return ended(payload).map(Some),
        _ => {}
    }
    Ok(None)
}

/// The exit code in the closing `Status`.
fn ended(payload: &[u8]) -> anyhow::Result<ExitCode> {
    let status: Object = serde_json::from_slice(payload).context("read the closing status")?;
    if status.str_at(&["status"]) == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.at(&["details", "causes"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.str_at(&["reason"]) == "ExitCode");
    match code.and_then(|cause| cause.str_at(&["message"]).parse::<u8>().ok()) {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err(anyhow!("{}", status.str_at(&["message"]))),
    }
}

fn message(channel: u8, payload: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(payload.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(payload);
    Message::Binary(frame.into())
}

fn size_message() -> anyhow::Result<Message> {
    let size = tcgetwinsize(std::io::stdout()).context("read the terminal's size")?;
    Ok(message(RESIZE, json!({"Width": size.ws_col, "Height": size.ws_row}).to_string().as_bytes()))
}

/// The terminal without line editing and signals, until dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("set the terminal raw")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
