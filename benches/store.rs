//! Durable creates per second and bytes written per create: the store alone, and ConfigMaps through the registry.
//! Run: `cargo bench --bench store`. `EDGELET_BENCH_DIR` names the disk, `EDGELET_BENCH_S` the seconds per row.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test ends at the first surprise"
)]

use bytes::Bytes;
use edgelet::api::kinds::Kinds;
use edgelet::clock::{Clock, monotonic};
use edgelet::registry::{Context, Registry, RegistryConfig, User};
use edgelet::store::{Durability, Expected, SqliteStore, Store, Write, splice};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let seconds = std::env::var("EDGELET_BENCH_S").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let span = Duration::from_secs(seconds);
    let base =
        std::env::var_os("EDGELET_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!(
        "{:<28} {:>8} {:>10} {:>9} {:>9} {:>12}",
        "what", "writers", "creates/s", "p50 ms", "p99 ms", "bytes/create"
    );
    for writers in [1, 8, 64] {
        runtime.block_on(row("store, 430 B", &base, writers, span, Target::Store))?;
    }
    for writers in [1, 8, 64] {
        runtime.block_on(row("registry, ConfigMap", &base, writers, span, Target::Registry))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Target {
    Store,
    Registry,
}

struct Bench {
    store: Arc<SqliteStore>,
    registry: Registry,
    context: Context,
    target: Target,
}

async fn row(what: &str, base: &Path, writers: usize, span: Duration, target: Target) -> Result<(), Error> {
    let folder = tempfile::tempdir_in(base)?;
    let store = Arc::new(SqliteStore::open(&folder.path().join("state.db"))?);
    let (config, clock) = (RegistryConfig::default(), Clock::real());
    let registry = Registry::new(config, store.clone(), Kinds::default(), clock, Arc::default());
    let context = Context { user: User::system("bench"), ..Context::default() };
    let bench = Bench { store, registry, context, target };
    bench.create_namespace().await?;
    let before = written_bytes()?;
    let end = monotonic() + span;
    let runs = futures_util::future::join_all((0..writers).map(|writer| bench.run(writer, end))).await;
    let mut waits: Vec<Duration> = Vec::new();
    for run in runs {
        waits.extend(run?);
    }
    bench.store.close().await?;
    let bytes = written_bytes()? - before;
    waits.sort_unstable();
    let count = waits.len().max(1);
    let millis = |part: usize| waits.get(count * part / 100).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
    let rate = waits.len() as f64 / span.as_secs_f64();
    let (p50, p99) = (millis(50), millis(99));
    println!("{what:<28} {writers:>8} {rate:>10.0} {p50:>9.2} {p99:>9.2} {:>12}", bytes / count as u64);
    Ok(())
}

impl Bench {
    async fn create_namespace(&self) -> Result<(), Error> {
        let kind = self.registry.kinds.kind("v1", "Namespace").ok_or("no kind")?;
        let object = json!({"metadata": {"name": "bench"}});
        self.registry.create(&self.context, &kind, "", object.into()).await?;
        Ok(())
    }

    /// One client: the next create when the last one is on disk.
    async fn run(&self, writer: usize, end: tokio::time::Instant) -> Result<Vec<Duration>, Error> {
        let mut waits = Vec::new();
        for number in 0.. {
            let start = monotonic();
            if start >= end {
                break;
            }
            let name = format!("bench-{writer}-{number}");
            match self.target {
                Target::Store => self.create_bytes(&name).await?,
                Target::Registry => self.create_config_map(&name).await?,
            }
            waits.push(start.elapsed());
        }
        Ok(waits)
    }

    async fn create_bytes(&self, name: &str) -> Result<(), Error> {
        let value = Bytes::from(serde_json::to_vec(&json!({"metadata": {"name": name}, "spec": "x".repeat(400)}))?);
        let splice_at = splice::metadata_offset(&value).ok_or("no metadata")?;
        let write = Write {
            key: format!("bench/bench/{name}").into(),
            expected: Expected::Absent,
            value: Some(value),
            splice_at,
            durability: Durability::Durable,
        };
        self.store.write(write).await?;
        Ok(())
    }

    async fn create_config_map(&self, name: &str) -> Result<(), Error> {
        let body = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"key":"{}"}}}}"#, "x".repeat(200));
        let object: serde_json::Value = serde_json::from_str(&body)?;
        let kind = self.registry.kinds.kind("v1", "ConfigMap").ok_or("no kind")?;
        self.registry.create(&self.context, &kind, "bench", object.into()).await?;
        Ok(())
    }
}

/// What this process has sent to disks so far.
fn written_bytes() -> Result<u64, Error> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).ok_or("no write_bytes")?;
    Ok(line.parse()?)
}
