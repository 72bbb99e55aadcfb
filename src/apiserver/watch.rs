//! Watches: one JSON document per line, made from the shared bytes, until a side has had enough.

use super::present::Presenter;
use super::respond::{self, Pieces, Style};
use super::{ApiServer, Call};
use crate::api::kinds::KindRef;
use crate::api::status::{Result, Status};
use crate::registry::{Change, ListOptions};
use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use std::convert::Infallible;
use std::time::Duration;

/// Events that are there already are sent together up to this size.
const CHUNK_BYTES: usize = 16 << 10;
/// How long a watch lasts at least when the client does not say; up to twice this, so that watches that
/// began together do not end together.
const DEFAULT_TIMEOUT_S: u64 = 1800;

struct Watching {
    changes: BoxStream<'static, Change>,
    kind: KindRef,
    style: Style,
    call: super::query::Query,
    clock: crate::clock::Clock,
    /// The next table of this watch is its first.
    first: bool,
    over: bool,
}

pub async fn answer(
    server: &ApiServer,
    call: &Call,
    kind: KindRef,
    namespace: &str,
    options: &ListOptions,
    style: Style,
) -> Result<Response> {
    // Said before the answer begins, not as an event.
    Presenter::new(&kind, style.representation.shape, &call.query, server.clock().now())?;
    let timeout_s = options.timeout_s.filter(|seconds| *seconds > 0);
    let timeout_s = timeout_s.unwrap_or_else(|| fastrand::u64(DEFAULT_TIMEOUT_S..2 * DEFAULT_TIMEOUT_S));
    let (clock, shutdown) = (server.clock().clone(), server.shutdown());
    let end = async move {
        tokio::select! {
            () = clock.sleep(Duration::from_secs(timeout_s)) => {}
            () = async { match shutdown {
                Some(shutdown) => shutdown.requested().await,
                None => std::future::pending().await,
            } } => {}
        }
    };
    let changes = server.registry().watch_until(end.boxed(), &kind, namespace, options).await?;
    let watching = Watching {
        changes,
        kind,
        style,
        call: call.query.clone(),
        clock: server.clock().clone(),
        first: true,
        over: false,
    };
    let chunks = stream::unfold(watching, |mut watching| async move {
        let chunk = watching.next_chunk().await?;
        Some((Ok::<Bytes, Infallible>(chunk), watching))
    });
    Ok(respond::stream(style.representation.content_type(), Body::from_stream(chunks)))
}

impl Watching {
    /// Waits for an event, then takes what else is there.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut chunk = BytesMut::new();
        let first = self.changes.next().await?;
        self.write(&first, &mut chunk);
        while !self.over && chunk.len() < CHUNK_BYTES {
            match self.changes.next().now_or_never() {
                Some(Some(change)) => self.write(&change, &mut chunk),
                Some(None) => self.over = true,
                None => break,
            }
        }
        Some(chunk.freeze())
    }

    fn write(&mut self, change: &Change, out: &mut BytesMut) {
        let (kind, shape) = (self.kind.clone(), self.style.representation.shape);
        let presented = Presenter::new(&kind, shape, &self.call, self.clock.now())
            .and_then(|presenter| event(&presenter, change, self.first));
        self.first = false;
        match presented {
            Ok((name, object)) => write_event(out, name, &object.join()),
            Err(status) => {
                self.over = true;
                write_event(out, "ERROR", status.to_object().to_string().as_bytes());
            }
        }
    }
}

fn event(presenter: &Presenter, change: &Change, first: bool) -> Result<(&'static str, Pieces), Status> {
    match change {
        Change::Added(entry) => Ok(("ADDED", presenter.event(entry, first)?)),
        Change::Modified(entry) => Ok(("MODIFIED", presenter.event(entry, first)?)),
        Change::Deleted(entry) => Ok(("DELETED", presenter.event(entry, first)?)),
        Change::Bookmark { revision, initial_events_end } => {
            Ok(("BOOKMARK", presenter.bookmark(*revision, *initial_events_end, first)?))
        }
        Change::Error(status) => Err(status.clone()),
    }
}

fn write_event(out: &mut BytesMut, name: &str, object: &[u8]) {
    let (head, middle, tail) = (&b"{\"type\":\""[..], &b"\",\"object\":"[..], &b"}\n"[..]);
    out.reserve(head.len() + name.len() + middle.len() + object.len() + tail.len());
    for part in [head, name.as_bytes(), middle, object, tail] {
        out.put_slice(part);
    }
}
