//! Cluster DNS, answered on each node from the replica.
