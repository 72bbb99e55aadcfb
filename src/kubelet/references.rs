//! The ConfigMaps and Secrets that pods of this node refer to: each followed by one watch of its own,
//! for as long as a pod holds it. A change wakes the pods that hold the object.

use crate::client::informer::Scope;
use crate::client::reflector::Sink;
use crate::client::replica::follow;
use crate::client::{Client, Item, Replica, Resource};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct References {
    client: Client,
    replica: Option<Replica>,
    held: Arc<Mutex<HashMap<Key, Weak<Held>>>>,
}

struct Held {
    state: watch::Sender<State>,
    wakes: Mutex<Vec<Weak<Notify>>>,
    task: AbortHandle,
}

#[derive(Clone)]
enum State {
    Unknown,
    Absent,
    Present(Item),
}

/// A hold on one object.
#[derive(Clone)]
pub struct Reference(Arc<Held>);

/// Why an object is not to be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    #[error("not found")]
    NotFound,
    #[error("timed out waiting for the condition")]
    Timeout,
}

impl References {
    /// With a replica, what it has is used when the server does not answer.
    pub fn new(client: Client, replica: Option<Replica>) -> Self {
        Self { client, replica, held: Arc::default() }
    }

    /// Follows the object while the hold lives, and wakes `wake` after each change.
    pub fn hold(&self, key: Key, wake: &Arc<Notify>) -> Reference {
        let mut held = self.held.lock().expect("no panic while the references are locked");
        let present = held.get(&key).and_then(Weak::upgrade);
        let present = present.unwrap_or_else(|| {
            held.retain(|_, held| held.strong_count() > 0);
            let fresh = self.follow(&key);
            held.insert(key, Arc::downgrade(&fresh));
            fresh
        });
        let mut wakes = present.wakes();
        wakes.retain(|known| known.strong_count() > 0);
        if !wakes.iter().any(|known| known.as_ptr() == Arc::as_ptr(wake)) {
            wakes.push(Arc::downgrade(wake));
        }
        drop(wakes);
        Reference(present)
    }

    fn follow(&self, key: &Key) -> Arc<Held> {
        Arc::new_cyclic(|held: &Weak<Held>| {
            let scope = Scope {
                namespace: key.namespace.clone(),
                field_selector: format!("metadata.name={}", key.name),
                ..Scope::default()
            };
            let follower = Follower(held.clone());
            let following = follow(self.client.clone(), key.resource, scope, follower, self.replica.clone());
            let task = crate::supervise::spawn(following);
            Held { state: watch::Sender::new(State::Unknown), wakes: Mutex::default(), task: task.abort_handle() }
        })
    }
}

impl Held {
    fn wakes(&self) -> MutexGuard<'_, Vec<Weak<Notify>>> {
        self.wakes.lock().expect("no panic while the wakes are locked")
    }

    fn set(&self, state: State) {
        let known = !matches!(*self.state.borrow(), State::Unknown);
        self.state.send_replace(state);
        // The first answer is waited for by whoever asked.
        if known {
            self.wakes().iter().filter_map(Weak::upgrade).for_each(|wake| wake.notify_one());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follower(Weak<Held>);

impl Sink for Follower {
    fn replace(&self, mut listed: Vec<(Arc<str>, Item)>) {
        if let Some(held) = self.0.upgrade() {
            held.set(listed.pop().map_or(State::Absent, |(_, item)| State::Present(item)));
        }
    }
    fn set(&self, _key: Arc<str>, new: Option<Item>) {
        if let Some(held) = self.0.upgrade() {
            held.set(new.map_or(State::Absent, State::Present));
        }
    }
}

impl Reference {
    /// The object as it is now; waits for the first answer only.
    pub async fn get(&self) -> Result<Item, Missing> {
        let mut states = self.0.state.subscribe();
        let known = states.wait_for(|state| !matches!(state, State::Unknown));
        let answer = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, known).await;
        match answer.ok().and_then(Result::ok).as_deref() {
            Some(State::Present(item)) => Ok(item.clone()),
            Some(State::Absent) => Err(Missing::NotFound),
            Some(State::Unknown) | None => Err(Missing::Timeout),
        }
    }
}
