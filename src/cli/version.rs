//! `edgelet version`: what this binary is, and what the server is.

use super::connect::Connection;
use crate::api::object::{Object, ObjectExt};
use http::Method;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Do not ask the server
    #[arg(long)]
    client: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    println!("Client Version: v{} ({})", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    if arguments.client {
        return Ok(ExitCode::SUCCESS);
    }
    let answer = arguments.connection.open()?.raw(Method::GET, "/version", None).await?;
    let version: Object = serde_json::from_slice(&answer)?;
    println!("Server Version: {}", version.str_at(&["gitVersion"]));
    Ok(ExitCode::SUCCESS)
}
