//! Wires a control plane: store, registry, API server, scheduler, controllers.
