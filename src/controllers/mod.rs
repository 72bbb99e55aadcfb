//! The list of controllers and the runner that wakes them.
