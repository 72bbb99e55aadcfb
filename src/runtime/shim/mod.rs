//! `edgelet shim`: one small single-threaded process per pod. It holds the pod's namespaces, is the
//! parent and reaper of its containers, writes their logs and exit records, and outlives restarts
//! and upgrades of edgelet. It never calls libcontainer itself: a forked helper does, once.

mod container;
mod helper;
pub mod protocol;
mod sandbox;

use crate::clock::{Clock, monotonic};
use crate::sys::process::{self, Death};
use crate::sys::seqpacket;
use container::{Container, Readable};
use helper::Report;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocol::{Answer, Call, Create, Event, Exec, Listed, MESSAGE_LIMIT_BYTES, Message, Request, Target};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Connections at a time: edgelet's own, and a second while it restarts.
const CLIENTS_LIMIT: usize = 8;
/// Helpers at a time; more requests fail instead of piling up processes.
const HELPERS_LIMIT: usize = 32;
/// How long new connections wait after one could not be taken for want of descriptors or memory.
const DEAF_LIMIT: Duration = Duration::from_secs(1);

/// The entry of `edgelet shim [--cgroup-processes FILE]...`, with the listening socket as standard input.
/// Must run before anything else of edgelet: every page touched is paid once per pod.
pub fn main(arguments: &[String]) -> ExitCode {
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &[String]) -> io::Result<()> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    if process::fork_child(|| i32::from(daemon(arguments, listener).is_err()))? > 0 {
        return Ok(());
    }
    Ok(())
}

/// The life of the shim, in the child: its parent has ended, so it belongs to nobody.
fn daemon(arguments: &[String], listener: OwnedFd) -> io::Result<()> {
    sandbox::detach(arguments)?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // The others are taken only to be ignored: pods end by edgelet's word, not by a signal to the group.
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let shim = Shim {
        listener,
        signals,
        clock: Clock::real(),
        clients: BTreeMap::new(),
        next_client: 0,
        deaf_until: None,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        helpers: Vec::new(),
        unclaimed: BTreeMap::new(),
        reaper: None,
        ending: false,
    };
    shim.run()
}

/// Whom an answer goes to.
#[derive(Clone, Copy)]
pub(in crate::runtime) struct Caller {
    client: u64,
    call: u64,
}

struct RunningExec {
    pid: i32,
    client: u64,
}

enum Purpose {
    Create(Box<Create>, container::Opened),
    Exec(Box<Exec>),
}

struct Helper {
    pid: i32,
    report: OwnedFd,
    deadline: Instant,
    caller: Caller,
    purpose: Purpose,
    /// Only of an exec; a container keeps its own.
    error: Option<OwnedFd>,
}

struct Shim {
    listener: OwnedFd,
    signals: SignalFd,
    clock: Clock,
    clients: BTreeMap<u64, OwnedFd>,
    next_client: u64,
    /// A connection waits that cannot be taken: looking at the listener would only spin.
    deaf_until: Option<Instant>,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<String, RunningExec>,
    helpers: Vec<Helper>,
    /// Children that ended before their helper named them.
    unclaimed: BTreeMap<i32, Death>,
    /// PID 1 of the shared process namespace.
    reaper: Option<i32>,
    ending: bool,
}

enum Ready {
    Listener,
    Signals,
    Client(u64),
    Helper(i32),
    Container(String, Readable),
}

impl Shim {
    fn run(mut self) -> io::Result<()> {
        while !self.ending {
            for ready in self.wait()? {
                self.handle(ready);
            }
            self.expire();
        }
        if let Some(reaper) = self.reaper {
            process::kill(reaper, libc::SIGKILL)?;
        }
        Ok(())
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, Ready)> {
        let mut sources = vec![(self.signals.as_fd(), Ready::Signals)];
        if self.deaf_until.is_none() {
            sources.push((self.listener.as_fd(), Ready::Listener));
        }
        sources.extend(self.clients.iter().map(|(key, fd)| (fd.as_fd(), Ready::Client(*key))));
        sources.extend(self.helpers.iter().map(|helper| (helper.report.as_fd(), Ready::Helper(helper.pid))));
        for (id, container) in &self.containers {
            let readable = container.readable();
            sources.extend(readable.map(|(fd, what)| (fd, Ready::Container(id.clone(), what))));
        }
        sources
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let sources = self.sources();
        let mut polled: Vec<_> = sources.iter().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut polled, self.timeout().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(sources.into_iter().zip(ready).filter_map(|((_, source), ready)| ready.then_some(source)).collect())
    }

