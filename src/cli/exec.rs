//! `edgelet exec`: a command in a container, over the same WebSocket protocol as `kubectl exec`.
//! Exits with the command's own exit code.

use super::connect::Connection;
use super::{pod, remote_command};
use crate::api::object::ObjectExt;
use crate::client::remote::encoded;
use std::io::IsTerminal;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// POD, or TYPE/NAME of what selects pods (deployment/web)
    pod: String,
    /// Container [default: the pod's default or first]
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
    let pod = pod::find(&remote, &namespace, &arguments.pod).await?.pod;
    let container = pod::container(&pod, arguments.container.as_deref())?.str_at(&["name"]);
    let tty = arguments.tty && std::io::stdin().is_terminal();
    let mut query: Vec<String> = arguments.command.iter().map(|part| format!("command={}", encoded(part))).collect();
    query.push(format!("stdin={}&stdout=true&stderr={}&tty={tty}", arguments.stdin, !tty));
    query.push(format!("container={}", encoded(container)));
    let path = format!("{}?{}", pod::subresource(&pod, "exec"), query.join("&"));
    let socket = remote.websocket(&path, remote_command::PROTOCOL).await?;
    remote_command::join(socket, arguments.stdin, tty, false).await
}
