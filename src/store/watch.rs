//! The event ring and the cursors that read it.

/// A cursor into the ring.
pub struct Watch {}
