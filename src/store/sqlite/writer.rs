//! The writer thread: takes what has queued up, compares in memory, commits once, publishes, answers.
//! Lazy writes stay in memory for the next commit; there is no timer, so an idle store writes nothing.

use super::database::{Database, Row};
use super::queue::Queue;
use crate::clock::monotonic;
use crate::store::cache::{Cache, plan};
use crate::store::{Durability, Entry, Event, StoreError, Write, splice};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// One commit takes at most so many writes …
const BATCH_LIMIT: usize = 256;
/// … or so many bytes.
const BATCH_LIMIT_BYTES: usize = 1024 * 1024;
/// Lazy values in memory beyond which they are committed by themselves.
const LAZY_LIMIT_BYTES: usize = 1024 * 1024;
/// After so much was written, what the burst has left free is given back to the kernel …
const GIVE_BACK_BYTES: usize = 256 * 1024;
/// … once nothing durable was written for so long.
const GIVE_BACK_QUIET: Duration = Duration::from_secs(2);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    /// `at` is the caller's time: the writer thread does not see a test's clock.
    Write {
        write: Write,
        at: Instant,
        answer: Answer<Arc<Entry>>,
    },
    Close {
        answer: Answer<()>,
    },
}

pub(super) struct Writer {
    database: Database,
    cache: Arc<Cache>,
    queue: Arc<Queue>,
    /// The newest revision given out, also to writes whose commit failed.
    newest: u64,
    /// Keys whose last state is in memory only.
    lazy: BTreeSet<Box<str>>,
    lazy_bytes: usize,
    /// Durable bytes written since memory was last given back, and when the last of them were.
    burst_bytes: usize,
    busy_at: Instant,
}

/// However the writer ends, by a panic too, nobody may go on waiting for it.
struct Closing(Arc<Queue>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What one commit covers.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    answers: Vec<Answer<Arc<Entry>>>,
    at: Option<Instant>,
    bytes: usize,
    close: Option<Answer<()>>,
}

impl Batch {
    fn add(&mut self, request: Request) {
        match request {
            Request::Write { write, at, answer } => {
                self.bytes += write.value.as_ref().map_or(0, bytes::Bytes::len);
                self.at = Some(at);
                self.writes.push(write);
                self.answers.push(answer);
            }
            Request::Close { answer } => self.close = Some(answer),
        }
    }

    fn is_durable(&self) -> bool {
        self.writes.iter().any(|write| write.durability == Durability::Durable)
    }

    fn is_full(&self) -> bool {
        self.writes.len() >= BATCH_LIMIT || self.bytes >= BATCH_LIMIT_BYTES || self.close.is_some()
    }
}

/// The batch compared with memory: what happens, and what each caller will hear.
#[derive(Default)]
struct Plan {
    events: Vec<Event>,
    outcomes: Vec<Result<Arc<Entry>, StoreError>>,
    /// Keys as the accepted writes of this batch leave them.
    overlay: HashMap<Box<str>, Option<Arc<Entry>>>,
    durable: bool,
    lazy_bytes: usize,
}

impl Writer {
    pub fn new(database: Database, cache: Arc<Cache>, queue: Arc<Queue>) -> Self {
        let newest = cache.revision();
        Self {
            database,
            cache,
            queue,
            newest,
            lazy: BTreeSet::new(),
            lazy_bytes: 0,
            burst_bytes: 0,
            busy_at: monotonic(),
        }
    }

    pub fn run(mut self) {
        let queue = self.queue.clone();
        let _closing = Closing(queue.clone());
        let mut usual = 1;
        while queue.wait(usual).is_some() {
            let mut batch = self.gather();
            usual = batch.writes.len();
            if batch.is_durable() {
                (self.burst_bytes, self.busy_at) = (self.burst_bytes + batch.bytes, monotonic());
            }
            let close = batch.close.take();
            self.commit(batch);
            if let Some(answer) = close {
                queue.close();
                // The asker may have gone; the store is closed all the same.
                let _ = answer.send(self.finish());
                return;
            }
            if let Err(error) = self.database.checkpoint(queue.is_empty()) {
                tracing::warn!(%error, "checkpoint failed; the log grows until the next one");
            }
            self.give_back();
        }
        queue.close();
        if let Err(error) = self.finish() {
            tracing::error!(%error, "closing the store failed");
        }
    }

    /// Leases are renewed all the time in a large fleet: lazy writes neither make a burst nor keep one going.
    fn give_back(&mut self) {
        let is_over = || self.queue.is_quiet_for(GIVE_BACK_QUIET.saturating_sub(self.busy_at.elapsed()));
        if self.burst_bytes >= GIVE_BACK_BYTES && is_over() {
            crate::sys::memory::give_back();
            self.burst_bytes = 0;
        }
    }

