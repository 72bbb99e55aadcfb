//! Commands in containers, attached streams, forwarded ports. Bytes go between the container's pipes
//! and this process; the shim only hands the ends over.

use super::connection::Connection;
use super::stream::FdStream;
use super::{Container, LibcontainerRuntime, Pod, other, record};
use crate::runtime::shim::protocol::{Answer, Exec, Request, Target};
use crate::runtime::{ContainerState, ExecOutput, ExecRequest, ExecSession, Reason, Result, RuntimeError, spec};
use crate::sys::{Stream, netns, process};
use bytes::{Bytes, BytesMut};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Output kept of a command that is not streamed.
const OUTPUT_LIMIT_BYTES: usize = 64 << 10;
/// How long the output of an ended command may still come: a daemon it left keeps the pipe open.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
const START_TIMEOUT_S: u64 = 30;
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a container may still take to be known as ended, for those attached to it.
const DAY: Duration = Duration::from_secs(24 * 3600);

type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A command that was started; dropped before its end, it is killed.
struct Running {
    connection: Connection,
    exec: String,
    code: oneshot::Receiver<i32>,
    ended: bool,
}

impl Running {
    async fn wait(&mut self) -> Result<i32> {
        let code = (&mut self.code).await;
        self.ended = true;
        code.map_err(|_| other("the pod's shim is gone"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.connection.forget_exec(&self.exec);
        if self.ended {
            return;
        }
        let (connection, exec) = (self.connection.clone(), std::mem::take(&mut self.exec));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let request = Request::Signal { target: Target::Exec(exec), signal: libc::SIGKILL };
                let _ = connection.call(request, &[]).await;
            });
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| other(format!("make pipe: {error}")))
}

fn null() -> Result<OwnedFd> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/null");
    opened.map(OwnedFd::from).map_err(|error| other(format!("open /dev/null: {error}")))
}

fn stream(fd: OwnedFd) -> Result<FdStream> {
    FdStream::new(fd).map_err(|error| other(format!("watch stream: {error}")))
}

impl LibcontainerRuntime {
    fn running(&self, id: &str) -> Result<(Arc<Pod>, Container, Connection)> {
        let (pod, container) = self.find(id)?;
        let connection = pod.state().connection.clone();
        match (&container.state, connection) {
            (ContainerState::Running { .. }, Some(connection)) => Ok((pod, container, connection)),
            _ => Err(other(format!("container {id} is not running"))),
        }
    }

    /// Starts a command with these ends of its streams; gives back the terminal if it has one.
    async fn launch(
        &self,
        id: &str,
        command: &[String],
        tty: bool,
        stdio: Vec<OwnedFd>,
    ) -> Result<(Running, Option<OwnedFd>)> {
        let (pod, container, connection) = self.running(id)?;
        let number = self.0.exec_number.fetch_add(1, Ordering::Relaxed);
        let exec = format!("{:x}-{number}", self.0.exec_prefix);
        let mut context = container.record.context.clone();
        if tty && !context.env.iter().any(|variable| variable.starts_with("TERM=")) {
            context.env.push("TERM=xterm".to_owned());
        }
        let process = pod.paths.directory.join(format!("exec-{exec}.json"));
        let written = record::write(&process, spec::process(&context, command, tty).to_string().as_bytes());
        written.map_err(|error| other(format!("write command: {error}")))?;
        let request = Request::Exec(Exec {
            container: id.to_owned(),
            exec: exec.clone(),
            process: process.clone(),
            isolation: container.record.isolation.clone(),
            tty,
            timeout_s: START_TIMEOUT_S,
        });
        let code = connection.expect_exec(&exec);
        // A task of its own: who gives up meanwhile (a probe's timeout) drops what comes of it, which kills it.
        let launched = crate::supervise::spawn(async move {
            let descriptors: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
            match connection.call(request, &descriptors).await {
                Ok((Answer::Executing { .. }, descriptors)) => {
                    let running = Running { connection, exec, code, ended: false };
                    Ok((running, descriptors.into_iter().next()))
                }
                Ok(_) => Err(other("unexpected answer of the pod's shim")),
                Err(error) => {
                    connection.forget_exec(&exec);
                    let _ = std::fs::remove_file(&process);
                    Err(error)
                }
            }
        });
        launched.await.map_err(|error| other(format!("start command: {error}")))?
    }

