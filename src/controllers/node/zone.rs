//! How fast the nodes of a zone may be given up. When many fall silent at once it is more likely the network than
//! they, and evicting their pods would crush the rest. Pure. Source: upstream's node lifecycle controller.

use std::collections::BTreeMap;
use std::time::Duration;

/// A zone needs more lost nodes than this for its state to count as a disruption in part.
const FEW_NODES: usize = 2;
const UNHEALTHY_PERCENT: usize = 55;
/// Zones of at most this size stop evictions during a partial disruption; larger ones slow them down.
const LARGE_ZONE: usize = 50;
const INTERVAL: Duration = Duration::from_secs(10);
const SLOW_INTERVAL: Duration = Duration::from_secs(100);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Ready, and heard of.
    pub ready: usize,
    pub lost: usize,
    /// Heard of so lately that it cannot be lost.
    pub sure: usize,
    /// Of the ready ones, the one on the server's own board: it is heard of when the network is dead, too.
    pub at_home: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nobody is given up, and who was is taken back: the fault is probably ours.
    Never,
    /// Nobody more is given up.
    Stopped,
    /// One node in this time.
    Every(Duration),
}

/// The zone of a node, of its labels.
pub fn zone_of(labels: &BTreeMap<String, String>) -> String {
    let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// The zones as the network shows them. With few other nodes the one at home counts like them: then a lost node is a
/// lost node, and not a sign that we are cut off.
fn far(zones: &BTreeMap<String, Health>) -> Vec<Health> {
    let others: usize = zones.values().map(|health| health.ready + health.lost - health.at_home).sum();
    let counted = |health: &Health| match others > FEW_NODES {
        true => {
            Health { ready: health.ready - health.at_home, sure: health.sure.saturating_sub(health.at_home), ..*health }
        }
        false => *health,
    };
    zones.values().map(counted).filter(|health| health.ready + health.lost > 0).collect()
}

/// `zones`: all there are, by name.
pub fn pace(zones: &BTreeMap<String, Health>, zone: &str) -> Pace {
    let disrupted = |health: &Health| health.ready == 0 && health.lost > 0;
    let known = far(zones);
    if !known.is_empty() && known.iter().all(disrupted) {
        return Pace::Never;
    }
    // Nodes fall silent one after the other even when the cause is one: somebody must be surely alive.
    if known.iter().all(|health| health.sure == 0) {
        return Pace::Stopped;
    }
    let health = zones.get(zone).copied().unwrap_or_default();
    let size = health.ready + health.lost;
    let partly = health.ready > 0 && health.lost > FEW_NODES && health.lost * 100 >= size * UNHEALTHY_PERCENT;
    match partly {
        true if size > LARGE_ZONE => Pace::Every(SLOW_INTERVAL),
        true => Pace::Stopped,
        false => Pace::Every(INTERVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lost_nodes_are_given_up_slowly_or_not_at_all() {
        let (usual, slow) = (Pace::Every(INTERVAL), Pace::Every(SLOW_INTERVAL));
        // Ready and lost of the zone asked about, and of another.
        for ((ready, lost), other, expected) in [
            ((1, 1), None, usual),
            ((1, 2), None, usual),
            ((1, 3), None, Pace::Stopped),
            ((4, 3), None, usual),
            ((3, 4), None, Pace::Stopped),
            ((20, 40), None, slow),
            ((0, 1), None, Pace::Never),
            ((0, 5), None, Pace::Never),
            ((0, 5), Some((3, 0)), usual),
            ((0, 5), Some((0, 3)), Pace::Never),
            ((0, 5), Some((0, 0)), Pace::Never),
        ] {
            let of = |(ready, lost)| Health { ready, lost, sure: ready, at_home: 0 };
            let mut zones = BTreeMap::from([("a".to_owned(), of((ready, lost)))]);
            zones.extend(other.map(|other| ("b".to_owned(), of(other))));
            assert_eq!(pace(&zones, "a"), expected, "{ready} {lost} {other:?}");
        }
        let doubtful = BTreeMap::from([("a".to_owned(), Health { ready: 2, lost: 1, ..Health::default() })]);
        assert_eq!(pace(&doubtful, "a"), Pace::Stopped);
    }

    #[test]
    fn a_server_that_hears_of_its_own_board_alone_is_cut_off() {
        for ((ready, lost, sure), expected) in [
            ((1, 1, 1), Pace::Every(INTERVAL)),
            ((1, 2, 1), Pace::Every(INTERVAL)),
            ((1, 3, 1), Pace::Never),
            ((1, 300, 1), Pace::Never),
            // They fall silent one after the other.
            ((300, 1, 1), Pace::Stopped),
            ((300, 1, 200), Pace::Every(INTERVAL)),
        ] {
            let zones = BTreeMap::from([("a".to_owned(), Health { ready, lost, sure, at_home: 1 })]);
            assert_eq!(pace(&zones, "a"), expected, "{ready} {lost} {sure}");
        }
    }
}
