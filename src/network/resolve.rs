//! Names for our own clients, by hickory: a static binary must not call getaddrinfo.
//! Follows `/etc/resolv.conf` and `/etc/hosts`, and reads them again when they change.

use hickory_resolver::TokioResolver;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

const SOURCES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// Names remembered.
const CACHE_LIMIT: u64 = 64;

/// Length and modification time in nanoseconds of each source.
type Stamp = [Option<(u64, i64, i64)>; 2];

/// The resolver of one runtime. Cheap to clone.
#[derive(Clone, Default)]
pub struct Resolver(Arc<Mutex<Option<(Stamp, TokioResolver)>>>);

impl Resolver {
    /// The addresses of a host, with this port; numbers are addresses already.
    pub async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let found = self.current()?.lookup_ip(name).await.map_err(|error| {
            let kind = if error.is_no_records_found() { io::ErrorKind::NotFound } else { io::ErrorKind::TimedOut };
            io::Error::new(kind, format!("resolve {name}: {error}"))
        })?;
        Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// Rebuilt when a source changed: DHCP may have brought another network.
    fn current(&self) -> io::Result<TokioResolver> {
        let stamp = SOURCES.map(stamp);
        let mut held = self.0.lock().expect("no panic while the resolver is locked");
        if let Some((built, resolver)) = &*held
            && *built == stamp
        {
            return Ok(resolver.clone());
        }
        let failed = |error| io::Error::other(format!("read /etc/resolv.conf: {error}"));
        let mut builder = TokioResolver::builder_tokio().map_err(failed)?;
        builder.options_mut().cache_size = CACHE_LIMIT;
        let resolver = builder.build().map_err(failed)?;
        *held = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

fn stamp(path: &str) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(Path::new(path)).ok()?;
    Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            // Port 0 means the scheme's own.
            let addresses = resolver.resolve(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_and_localhost_need_no_server() {
        let resolver = Resolver::default();
        let v4: Vec<SocketAddr> = resolver.resolve("192.0.2.1", 443).await.unwrap();
        assert_eq!(v4, ["192.0.2.1:443".parse().unwrap()]);
        let v6 = resolver.resolve("[2001:db8::1]", 443).await.unwrap();
        assert_eq!(v6, ["[2001:db8::1]:443".parse().unwrap()]);
        let local = resolver.resolve("localhost", 80).await.unwrap();
        assert!(!local.is_empty() && local.iter().all(|address| address.ip().is_loopback()), "{local:?}");
    }
}
