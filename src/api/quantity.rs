//! Kubernetes quantities: parsing, canonical form, arithmetic.