    /// Until the first deadline; for ever when there is none.
    fn timeout(&self) -> Option<Timespec> {
        let helpers = self.helpers.iter().map(|helper| helper.deadline);
        let drains = self.containers.values().filter_map(Container::drain_deadline);
        let left = helpers.chain(drains).chain(self.deaf_until).min()?.saturating_duration_since(monotonic())
            + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    fn handle(&mut self, ready: Ready) {
        match ready {
            Ready::Listener => self.accept(),
            Ready::Signals => self.reap(),
            Ready::Client(key) => self.receive(key),
            Ready::Helper(pid) => self.finish_helper(pid),
            Ready::Container(id, what) => self.read_container(&id, what),
        }
    }

    fn accept(&mut self) {
        let accepted = seqpacket::accept(&self.listener);
        self.accepted(accepted);
    }

    fn accepted(&mut self, accepted: rustix::io::Result<OwnedFd>) {
        use rustix::io::Errno;
        match accepted {
            Ok(client) => {
                if self.clients.len() >= CLIENTS_LIMIT {
                    let oldest = self.clients.keys().next().copied().unwrap_or_default();
                    self.disconnect(oldest);
                }
                self.clients.insert(self.next_client, client);
                self.next_client += 1;
            }
            // The connection stays in the listener's queue and would be reported again at once.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.deaf_until = Some(monotonic() + DEAF_LIMIT);
            }
            // Its client has gone meanwhile.
            Err(_) => {}
        }
    }

    /// Nobody reads the output of a gone client's commands any more.
    fn disconnect(&mut self, key: u64) {
        self.clients.remove(&key);
        self.deaf_until = None; // there is a descriptor again
        for exec in self.execs.values().filter(|exec| exec.client == key) {
            let _ = process::kill(exec.pid, libc::SIGKILL);
        }
    }

    fn send(&mut self, client: u64, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let Some(socket) = self.clients.get(&client) else { return };
        let bytes = serde_json::to_vec(message).expect("a message is plain data");
        if seqpacket::send(socket, &bytes, descriptors).is_err() {
            // Gone, or too slow to be worth a queue: it connects again and lists.
            self.disconnect(client);
        }
    }

    fn answer(&mut self, caller: Caller, answer: Answer) {
        self.send(caller.client, &Message::Answer { id: caller.call, answer }, &[]);
    }

