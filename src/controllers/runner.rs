//! Runs one controller: changes become keys in a queue, workers reconcile one key at a time.
//! A panic or an error in one key becomes a later try of that key.

use crate::api::status::Result;
use crate::client::informer::Change;
use crate::client::{Informer, WorkQueue};
use crate::clock::monotonic;
use crate::supervise::Shutdown;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// A look that keeps the thread so long is followed by a rest of the key.
const LONG: Duration = Duration::from_millis(10);
const REST_LIMIT: Duration = Duration::from_secs(2);

/// What a controller does with a key: observe, plan, apply. It may ask to be called again later.
pub trait Reconcile: Send + Sync + 'static {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>>;

    /// How many times as long as a long look a key rests after it.
    fn rests(&self) -> u32 {
        2
    }
}

/// The keys that a change concerns.
pub type Keys = dyn Fn(&Change) -> Vec<String> + Send + Sync;

/// What brings keys.
pub enum Source {
    /// Changes of one informer and the keys they concern.
    Changes(Informer, Box<Keys>),
    /// Keys as the controller itself asks for them.
    Asked(mpsc::Receiver<String>),
    /// All objects of an informer, whenever something outside the API is marked that concerns them.
    Woken(Informer, watch::Receiver<u64>),
}

impl Source {
    pub fn new(informer: &Informer, keys: impl Fn(&Change) -> Vec<String> + Send + Sync + 'static) -> Self {
        Self::Changes(informer.clone(), Box::new(keys))
    }

    /// The objects themselves.
    pub fn own(informer: &Informer) -> Self {
        Self::new(informer, |change| vec![change.key.clone()])
    }
}

/// Runs until shutdown.
pub async fn run(
    name: &'static str,
    controller: Arc<dyn Reconcile>,
    sources: Vec<Source>,
    workers: usize,
    shutdown: Shutdown,
) {
    let queue = WorkQueue::new();
    let mut tasks = JoinSet::new();
    for source in &sources {
        let Source::Changes(informer, _) = source else { continue };
        tokio::select! {
            () = shutdown.requested() => return,
            () = informer.synced() => {}
        }
    }
    for source in sources {
        tasks.spawn(feed(source, queue.clone()).boxed());
    }
    for _ in 0..workers {
        tasks.spawn(work(name, controller.clone(), queue.clone()).boxed());
    }
    // The tasks are aborted when the set is dropped.
    shutdown.requested().await;
}

async fn feed(source: Source, queue: WorkQueue) {
    match source {
        Source::Changes(informer, keys) => {
            let mut changes = informer.subscribe();
            loop {
                let change = changes.next().await;
                for key in keys(&change) {
                    queue.add(&key);
                }
            }
        }
        Source::Asked(mut asked) => {
            while let Some(key) = asked.recv().await {
                queue.add(&key);
            }
        }
        Source::Woken(informer, mut mark) => {
            while mark.changed().await.is_ok() {
                let items = informer.list();
                let identities = items.iter().filter_map(|item| item.identity().ok());
                identities.for_each(|identity| queue.add(&identity.key()));
            }
        }
    }
}

/// Adds up how long a future keeps the thread.
struct Timed<'a, F> {
    future: F,
    busy: &'a mut Duration,
}

impl<F: Future + Unpin> Future for Timed<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let begun = monotonic();
        let polled = self.future.poll_unpin(context);
        *self.busy += begun.elapsed();
        polled
    }
}

/// An object with thousands of children changes all the time while they start, and each look takes long: it may have
/// a part of the thread. What is looked at quickly never waits.
fn rest(busy: Duration, times: u32) -> Duration {
    if busy < LONG { Duration::ZERO } else { (busy * times).min(REST_LIMIT) }
}

/// One worker: takes keys for ever.
pub async fn work(name: &'static str, controller: Arc<dyn Reconcile>, queue: WorkQueue) {
    loop {
        let key = queue.next().await;
        let mut busy = Duration::ZERO;
        let reconcile = Timed { future: controller.reconcile(&key), busy: &mut busy };
        match AssertUnwindSafe(reconcile).catch_unwind().await {
            Ok(Ok(again)) => {
                queue.done_resting(&key, rest(busy, controller.rests()));
                if let Some(delay) = again {
                    queue.add_after(&key, delay);
                }
            }
            Ok(Err(error)) => {
                // Another writer was faster: an everyday matter.
                if error.is_conflict() || error.is_not_found() {
                    tracing::debug!(controller = name, key, %error, "reconcile again");
                } else {
                    tracing::warn!(controller = name, key, %error, "reconcile failed; retrying");
                }
                queue.retry(&key);
            }
            Err(_) => {
                tracing::error!(controller = name, key, "reconcile panicked; retrying");
                queue.retry(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Flaky(Mutex<u32>);

    impl Reconcile for Flaky {
        fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
            Box::pin(async {
                let mut calls = self.0.lock().expect("calls");
                *calls += 1;
                let call = *calls;
                drop(calls);
                assert!(call != 1, "the first call panics");
                if call == 2 { Err(crate::api::status::Status::internal("no")) } else { Ok(None) }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_panics_or_fails_is_tried_again() {
        let controller = Arc::new(Flaky(Mutex::new(0)));
        let queue = WorkQueue::new();
        queue.add("x");
        let worker = tokio::spawn(work("flaky", controller.clone(), queue));
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.abort();
        assert_eq!(*controller.0.lock().expect("calls"), 3);
    }
}
