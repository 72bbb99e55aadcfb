//! WATCH: initial state if asked for, then changes as the selection sees them, bookmarks, and an end.
//! Holds a cursor, no buffer: a reader that is too slow is told `Expired` and lists again.

use super::list::{parse_revision, refuse_options, unsupported_match};
use super::selection::Selection;
use super::{Change, ListOptions, Registry, encode, store_error, too_large_revision};
use crate::api::kinds::KindRef;
use crate::api::status::{FieldError, Result, Status};
use crate::clock;
use crate::store::{Entry, Event, Watch, splice};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often at most a watcher hears how far it is; one of a resource that does not change hears nothing.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

struct Watcher {
    kind: KindRef,
    selection: Selection,
    cursor: Watch,
    initial: std::vec::IntoIter<Arc<Entry>>,
    /// Set until the bookmark that ends the initial state has been sent.
    announce_end: bool,
    bookmark_at: Option<Instant>,
    /// The newest revision of the resource that a bookmark, or the beginning, has told of.
    told: u64,
    end: BoxFuture<'static, ()>,
    over: bool,
}

impl Registry {
    /// Without `timeout_s` the watch ends only with an error or when it is dropped.
    pub async fn watch(
        &self,
        kind: &KindRef,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Change>> {
        let deadline = options.timeout_s.map(|seconds| clock::monotonic() + Duration::from_secs(seconds));
        self.watch_until(at(deadline).boxed(), kind, namespace, options).await
    }

    /// Whatever `timeout_s` says, the watch ends with `end`: after what has happened until then and, where they are
    /// allowed, a bookmark, so that it can be resumed where it stopped.
    pub async fn watch_until(
        &self,
        end: BoxFuture<'static, ()>,
        kind: &KindRef,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<BoxStream<'static, Change>> {
        check_watch_options(options)?;
        let selection = Selection::parse(kind, options)?;
        let asked = parse_revision(&options.resource_version).map_err(|why| Status::new(500, "", why))?;
        let newest = self.store.revision();
        if asked > newest {
            return Err(too_large_revision(asked, newest));
        }
        let prefix = selection.prefix(kind, namespace);
        let wants_initial = options.send_initial_events.unwrap_or(asked == 0);
        let (initial, from) = if wants_initial {
            let page = selection.candidates(kind, &prefix, &*self.store).await;
            let page = page.map_err(|error| store_error(kind, "", error))?;
            let matching = page.entries.into_iter().filter(|entry| selection.matches(kind, entry));
            (matching.collect(), page.revision)
        } else {
            (Vec::new(), if asked == 0 { newest } else { asked })
        };
        let cursor = match self.store.follow(selection.subject(kind, namespace), from) {
            Ok(cursor) => cursor,
            // The protocol tells of a lost revision in the stream, not in the answer.
            Err(error) => {
                let change = Change::Error(store_error(kind, "", error));
                return Ok(stream::once(async move { change }).boxed());
            }
        };
        let now = clock::monotonic();
        let watcher = Watcher {
            kind: kind.clone(),
            selection,
            cursor,
            initial: initial.into_iter(),
            announce_end: options.send_initial_events == Some(true) && options.allow_bookmarks,
            bookmark_at: options.allow_bookmarks.then(|| now + BOOKMARK_INTERVAL),
            told: from,
            end,
            over: false,
        };
        Ok(stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) }).boxed())
    }
}

impl Watcher {
    async fn next(&mut self) -> Option<Change> {
        if self.over {
            return None;
        }
        if let Some(entry) = self.initial.next() {
            return Some(self.show(&entry).map_or_else(|error| self.fail(error), Change::Added));
        }
        if std::mem::take(&mut self.announce_end) {
            return Some(Change::Bookmark { revision: self.cursor.revision(), initial_events_end: true });
        }
        loop {
            tokio::select! {
                biased;
                event = self.cursor.next() => match event {
                    Ok(event) => match self.change(&event) {
                        Ok(Some(change)) => return Some(change),
                        Ok(None) => {}
                        Err(error) => return Some(self.fail(error)),
                    },
                    Err(error) => {
                        let error = store_error(&self.kind, "", error);
                        return Some(self.fail(error));
                    }
                },
                () = &mut self.end => {
                    self.over = true;
                    self.cursor.catch_up();
                    return self.bookmark_at.map(|_| self.bookmark());
                }
                () = at(self.bookmark_at) => {
                    self.bookmark_at = Some(clock::monotonic() + BOOKMARK_INTERVAL);
                    // A watch can be resumed from any revision at which its resource was the same.
                    if self.cursor.resource_revision() > self.told && self.cursor.catch_up() {
                        return Some(self.bookmark());
                    }
                }
            }
        }
    }

    fn fail(&mut self, error: Status) -> Change {
        self.over = true;
        Change::Error(error)
    }

    fn bookmark(&mut self) -> Change {
        self.told = self.cursor.revision();
        self.bookmark_at = Some(clock::monotonic() + BOOKMARK_INTERVAL);
        Change::Bookmark { revision: self.cursor.revision(), initial_events_end: false }
    }

    fn show(&self, entry: &Arc<Entry>) -> Result<Arc<Entry>> {
        encode::shown(&self.kind, entry)
    }

    /// What an event is to this watcher: an object may come into the selection and leave it.
    fn change(&self, event: &Event) -> Result<Option<Change>> {
        let matches = |entry: &Option<Arc<Entry>>| {
            entry.as_ref().filter(|entry| self.selection.matches(&self.kind, entry)).cloned()
        };
        let change = match (matches(&event.previous), matches(&event.current)) {
            (None, None) => return Ok(None),
            (None, Some(entry)) => Change::Added(self.show(&entry)?),
            (Some(_), Some(entry)) => Change::Modified(self.show(&entry)?),
            (Some(last), None) => {
                let gone = event.deleted.clone().unwrap_or_else(|| left(&last, event.revision));
                Change::Deleted(self.show(&gone)?)
            }
        };
        Ok(Some(change))
    }
}

/// The last state that matched, under the revision at which it ceased to.
fn left(last: &Entry, revision: u64) -> Arc<Entry> {
    let value = splice::remove(&last.bytes, last.splice_at);
    let bytes = splice::insert(&value, last.splice_at, revision);
    Arc::new(Entry {
        key: last.key.clone(),
        create_revision: last.create_revision,
        revision,
        bytes,
        splice_at: last.splice_at,
    })
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn check_watch_options(options: &ListOptions) -> Result<()> {
    const FIELD: &str = "resourceVersionMatch";
    let given = &*options.resource_version_match;
    let mut errors = Vec::new();
    match options.send_initial_events {
        Some(_) if given.is_empty() => errors.push(FieldError::forbidden(
            FIELD,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        Some(_) if given != "NotOlderThan" => errors.push(unsupported_match(given, "\"NotOlderThan\"")),
        None if !given.is_empty() => errors.push(FieldError::forbidden(
            FIELD,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        _ => {}
    }
    if !options.continue_token.is_empty() {
        errors.push(FieldError::forbidden("continue", "continue is forbidden for watch"));
    }
    refuse_options(errors)
}
