//! Tests against the real kernel. They need root; each makes what it needs and leaves nothing.

#[path = "node/network.rs"]
mod network;
#[path = "node/runtime.rs"]
mod runtime;
#[path = "node/services.rs"]
mod services;
