//! Argv to one subcommand; one file per subcommand. `shim` is dispatched before all else.
//! Errors are printed here, once, with their causes.

mod apply;
mod attach;
mod backup;
mod certificate;
mod check;
mod connect;
mod delete;
mod demo;
mod exec;
mod get;
mod image;
mod install;
mod join;
mod local;
mod logs;
mod manifest;
mod node;
mod pod;
mod port_forward;
mod remote_command;
mod restore;
mod server;
mod token;
mod trace;
mod uninstall;
mod version;
mod web;

use clap::{Parser, Subcommand};
use std::future::Future;
use std::process::ExitCode;

/// Threads for blocking work (image layers, file volumes); the event loop has one of its own.
const BLOCKING_THREADS_LIMIT: usize = 8;

/// Kubernetes for small ARM boards, in one process.
#[derive(Parser)]
#[command(name = "edgelet", version, propagate_version = false, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The table of subcommands.
#[derive(Subcommand)]
enum Command {
    /// Run the control plane and a node on this machine
    Server(server::Arguments),
    /// Make this machine a node of a server's cluster
    Join(join::Arguments),
    /// Run this machine's node, once it has joined
    Node(node::Arguments),
    /// Make, list and revoke the tokens that boards join with
    Token(token::Arguments),
    /// Show and rotate certificates and the authority
    Certificate(certificate::Arguments),
    /// Run everything in the foreground with a demo, and leave nothing behind
    Demo(demo::Arguments),
    /// Create or change the objects of a manifest
    Apply(apply::Arguments),
    /// Show objects
    Get(get::Arguments),
    /// Delete objects
    Delete(delete::Arguments),
    /// Show the logs of a pod
    Logs(logs::Arguments),
    /// Run a command in a pod
    Exec(exec::Arguments),
    /// See and feed a container that runs
    Attach(attach::Arguments),
    /// Lead local ports to ports in a pod
    PortForward(port_forward::Arguments),
    /// Work on the images of this machine
    Image(image::Arguments),
    /// Write this machine's server (objects, keys) into one file, while it runs
    Backup(backup::Arguments),
    /// Make what was backed up the server of this machine
    Restore(restore::Arguments),
    /// Make edgelet a service of this machine, started at boot
    Install(install::Arguments),
    /// End all pods and take edgelet off this machine, without a trace
    Uninstall(uninstall::Arguments),
    /// Say what this machine lacks, and the line that mends it
    Check(check::Arguments),
    /// Show a pod's way through the workflow, with times
    Trace(trace::Arguments),
    /// Show the versions of client and server
    Version(version::Arguments),
    /// The demo's web server
    #[command(hide = true)]
    Web(web::Arguments),
}

/// The program. The exit code is 0, or 1 after an error, or the remote command's own (`exec`).
pub fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if argv.get(1).is_some_and(|first| first == "shim") {
        return crate::runtime::shim::main(&argv[2..]);
    }
    crate::sys::memory::keep_one_heap();
    // Only fails when a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match Arguments::parse().command {
        Command::Server(arguments) => server::run(arguments),
        Command::Join(arguments) => join::run(arguments),
        Command::Node(arguments) => node::run(arguments),
        Command::Token(arguments) => block_on(token::run(arguments)),
        Command::Certificate(arguments) => block_on(certificate::run(arguments)),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Apply(arguments) => block_on(apply::run(arguments)),
        Command::Get(arguments) => block_on(get::run(arguments)),
        Command::Delete(arguments) => block_on(delete::run(arguments)),
        Command::Logs(arguments) => block_on(logs::run(arguments)),
        Command::Exec(arguments) => block_on(exec::run(arguments)),
        Command::Attach(arguments) => block_on(attach::run(arguments)),
        Command::PortForward(arguments) => block_on(port_forward::run(arguments)),
        Command::Image(arguments) => block_on(image::run(arguments)),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Trace(arguments) => block_on(trace::run(arguments)),
        Command::Version(arguments) => block_on(version::run(arguments)),
        Command::Web(arguments) => block_on(web::run(arguments)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command on the one event loop.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_LIMIT)
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()?;
    let code = runtime.block_on(command);
    // A blocked read of standard input must not keep the process.
    runtime.shutdown_background();
    code
}

/// The error and its causes, each once: some say what their cause says.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_subcommands_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_cause_is_printed_once() {
        let error = anyhow::anyhow!("no such file").context("read a: no such file").context("start");
        assert_eq!(chain(&error), "start: read a: no such file");
    }
}
