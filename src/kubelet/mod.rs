//! Makes the pods bound to this node run, one worker per pod: observe, plan (pure), apply.
//! Talks to the API through the client alone and to the machine through the runtime alone.

mod condition;
mod container;
mod dns;
mod downward;
mod env;
mod memory;
mod plan;
mod references;
mod resources;
mod security;
mod status;
mod volume;

/// Opens every container id in a pod's status.
pub const CONTAINER_ID_SCHEME: &str = "edgelet://";
