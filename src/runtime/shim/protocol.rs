//! What edgelet and a pod's shim say to each other: one JSON message per packet, descriptors beside it.
//! A shim outlives upgrades, so a newer edgelet speaks every version since the last release but one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Said in `Hello` by both sides.
pub const VERSION: u32 = 1;
/// A message never grows over this; what may be large (specs, environments) travels in files.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller, given back in the answer.
    pub id: u64,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Hello {
        version: u32,
    },
    Sandbox(Sandbox),
    /// Everything but the start. The answer carries the pid.
    Create(Create),
    Start {
        container: String,
    },
    /// Descriptors: stdin, stdout, stderr without a terminal; none with one, which the answer carries.
    Exec(Exec),
    Signal {
        target: Target,
        signal: i32,
    },
    /// Descriptors: where a copy of stdout and of stderr goes, as asked. The answer carries the
    /// terminal, or the write end of stdin if the container has one.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Closes the shim's own end of a container's stdin.
    CloseStdin {
        container: String,
    },
    /// Forgets an ended container.
    Delete {
        container: String,
    },
    List,
    /// Ends the shim; refused while a container runs.
    Shutdown,
}

/// Namespaces and names that all containers share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pinned network namespace to join; `None` = the host's.
    pub netns: Option<PathBuf>,
    /// `None` = the host's UTS namespace.
    pub hostname: Option<String>,
    /// The host's IPC namespace instead of an own one.
    pub host_ipc: bool,
    /// One process namespace for all containers, with the shim's reaper as PID 1.
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
}

/// What the executor enforces on a process right before execve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Bit set of capabilities: bounding, permitted, effective.
    pub capabilities: u64,
    /// File with compiled seccomp programs.
    pub seccomp: Option<PathBuf>,
    pub oom_score_adj: i32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    pub container: String,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Where libcontainer keeps its state.
    pub state: PathBuf,
    pub isolation: Isolation,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub log: PathBuf,
    /// Where the exit record is written.
    pub exit: PathBuf,
    /// Lists the container's processes.
    pub cgroup_processes: PathBuf,
    /// Counts its OOM kills in an `oom_kill` line.
    pub oom_counter: PathBuf,
    pub timeout_s: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub container: String,
    /// Unique in the pod.
    pub exec: String,
    /// File with the OCI process; removed by the shim.
    pub process: PathBuf,
    pub isolation: Isolation,
    pub tty: bool,
    pub timeout_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    Container(String),
    /// Every process of the container's cgroup.
    Processes(String),
    Exec(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Answer { id: u64, answer: Answer },
    Event(Event),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Hello {
        version: u32,
        pid: i32,
    },
    /// PID 1 of the shared process namespace, if one was asked for.
    Sandbox {
        reaper: Option<i32>,
    },
    Created {
        pid: i32,
    },
    Executing {
        pid: i32,
    },
    Listed(Vec<Listed>),
    Done,
    /// `not_found`: the container or the command does not exist in this shim.
    Failed {
        message: String,
        not_found: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    Exited { container: String, exit: ExitRecord },
    ExecExited { exec: String, code: i32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub container: String,
    pub pid: i32,
    pub started_at: Option<Timestamp>,
    pub exit: Option<ExitRecord>,
}

/// What the shim knows of a container's end; on disk too, for an edgelet that was away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status, or 128 + signal.
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// Why the program could not be executed.
    pub start_error: Option<String>,
}
