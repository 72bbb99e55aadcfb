//! Answers from upstream, bounded in number. Old ones are kept for when the uplink is down. Pure: time is given.

use super::answer::Reply;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Answers remembered; the oldest is forgotten first.
const ANSWERS_LIMIT: usize = 1024;
const TTL_MAX_S: u32 = 300;
const NEGATIVE_TTL_MAX_S: u32 = 30;
/// RFC 8767: an answer out of date is better than none, for a day.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
pub const STALE_TTL_S: u32 = 30;

pub type Key = (String, RecordType);

struct Cached {
    reply: Arc<Reply>,
    stored: Instant,
    ttl: Duration,
}

#[derive(Default)]
pub struct Cache {
    answers: HashMap<Key, Cached>,
    order: VecDeque<Key>,
}

#[derive(Debug, PartialEq)]
pub enum Hit {
    Fresh(Reply),
    Stale(Reply),
    Miss,
}

impl Cache {
    pub fn get(&self, key: &Key, now: Instant) -> Hit {
        let Some(cached) = self.answers.get(key) else { return Hit::Miss };
        let age = now.saturating_duration_since(cached.stored);
        if age < cached.ttl {
            let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            Hit::Fresh(with_ttl(&cached.reply, |ttl_s| ttl_s.saturating_sub(age_s).max(1)))
        } else if age < STALE_MAX {
            Hit::Stale(with_ttl(&cached.reply, |_| STALE_TTL_S))
        } else {
            Hit::Miss
        }
    }

    pub fn put(&mut self, key: Key, reply: Arc<Reply>, now: Instant) {
        let cached = Cached { ttl: Duration::from_secs(u64::from(ttl_s(&reply))), reply, stored: now };
        if self.answers.insert(key.clone(), cached).is_none() {
            self.order.push_back(key);
        }
        while self.answers.len() > ANSWERS_LIMIT {
            let oldest = self.order.pop_front().expect("each answer is in the order");
            self.answers.remove(&oldest);
        }
    }
}

fn ttl_s(reply: &Reply) -> u32 {
    if reply.code == ResponseCode::NoError && !reply.answers.is_empty() {
        let shortest = reply.answers.iter().map(|record| record.ttl).min();
        return shortest.unwrap_or(1).clamp(1, TTL_MAX_S);
    }
    let minimum = reply.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    minimum.unwrap_or(5).clamp(1, NEGATIVE_TTL_MAX_S)
}

fn with_ttl(reply: &Reply, change: impl Fn(u32) -> u32) -> Reply {
    let mut reply = reply.clone();
    for record in reply.answers.iter_mut().chain(&mut reply.authorities).chain(&mut reply.additionals) {
        record.ttl = change(record.ttl);
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record};

    fn reply(ttl_s: u32) -> Arc<Reply> {
        let record = Record::from_rdata(Name::root(), ttl_s, RData::A(A::new(192, 0, 2, 1)));
        Arc::new(Reply { answers: vec![record], ..Reply::failure(ResponseCode::NoError) })
    }

    #[test]
    fn answers_age_go_stale_and_end() {
        let mut cache = Cache::default();
        let (key, start) = (("x".to_owned(), RecordType::A), crate::clock::monotonic());
        cache.put(key.clone(), reply(60), start);
        let after = |seconds| cache.get(&key, start + Duration::from_secs(seconds));
        assert!(matches!(after(10), Hit::Fresh(reply) if reply.answers[0].ttl == 50));
        assert!(matches!(after(61), Hit::Stale(reply) if reply.answers[0].ttl == STALE_TTL_S));
        assert_eq!(after(25 * 3600), Hit::Miss);
        assert_eq!(cache.get(&("y".to_owned(), RecordType::A), start), Hit::Miss);
    }

    #[test]
    fn time_to_live_and_number_are_bounded() {
        assert_eq!((ttl_s(&reply(0)), ttl_s(&reply(99_999))), (1, TTL_MAX_S));
        assert_eq!(ttl_s(&Reply::failure(ResponseCode::NXDomain)), 5);
        let mut cache = Cache::default();
        let now = crate::clock::monotonic();
        for n in 0..ANSWERS_LIMIT + 10 {
            cache.put((n.to_string(), RecordType::A), reply(60), now);
        }
        assert_eq!((cache.answers.len(), cache.order.len()), (ANSWERS_LIMIT, ANSWERS_LIMIT));
        assert_eq!(cache.get(&("0".to_owned(), RecordType::A), now), Hit::Miss);
    }
}
