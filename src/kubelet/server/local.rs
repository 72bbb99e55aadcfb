//! The same answers for people on the board itself, by a socket that root alone may open: with no server, too.

use super::*;
use crate::client::replica::with_status;
use futures_util::FutureExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixListener;

/// Answers whoever connects to the socket, until shutdown.
pub async fn listen(kubelet: Arc<Kubelet>, path: std::path::PathBuf, shutdown: Shutdown) {
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, path = %path.display(), "listen for this board's own users"),
    };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept(), if tasks.len() < STREAMS_LIMIT => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(serve_stream(kubelet.clone(), stream).boxed())),
                Err(error) => {
                    // Too many open files, as a rule: some will be closed.
                    tracing::warn!(%error, "accept on the local socket");
                    kubelet.clock.sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    let _ = std::fs::remove_file(&path);
}

/// Nobody finds the socket before it has its mode.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let made = path.with_extension("new");
    for old in [&made, &path.to_path_buf()] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

/// This node's pods, each as it is now, whether the server knows it or not.
pub(super) fn pods(kubelet: &Kubelet) -> Response<Body> {
    let untold = kubelet.untold.lock().expect("no panic while the statuses are locked");
    let mut list = br#"{"apiVersion":"v1","kind":"PodList","metadata":{},"items":["#.to_vec();
    for (number, item) in kubelet.pods.list().iter().enumerate() {
        let status = item.identity().ok().and_then(|identity| untold.get(&*identity.uid));
        if number > 0 {
            list.push(b',');
        }
        match status {
            Some(status) => list.extend_from_slice(&with_status(&item.0, status)),
            None => list.extend_from_slice(&item.0),
        }
    }
    list.extend_from_slice(b"]}");
    let response = Response::builder().header(CONTENT_TYPE, "application/json");
    response.body(Body::from(list)).expect("static headers are valid")
}
