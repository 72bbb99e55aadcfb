//! Whom to evict so that a pod of higher priority fits. Pure; upstream's DefaultPreemption without disruption budgets.

use super::decide::histogram;
use super::filter::{Cycle, Rejection, rejections};
use super::snapshot::{NodeInfo, PodInfo, Snapshot};
use std::cmp::Reverse;
use std::sync::Arc;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

pub enum Preemption {
    Evict {
        node: String,
        victims: Vec<Arc<PodInfo>>,
    },
    /// Why each node does not help.
    InVain(Vec<&'static str>),
    NotEligible(&'static str),
    NoNodes,
}

impl Preemption {
    /// The part of the message after `preemption: `.
    pub fn message(&self, nodes: usize) -> Option<String> {
        match self {
            Self::Evict { .. } | Self::NoNodes => None,
            Self::InVain(reasons) => {
                Some(format!("0/{nodes} nodes are available: {}.", histogram(reasons.iter().copied())))
            }
            Self::NotEligible(why) => Some((*why).to_owned()),
        }
    }
}

pub fn preempt(cycle: &Cycle, snapshot: &Snapshot, rejected: &[(&NodeInfo, Vec<Rejection>)]) -> Preemption {
    if rejected.is_empty() {
        return Preemption::NoNodes;
    }
    if let Some(why) = not_eligible(cycle, snapshot) {
        return Preemption::NotEligible(why);
    }
    let (mut candidates, mut reasons) = (Vec::new(), Vec::new());
    for (node, found) in rejected {
        // The counts of spread and affinity are of the pods as they are: such nodes are left alone.
        if found.iter().any(|one| !one.preemptible || one.neighbours) {
            reasons.push(NOT_HELPFUL);
        } else if let Some(victims) = victims(cycle, node) {
            candidates.push((*node, victims));
        } else {
            reasons.push(NO_VICTIMS);
        }
    }
    match candidates.into_iter().min_by_key(|(node, victims)| cost(node, victims)) {
        Some((node, victims)) => Preemption::Evict { node: node.name.clone(), victims },
        None => Preemption::InVain(reasons),
    }
}

fn not_eligible(cycle: &Cycle, snapshot: &Snapshot) -> Option<&'static str> {
    if !cycle.pod.preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = snapshot.node(&cycle.pod.nominated_node)?;
    let leaving = |pod: &Arc<PodInfo>| pod.terminating && pod.priority < cycle.pod.info.priority;
    nominated.pods.values().any(leaving).then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The fewest pods of lower priority without which the pod fits; the most important are kept first.
fn victims(cycle: &Cycle, node: &NodeInfo) -> Option<Vec<Arc<PodInfo>>> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.values().filter(|pod| pod.priority < cycle.pod.info.priority).cloned().collect();
    let mut trial = node.clone();
    for pod in &lower {
        trial.remove(&pod.key());
    }
    if lower.is_empty() || !rejections(cycle, &trial).is_empty() {
        return None;
    }
    lower.sort_by_key(|pod| (Reverse(pod.priority), pod.start_time.clone()));
    lower.retain(|pod| {
        trial.add(pod.clone());
        let evicted = !rejections(cycle, &trial).is_empty();
        if evicted {
            trial.remove(&pod.key());
        }
        evicted
    });
    lower.sort_by_key(|pod| pod.key());
    Some(lower)
}

/// Low victims first, then few, then young.
fn cost(node: &NodeInfo, victims: &[Arc<PodInfo>]) -> (i64, i64, usize, Reverse<Option<String>>, String) {
    let highest = victims.iter().map(|pod| pod.priority).max().unwrap_or(i64::MIN);
    let sum = victims.iter().map(|pod| pod.priority.saturating_add(1 << 31)).fold(0, i64::saturating_add);
    let oldest = victims.iter().filter(|pod| pod.priority == highest).filter_map(|pod| pod.start_time.clone()).min();
    (highest, sum, victims.len(), Reverse(oldest), node.name.clone())
}