    fn announce(&mut self, event: Event) {
        let message = Message::Event(event);
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.send(client, &message, &[]);
        }
    }

    fn receive(&mut self, key: u64) {
        let Some(socket) = self.clients.get(&key) else { return };
        // No larger than the message: what the shim has touched once, it keeps.
        let length = seqpacket::next_length(socket).unwrap_or(0).min(MESSAGE_LIMIT_BYTES);
        let mut buffer = vec![0; length];
        match seqpacket::receive(socket, &mut buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok((0, _)) | Err(_) => self.disconnect(key),
            Ok((length, descriptors)) => match serde_json::from_slice::<Call>(&buffer[..length]) {
                Ok(call) => self.call(Caller { client: key, call: call.id }, call.request, descriptors),
                Err(error) => {
                    eprintln!("shim: message that is no call: {error}");
                    self.disconnect(key);
                }
            },
        }
    }

    fn call(&mut self, caller: Caller, request: Request, descriptors: Vec<OwnedFd>) {
        let answer = match request {
            Request::Hello { .. } => Some(Answer::Hello {
                version: protocol::VERSION,
                pid: rustix::process::getpid().as_raw_nonzero().get(),
            }),
            Request::Sandbox(config) => Some(self.prepare(&config)),
            Request::Create(create) => self.create(caller, create),
            Request::Start { container } => self.start(caller, &container),
            Request::Exec(exec) => self.exec(caller, exec, descriptors),
            Request::Signal { target, signal } => Some(self.signal(&target, signal)),
            Request::Attach { container, stdin, stdout, stderr } => {
                self.attach(caller, &container, [stdin, stdout, stderr], descriptors)
            }
            Request::CloseStdin { container } => Some(self.with_container(&container, |container| {
                container.close_stdin();
                Answer::Done
            })),
            Request::Delete { container } => Some(self.delete(&container)),
            Request::List => Some(Answer::Listed(self.list())),
            Request::Shutdown => Some(self.shutdown()),
        };
        if let Some(answer) = answer {
            self.answer(caller, answer);
        }
    }

    fn prepare(&mut self, config: &protocol::Sandbox) -> Answer {
        match sandbox::prepare(config, self.reaper) {
            Ok(reaper) => {
                self.reaper = reaper;
                Answer::Sandbox { reaper }
            }
            Err(error) => failed(error),
        }
    }

    fn create(&mut self, caller: Caller, create: Create) -> Option<Answer> {
        if let Some(container) = self.containers.get(&create.container) {
            return Some(Answer::Created { pid: container.pid });
        }
        let opened = match container::open(&create, &self.clock) {
            Ok(opened) => opened,
            Err(error) => return Some(failed(format!("open log {}: {error}", create.log.display()))),
        };
        let (opened, stdio, error) = opened;
        let timeout_s = create.timeout_s;
        let job = create.clone();
        let purpose = Purpose::Create(Box::new(create), opened);
        self.fork_helper(caller, timeout_s, purpose, None, move |report| {
            helper::create(&job, helper::Channels { report, error, stdio })
        })
    }

    fn exec(&mut self, caller: Caller, exec: Exec, stdio: Vec<OwnedFd>) -> Option<Answer> {
        let state = match self.containers.get(&exec.container) {
            Some(container) if container.is_running() => container.config.state.clone(),
            Some(_) => return Some(failed(format!("container {} is not running", exec.container))),
            None => return Some(unknown(&exec.container)),
        };
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (reader, error) = match pipe {
            Ok(pipe) => pipe,
            Err(error) => return Some(failed(error)),
        };
        let job = exec.clone();
        let timeout_s = exec.timeout_s;
        self.fork_helper(caller, timeout_s, Purpose::Exec(Box::new(exec)), Some(reader), move |report| {
            helper::exec(&job, &state, helper::Channels { report, error, stdio })
        })
    }

    /// Starts a helper; the answer follows when it reports, or at once when it cannot start.
    fn fork_helper(
        &mut self,
        caller: Caller,
        timeout_s: u64,
        purpose: Purpose,
        error: Option<OwnedFd>,
        job: impl FnOnce(OwnedFd) -> i32,
    ) -> Option<Answer> {
        if self.helpers.len() >= HELPERS_LIMIT {
            return Some(failed("too many commands are being started in this pod"));
        }
        let (report, theirs) = match seqpacket::pair() {
            Ok(pair) => pair,
            Err(error) => return Some(failed(error)),
        };
        // A killed helper's own children may hold the other end open: reading must never wait for them.
        if let Err(error) = rustix::io::ioctl_fionbio(&report, true) {
            return Some(failed(error));
        }
        match process::fork_child(move || job(theirs)) {
            Ok(pid) => {
                let deadline = monotonic() + Duration::from_secs(timeout_s.clamp(1, 600));
                self.helpers.push(Helper { pid, report, deadline, caller, purpose, error });
                None
            }
            Err(error) => Some(failed(error)),
        }
    }

    /// A helper has reported, or has ended without a word.
    fn finish_helper(&mut self, pid: i32) {
        let Some(index) = self.helpers.iter().position(|helper| helper.pid == pid) else { return };
        let helper = self.helpers.swap_remove(index);
        let mut buffer = vec![0; 8192];
        let (report, descriptors) = match seqpacket::receive(&helper.report, &mut buffer) {
            Ok((length, descriptors)) if length > 0 => (serde_json::from_slice(&buffer[..length]).ok(), descriptors),
            _ => (None, Vec::new()),
        };
        let report = report.unwrap_or_else(|| Report {
            pid: 0,
            error: Some("the helper process ended without an answer or took too long".to_owned()),
        });
        let terminal = descriptors.into_iter().next();
        match helper.purpose {
            Purpose::Create(create, opened) => self.created(helper.caller, *create, opened, report, terminal),
            Purpose::Exec(exec) => self.executing(helper.caller, &exec, report, helper.error, terminal),
        }
        if self.helpers.is_empty() {
            // What nobody has claimed by now are helpers' own intermediate processes.
            self.unclaimed.clear();
        }
    }

    fn created(
        &mut self,
        caller: Caller,
        create: Create,
        opened: container::Opened,
        report: Report,
        terminal: Option<OwnedFd>,
    ) {
        if let Some(error) = report.error {
            return self.answer(caller, failed(error));
        }
        let id = create.container.clone();
        self.containers.insert(id.clone(), Container::new(create, opened, report.pid, terminal));
        self.answer(caller, Answer::Created { pid: report.pid });
        if let Some(death) = self.unclaimed.remove(&report.pid) {
            self.container_ended(&id, death);
        }
    }

    fn executing(
        &mut self,
        caller: Caller,
        exec: &Exec,
        report: Report,
        error: Option<OwnedFd>,
        terminal: Option<OwnedFd>,
    ) {
        self.sweep_exec_files(&exec.container);
        if let Some(message) = report.error {
            // The executor's own words are exact; libcontainer wraps them.
            let exact = error.map(|fd| container::read_text(&fd)).filter(|text| !text.is_empty());
            return self.answer(caller, failed(exact.unwrap_or(message)));
        }
        self.execs.insert(exec.exec.clone(), RunningExec { pid: report.pid, client: caller.client });
        let message = Message::Answer { id: caller.call, answer: Answer::Executing { pid: report.pid } };
        let descriptors: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
        self.send(caller.client, &message, &descriptors);
        if let Some(death) = self.unclaimed.remove(&report.pid) {
            self.exec_ended(&exec.exec, death);
        }
    }

    /// libcontainer leaves sockets and links of each exec behind: thousands a day with exec probes.
    fn sweep_exec_files(&self, id: &str) {
        let busy = |helper: &Helper| matches!(&helper.purpose, Purpose::Exec(exec) if exec.container == id);
        if self.helpers.iter().any(busy) {
            return;
        }
        let Some(container) = self.containers.get(id) else { return };
        let Ok(entries) = std::fs::read_dir(container.config.state.join(id)) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"tenant-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn start(&mut self, caller: Caller, id: &str) -> Option<Answer> {
        let now = self.clock.now();
        let Some(container) = self.containers.get_mut(id) else { return Some(unknown(id)) };
        container.start(caller, now).err().map(failed).or_else(|| container.started_already().then_some(Answer::Done))
    }

    fn signal(&mut self, target: &Target, signal: i32) -> Answer {
        let result = match target {
            Target::Container(id) => match self.containers.get(id) {
                Some(container) => container.signal(signal),
                None => return unknown(id),
            },
            Target::Processes(id) => match self.containers.get(id) {
                Some(container) => container.signal_all(signal),
                None => return unknown(id),
            },
            Target::Exec(id) => match self.execs.get(id) {
                Some(exec) => process::kill(exec.pid, signal),
                None => return unknown(id),
            },
        };
        result.map_or_else(failed, |()| Answer::Done)
    }

    fn attach(
        &mut self,
        caller: Caller,
        id: &str,
        [stdin, stdout, stderr]: [bool; 3],
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(container) = self.containers.get_mut(id) else { return Some(unknown(id)) };
        container.attach(stdout, stderr, descriptors);
        let input = if stdin { container.input() } else { None };
        let message = Message::Answer { id: caller.call, answer: Answer::Done };
        let descriptors: Vec<_> = input.iter().map(AsFd::as_fd).collect();
        self.send(caller.client, &message, &descriptors);
        None
    }

    fn with_container(&mut self, id: &str, act: impl FnOnce(&mut Container) -> Answer) -> Answer {
        self.containers.get_mut(id).map_or_else(|| unknown(id), act)
    }

    fn delete(&mut self, id: &str) -> Answer {
        match self.containers.get(id) {
            Some(container) if container.exit.is_none() => failed(format!("container {id} has not ended")),
            _ => {
                self.containers.remove(id);
                Answer::Done
            }
        }
    }

    fn list(&self) -> Vec<Listed> {
        let listed = |(id, container): (&String, &Container)| Listed {
            container: id.clone(),
            pid: container.pid,
            started_at: container.started_at,
            exit: container.exit.clone(),
        };
        self.containers.iter().map(listed).collect()
    }

    fn shutdown(&mut self) -> Answer {
        if self.containers.values().any(|container| container.exit.is_none()) || !self.helpers.is_empty() {
            return failed("containers still run");
        }
        self.ending = true;
        Answer::Done
    }

    fn reap(&mut self) {
        // Signals coalesce, so their number means nothing: take all, then reap all.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, death)) = process::reap() {
            let container =
                self.containers.iter().find(|(_, container)| container.pid == pid && container.exit.is_none());
            if let Some(id) = container.map(|(id, _)| id.clone()) {
                self.container_ended(&id, death);
            } else if let Some(id) = self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(id, _)| id.clone()) {
                self.exec_ended(&id, death);
            } else if !self.helpers.is_empty() {
                self.unclaimed.insert(pid, death);
            }
        }
    }

    fn exec_ended(&mut self, id: &str, death: Death) {
        self.execs.remove(id);
        self.announce(Event::ExecExited { exec: id.to_owned(), code: death.exit_code() });
    }

    fn container_ended(&mut self, id: &str, death: Death) {
        let now = self.clock.now();
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiting = container.started_or_failed();
        let exit = container.end(death, now);
        if let Some((caller, error)) = waiting {
            self.answer(caller, error.map_or(Answer::Done, failed));
        }
        self.announce(Event::Exited { container: id.to_owned(), exit });
    }

    fn read_container(&mut self, id: &str, what: Readable) {
        let Some(container) = self.containers.get_mut(id) else { return };
        match what {
            Readable::Output(index) => container.read_output(index),
            Readable::Start => {
                if let Some((caller, error)) = container.started_or_failed() {
                    self.answer(caller, error.map_or(Answer::Done, failed));
                }
            }
        }
    }

    /// Ends what took too long: helpers that hang, pipes that a daemonised grandchild keeps open.
    fn expire(&mut self) {
        let now = monotonic();
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        for container in self.containers.values_mut() {
            container.stop_draining(now);
        }
        let late: Vec<i32> =
            self.helpers.iter().filter(|helper| helper.deadline <= now).map(|helper| helper.pid).collect();
        for pid in late {
            let _ = process::kill(pid, libc::SIGKILL);
            if let Some(Purpose::Create(create, _)) =
                self.helpers.iter().find(|helper| helper.pid == pid).map(|helper| &helper.purpose)
            {
                container::signal_cgroup(&create.cgroup_processes, libc::SIGKILL);
            }
            self.finish_helper(pid);
        }
    }
}

