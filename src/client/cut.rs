//! A client whose line can be cut, for tests: a server that is away answers nothing and ends what it was sending.

use super::{Client, WatchEvent};
use crate::api::status::{Result, Status};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use tokio::sync::watch;

/// Cheap to clone; clones share the line.
#[derive(Clone)]
pub struct Cut {
    client: Arc<Client>,
    line: watch::Sender<bool>,
}

impl Cut {
    /// The line is whole.
    pub fn new(client: Client) -> Self {
        Self { client: Arc::new(client), line: watch::Sender::new(true) }
    }

    pub fn cut(&self) {
        self.line.send_replace(false);
    }

    pub fn mend(&self) {
        self.line.send_replace(true);
    }

    /// The client at the other end of a whole line.
    pub(super) fn open(&self) -> Result<&Client> {
        if *self.line.borrow() { Ok(&self.client) } else { Err(gone()) }
    }

    /// A watch that ends, with an error, when the line is cut.
    pub(super) fn until_cut(
        &self,
        events: BoxStream<'static, Result<WatchEvent>>,
    ) -> BoxStream<'static, Result<WatchEvent>> {
        let mut line = self.line.subscribe();
        let cut = async move {
            // The sender lives as long as the client.
            let _ = line.wait_for(|whole| !whole).await;
        };
        events.take_until(cut).chain(stream::once(async { Err(gone()) })).boxed()
    }
}

fn gone() -> Status {
    Status::unavailable("connect to the server: the line is cut")
}
