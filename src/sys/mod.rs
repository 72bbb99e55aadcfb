//! All unsafe code, and what talks to devices: mounts, namespaces, pidfds, cgroups, BPF, TPM.

pub mod adjtimex;
pub mod bpf;
pub mod cgroup;
pub mod dbus;
pub mod feature;
pub mod mailbox;
pub mod memory;
pub mod mount;
mod names;
pub mod netns;
pub mod process;
pub mod seqpacket;
pub mod tpm;
pub mod tun;
pub mod watch;
pub mod wireless;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
