//! Questions about names outside the cluster: cached, asked once for all who wait, bounded in number.

use super::answer::{Reply, lower};
use super::cache::{Cache, Hit, Key};
use super::upstream::{Upstreams, exchange};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hickory_proto::op::{Message, Query, ResponseCode};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Different questions upstream at a time; more fail at once.
const IN_FLIGHT_LIMIT: usize = 256;
/// With an old answer at hand, a new one is waited for no longer (RFC 8767).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);

type Flight = Shared<BoxFuture<'static, Option<Arc<Reply>>>>;

pub struct Forwarder {
    upstreams: Upstreams,
    own: IpAddr,
    cache: Mutex<Cache>,
    in_flight: Mutex<HashMap<Key, Flight>>,
}

impl Forwarder {
    pub fn new(upstreams: Upstreams, own: IpAddr) -> Arc<Self> {
        Arc::new(Self { upstreams, own, cache: Mutex::default(), in_flight: Mutex::default() })
    }

    /// `None`: nobody answered.
    pub async fn resolve(self: &Arc<Self>, query: &Query) -> Option<Reply> {
        let key = (lower(query.name()), query.query_type());
        let now = crate::clock::monotonic();
        let hit = self.cache.lock().expect("no panic while the cache is locked").get(&key, now);
        let stale = match hit {
            Hit::Fresh(reply) => return Some(reply),
            Hit::Stale(reply) => Some(reply),
            Hit::Miss => None,
        };
        let Some(flight) = self.flight(key, query) else { return stale };
        let fresh = match &stale {
            Some(_) => tokio::time::timeout(STALE_PATIENCE, flight).await.ok().flatten(),
            None => flight.await,
        };
        fresh.map(|reply| (*reply).clone()).or(stale)
    }

    /// The exchange about a key, shared by all who ask meanwhile; `None`: too many.
    fn flight(self: &Arc<Self>, key: Key, query: &Query) -> Option<Flight> {
        let mut in_flight = self.in_flight.lock().expect("no panic while the flights are locked");
        if let Some(flight) = in_flight.get(&key) {
            return Some(flight.clone());
        }
        if in_flight.len() >= IN_FLIGHT_LIMIT {
            return None;
        }
        let (forwarder, query, landed) = (self.clone(), query.clone(), key.clone());
        let flight = async move {
            let reply = forwarder.ask(&query).await.map(Arc::new);
            if let Some(reply) = &reply {
                let mut cache = forwarder.cache.lock().expect("no panic while the cache is locked");
                cache.put(landed.clone(), reply.clone(), crate::clock::monotonic());
            }
            forwarder.in_flight.lock().expect("no panic while the flights are locked").remove(&landed);
            reply
        };
        let flight = flight.boxed().shared();
        in_flight.insert(key, flight.clone());
        // Driven to its end even if everybody who waits gives up: it frees its place.
        crate::supervise::spawn(flight.clone());
        Some(flight)
    }

    async fn ask(&self, query: &Query) -> Option<Reply> {
        for server in self.upstreams.servers(self.own) {
            match exchange(server, query).await {
                Ok(message) if is_answer(&message) => return Some(reply(message)),
                Ok(message) => tracing::debug!(%server, code = %message.metadata.response_code, "upstream refused"),
                Err(error) => tracing::debug!(%server, %error, "upstream did not answer"),
            }
        }
        None
    }
}

/// Anything else is the server's trouble: the next one may know.
fn is_answer(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn reply(message: Message) -> Reply {
    Reply {
        code: message.metadata.response_code,
        authoritative: false,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}
