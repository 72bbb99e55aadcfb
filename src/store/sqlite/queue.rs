//! The bounded queue in front of the writer thread: askers wait without blocking, the thread waits for a batch.
//! A thread that has just served several askers waits a moment for them to come back, so that they share a commit.

use super::writer::Request;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Requests that wait for the writer thread; more wait in their askers.
const QUEUE_LIMIT: usize = 1024;
/// How long a commit waits for the askers of the last one: far less than a disk takes, enough for their next request.
const REJOIN_LIMIT: Duration = Duration::from_micros(300);

pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    room: Semaphore,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Request>,
    /// Nobody can ask any more.
    abandoned: bool,
    /// Nobody will answer any more.
    closed: bool,
}

impl Queue {
    pub fn new() -> Self {
        Self { state: Mutex::default(), filled: Condvar::new(), room: Semaphore::new(QUEUE_LIMIT) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the queue is locked")
    }

    /// Gives the request back when the writer has ended.
    pub async fn push(&self, request: Request) -> Result<(), Request> {
        match self.room.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(request),
        }
        {
            let mut state = self.lock();
            // Between the permit and here the writer may have ended.
            if state.closed {
                return Err(request);
            }
            state.requests.push_back(request);
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Lets the writer end once it has done what is queued.
    pub fn abandon(&self) {
        self.lock().abandoned = true;
        self.filled.notify_one();
    }

    /// Refuses every request from now on.
    pub fn close(&self) {
        self.room.close();
        let mut state = self.lock();
        state.closed = true;
        state.requests.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.lock().requests.is_empty()
    }

    /// Waits for requests, at least one, and for `usual` of them a moment longer. `None`: there will be none.
    pub fn wait(&self, usual: usize) -> Option<()> {
        let waited = self.filled.wait_while(self.lock(), |state| state.requests.is_empty() && !state.abandoned);
        let state = waited.expect("no panic while the queue is locked");
        if state.requests.is_empty() {
            return None;
        }
        let rejoined = self.filled.wait_timeout_while(state, REJOIN_LIMIT, |state| state.requests.len() < usual);
        drop(rejoined.expect("no panic while the queue is locked"));
        Some(())
    }

    /// Waits until nobody has asked for `quiet`; `false` as soon as somebody does, or when there is to be an end.
    pub fn is_quiet_for(&self, quiet: Duration) -> bool {
        let is_idle = |state: &mut State| state.requests.is_empty() && !state.abandoned;
        let waited = self.filled.wait_timeout_while(self.lock(), quiet, is_idle);
        waited.expect("no panic while the queue is locked").1.timed_out()
    }

    pub fn pop(&self) -> Option<Request> {
        let request = self.lock().requests.pop_front()?;
        self.room.add_permits(1);
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_quiet_as_long_as_nobody_asks_and_somebody_could() {
        let queue = Queue::new();
        assert!(queue.is_quiet_for(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!queue.is_quiet_for(Duration::from_secs(60)), "an end is not waited for"));
            queue.abandon();
        });
        assert!(!queue.is_quiet_for(Duration::ZERO));
    }
}
