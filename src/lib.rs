//! edgelet: a Kubernetes-compatible orchestrator for fleets of small ARM boards, in one process.
//!
//! # The map
//!
//! One idea: **a set of objects with revisions; everything else is a loop that observes (a cache),
//! plans (a pure function) and applies (verbs).** Loops are level-triggered and woken by events: a lost
//! event costs latency, never correctness, and nothing polls.
//!
//! The way of a pod through the house, in the order of the modules below:
//!
//! ```text
//!  kubectl · Helm · edgelet CLI · any client
//!      │ HTTPS: client certificate or token
//!  apiserver   request → user → permission → row of the kind table
//!      │
//!  registry    decode → default → admit → validate → patch → encode once
//!      │
//!  store       one writer, group commit, SQLite; revision; event ring
//!      │ watch: the same shared bytes go to every watcher
//!  ┌───┴───────────────────────────────┐
//!  scheduler   controllers              kubelet → runtime (a shim per pod → libcontainer), image, network
//!    binds       children, endpoints       └ status → back through the API
//!                                       proxy, dns: read Services and EndpointSlices
//!                                       peers: reads Nodes; routes and tunnels between the nodes' pods
//! ```
//!
//! Deletion walks the same way back: graceful delete in the registry → the kubelet stops containers →
//! network and volumes are released → final delete → endpoints, rules and names are gone.
//!
//! # What holds, and cannot be seen in one place
//!
//! * Files import downward only; `tests/tidy.rs` holds the table of floors and checks it.
//! * The loops (floor 5) never import each other, the registry or the store: they meet through objects.
//! * The store knows keys and bytes, never kinds. `api` does no I/O, reads no clock and draws no random number.
//! * Objects are bytes (compact JSON) everywhere but in the one request or reconcile that works on them.
//! * libcontainer never runs in this process: it clones, and this process has threads. The shim has one.
//! * A shim outlives this process. Whatever it needs it holds; whatever it saw it has written down.
//! * A replica never decides what is true: no pod is removed because a replica does not know it.
//! * A pod's name is given away when its node confirms its end, is declared gone, or had promised that end (`api::fencing`).
//! * `peers` decides by packets that passed, never by what a subnet looks like; its routes outlive a restart.
//! * A packet of a pod enters this process only on the relay, the last of all ways; there it waits for nobody.
//! * `dns` and `proxy` never talk to the API server themselves; rules and names outlive a restart of it.
//! * No `ip`, `nft`, `iptables` or `runc` is called. No name goes through getaddrinfo.
//! * Time comes from `clock` alone, so that a test owns it.
//! * All `unsafe` code is in `sys`, but for the shim's fork.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss))]

// Floor 0: the machine.
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

// Floor 3: verbs over objects, verbs over containers, the connection between server and node, a server in one file.
pub mod backup;
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
pub mod peers;
pub mod proxy;
pub mod scheduler;

// Floor 6: wiring.
pub mod config;
pub mod node;
pub mod server;

// Floor 7: argv.
pub mod cli;