    fn gather(&self) -> Batch {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let Some(next) = self.queue.pop() else { break };
            batch.add(next);
        }
        batch
    }

    fn commit(&mut self, batch: Batch) {
        let Batch { writes, answers, at: Some(at), .. } = batch else { return };
        let plan = self.plan(&writes);
        let must = plan.durable
            || !self.database.reserved(self.newest)
            || self.lazy_bytes + plan.lazy_bytes > LAZY_LIMIT_BYTES;
        let outcomes = match self.keep(&plan, &writes, must && !plan.events.is_empty()) {
            Ok(()) => {
                self.cache.publish(plan.events, at);
                plan.outcomes
            }
            Err(error) => {
                tracing::error!(%error, "commit failed; its writes are refused");
                plan.outcomes.into_iter().map(|_| Err(error.clone())).collect()
            }
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // A caller that was cancelled does not wait for its answer.
            let _ = answer.send(outcome);
        }
    }

    fn plan(&mut self, writes: &[Write]) -> Plan {
        let mut all = Plan::default();
        for write in writes {
            let current = match all.overlay.get(&write.key) {
                Some(state) => state.clone(),
                None => self.cache.get(&write.key),
            };
            let outcome = plan(current, write, self.newest + 1).map(|event| {
                self.newest += 1;
                all.durable |= write.durability == Durability::Durable;
                all.lazy_bytes += write.value.as_ref().map_or(0, bytes::Bytes::len) + write.key.len();
                all.overlay.insert(write.key.clone(), event.current.clone());
                let shown = event.shown().clone();
                all.events.push(event);
                shown
            });
            all.outcomes.push(outcome);
        }
        all
    }

    /// Commits the batch and every lazy value before it, or notes that the batch is lazy too.
    fn keep(&mut self, plan: &Plan, writes: &[Write], on_disk: bool) -> Result<(), StoreError> {
        if on_disk {
            self.write_out(plan, writes)?;
            self.lazy.clear();
            self.lazy_bytes = 0;
        } else {
            self.lazy.extend(plan.overlay.keys().cloned());
            self.lazy_bytes += plan.lazy_bytes;
        }
        Ok(())
    }

    fn write_out(&mut self, plan: &Plan, writes: &[Write]) -> Result<(), StoreError> {
        let unwritten = self.lazy.iter().filter(|key| !plan.overlay.contains_key(*key));
        let earlier: Vec<Unwritten> = unwritten.map(|key| Unwritten::new(&self.cache, key)).collect();
        let earlier = earlier.iter().map(Unwritten::row);
        // An accepted write's value is at hand as it was sent; the last one of a key is its state.
        let accepted = writes.iter().zip(&plan.outcomes).filter_map(|(write, outcome)| {
            let entry = outcome.as_ref().ok()?;
            let last = match &plan.overlay[&write.key] {
                Some(state) => Arc::ptr_eq(state, entry),
                None => write.value.is_none(),
            };
            last.then(|| write.value.as_ref().map_or(Row::Delete { key: &write.key }, |value| put(entry, value)))
        });
        self.database.commit(earlier.chain(accepted), self.newest).map_err(StoreError::engine)
    }

    fn finish(self) -> Result<(), StoreError> {
        let Self { mut database, cache, lazy, newest, .. } = self;
        let past = cache.close();
        let states: Vec<Unwritten> = lazy.iter().map(|key| Unwritten::new(&cache, key)).collect();
        let rows = states.iter().map(Unwritten::row);
        database.commit(rows, newest).map_err(StoreError::engine)?;
        database.finish(newest, &past).map_err(StoreError::engine)
    }
}

/// The last state of a key that is in memory only, as it is to be stored.
struct Unwritten<'a> {
    key: &'a str,
    state: Option<(Arc<Entry>, Vec<u8>)>,
}

impl<'a> Unwritten<'a> {
    fn new(cache: &Cache, key: &'a str) -> Self {
        let state = cache.get(key).map(|entry| {
            let value = splice::remove(&entry.bytes, entry.splice_at);
            (entry, value)
        });
        Self { key, state }
    }

    fn row(&self) -> Row<'_> {
        match &self.state {
            Some((entry, value)) => put(entry, value),
            None => Row::Delete { key: self.key },
        }
    }
}

fn put<'a>(entry: &'a Entry, value: &'a [u8]) -> Row<'a> {
    Row::Put { key: &entry.key, create_revision: entry.create_revision, revision: entry.revision, value }
}
