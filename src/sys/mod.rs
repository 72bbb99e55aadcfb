//! All unsafe code: mounts, namespaces, pidfds, cgroups, BPF.

pub mod bpf;
pub mod cgroup;
pub mod dbus;
pub mod mailbox;
pub mod mount;
pub mod netns;
pub mod process;
pub mod seqpacket;
pub mod watch;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
