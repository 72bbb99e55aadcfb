//! List and watch of one resource, for ever: resumes a broken watch where it stopped, lists again after 410.
//! What is done with the objects is the sink's business.

use super::informer::Scope;
use super::{Client, Item, Resource, WatchEvent};
use crate::api::status::{Result, Status};
use crate::clock::monotonic;
use crate::registry::ListOptions;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;

const PAGE_LIMIT: usize = 500;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LIMIT: Duration = Duration::from_secs(30);
/// A watch that lived so long was healthy: its end is no failure.
const HEALTHY: Duration = Duration::from_secs(5);

/// Receives the objects of one resource. Keys are `namespace/name`, `/name` for cluster-scoped objects.
pub trait Sink: Send + Sync + 'static {
    /// Everything there is: what is not listed is gone.
    fn replace(&self, listed: Vec<(Arc<str>, Item)>);
    /// One object changed; `None` = deleted.
    fn set(&self, key: Arc<str>, new: Option<Item>);
    /// All changes up to this revision have been handed over.
    fn reached(&self, _revision: &str) {}
    /// The server has answered a list or a watch.
    fn answered(&self) {}
    /// The server does not answer, or has refused.
    fn lost(&self) {}
}

/// How a watch ended.
enum End {
    /// Watch again from the last revision seen.
    Resume,
    /// The server no longer has that revision.
    Relist,
}

/// Runs until it is dropped.
pub async fn reflect(client: Client, resource: Resource, scope: Scope, sink: impl Sink) {
    let mut backoff = Duration::ZERO;
    let mut revision = None;
    loop {
        let started = monotonic();
        match pass(&client, resource, &scope, &sink, &mut revision).await {
            Ok(End::Resume) => {}
            Ok(End::Relist) => revision = None,
            Err(error) => {
                sink.lost();
                if backoff.is_zero() {
                    tracing::warn!(resource = resource.plural, %error, "list or watch failed; retrying");
                }
            }
        }
        backoff = if started.elapsed() >= HEALTHY { BACKOFF_FIRST } else { next_backoff(backoff) };
        tokio::select! {
            () = tokio::time::sleep(jittered(backoff, fastrand::f64())) => {}
            () = client.reconnected() => backoff = Duration::ZERO,
        }
    }
}

/// Lists if there is no revision to resume from, then watches until the watch ends.
async fn pass(
    client: &Client,
    resource: Resource,
    scope: &Scope,
    sink: &impl Sink,
    revision: &mut Option<String>,
) -> Result<End> {
    let from = match revision.take() {
        Some(from) => from,
        None => list(client, resource, scope, sink).await?,
    };
    let seen = revision.insert(from);
    let options = ListOptions {
        label_selector: scope.label_selector.clone(),
        field_selector: scope.field_selector.clone(),
        resource_version: seen.clone(),
        allow_bookmarks: true,
        ..ListOptions::default()
    };
    let mut stream = match client.watch(resource, &scope.namespace, &options).await {
        Err(error) if is_stale(&error) => return Ok(End::Relist),
        other => other?,
    };
    sink.answered();
    while let Some(event) = stream.next().await {
        match event {
            Err(error) if is_stale(&error) => return Ok(End::Relist),
            Err(error) => return Err(error),
            Ok(event) => {
                *seen = apply(event, sink)?;
                sink.reached(seen);
            }
        }
    }
    Ok(End::Resume)
}

/// Whether the server cannot watch from our revision: too old, or, after a restore of its data, not yet reached.
fn is_stale(error: &Status) -> bool {
    error.is_expired() || error.message.contains("Too large resource version")
}

/// Hands the event to the sink; the revision to resume after it.
fn apply(event: WatchEvent, sink: &impl Sink) -> Result<String> {
    let (item, deleted) = match event {
        WatchEvent::Bookmark { resource_version, .. } => return Ok(resource_version),
        WatchEvent::Added(item) | WatchEvent::Modified(item) => (item, false),
        WatchEvent::Deleted(item) => (item, true),
    };
    let identity = item.identity()?;
    let (key, revision) = (identity.key().into(), identity.resource_version.into_owned());
    sink.set(key, (!deleted).then_some(item));
    Ok(revision)
}

/// Lists all pages into the sink; the revision to watch from.
async fn list(client: &Client, resource: Resource, scope: &Scope, sink: &impl Sink) -> Result<String> {
    let mut listed = Vec::new();
    let mut options = ListOptions {
        label_selector: scope.label_selector.clone(),
        field_selector: scope.field_selector.clone(),
        limit: PAGE_LIMIT,
        ..ListOptions::default()
    };
    loop {
        let page = client.list(resource, &scope.namespace, &options).await?;
        for item in page.items {
            let key = Arc::from(item.identity()?.key());
            listed.push((key, item));
        }
        if page.continue_token.is_empty() {
            sink.replace(listed);
            sink.reached(&page.resource_version);
            sink.answered();
            return Ok(page.resource_version);
        }
        if page.continue_token == options.continue_token {
            return Err(Status::internal("list does not advance"));
        }
        options.continue_token = page.continue_token;
    }
}

fn next_backoff(last: Duration) -> Duration {
    (last * 2).clamp(BACKOFF_FIRST, BACKOFF_LIMIT)
}

/// Half to all of the wait, so that many clients of one server do not return in step.
fn jittered(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    type Log = Arc<Mutex<Vec<String>>>;

    impl Sink for Log {
        fn replace(&self, listed: Vec<(Arc<str>, Item)>) {
            self.lock().expect("log").push(format!("replace {}", listed.len()));
        }
        fn set(&self, key: Arc<str>, new: Option<Item>) {
            self.lock().expect("log").push(format!("{key} {}", new.is_some()));
        }
    }

    #[test]
    fn events_reach_the_sink_and_move_the_revision() {
        let item = |text: &'static str| Item(bytes::Bytes::from_static(text.as_bytes()));
        let pod = || item(r#"{"metadata":{"resourceVersion":"7","name":"x","namespace":"a","uid":"u"}}"#);
        let node = || item(r#"{"kind":"Node","metadata":{"name":"n","resourceVersion":"9"}}"#);
        let bookmark = WatchEvent::Bookmark { resource_version: "12".into(), initial_events_end: false };
        let log = Log::default();
        let seen: Vec<String> = [WatchEvent::Added(pod()), WatchEvent::Deleted(node()), bookmark]
            .into_iter()
            .map(|event| apply(event, &log).expect("event"))
            .collect();
        assert_eq!(seen, ["7", "9", "12"]);
        assert_eq!(*log.lock().expect("log"), ["a/x true", "/n false"]);
    }

    #[test]
    fn backoff_grows_to_its_limit_and_keeps_at_least_half() {
        let mut wait = Duration::ZERO;
        let waits: Vec<u128> = (0..11)
            .map(|_| {
                wait = next_backoff(wait);
                wait.as_millis()
            })
            .collect();
        assert_eq!(waits[..3], [100, 200, 400]);
        assert_eq!(waits[10], 30_000);
        assert_eq!(jittered(Duration::from_secs(10), 0.0), Duration::from_secs(5));
        assert_eq!(jittered(Duration::from_secs(10), 1.0), Duration::from_secs(10));
    }
}
