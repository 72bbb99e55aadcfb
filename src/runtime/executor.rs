//! The last steps before a container's program runs, for init and exec alike: signals, seccomp,
//! capabilities, execve. libcontainer's own executor drops seccomp on exec, falls back to a shell
//! and loses the error; this one reports it through a descriptor that closes when execve succeeds.

use crate::sys::process;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Instructions of one compiled filter.
pub type SeccompProgram = Vec<[u8; 8]>;

#[derive(Clone)]
pub struct IsolatingExecutor {
    /// Bounding, permitted and effective set.
    capabilities: CapabilitySet,
    seccomp: Rc<[SeccompProgram]>,
    /// Where the reason of a failure is written; close-on-exec.
    error: RawFd,
}

impl IsolatingExecutor {
    pub fn new(capabilities: u64, seccomp: Vec<SeccompProgram>, error: RawFd) -> Self {
        Self { capabilities: CapabilitySet::from_bits_retain(capabilities), seccomp: seccomp.into(), error }
    }

    fn run(&self, spec: &Spec) -> Result<Infallible, String> {
        let process = spec.process().as_ref().ok_or("the container has no process")?;
        let arguments = process.args().as_deref().unwrap_or_default();
        let environment = process.env().as_deref().unwrap_or_default();
        let name = arguments.first().ok_or("no command specified")?;
        let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        let program = look_path(name, path)?;
        process::reset_signals();
        if process.no_new_privileges() == Some(true) {
            self.set_capabilities()?;
            self.install_seccomp()?;
        } else {
            // Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to be dropped.
            self.install_seccomp()?;
            self.set_capabilities()?;
        }
        let shown = program.display().to_string();
        let invalid = |_| format!("exec {name:?}: invalid argument");
        let program = CString::new(shown.clone()).map_err(invalid)?;
        let (arguments, environment) =
            (c_strings(arguments).map_err(invalid)?, c_strings(environment).map_err(invalid)?);
        let error = process::execve(&program, &arguments, &environment);
        Err(format!("exec {shown}: {}", errno_text(&error)))
    }

    fn install_seccomp(&self) -> Result<(), String> {
        for program in self.seccomp.iter() {
            process::install_seccomp(program)
                .map_err(|error| format!("install seccomp filter: {}", errno_text(&error)))?;
        }
        Ok(())
    }

    /// Exactly the wanted sets; inheritable and ambient stay empty, as with containerd.
    fn set_capabilities(&self) -> Result<(), String> {
        let failed = |error: rustix::io::Errno| format!("set capabilities: {}", errno_text(&error.into()));
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if self.capabilities.contains(capability) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // The kernel's last capability has been passed.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.map_err(failed)?,
            }
        }
        let _ = rustix::thread::clear_ambient_capability_set();
        let held = rustix::thread::capabilities(None).map_err(failed)?.permitted;
        let wanted = self.capabilities & held;
        let sets = CapabilitySets { effective: wanted, permitted: wanted, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).map_err(failed)
    }
}

impl Executor for IsolatingExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let reason = match self.run(spec) {
            Err(reason) => reason,
            Ok(never) => match never {},
        };
        let _ = rustix::io::write(process::inherited(self.error), reason.as_bytes());
        Err(ExecutorError::Other(reason))
    }

    /// Nothing is refused early: execve itself is the judge, and it reports.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The environment is passed to execve in the spec's order; a map would lose it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// One that holds a zero is an error: left out, it would make another command of the rest.
fn c_strings(values: &[String]) -> Result<Vec<CString>, NulError> {
    values.iter().map(|value| CString::new(value.as_bytes())).collect()
}

/// The program a name stands for, and the error texts users know from other runtimes.
fn look_path(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Err(error) => Err(format!("exec: {name:?}: {}", errno_text(&error))),
        };
    }
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(rustix::fs::access(path, rustix::fs::Access::EXEC_OK)?)
}

/// `exec format error`, without the number.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Reads compiled programs as `encode_programs` wrote them.
pub fn decode_programs(mut bytes: &[u8]) -> Option<Vec<SeccompProgram>> {
    let mut programs = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?.checked_mul(8)?;
        let (body, rest) = rest.split_at_checked(length)?;
        programs.push(body.as_chunks::<8>().0.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(programs)
}

/// Each program's length, then its instructions.
pub fn encode_programs(programs: &[SeccompProgram]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for program in programs {
        let length = u32::try_from(program.len()).expect("the kernel allows 4096 instructions");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend(program.iter().flatten());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_cannot_be_passed_is_not_left_out() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(c_strings(&words(&["rm", "-r", "x"])).map(|list| list.len()), Ok(3));
        assert!(c_strings(&words(&["rm", "-r", "x\0y", "z"])).is_err());
    }

    #[test]
    fn programs_survive_the_file() {
        let programs = vec![vec![[1; 8], [2; 8]], vec![[3; 8]]];
        let bytes = encode_programs(&programs);
        assert_eq!(decode_programs(&bytes), Some(programs));
        assert_eq!(decode_programs(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn missing_programs_are_named_as_other_runtimes_do() {
        let missing = "exec: \"nosuch\": executable file not found in $PATH";
        assert_eq!(look_path("nosuch", "/usr/bin:/bin").unwrap_err(), missing);
        let missing = "exec: \"/no/such\": stat /no/such: no such file or directory";
        assert_eq!(look_path("/no/such", "/bin").unwrap_err(), missing);
        assert_eq!(look_path("/etc/passwd", "").unwrap_err(), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(look_path("/etc", "").unwrap_err(), "exec: \"/etc\": is a directory");
        assert!(look_path("sh", "/nowhere:/bin").is_ok());
    }
}
