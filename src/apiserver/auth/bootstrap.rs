//! The roles and bindings of a fresh cluster.
