//! Tells when this machine's addresses or its way out change: then connections are looked at again at once.

use futures_util::StreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

/// Counts changes from now on, in the calling thread's network namespace. Without netlink it never changes.
pub fn follow() -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    let groups =
        [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let (connection, _, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(%error, "cannot follow addresses and routes; changes are noticed by lost pings");
            return receiver;
        }
    };
    crate::supervise::spawn(connection);
    crate::supervise::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            if let NetlinkPayload::InnerMessage(message) = message.payload
                && matters(&message)
            {
                sender.send_modify(|count| *count += 1);
            }
        }
    });
    receiver
}

/// Pods come and go with routes of their own; the way out is the default route.
fn matters(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.destination_prefix_length == 0
        }
        _ => false,
    }
}
