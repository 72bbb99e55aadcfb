//! One container as its shim sees it: pid, pipes, log, end.

use super::Caller;
use super::protocol::{Create, ExitRecord};
use crate::clock::{Clock, monotonic};
use crate::runtime::log::{Log, Stream};
use crate::sys::process::{self, Death};
use jiff::Timestamp;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long a pipe may stay open after its container's end.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Bytes read from a pipe at a time.
const READ_BYTES: usize = 16 << 10;
/// Clients that watch a container's output at a time.
const ATTACHED_LIMIT: usize = 8;
/// Room for an attached client that is slow for a moment.
const ATTACH_PIPE_BYTES: usize = 256 << 10;

/// What was opened before the container existed.
pub struct Opened {
    log: Log,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
    start_error: OwnedFd,
}

struct Output {
    stream: Stream,
    source: OwnedFd,
    attached: Vec<OwnedFd>,
}

/// Which of a container's descriptors can be read.
#[derive(Clone, Copy)]
pub enum Readable {
    Output(Stream),
    Start,
}

pub struct Container {
    pub config: Create,
    pub pid: i32,
    pub started_at: Option<Timestamp>,
    pub exit: Option<ExitRecord>,
    log: Log,
    /// Said once per episode: what the shim says is kept in memory.
    log_failing: bool,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// Closes when execve has succeeded; `None` from then on.
    start_error: Option<OwnedFd>,
    start_message: Option<String>,
    starting: Option<Caller>,
    drain_until: Option<Instant>,
}

/// Opens log and pipes; gives back what the shim keeps, the container's stdio and the error pipe's end.
pub fn open(create: &Create, clock: &Clock) -> io::Result<(Opened, Vec<OwnedFd>, OwnedFd)> {
    let log = Log::open(&create.log, clock.clone())?;
    let (start_error, error) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&start_error)?;
    let mut opened = Opened { log, outputs: Vec::new(), stdin: None, start_error };
    let mut stdio = Vec::new();
    if !create.tty {
        if create.stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            opened.stdin = Some(writer);
            stdio.push(reader);
        } else {
            stdio.push(File::open("/dev/null")?.into());
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (source, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            set_nonblocking(&source)?;
            opened.outputs.push(Output { stream, source, attached: Vec::new() });
            stdio.push(writer);
        }
    }
    Ok((opened, stdio, error))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Everything that is in a pipe now.
