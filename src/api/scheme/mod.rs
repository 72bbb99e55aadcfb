//! The scheme: one compact table of every type, its fields, tags, keys and defaults.
