//! `edgelet backup`: the server of this machine in one file, while it runs.

use crate::backup;
use crate::clock::Clock;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// The file to write; it holds the keys of the cluster, so keep it safe or seal it
    file: PathBuf,
    /// The server's data folder
    #[arg(long, value_name = "DIR", default_value = "/var/lib/edgelet")]
    data_dir: PathBuf,
    /// Seal the backup with the passphrase in the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let passphrase = arguments.passphrase_file.as_deref().map(backup::passphrase).transpose()?;
    let now = Clock::real().now();
    let made = backup::make(&arguments.data_dir, &arguments.file, passphrase.as_deref(), now)?;
    let objects = made.content.extent.objects;
    println!("{}: {objects} objects and the cluster's keys", arguments.file.display());
    if passphrase.is_none() {
        eprintln!("warning: it is not sealed: whoever has it has the cluster (--passphrase-file seals it)");
    }
    Ok(ExitCode::SUCCESS)
}
