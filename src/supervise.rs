//! The task tree: named tasks that end together, in the reverse of the order they were started in.
//! A task that panics is logged with its name and restarted with backoff where it can be made again;
//! where it cannot, or where it ends with an error, the tree says so and its owner ends: a process without it
//! would only look alive.

pub mod notify;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use notify::Notifier;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Starts a task on tokio. Its future is boxed: what tokio needs around a task is then made once per result, not once
/// per place that starts one. Sets of tasks are given boxed futures for the same reason.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task.boxed())
}

/// A signal that the process is to end; cheap to clone and to wait for.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Waits until the end is asked for.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // An error means the tree is gone, which is an end too.
        let _ = receiver.wait_for(|stop| *stop).await;
    }

    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// The owner of the tasks.
pub struct Tree {
    stop: watch::Sender<bool>,
    /// The first task that panicked or failed and cannot be made again.
    lost: Arc<watch::Sender<Option<&'static str>>>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    manager: Option<Arc<Notifier>>,
}

impl Default for Tree {
    fn default() -> Self {
        let (stop, lost) = (watch::Sender::new(false), Arc::new(watch::Sender::new(None)));
        Self { stop, lost, tasks: Vec::new(), manager: None }
    }
}

impl Tree {
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(self.stop.subscribe())
    }

    /// Starts a task that ends by itself once shutdown is requested.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, async move {
            task.await;
            Ok::<(), Infallible>(())
        });
    }

    /// The same for a task that may fail; an error is the end of its owner, like a panic.
    pub fn spawn_fallible<E: Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let failing = async move { task.await.map_err(|error| error.to_string()) };
        self.tasks.push((name, tokio::spawn(watched(name, failing.boxed(), self.lost.clone()))));
    }

    /// Waits until a task has panicked that cannot be made again, or has failed; its name.
    pub async fn lost(&self) -> &'static str {
        let mut lost = self.lost.subscribe();
        loop {
            let name = *lost.borrow_and_update();
            if let Some(name) = name {
                return name;
            }
            // The sender is this tree's own.
            let _ = lost.changed().await;
        }
    }

    /// Starts a loop that is made again, with backoff, when it panics.
    pub fn spawn_restarting<F, T>(&mut self, name: &'static str, make: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let shutdown = self.shutdown();
        self.spawn(name, async move {
            let mut backoff = Duration::from_millis(100);
            loop {
                // A set, so that the task ends with this one when it is aborted.
                let mut task = JoinSet::new();
                task.spawn(make().boxed());
                match task.join_next().await {
                    Some(Err(error)) if error.is_panic() => {
                        tracing::error!(task = name, "task panicked; starting it again");
                    }
                    _ => return,
                }
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(Duration::from_secs(30)),
                }
            }
        });
    }

    /// Tells the service manager, where there is one, that what this tree was made for works; and from then on,
    /// as often as it asks, that the event loop turns and no task is lost.
    pub fn announce(&mut self, manager: Option<Notifier>) {
        let Some(manager) = manager.map(Arc::new) else { return };
        manager.ready();
        self.manager = Some(manager.clone());
        let Some(interval) = manager.watchdog_interval() else { return };
        let (shutdown, lost) = (self.shutdown(), self.lost.subscribe());
        self.spawn("watchdog", async move {
            loop {
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = tokio::time::sleep(interval) => {}
                }
                if lost.borrow().is_some() {
                    return;
                }
                manager.alive();
            }
        });
    }

    /// Asks every task to end and waits for each, at most `grace` in all; the rest are aborted.
    pub async fn end(mut self, grace: Duration) {
        if let Some(manager) = &self.manager {
            manager.stopping();
        }
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + grace;
        while let Some((name, mut task)) = self.tasks.pop() {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                tracing::warn!(task = name, "task did not end in time");
                task.abort();
            }
        }
    }
}

/// Runs a task and says so when it was lost.
async fn watched(
    name: &'static str,
    task: BoxFuture<'static, Result<(), String>>,
    lost: Arc<watch::Sender<Option<&'static str>>>,
) {
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => tracing::error!(task = name, %error, "task failed"),
        Err(_) => tracing::error!(task = name, "task panicked and cannot be started again"),
    }
    lost.send_modify(|first| *first = first.or(Some(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_tree_tells_of_a_task_that_panicked() {
        let mut tree = Tree::default();
        let shutdown = tree.shutdown();
        tree.spawn("healthy", async move { shutdown.requested().await });
        let none = tokio::time::timeout(Duration::from_secs(60), tree.lost()).await;
        assert!(none.is_err());
        tree.spawn("broken", async { panic!("as a test wants it") });
        assert_eq!(tree.lost().await, "broken");
        tree.end(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_with_an_error_is_lost_and_not_only_logged() {
        let mut tree = Tree::default();
        tree.spawn_fallible("done", async { Ok::<(), &str>(()) });
        let none = tokio::time::timeout(Duration::from_secs(60), tree.lost()).await;
        assert!(none.is_err());
        tree.spawn_fallible("failing", async { Err("as a test wants it") });
        assert_eq!(tree.lost().await, "failing");
        tree.end(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_task_ends_with_the_tree_even_when_it_does_not_heed_it() {
        let alive = Arc::new(());
        let mut tree = Tree::default();
        let held = alive.clone();
        tree.spawn_restarting("stubborn", move || {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
            }
        });
        tokio::task::yield_now().await;
        tree.end(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
