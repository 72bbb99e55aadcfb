//! edgelet: a Kubernetes-compatible orchestrator for fleets of small ARM boards, in one process.
//!
//! A set of objects with revisions; everything else is a loop that observes (cache), plans (a pure
//! function) and applies (verbs). Loops are level-triggered and woken by events.

// Floor 0: the machine. All `unsafe` code lives in `sys`.
pub mod clock;
pub mod supervise;
pub mod sys;
pub mod telemetry;

// Floor 1: pure API machinery.
pub mod api;

// Floor 2: what keeps state.
pub mod image;
pub mod network;
pub mod pki;
pub mod store;

// Floor 3: verbs over objects, verbs over containers, the connection between server and node.
pub mod registry;
pub mod runtime;
pub mod tunnel;

// Floor 4: HTTP in, REST verbs out.
pub mod apiserver;
pub mod client;

// Floor 5: the loops.
pub mod controllers;
pub mod dns;
pub mod kubelet;
pub mod proxy;
pub mod scheduler;

// Floor 6: wiring.
pub mod config;
pub mod node;
pub mod server;

// Floor 7: argv.
pub mod cli;
