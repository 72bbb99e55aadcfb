//! Keeps up what the server shows of itself: the names in its certificate follow this machine's addresses, and the
//! admin's kubeconfig its authorities. Sleeps until an address or an authority changes, or a certificate nears its end.

use super::{names, write_kubeconfig};
use crate::apiserver::ApiServer;
use crate::config::Config;
use crate::network::changes;
use crate::network::ipam::Cidr;
use crate::pki::Pki;
use crate::supervise::Shutdown;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Addresses come in bursts (DHCP, link up): one look after each.
const SETTLE: Duration = Duration::from_secs(2);
/// After a kubeconfig that could not be written.
const RETRY: Duration = Duration::from_secs(3600);
/// Names in a certificate; a machine with more addresses names the rest in `tls-san`.
const ADDRESSES_LIMIT: usize = 32;

/// Runs until shutdown.
pub(super) async fn keep(config: Config, pki: Pki, api: ApiServer, address: SocketAddr, shutdown: Shutdown) {
    let (mut addresses, mut authorities) = (changes::follow(), pki.changes());
    // The sender lives in a task that ends when netlink does: then addresses change no more for us.
    let mut follows_addresses = true;
    let clock = pki.clock().clone();
    loop {
        api.set_names(names_now(&config));
        let renew_at = match write_kubeconfig(&pki, &config, address).await {
            Ok(renew_at) => renew_at,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot write the admin's kubeconfig; trying again in an hour"
                );
                clock.now() + RETRY
            }
        };
        tokio::select! {
            () = shutdown.requested() => return,
            changed = addresses.changed(), if follows_addresses => match changed {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_) => follows_addresses = false,
            },
            _ = authorities.changed() => {}
            () = clock.sleep_until(renew_at) => {}
            () = clock.may_be_set() => {}
        }
    }
}

/// What was configured, and every address of this machine that others may reach it at.
pub(super) fn names_now(config: &Config) -> Vec<String> {
    let found = nix::ifaddrs::getifaddrs().map(|all| {
        let v4 = all.filter_map(|one| one.address?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip));
        reachable(v4, &config.cluster_cidr)
    });
    let mut extra = names(config).extra;
    for address in found.unwrap_or_default() {
        let text = address.to_string();
        if !extra.contains(&text) {
            extra.push(text);
        }
    }
    extra
}

/// Without those of the pod network, which no board calls the server by.
fn reachable(all: impl Iterator<Item = Ipv4Addr>, pods: &Cidr) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> =
        all.filter(|ip| !ip.is_loopback() && !ip.is_link_local() && !pods.contains(*ip)).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(ADDRESSES_LIMIT);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_boards_may_call() {
        let all = ["127.0.0.1", "192.168.1.5", "10.42.0.1", "169.254.3.4", "192.168.1.5", "10.0.0.2"];
        let all = all.into_iter().map(|ip| ip.parse().unwrap());
        let found = reachable(all, &"10.42.0.0/16".parse().unwrap());
        assert_eq!(found, ["10.0.0.2".parse::<Ipv4Addr>().unwrap(), "192.168.1.5".parse().unwrap()]);
    }
}
