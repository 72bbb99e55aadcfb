//! Certificates, keys and tokens of the cluster's own CA.