pub fn read_text(fd: &OwnedFd) -> String {
    let _ = set_nonblocking(fd);
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(fd, &mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Signals every process that a cgroup lists.
pub fn signal_cgroup(processes: &Path, signal: i32) {
    let Ok(text) = std::fs::read_to_string(processes) else { return };
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        let _ = process::kill(pid, signal);
    }
}

impl Container {
    pub fn new(config: Create, opened: Opened, pid: i32, terminal: Option<OwnedFd>) -> Self {
        let Opened { log, mut outputs, stdin, start_error } = opened;
        if let Some(source) = terminal.as_ref().and_then(|fd| fd.try_clone().ok()) {
            let _ = set_nonblocking(&source);
            outputs.push(Output { stream: Stream::Stdout, source, attached: Vec::new() });
        }
        Self {
            config,
            pid,
            started_at: None,
            exit: None,
            log,
            log_failing: false,
            outputs,
            stdin,
            terminal,
            start_error: Some(start_error),
            start_message: None,
            starting: None,
            drain_until: None,
        }
    }

    pub fn is_running(&self) -> bool {
        self.started_at.is_some() && self.start_error.is_none() && self.exit.is_none()
    }

    /// The descriptors to poll.
    pub fn readable(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Readable)> {
        let outputs = self.outputs.iter().map(|output| (output.source.as_fd(), Readable::Output(output.stream)));
        let start = self.starting.and(self.start_error.as_ref()).map(|fd| (fd.as_fd(), Readable::Start));
        outputs.chain(start)
    }

    pub fn drain_deadline(&self) -> Option<Instant> {
        self.drain_until.filter(|_| !self.outputs.is_empty())
    }

    /// Lets the container's init go on to execve. The caller is answered when that is known.
    pub fn start(&mut self, caller: Caller, now: Timestamp) -> Result<(), String> {
        if self.exit.is_some() {
            return Err(format!("container {} has ended", self.config.container));
        }
        if self.started_at.is_some() {
            return Ok(());
        }
        let failed = |error: io::Error| format!("start container {}: {error}", self.config.container);
        // libcontainer's init waits for one connection here; the path may be too long for an address.
        let directory = self.config.state.join(&self.config.container);
        rustix::process::chdir(&directory).map_err(|error| failed(error.into()))?;
        let connection = UnixStream::connect("notify.sock");
        let _ = rustix::process::chdir("/");
        connection.and_then(|mut stream| stream.write_all(b"start container")).map_err(failed)?;
        self.started_at = Some(now);
        self.starting = Some(caller);
        Ok(())
    }

    /// A second start finds it running.
    pub fn started_already(&self) -> bool {
        self.started_at.is_some() && self.starting.is_none()
    }

    /// Reads the error pipe: whom to tell, and the reason of a failure; `None` while it is unknown.
    pub fn started_or_failed(&mut self) -> Option<(Caller, Option<String>)> {
        let error = self.start_error.as_ref()?;
        let mut buffer = [0; 4096];
        match rustix::io::read(error, &mut buffer) {
            Ok(0) => {
                self.start_error = None;
                self.starting.take().map(|caller| (caller, None))
            }
            Ok(length) => {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                self.start_error = None;
                self.start_message = Some(message.clone());
                self.starting.take().map(|caller| (caller, Some(message)))
            }
            Err(_) => None,
        }
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // Not reaped yet, so the number is still this process's.
        if self.exit.is_none() { process::kill(self.pid, signal) } else { Ok(()) }
    }

    pub fn signal_all(&self, signal: i32) -> io::Result<()> {
        signal_cgroup(&self.config.cgroup_processes, signal);
        self.signal(signal)
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What a client writes into: the terminal, else stdin.
    pub fn input(&mut self) -> Option<OwnedFd> {
        if let Some(terminal) = &self.terminal {
            return terminal.try_clone().ok();
        }
        // With `stdinOnce` the first client's end is the only one: its close is the input's end.
        if self.config.stdin_once { self.stdin.take() } else { self.stdin.as_ref()?.try_clone().ok() }
    }

    pub fn attach(&mut self, stdout: bool, stderr: bool, descriptors: Vec<OwnedFd>) {
        let wanted = [(stdout, Stream::Stdout), (stderr, Stream::Stderr)];
        let streams = wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| stream);
        for (stream, descriptor) in streams.zip(descriptors) {
            let output = self.outputs.iter_mut().find(|output| output.stream == stream);
            let Some(output) = output.filter(|output| output.attached.len() < ATTACHED_LIMIT) else { continue };
            let _ = rustix::pipe::fcntl_setpipe_size(&descriptor, ATTACH_PIPE_BYTES);
            if set_nonblocking(&descriptor).is_ok() {
                output.attached.push(descriptor);
            }
        }
    }

    /// Reads once; the loop comes back while there is more, so one loud container starves no other.
    pub fn read_output(&mut self, stream: Stream) {
        let Some(index) = self.outputs.iter().position(|output| output.stream == stream) else { return };
        if self.read(index).is_none() {
            self.finish_output(index);
        }
    }

    /// The bytes read; `Some(0)` = nothing now; `None` = the end.
    fn read(&mut self, index: usize) -> Option<usize> {
        let output = &mut self.outputs[index];
        let mut buffer = [0; READ_BYTES];
        let length = match rustix::io::read(&output.source, &mut buffer) {
            Ok(0) => return None,
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Some(0),
            // A terminal without a slave: EIO.
            Err(_) => return None,
        };
        let bytes = &buffer[..length];
        // A client that is too slow loses bytes; one that is gone is forgotten.
        output.attached.retain(|client| match rustix::io::write(client, bytes) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Err(_) => false,
        });
        let written = self.log.write(output.stream, bytes);
        if let Some(error) = written.as_ref().err().filter(|_| !self.log_failing) {
            eprintln!("shim: write log {}: {error}", self.config.log.display());
        }
        self.log_failing = written.is_err();
        Some(length)
    }

    fn finish_output(&mut self, index: usize) {
        let output = self.outputs.swap_remove(index);
        let _ = self.log.end(output.stream);
    }

    /// The container's init has ended: takes the rest of its output, its processes and its OOM count.
    pub fn end(&mut self, death: Death, now: Timestamp) -> ExitRecord {
        signal_cgroup(&self.config.cgroup_processes, libc::SIGKILL);
        self.drain();
        self.drain_until = Some(monotonic() + DRAIN_LIMIT);
        self.stdin = None;
        self.terminal = None;
        let record = ExitRecord {
            code: death.exit_code(),
            signal: death.signal,
            oom_killed: oom_kills(&self.config.oom_counter) > 0,
            started_at: self.started_at,
            finished_at: now,
            start_error: self.start_message.take(),
        };
        if let Err(error) = write_atomically(&self.config.exit, &record) {
            eprintln!("shim: write exit record {}: {error}", self.config.exit.display());
        }
        self.exit = Some(record.clone());
        record
    }

    fn drain(&mut self) {
        for index in (0..self.outputs.len()).rev() {
            loop {
                match self.read(index) {
                    Some(0) => break,
                    Some(_) => {}
                    None => {
                        self.finish_output(index);
                        break;
                    }
                }
            }
        }
    }

    pub fn stop_draining(&mut self, now: Instant) {
        if self.drain_until.is_some_and(|until| until <= now) {
            self.drain_until = None;
            for output in std::mem::take(&mut self.outputs) {
                let _ = self.log.end(output.stream);
            }
        }
    }
}

/// The `oom_kill N` line, which cgroup v1 and v2 both have.
fn oom_kills(counter: &Path) -> u64 {
    let text = std::fs::read_to_string(counter).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

fn write_atomically(path: &Path, record: &ExitRecord) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    std::fs::rename(temporary, path)
}
