//! `healthCheckNodePort`: tells load balancers over HTTP whether this node has endpoints of a Service, so that they
//! send traffic with `externalTrafficPolicy: Local` only where it is answered.

use super::rules::Health;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Of one Service at a time.
const CONNECTIONS_LIMIT: usize = 16;
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The servers that run now, by port.
#[derive(Default)]
pub struct HealthChecks(BTreeMap<u16, Server>);

struct Server {
    health: watch::Sender<Health>,
    /// Ends with it.
    _task: JoinSet<()>,
}

impl HealthChecks {
    /// Starts, changes and ends servers. A port that is taken is tried again with the next change.
    pub fn set(&mut self, wanted: BTreeMap<u16, Health>) {
        self.0.retain(|port, _| wanted.contains_key(port));
        for (port, health) in wanted {
            if let Some(server) = self.0.get(&port) {
                server.health.send_if_modified(|now| std::mem::replace(now, health.clone()) != health);
                continue;
            }
            match Server::start(port, health) {
                Ok(server) => {
                    self.0.insert(port, server);
                }
                Err(error) => tracing::warn!(port, %error, "cannot answer health checks of a service"),
            }
        }
    }
}

impl Server {
    fn start(port: u16, health: Health) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        listener.set_nonblocking(true)?;
        let (health, receiver) = watch::channel(health);
        let mut task = JoinSet::new();
        task.spawn(serve(TcpListener::from_std(listener)?, receiver));
        Ok(Self { health, _task: task })
    }
}

async fn serve(listener: TcpListener, health: watch::Receiver<Health>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let health = health.clone();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let _place = place;
            let answering = service_fn(move |_| {
                let answer = answer(&health.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
            // What a balancer does wrong is its own affair.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
        });
    }
}

/// As kube-proxy answers.
fn answer(health: &Health) -> Response<Full<Bytes>> {
    let Health { namespace, name, local } = health;
    let status = if *local > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": \
         {local},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", header::HeaderValue::from(*local));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(port: u16) -> String {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn balancers_are_told_whether_there_are_endpoints() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let health = |local| Health { namespace: "default".into(), name: "web".into(), local };
        let mut checks = HealthChecks::default();
        checks.set(BTreeMap::from([(port, health(2))]));
        let answer = ask(port).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("x-load-balancing-endpoint-weight: 2"),
            "{answer}"
        );
        assert!(answer.contains("\"localEndpoints\": 2") && answer.contains("\"name\": \"web\""), "{answer}");
        checks.set(BTreeMap::from([(port, health(0))]));
        assert!(ask(port).await.starts_with("HTTP/1.1 503"));
        checks.set(BTreeMap::new());
        tokio::task::yield_now().await;
        assert!(tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }
}
