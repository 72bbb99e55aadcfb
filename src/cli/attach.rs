//! `edgelet attach`: what a container writes from now on and, where it listens, what is typed here.

use super::connect::Connection;
use super::{pod, remote_command};
use crate::api::object::{Object, ObjectExt};
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
    /// Standard input is a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let pod = pod::find(&remote, &namespace, &arguments.pod).await?.pod;
    let container = pod::container(&pod, arguments.container.as_deref())?;
    let name = container.str_at(&["name"]);
    let has = |what: &str| container.at(&[what]) == Some(&Object::Bool(true));
    if arguments.tty && !has("tty") {
        eprintln!("warning: container {name} has no terminal");
    }
    if arguments.stdin && !has("stdin") {
        eprintln!("warning: container {name} does not read standard input");
    }
    let stdin = arguments.stdin && has("stdin");
    let tty = arguments.tty && has("tty") && std::io::stdin().is_terminal();
    let query = format!("stdin={stdin}&stdout=true&stderr={}&tty={tty}&container={}", !tty, encoded(name));
    let path = format!("{}?{query}", pod::subresource(&pod, "attach"));
    let socket = remote.websocket(&path, remote_command::PROTOCOL).await?;
    if stdin && tty {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    remote_command::join(socket, stdin, tty, true).await
}
