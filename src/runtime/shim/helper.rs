//! What a throw-away forked child does: call libcontainer once and report. It may hang (the shim
//! kills it), leak, change its OOM score or panic; nothing of it stays in the shim.

use super::protocol::{Create, Exec, Isolation};
use crate::runtime::executor::{IsolatingExecutor, decode_programs};
use crate::sys::{process, seqpacket};
use libcontainer::container::ContainerStatus;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use tracing::field::{Field, Visit};

/// Name of the socket libcontainer sends the terminal to, in the bundle or beside the process file.
const CONSOLE_SOCKET: &str = "console.sock";
/// Text kept of a failure.
const ERROR_LIMIT_BYTES: usize = 4096;

/// What the child tells the shim, with the terminal's descriptor beside it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub pid: i32,
    pub error: Option<String>,
}

/// Descriptors a child works with.
pub struct Channels {
    pub report: OwnedFd,
    /// Closes when execve succeeds; else carries the reason.
    pub error: OwnedFd,
    /// Standard input, output and error; none with a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// Creates a container: everything but the start. Never returns in the caller's process.
pub fn create(create: &Create, channels: Channels) -> i32 {
    run(&create.isolation, &create.bundle, create.tty, channels, |builder| {
        let mut container = builder(&create.container, &create.state)?
            .as_init(&create.bundle)
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(true)
            .build()?;
        // The shim keeps the true state; libcontainer wants this one for every later exec.
        container.set_status(ContainerStatus::Running).save()?;
        container.pid().map(nix::unistd::Pid::as_raw).ok_or_else(|| LibcontainerError::Other("no pid".to_owned()))
    })
}

/// Runs one more process in a container.
pub fn exec(exec: &Exec, state: &Path, channels: Channels) -> i32 {
    let directory = exec.process.with_extension("");
    let _ = std::fs::create_dir(&directory);
    let code = run(&exec.isolation, &directory, exec.tty, channels, |builder| {
        let tenant = builder(&exec.container, state)?.as_tenant();
        Ok(tenant.with_process(Some(&exec.process)).with_detach(true).as_sibling(true).build()?.as_raw())
    });
    let _ = std::fs::remove_dir_all(&directory);
    let _ = std::fs::remove_file(&exec.process);
    code
}

type Builder<'a> = dyn FnOnce(&str, &Path) -> Result<ContainerBuilder, LibcontainerError> + 'a;

fn run(
    isolation: &Isolation,
    console_directory: &Path,
    tty: bool,
    channels: Channels,
    build: impl FnOnce(Box<Builder<'_>>) -> Result<i32, LibcontainerError>,
) -> i32 {
    let Channels { report, error, stdio } = channels;
    let mut keep = vec![report.as_raw_fd(), error.as_raw_fd()];
    keep.extend(stdio.iter().map(AsRawFd::as_raw_fd));
    process::close_all_but(&keep);
    // Lowering it needs CAP_SYS_RESOURCE; without it the shim's own value is inherited.
    let _ = std::fs::write("/proc/self/oom_score_adj", isolation.oom_score_adj.to_string());
    let capture = Capture::start();
    let listener = tty.then(|| console_listener(console_directory));
    let result = executor(isolation, error).and_then(|executor| {
        let builder = Box::new(|id: &str, state: &Path| {
            let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
                .with_executor(executor)
                .with_root_path(state)?
                .with_console_socket(tty.then(|| console_directory.join(CONSOLE_SOCKET)));
            Ok(with_stdio(builder, stdio))
        });
        build(builder).map_err(|error| describe(&error, capture.as_ref()))
    });
    let _ = std::fs::remove_file(console_directory.join(CONSOLE_SOCKET));
    let terminal = listener.and_then(|listener| if result.is_ok() { terminal(&listener.ok()?) } else { None });
    finish(&report, result, terminal.as_ref())
}

fn finish(report: &OwnedFd, result: Result<i32, String>, terminal: Option<&OwnedFd>) -> i32 {
    let failed = result.is_err();
    let message = match result {
        Ok(pid) => Report { pid, error: None },
        Err(error) => Report { pid: 0, error: Some(error) },
    };
    let message = serde_json::to_vec(&message).expect("a report is plain data");
    let descriptors: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
    i32::from(seqpacket::send(report, &message, &descriptors).is_err() || failed)
}

fn executor(isolation: &Isolation, error: OwnedFd) -> Result<IsolatingExecutor, String> {
    let programs = match &isolation.seccomp {
        None => Vec::new(),
        Some(path) => std::fs::read(path)
            .ok()
            .and_then(|bytes| decode_programs(&bytes))
            .ok_or_else(|| format!("read seccomp programs {}", path.display()))?,
    };
    // The number must stay open through every clone until execve: nobody drops it.
    Ok(IsolatingExecutor::new(isolation.capabilities, programs, std::os::fd::IntoRawFd::into_raw_fd(error)))
}

fn with_stdio(mut builder: ContainerBuilder, stdio: Vec<OwnedFd>) -> ContainerBuilder {
    let mut descriptors = stdio.into_iter();
    builder.stdin = descriptors.next();
    builder.stdout = descriptors.next();
    builder.stderr = descriptors.next();
    builder
}

/// Listens by a relative name: the absolute one may be too long for a socket address.
fn console_listener(directory: &Path) -> std::io::Result<UnixListener> {
    rustix::process::chdir(directory)?;
    let _ = std::fs::remove_file(CONSOLE_SOCKET);
    let listener = UnixListener::bind(CONSOLE_SOCKET);
    rustix::process::chdir("/")?;
    listener
}

fn terminal(listener: &UnixListener) -> Option<OwnedFd> {
    // libcontainer has connected and sent before it returned, so this does not wait.
    let (connection, _) = listener.accept().ok()?;
    let (_, descriptors) = seqpacket::receive(&connection, &mut [0; 64]).ok()?;
    descriptors.into_iter().next()
}

/// The deepest cause, which libcontainer only logs, before the outermost that it returns.
fn describe(error: &LibcontainerError, capture: Option<&Capture>) -> String {
    let logged = capture.map(Capture::first).unwrap_or_default();
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(chain, ": {cause}");
        source = cause.source();
    }
    let mut text = if logged.is_empty() { chain } else { logged };
    let end = (0..=text.len().min(ERROR_LIMIT_BYTES)).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// libcontainer's error events, from this process and the clones it makes, in a shared memory file.
struct Capture(File);

impl Capture {
    fn start() -> Option<Self> {
        let file = File::from(rustix::fs::memfd_create("errors", MemfdFlags::CLOEXEC).ok()?);
        tracing::subscriber::set_global_default(Self(file.try_clone().ok()?)).ok()?;
        Some(Self(file))
    }

    fn first(&self) -> String {
        let mut text = String::new();
        let mut file = &self.0;
        let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
        text.lines().next().unwrap_or_default().to_owned()
    }
}

impl tracing::Subscriber for Capture {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let line = format!("{}{}\n", line.message, line.fields).replace("\n\n", "\n");
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
