//! The task tree: named tasks that end together, in the reverse of the order they were started in.
//! A task that panics is logged with its name and restarted with backoff where it can be made again.

use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { stop: watch::channel(false).0, tasks: Vec::new() }
    }
}

impl Tree {
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(self.stop.subscribe())
    }

    /// Starts a task that ends by itself once shutdown is requested.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push((name, tokio::spawn(task)));
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
                match tokio::spawn(make()).await {
                    Ok(()) => return,
                    Err(error) if error.is_panic() => {
                        tracing::error!(task = name, "task panicked; starting it again");
                    }
                    Err(_) => return,
                }
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(Duration::from_secs(30)),
                }
            }
        });
    }

    /// Asks every task to end and waits for each, at most `grace` in all; the rest are aborted.
    pub async fn end(mut self, grace: Duration) {
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
