//! Argv to one subcommand. `shim` is dispatched before any runtime, TLS or SQLite starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgelet::cli::main()
}
