//! What the process tells its service manager: that it is ready, alive, about to end (sd_notify(3)).
//! Datagrams to a Unix socket that the manager names; without a manager nothing is said.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// `None` when no manager listens to this process.
    pub fn from_environment() -> Option<Self> {
        let read = |name: &str| std::env::var(name).ok();
        let watchdog = watchdog(read("WATCHDOG_USEC").as_deref(), read("WATCHDOG_PID").as_deref(), std::process::id());
        let manager = address(&read("NOTIFY_SOCKET")?)?;
        match Self::new(manager, watchdog) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told that edgelet is ready");
                None
            }
        }
    }

    fn new(manager: SocketAddr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up the event loop.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, manager, watchdog })
    }

    /// How often the manager wants to hear that this process lives; it waits twice as long.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    pub fn ready(&self) {
        self.say("READY=1");
    }

    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, what: &str) {
        if let Err(error) = self.socket.send_to_addr(what.as_bytes(), &self.manager) {
            tracing::debug!(%error, what, "tell the service manager");
        }
    }
}

/// A path, or `@NAME` in the abstract namespace.
fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).ok(),
        None if text.starts_with('/') => SocketAddr::from_pathname(text).ok(),
        None => None,
    }
}

/// The limit after which the manager ends this process; for another process's it is none of ours.
fn watchdog(limit_us: Option<&str>, of_pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    let ours = of_pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let limit_us: u64 = limit_us?.parse().ok()?;
    (ours && limit_us > 0).then(|| Duration::from_micros(limit_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Tree;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn the_manager_hears_of_the_start_the_life_and_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        manager.set_nonblocking(true).expect("nonblocking");
        let there = address(path.to_str().expect("text")).expect("path");
        let notifier = Notifier::new(there, Some(Duration::from_secs(60))).expect("notifier");

        let mut tree = Tree::default();
        tree.announce(Some(notifier));
        assert_eq!(received(&manager), "READY=1");
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(31)).await;
            assert_eq!(received(&manager), "WATCHDOG=1");
        }
        tree.end(Duration::from_secs(1)).await;
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tree_that_lost_a_task_does_not_claim_to_be_alive() {
        let name = format!("edgelet-notify-test-{}", std::process::id());
        let there = address(&format!("@{name}")).expect("abstract");
        let manager = UnixDatagram::bind_addr(&there).expect("bind");
        manager.set_nonblocking(true).expect("nonblocking");
        let mut tree = Tree::default();
        tree.announce(Some(Notifier::new(there, Some(Duration::from_secs(60))).expect("notifier")));
        assert_eq!(received(&manager), "READY=1");
        tree.spawn_fallible("broken", async { Err("as a test wants it") });
        tokio::time::sleep(Duration::from_secs(100)).await;
        let silence = manager.recv(&mut [0; 64]).expect_err("nothing was sent");
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let cases = [
            (Some("60000000"), None, Some(60)),
            (Some("60000000"), Some("7"), Some(60)),
            (Some("60000000"), Some("8"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, None, None),
        ];
        for (limit_us, pid, seconds) in cases {
            assert_eq!(watchdog(limit_us, pid, 7), seconds.map(Duration::from_secs), "{limit_us:?} {pid:?}");
        }
        assert!(address("vsock:2:1").is_none());
    }
}
