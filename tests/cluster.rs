//! Stories of a whole cluster in one thread: the real registry on the in-memory store, the real loops, time paused,
//! and nodes whose pods run as soon as they are bound.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "a test ends at what it did not expect"
)]

#[path = "cluster/addresses.rs"]
mod addresses;
#[path = "cluster/attacks.rs"]
mod attacks;
#[path = "cluster/clocks.rs"]
mod clocks;
#[path = "cluster/daemonset.rs"]
mod daemonset;
#[path = "cluster/deployment.rs"]
mod deployment;
#[path = "cluster/disruption.rs"]
mod disruption;
#[path = "cluster/fenced.rs"]
mod fenced;
#[path = "cluster/fleet.rs"]
mod fleet;
#[path = "cluster/job.rs"]
mod job;
#[path = "cluster/joined.rs"]
mod joined;
#[path = "cluster/line.rs"]
mod line;
#[path = "cluster/loss.rs"]
mod loss;
#[path = "cluster/nodes.rs"]
mod nodes;
#[path = "cluster/ownership.rs"]
mod ownership;
#[path = "cluster/renewal.rs"]
mod renewal;
#[path = "cluster/scale.rs"]
mod scale;
#[path = "cluster/trust.rs"]
mod trust;
#[path = "cluster/world.rs"]
mod world;
