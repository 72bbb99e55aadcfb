//! What the shim does to itself: leave its parent's session and cgroup, then hold the pod's namespaces.

use super::protocol::Sandbox;
use crate::sys::process;
use rustix::thread::LinkNameSpaceType;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// The kernel kills a shim only when nothing else is left.
const OOM_SCORE_ADJ: &str = "-998";

/// Belongs to nobody: own session, own cgroup, no standard input, orphans come to it.
pub fn detach(arguments: &[String]) -> io::Result<()> {
    nix::unistd::setsid()?;
    rustix::process::chdir("/")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let _ = rustix::thread::set_name(c"edgelet-shim");
    let null = File::open("/dev/null")?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    // Needs CAP_SYS_RESOURCE; without it the shim is as killable as its parent was.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--cgroup-processes"
            && let Some(file) = arguments.next()
            && let Err(error) = std::fs::write(file, "0")
        {
            eprintln!("shim: join cgroup {file}: {error}");
        }
    }
    Ok(())
}

/// Makes or joins the pod's namespaces. Done twice it does nothing.
pub fn prepare(config: &Sandbox, reaper: Option<i32>) -> Result<Option<i32>, String> {
    if let Some(netns) = &config.netns {
        let file = File::open(netns).map_err(|error| format!("open network namespace {}: {error}", netns.display()))?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("join network namespace {}: {error}", netns.display()))?;
    }
    let mut flags = nix::sched::CloneFlags::empty();
    flags.set(nix::sched::CloneFlags::CLONE_NEWIPC, !config.host_ipc);
    flags.set(nix::sched::CloneFlags::CLONE_NEWUTS, config.hostname.is_some());
    nix::sched::unshare(flags).map_err(|error| format!("make namespaces: {error}"))?;
    if let Some(hostname) = &config.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|error| format!("set host name {hostname:?}: {error}"))?;
    }
    for (name, value) in &config.sysctls {
        set_sysctl(name, value)?;
    }
    match reaper {
        Some(pid) => Ok(Some(pid)),
        None if config.share_process_namespace => start_reaper().map(Some).map_err(|error| error.to_string()),
        None => Ok(None),
    }
}

fn set_sysctl(name: &str, value: &str) -> Result<(), String> {
    // Both `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/forwarding` are in use.
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if relative.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(format!("set sysctl {name:?}: invalid name"));
    }
    std::fs::write(Path::new("/proc/sys").join(relative), value)
        .map_err(|error| format!("set sysctl {name:?} to {value:?}: {error}"))
}

/// PID 1 of a new process namespace: it reaps, and nothing else. Made through a middle process, for
/// unsharing it here would put every later child into it.
fn start_reaper() -> io::Result<i32> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let middle = process::fork_child(|| {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).is_err() {
            return 1;
        }
        let Ok(pid) = process::fork_child(|| {
            process::close_all_but(&[]);
            process::reset_signals();
            let _ = rustix::thread::set_name(c"pause");
            process::reap_for_ever()
        }) else {
            return 1;
        };
        i32::from(File::from(writer.try_clone().expect("a descriptor is free")).write_all(&pid.to_ne_bytes()).is_err())
    })?;
    drop(writer);
    let mut pid = [0; 4];
    let read = File::from(reader).read_exact(&mut pid);
    process::wait_for(middle);
    read?;
    Ok(i32::from_ne_bytes(pid))
}
