//! What becomes of a pod on a node that is given up. A fenced pod ends by itself (`api::fencing`): once that is
//! certain, its name is free, long before anybody declares its node lost. Pure.

use super::eviction::{PodFacts, Stay};
use crate::api::fencing;
use jiff::Timestamp;
use std::time::Duration;

/// Clocks of boards do not run alike; quartz drifts by a thousandth of this.
const RATE_PERCENT: u32 = 1;
/// A Lease is renewed up to 8 s after the sign of life that it stands for, and a connection that breaks in between
/// leaves it as it was; the rest is for what takes its time on a busy board.
const MARGIN: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// Nothing yet; look again after this.
    Waits(Duration),
    /// It is asked to end; look again after this, if its end will be certain.
    Evicted(Option<Duration>),
    /// Nothing of it runs any more, for certain.
    Over,
}

/// `silence`: how long the node has not been heard, when it is silent.
pub fn fate(pod: &PodFacts, stay: Stay, now: Timestamp, silence: Option<Duration>) -> Fate {
    let ends_in = silence.and_then(|silence| Some(over_after(pod)?.saturating_sub(silence)));
    let is_to_go = pod.metadata.is_deleting() || stay == Stay::Over || matches!(stay, Stay::Until(end) if end <= now);
    match (is_to_go, ends_in, stay) {
        (true, Some(Duration::ZERO), _) => Fate::Over,
        (true, ends_in, _) if pod.metadata.is_deleting() => ends_in.map_or(Fate::Stays, Fate::Waits),
        (true, ends_in, _) => Fate::Evicted(ends_in),
        (false, _, Stay::Until(end)) => Fate::Waits(Duration::try_from(end.duration_since(now)).unwrap_or_default()),
        (false, ..) => Fate::Stays,
    }
}

/// After this much silence of its node nothing of the pod runs; `None`: nobody has promised that.
fn over_after(pod: &PodFacts) -> Option<Duration> {
    let promised = u64::try_from(fencing::promised_s(&pod.status.conditions)?).ok()?;
    let promised = Duration::from_secs(promised);
    Some(promised + promised * RATE_PERCENT / 100 + MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(deleting: bool, promised: Option<i64>) -> PodFacts {
        let condition =
            |seconds| json!({"type": fencing::CONDITION, "status": "True", "reason": fencing::reason(seconds)});
        let conditions: Value = promised.map(condition).into_iter().collect();
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"conditions": conditions}});
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_pod_is_over_only_when_its_node_has_promised_so_and_the_time_has_come() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let (seconds, silent) = (Duration::from_secs, |seconds| Some(Duration::from_secs(seconds)));
        let past = Stay::Until(now);
        let later = Stay::Until(now.saturating_add(seconds(60)).expect("a time"));
        // 340 s and a hundredth, and the margin: 358.4 s.
        let bound = Duration::from_millis(358_400);
        for (deleting, promised, stay, silence, expected) in [
            (false, None, past, silent(9999), Fate::Evicted(None)),
            (false, None, later, silent(9999), Fate::Waits(seconds(60))),
            (false, None, Stay::Forever, silent(9999), Fate::Stays),
            (true, None, past, silent(9999), Fate::Stays),
            (false, Some(340), past, silent(340), Fate::Evicted(Some(bound - seconds(340)))),
            (true, Some(340), past, silent(340), Fate::Waits(bound - seconds(340))),
            (true, Some(340), past, silent(358), Fate::Waits(Duration::from_millis(400))),
            (true, Some(340), past, silent(359), Fate::Over),
            (false, Some(340), past, silent(359), Fate::Over),
            (true, Some(340), Stay::Forever, silent(359), Fate::Over),
            (false, Some(340), Stay::Forever, silent(9999), Fate::Stays),
            (false, Some(340), later, silent(9999), Fate::Waits(seconds(60))),
            // A node that is heard and not ready ends its pods itself.
            (true, Some(340), past, None, Fate::Stays),
            (false, Some(340), past, None, Fate::Evicted(None)),
        ] {
            let fate = fate(&pod(deleting, promised), stay, now, silence);
            assert_eq!(fate, expected, "{deleting} {promised:?} {stay:?} {silence:?}");
        }
    }
}
