//! The objects in memory and their order of revisions; both engines stand on it.