    pub(super) async fn run_command(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let (reader, writer) = pipe()?;
        let second = writer.try_clone().map_err(|error| other(format!("make pipe: {error}")))?;
        let mut output = BytesMut::new();
        let run = async {
            let (mut running, _) = self.launch(id, command, false, vec![null()?, writer, second]).await?;
            let mut reader = stream(reader)?;
            let mut open = true;
            let code = loop {
                tokio::select! {
                    code = running.wait() => break code?,
                    more = read_some(&mut reader, &mut output), if open => open = more,
                }
            };
            let rest = async { while open && read_some(&mut reader, &mut output).await {} };
            let _ = tokio::time::timeout(DRAIN_LIMIT, rest).await;
            Ok(code)
        };
        let result = if timeout.is_zero() { Ok(run.await) } else { tokio::time::timeout(timeout, run).await };
        let exit_code = match result {
            Ok(result) => result?,
            Err(_) => {
                let message =
                    format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs());
                return Err(RuntimeError::new(Reason::Timeout, message));
            }
        };
        Ok(ExecOutput { exit_code, output: output.freeze() })
    }

    pub(super) async fn open_session(&self, id: &str, request: ExecRequest) -> Result<ExecSession> {
        if request.tty {
            return self.terminal_session(id, &request).await;
        }
        let mut theirs = Vec::new();
        let stdin = match request.stdin {
            true => {
                let (reader, writer) = pipe()?;
                theirs.push(reader);
                Some(Box::new(stream(writer)?) as Writer)
            }
            false => {
                theirs.push(null()?);
                None
            }
        };
        let mut outputs = Vec::new();
        for wanted in [request.stdout, request.stderr] {
            if wanted {
                let (reader, writer) = pipe()?;
                theirs.push(writer);
                outputs.push(Some(Box::new(stream(reader)?) as _));
            } else {
                theirs.push(null()?);
                outputs.push(None);
            }
        }
        let (mut running, _) = self.launch(id, &request.command, false, theirs).await?;
        let mut outputs = outputs.into_iter();
        Ok(ExecSession {
            stdin,
            stdout: outputs.next().flatten(),
            stderr: outputs.next().flatten(),
            resize: None,
            exit: Box::pin(async move { running.wait().await }),
        })
    }

    async fn terminal_session(&self, id: &str, request: &ExecRequest) -> Result<ExecSession> {
        let (mut running, terminal) = self.launch(id, &request.command, true, Vec::new()).await?;
        let terminal = terminal.ok_or_else(|| other("the pod's shim sent no terminal"))?;
        let copy = || terminal.try_clone().map_err(|error| other(format!("share terminal: {error}")));
        let stdin = if request.stdin { Some(Box::new(stream(copy()?)?) as Writer) } else { None };
        let stdout = Some(Box::new(stream(copy()?)?) as _);
        Ok(ExecSession {
            stdin,
            stdout,
            stderr: None,
            resize: Some(resizer(terminal)),
            exit: Box::pin(async move { running.wait().await }),
        })
    }

    pub(super) async fn attach_session(&self, id: &str, request: ExecRequest) -> Result<ExecSession> {
        let (pod, container, connection) = self.running(id)?;
        let tty = container.record.tty;
        let mut theirs = Vec::new();
        let mut outputs = Vec::new();
        // A terminal's output is one stream.
        let wanted = [request.stdout, request.stderr && !tty];
        for wanted in wanted {
            outputs.push(if wanted {
                let (reader, writer) = pipe()?;
                theirs.push(writer);
                Some(Box::new(stream(reader)?) as _)
            } else {
                None
            });
        }
        let [stdout, stderr] = wanted;
        let call = Request::Attach { container: id.to_owned(), stdin: request.stdin || tty, stdout, stderr };
        let descriptors: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let (_, input) = connection.call(call, &descriptors).await?;
        let input = input.into_iter().next();
        let resize = match &input {
            Some(terminal) if tty => {
                Some(resizer(terminal.try_clone().map_err(|error| other(format!("share terminal: {error}")))?))
            }
            _ => None,
        };
        let stdin = match input {
            Some(fd) if request.stdin => Some(Box::new(stream(fd)?) as Writer),
            _ => None,
        };
        let mut outputs = outputs.into_iter();
        let id = id.to_owned();
        Ok(ExecSession {
            stdin,
            stdout: outputs.next().flatten(),
            stderr: outputs.next().flatten(),
            resize,
            exit: Box::pin(async move {
                let code = |state: &super::PodState| match state.containers.get(&id).map(|one| one.state.clone()) {
                    Some(ContainerState::Exited(exit)) => Some(exit.code),
                    Some(_) => None,
                    None => Some(0),
                };
                while !pod.wait(DAY, |state| code(state).is_some()).await {}
                let code = code(&pod.state());
                Ok(code.unwrap_or(0))
            }),
        })
    }

    pub(super) async fn forward(&self, uid: &str, port: u16) -> Result<Box<dyn Stream>> {
        let pod = self.pod(uid)?;
        let namespace = pod.state().record.netns.clone();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connect = async {
            match dial(namespace.as_deref(), address).await {
                // What listens on `::1` alone.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
                    dial(namespace.as_deref(), address).await.map_err(|_| error)
                }
                connected => connected,
            }
        };
        let failed = |why: String| other(format!("failed to dial {port}: dial tcp4 {address}: {why}"));
        match tokio::time::timeout(FORWARD_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                Err(failed("connect: connection refused".to_owned()))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("i/o timeout".to_owned())),
        }
    }
}

async fn dial(namespace: Option<&Path>, address: SocketAddr) -> std::io::Result<TcpStream> {
    let Some(path) = namespace else { return TcpStream::connect(address).await };
    let socket = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    // A socket belongs to the namespace it was made in, wherever it is used.
    netns::enter(path, socket).await?.connect(address).await
}

/// Whether there may be more. What is over the limit is read, so that the command goes on, and dropped.
async fn read_some(reader: &mut FdStream, output: &mut BytesMut) -> bool {
    let mut chunk = [0; 4096];
    match reader.read(&mut chunk).await {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            let room = OUTPUT_LIMIT_BYTES - output.len();
            output.extend_from_slice(&Bytes::copy_from_slice(&chunk[..length.min(room)]));
            true
        }
    }
}

/// Sets the terminal's size as it is told; ends with the session.
fn resizer(terminal: OwnedFd) -> mpsc::Sender<(u16, u16)> {
    let (sender, mut sizes) = mpsc::channel(4);
    crate::supervise::spawn(async move {
        while let Some((columns, rows)) = sizes.recv().await {
            let _ = process::set_window_size(&terminal, columns, rows);
        }
    });
    sender
}
