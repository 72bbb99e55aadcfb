//! The device whose packets this process carries to other nodes itself, when no way of the kernel's leads there.
//! It exists while it is held: with the process it goes, and what has no other way is refused again.

use super::netlink::{self, Netlink};
use super::peers::POD_MTU_LIMIT;
use super::plan::Layout;
use super::{Network, Result};
use crate::sys::{netns, tun, watch};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Room for a packet of the device.
const PACKET_BYTES: usize = 2048;

/// What peers reach through it, they reach by routes of `connect_peers`.
pub struct RelayDevice(AsyncFd<OwnedFd>);

impl Network {
    /// Makes the device. Unsupported where the kernel has no TUN.
    pub async fn open_relay(&self) -> Result<RelayDevice> {
        let layout = self.layout().clone();
        let name = layout.relay_link();
        let failed = |source: io::Error| super::kernel("create link", &name, unsupported(source));
        let fd = netlink::run(move || async move { open(&layout).await }).await?;
        watch::watch(fd).map(RelayDevice).map_err(failed)
    }
}

async fn open(layout: &Layout) -> Result<OwnedFd> {
    let name = layout.relay_link();
    let fd = tun::open(&name).map_err(|source| super::kernel("create link", &name, unsupported(source)))?;
    // Nobody speaks IPv6 behind it: routers would be asked for in vain. Absent = fine.
    let _ = netns::sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
    let netlink = Netlink::open()?;
    netlink.mtu(&name, POD_MTU_LIMIT).await?;
    netlink.up(&name).await?;
    if let Some(index) = netlink.index(&name).await? {
        // What the node itself sends comes from an address that peers know the way back to.
        netlink.address(index, layout.gateway, 32).await?;
    }
    // A peer may answer by another way: strict filters would drop that.
    let _ = netns::sysctl(&format!("ipv4/conf/{name}/rp_filter"), "2");
    Ok(fd)
}

/// No driver, or none for us: not something that gets better by trying again.
fn unsupported(error: io::Error) -> io::Error {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    let lacks = matches!(code, Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::PERM | Errno::ACCESS));
    if lacks { io::Error::from_raw_os_error(libc::EOPNOTSUPP) } else { error }
}

impl RelayDevice {
    /// Waits until there is a packet. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Waits for packets, then hands out as many as there are, until `take` has enough (false). Cancel-safe.
    pub async fn receive(&self, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut packet = [0; PACKET_BYTES];
        loop {
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut packet)?)) {
                Ok(length) => {
                    if !take(&packet[..length?]) {
                        return Ok(());
                    }
                }
                Err(_would_block) => return Ok(()),
            }
        }
    }

    /// Gives a packet to the kernel. One that it does not take is one that was lost.
    pub fn send(&self, packet: &[u8]) {
        if let Err(error) = rustix::io::write(self.0.get_ref(), packet) {
            tracing::trace!(%error, "packet not taken");
        }
    }
}
