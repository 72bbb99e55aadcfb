//! Tests against the real kernel. They need root; each makes what it needs and leaves nothing.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test ends at the first surprise"
)]

#[path = "node/bed.rs"]
mod bed;
#[path = "node/demo.rs"]
mod demo;
#[path = "node/fleet.rs"]
mod fleet;
#[path = "node/idle.rs"]
mod idle;
#[path = "node/install.rs"]
mod install;
#[path = "node/network.rs"]
mod network;
#[path = "node/peers.rs"]
mod peers;
#[path = "node/power.rs"]
mod power;
#[path = "node/relay.rs"]
mod relay;
#[path = "node/runtime.rs"]
mod runtime;
#[path = "node/services.rs"]
mod services;
#[path = "node/silence.rs"]
mod silence;
#[path = "node/streams.rs"]
mod streams;
#[path = "node/takeover.rs"]
mod takeover;
#[path = "node/tpm.rs"]
mod tpm;
