//! The client's side of `v5.channel.k8s.io`: the terminal or the pipes of this process, joined with a container.

use crate::api::object::{Object, ObjectExt};
use crate::client::remote::WebSocket;
use anyhow::{Context, anyhow, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json;
use std::convert::Infallible;
use std::future::pending;
use std::io::Write;
use std::process::ExitCode;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

pub const PROTOCOL: &str = "v5.channel.k8s.io";
const BUFFER_BYTES: usize = 16 << 10;

// Channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Copies both ways until the remote side has ended; the exit code is its own. With a terminal, this one is set raw
/// meanwhile. `redraw` makes what runs already draw itself anew.
pub async fn join(socket: WebSocket, stdin: bool, tty: bool, redraw: bool) -> anyhow::Result<ExitCode> {
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let (to_server, from_server) = socket.split();
    // Both at once: who sends without receiving may wait for one that does the same.
    tokio::select! {
        code = receive(from_server) => code,
        error = send(to_server, stdin, tty, redraw) => Err(error),
    }
}

/// Ends with an error of this side only.
async fn send(mut server: SplitSink<WebSocket, Message>, stdin: bool, tty: bool, redraw: bool) -> anyhow::Error {
    let sending = async {
        let mut resized = signal(SignalKind::window_change()).context("watch the terminal's size")?;
        let mut input = tokio::io::stdin();
        let mut open = stdin;
        let mut buffer = vec![0u8; BUFFER_BYTES];
        if tty && redraw {
            put(&mut server, size_message(1)?).await;
        }
        if tty {
            put(&mut server, size_message(0)?).await;
        }
        loop {
            tokio::select! {
                count = input.read(&mut buffer), if open => match count.context("read standard input")? {
                    0 => {
                        open = false;
                        put(&mut server, message(CLOSE, &[STDIN])).await;
                    }
                    count => put(&mut server, message(STDIN, &buffer[..count])).await,
                },
                _ = resized.recv(), if tty => put(&mut server, size_message(0)?).await,
                else => pending().await,
            }
        }
    };
    let ended: anyhow::Result<Infallible> = sending.await;
    let Err(error) = ended;
    error
}

/// A server that takes no more has ended: how, is still to be read.
async fn put(server: &mut SplitSink<WebSocket, Message>, message: Message) {
    if server.send(message).await.is_err() {
        pending().await
    }
}

async fn receive(mut server: SplitStream<WebSocket>) -> anyhow::Result<ExitCode> {
    loop {
        let Some(message) = server.next().await else { bail!("the server closed the connection") };
        match message.context("read from the server")? {
            Message::Binary(frame) => {
                if let Some(code) = show(&frame)? {
                    return Ok(code);
                }
            }
            Message::Close(_) => bail!("the server closed the connection"),
            _ => {}
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
    Message::Binary([&[channel], payload].concat().into())
}

/// The terminal's size, each side larger by `more`.
fn size_message(more: u16) -> anyhow::Result<Message> {
    let size = tcgetwinsize(std::io::stdout()).context("read the terminal's size")?;
    let (width, height) = (size.ws_col.saturating_add(more), size.ws_row.saturating_add(more));
    Ok(message(RESIZE, json!({"Width": width, "Height": height}).to_string().as_bytes()))
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
