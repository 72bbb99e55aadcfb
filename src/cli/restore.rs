//! `edgelet restore`: what `edgelet backup` wrote becomes the server of this machine.

use crate::{backup, server};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// The file that `edgelet backup` wrote
    file: PathBuf,
    /// The new server's data folder; it must be empty
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgelet")]
    data_dir: PathBuf,
    /// The passphrase of a sealed backup is in the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let passphrase = arguments.passphrase_file.as_deref().map(backup::passphrase).transpose()?;
    server::make_private(&arguments.data_dir)?;
    let _claim = server::claim(&arguments.data_dir)?;
    let restored = backup::restore(&arguments.file, &arguments.data_dir, passphrase.as_deref())?;
    let (objects, created_at) = (restored.content.extent.objects, restored.created_at);
    println!("{objects} objects of {created_at:.0} are in {}", arguments.data_dir.display());
    println!(
        "Start the server, at the address or name that the nodes know. The lost one must not come back beside it."
    );
    Ok(ExitCode::SUCCESS)
}
