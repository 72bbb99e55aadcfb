//! Argv to one subcommand; one file per subcommand.

use std::process::ExitCode;

pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("shim") {
        return crate::runtime::shim::main(&arguments.collect::<Vec<_>>());
    }
    ExitCode::SUCCESS
}
