//! A list that is kept on disk: what the server says goes to the sink and to the replica; while the server does
//! not answer, the sink gets what the replica has.

use super::Replica;
use crate::client::informer::Scope;
use crate::client::reflector::{Sink, reflect};
use crate::client::{Client, Item, Resource};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// As `reflect`, with the replica behind it if there is one. Runs until it is dropped.
pub async fn follow(client: Client, resource: Resource, scope: Scope, sink: impl Sink, replica: Option<Replica>) {
    let Some(replica) = replica else { return reflect(client, resource, scope, sink).await };
    let kept = Arc::new(Kept { sink, replica, resource, scope: scope.clone(), shown: AtomicBool::new(false) });
    let patience = async {
        tokio::time::sleep(kept.replica.patience()).await;
        kept.show_replica();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reflect(client, resource, scope, kept.clone()) => {}
        () = patience => {}
    }
}

struct Kept<S> {
    sink: S,
    replica: Replica,
    resource: Resource,
    scope: Scope,
    /// The sink has been shown something, by the server or from the replica.
    shown: AtomicBool,
}

impl<S: Sink> Kept<S> {
    /// Once: after that the sink knows all that the replica knows.
    fn show_replica(&self) {
        if self.shown.load(Ordering::Relaxed) {
            return;
        }
        if let Some(loaded) = self.replica.load(self.resource, &self.scope) {
            self.shown.store(true, Ordering::Relaxed);
            tracing::debug!(resource = self.resource.plural, objects = loaded.len(), "no server; using the replica");
            self.sink.replace(loaded);
            self.sink.reached("0");
        }
    }
}

impl<S: Sink> Sink for Arc<Kept<S>> {
    fn replace(&self, listed: Vec<(Arc<str>, Item)>) {
        self.shown.store(true, Ordering::Relaxed);
        self.replica.replace(self.resource, &self.scope, &listed);
        self.sink.replace(listed);
    }
    fn set(&self, key: Arc<str>, new: Option<Item>) {
        self.replica.set(self.resource, &self.scope, &key, new.as_ref());
        self.sink.set(key, new);
    }
    fn reached(&self, revision: &str) {
        self.sink.reached(revision);
    }
    fn answered(&self) {
        self.sink.answered();
    }
    fn lost(&self) {
        self.show_replica();
        self.sink.lost();
    }
}
