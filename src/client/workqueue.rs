//! A queue of keys: each at most once in it, each worked on by one worker at a time, with backoff.
//! Source of behaviour: client-go's rate limiting work queue.

use std::time::Duration;

/// Cheap to clone.
#[derive(Clone)]
pub struct WorkQueue {}

impl Default for WorkQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WorkQueue {
    pub fn new() -> Self {
        Self {}
    }
    /// Adds a key; while it is being worked on, it is handed out again afterwards.
    pub fn add(&self, _key: &str) {
        unimplemented!()
    }
    pub fn add_after(&self, _key: &str, _delay: Duration) {
        unimplemented!()
    }
    /// Waits for a key. Call `done` (or `retry`) with it afterwards.
    pub async fn next(&self) -> String {
        unimplemented!()
    }
    /// Success: forgets the key's failures.
    pub fn done(&self, _key: &str) {
        unimplemented!()
    }
    /// Failure: hands the key out again after a backoff from 5 ms, doubling, to 5 min.
    pub fn retry(&self, _key: &str) {
        unimplemented!()
    }
}
