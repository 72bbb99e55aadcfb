//! The store without a disk, for tests.