fn failed(error: impl ToString) -> Answer {
    Answer::Failed { message: error.to_string(), not_found: false }
}

fn unknown(id: &str) -> Answer {
    Answer::Failed { message: format!("{id} is not in this pod"), not_found: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_descriptor_for_a_waiting_connection_the_shim_does_not_spin() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("shim.sock");
        let mut shim = Shim {
            listener: seqpacket::listen(&socket).unwrap(),
            signals: SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).unwrap(),
            clock: Clock::real(),
            clients: BTreeMap::new(),
            next_client: 0,
            deaf_until: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            helpers: Vec::new(),
            unclaimed: BTreeMap::new(),
            reaper: None,
            ending: false,
        };
        let listens = |shim: &Shim| shim.sources().iter().any(|(_, source)| matches!(source, Ready::Listener));
        let _first = seqpacket::connect(&socket).unwrap();
        shim.accept();
        let _second = seqpacket::connect(&socket).unwrap();
        assert!(listens(&shim));
        shim.accepted(Err(rustix::io::Errno::MFILE));
        assert!(!listens(&shim) && shim.timeout().is_some(), "it waits, and not for ever");
        shim.disconnect(0);
        assert!(listens(&shim), "a connection that closed makes room for the next");
        assert!(matches!(shim.wait().unwrap()[..], [Ready::Listener]));
        shim.accept();
        assert_eq!(shim.clients.len(), 1);
    }
}
