//! Every engine against a model; and what only the engine on disk promises: durability, laziness, recovery.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

fn value(name: &str, content: &str) -> (Bytes, usize) {
    let object = json!({"data": {"c": content, "metadata": {}}, "metadata": {"name": name}});
    let bytes = Bytes::from(serde_json::to_vec(&object).unwrap());
    let at = splice::metadata_offset(&bytes).unwrap();
    (bytes, at)
}

fn put(key: &str, expected: Expected, content: &str) -> Write {
    let (bytes, splice_at) = value(key, content);
    Write { key: key.into(), expected, value: Some(bytes), splice_at, durability: Durability::Durable }
}

fn delete(key: &str, expected: Expected) -> Write {
    Write { key: key.into(), expected, value: None, splice_at: 0, durability: Durability::Durable }
}

fn lazy(write: Write) -> Write {
    Write { durability: Durability::Lazy, ..write }
}

fn content(entry: &Entry) -> String {
    let object: Value = serde_json::from_slice(&entry.bytes).unwrap();
    assert_eq!(object["metadata"]["resourceVersion"], entry.revision.to_string());
    object["data"]["c"].as_str().unwrap().to_owned()
}

async fn contents(store: &dyn Store, at: Option<u64>) -> BTreeMap<String, String> {
    let page = store.list("", "", 0, at).await.unwrap();
    page.entries.iter().map(|entry| (entry.key.to_string(), content(entry))).collect()
}

/// Random writes with right and wrong expectations, each outcome compared with a map.
async fn agree_with_model(store: &dyn Store, seed: u64, steps: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut history: Vec<(u64, BTreeMap<String, String>)> = Vec::new();
    let mut watch = store.watch("b/", store.revision()).unwrap();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for step in 0..steps {
        let key = format!("{}/ns/{}", random.choice(["a", "b"]).unwrap(), random.u8(..8));
        let known = model.get(&key).map(|(revision, _)| *revision);
        let expected = match random.u8(..4) {
            0 => Expected::Absent,
            1 => Expected::Present,
            2 => Expected::Revision(1),
            _ => known.map_or(Expected::Absent, Expected::Revision),
        };
        let removes = random.u8(..4) == 0;
        let text = format!("{step}");
        let mut write = if removes { delete(&key, expected) } else { put(&key, expected, &text) };
        if random.bool() {
            write = lazy(write);
        }
        match (store.write(write).await, expected, known) {
            (Err(StoreError::Exists(_)), Expected::Absent, Some(_)) | (Err(StoreError::Absent), _, None) => {}
            (Err(StoreError::Conflict(entry)), Expected::Revision(revision), Some(known)) => {
                assert!(revision != known && entry.revision == known);
            }
            (Ok(entry), expected, known) => {
                assert!(!matches!((expected, known), (Expected::Absent, Some(_)) | (Expected::Present, None)));
                assert_eq!(entry.revision, store.revision());
                if removes {
                    model.remove(&key);
                } else {
                    model.insert(key.clone(), (entry.revision, text));
                }
                history.push((entry.revision, model.iter().map(|(k, v)| (k.clone(), v.1.clone())).collect()));
            }
            (outcome, ..) => panic!("{key} {expected:?} {known:?}: {outcome:?}"),
        }
    }
    let newest = history.last().unwrap();
    assert_eq!(contents(store, None).await, newest.1);
    for (revision, state) in history.iter().rev().take(60) {
        assert_eq!(&contents(store, Some(*revision)).await, state, "at {revision}");
    }
    while let Some(event) = watch.ready().unwrap() {
        match &event.current {
            Some(entry) => seen.insert(entry.key.to_string(), content(entry)),
            None => seen.remove(&*event.shown().key),
        };
    }
    assert_eq!(watch.revision(), store.revision());
    let of_b: BTreeMap<_, _> = newest.1.clone().into_iter().filter(|(key, _)| key.starts_with("b/")).collect();
    assert_eq!(seen, of_b);
}

#[tokio::test]
async fn memory_agrees_with_a_model() {
    for seed in 0..8 {
        agree_with_model(&MemoryStore::default(), seed, 400).await;
    }
}

#[tokio::test]
async fn sqlite_agrees_with_a_model_and_after_reopening() {
    for seed in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = SqliteStore::open(&path).unwrap();
        agree_with_model(&store, seed, 200).await;
        let (before, revision) = (contents(&store, None).await, store.revision());
        store.close().await.unwrap();
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(contents(&store, None).await, before);
        assert_eq!(store.revision(), revision, "a clean stop leaves no gap");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_stop_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("db")).unwrap();
    for index in 0..20 {
        store.write(put(&format!("a//{index}"), Expected::Absent, "x")).await.unwrap();
    }
    store.close().await.unwrap();
    assert!(matches!(store.write(put("a//z", Expected::Absent, "x")).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn pages_continue_and_count_the_rest() {
    let store = MemoryStore::default();
    for key in ["a/x/1", "a/x/2", "a/y/1", "b/x/1"] {
        store.write(put(key, Expected::Absent, "")).await.unwrap();
    }
    let first = store.list("a/", "", 2, None).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining), (2, 1));
    store.write(delete("a/y/1", Expected::Present)).await.unwrap();
    let rest = store.list("a/", "a/x/2", 2, Some(first.revision)).await.unwrap();
    assert_eq!(rest.entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["a/y/1"]);
    let future = store.list("a/", "", 0, Some(99)).await;
    assert!(matches!(future, Err(StoreError::Future(99, 6))));
}

#[tokio::test]
async fn an_overtaken_cursor_is_compacted_but_not_by_other_resources() {
    let store = MemoryStore::with_ring_limit(8 * 1024);
    let first = store.write(put("pods/x/1", Expected::Absent, "")).await.unwrap().revision;
    let second = store.write(put("quiet/x/1", Expected::Absent, "")).await.unwrap().revision;
    let mut overtaken = store.watch("pods/", first).unwrap();
    for index in 0..100 {
        store.write(put("pods/x/1", Expected::Present, &index.to_string())).await.unwrap();
    }
    assert!(matches!(overtaken.next().await, Err(StoreError::Compacted(..))));
    assert!(matches!(store.watch("pods/", first), Err(StoreError::Compacted(..))));
    assert!(matches!(store.list("pods/", "", 0, Some(first)).await, Err(StoreError::Compacted(..))));
    assert!(store.watch("quiet/", second).is_ok());
}

#[tokio::test]
async fn a_waiting_watch_wakes_for_its_resource_and_ends_on_close() {
    let store = Arc::new(MemoryStore::default());
    let mut watch = store.watch("pods/x/", store.revision()).unwrap();
    let writer = store.clone();
    let task = tokio::spawn(async move {
        writer.write(put("pods/y/1", Expected::Absent, "no")).await.unwrap();
        writer.write(put("pods/x/1", Expected::Absent, "yes")).await.unwrap();
        tokio::task::yield_now().await;
        writer.close().await.unwrap();
    });
    assert_eq!(&*watch.next().await.unwrap().shown().key, "pods/x/1");
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    task.await.unwrap();
}

#[tokio::test]
async fn watches_go_on_after_a_clean_stop_where_nothing_was_missed_and_after_a_crash_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = SqliteStore::open(&path).unwrap();
    let quiet = store.write(put("quiet//1", Expected::Absent, "")).await.unwrap().revision;
    let seen = store.write(put("pods/x/1", Expected::Absent, "")).await.unwrap().revision;
    let gone = store.write(delete("pods/x/1", Expected::Present)).await.unwrap().revision;
    store.close().await.unwrap();

    // The second stop has nothing of its own to tell of these resources.
    for other in ["other//1", "other//2"] {
        let store = SqliteStore::open(&path).unwrap();
        assert!(store.watch("quiet/", quiet).is_ok());
        assert!(matches!(store.watch("quiet/", quiet - 1), Err(StoreError::Compacted(..))));
        assert!(matches!(store.watch("pods/", seen), Err(StoreError::Compacted(..))), "it would miss the deletion");
        assert!(matches!(store.watch("", quiet), Err(StoreError::Compacted(..))));
        assert!(store.watch("pods/", gone).is_ok());
        assert!(store.watch("never/", gone).is_ok());
        assert!(store.list("quiet/", "", 0, Some(quiet)).await.is_ok());
        assert!(matches!(store.list("pods/", "", 0, Some(seen)).await, Err(StoreError::Compacted(..))));
        store.write(put(other, Expected::Absent, "")).await.unwrap();
        store.close().await.unwrap();
    }

    let store = SqliteStore::open(&path).unwrap();
    let mut watch = store.watch("pods/", gone).unwrap();
    let new = store.write(put("pods/x/2", Expected::Absent, "")).await.unwrap().revision;
    assert_eq!(watch.next().await.unwrap().revision, new);
    let crashed = folder.path().join("crashed");
    copy(&path, &crashed);
    let store = SqliteStore::open(&crashed).unwrap();
    for resource in ["quiet/", "pods/", "never/"] {
        assert!(matches!(store.watch(resource, new), Err(StoreError::Compacted(..))), "{resource}");
    }
}

#[tokio::test(start_paused = true)]
async fn old_states_expire_after_five_minutes() {
    let store = MemoryStore::default();
    let old = store.write(put("a//1", Expected::Absent, "1")).await.unwrap().revision;
    store.write(put("a//1", Expected::Present, "2")).await.unwrap();
    assert!(store.list("a/", "", 0, Some(old)).await.is_ok());
    tokio::time::advance(Duration::from_secs(301)).await;
    assert!(matches!(store.list("a/", "", 0, Some(old)).await, Err(StoreError::Compacted(..))));
    assert!(store.watch("a/", old).is_ok(), "the events are still there");
}

/// What a power cut leaves: the file and its log at one moment. An open reader keeps the log from being reused
/// between the two copies, which a cut does not need.
fn copy(from: &Path, to: &Path) {
    let reader = rusqlite::Connection::open(from).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM object").unwrap_or_default();
    std::fs::copy(from, to).unwrap();
    let log = |path: &Path| path.with_file_name(format!("{}-wal", path.file_name().unwrap().to_str().unwrap()));
    let _ = std::fs::remove_file(log(to));
    if log(from).exists() {
        std::fs::copy(log(from), log(to)).unwrap();
    }
}

#[tokio::test]
async fn lazy_writes_wait_for_a_durable_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, image) = (folder.path().join("db"), folder.path().join("image"));
    let store = SqliteStore::open(&path).unwrap();
    store.write(lazy(put("a//1", Expected::Absent, "1"))).await.unwrap();
    let shown = store.write(lazy(put("a//1", Expected::Present, "2"))).await.unwrap();
    assert_eq!(content(&store.get("a//1").await.unwrap().unwrap()), "2");
    copy(&path, &image);
    let cut = SqliteStore::open(&image).unwrap();
    assert!(cut.get("a//1").await.unwrap().is_none());
    assert!(cut.revision() > shown.revision, "revisions of lost writes are not reused");
    cut.close().await.unwrap();
    store.write(put("b//1", Expected::Absent, "")).await.unwrap();
    copy(&path, &image);
    let cut = SqliteStore::open(&image).unwrap();
    assert_eq!(content(&cut.get("a//1").await.unwrap().unwrap()), "2");
    cut.close().await.unwrap();
    store.write(lazy(delete("a//1", Expected::Present))).await.unwrap();
    store.close().await.unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert!(store.get("a//1").await.unwrap().is_none(), "closing writes lazy values");
}

#[tokio::test]
async fn lazy_values_beyond_their_limit_go_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, image) = (folder.path().join("db"), folder.path().join("image"));
    let store = SqliteStore::open(&path).unwrap();
    let text = "x".repeat(100 * 1024);
    for index in 0..12 {
        store.write(lazy(put(&format!("a//{index}"), Expected::Absent, &text))).await.unwrap();
    }
    copy(&path, &image);
    let cut = SqliteStore::open(&image).unwrap();
    assert!(contents(&cut, None).await.len() >= 10);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_keeps_serving_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = SqliteStore::open(&path).unwrap();
    store.write(put("a//1", Expected::Absent, "kept")).await.unwrap();
    // A second connection that holds the write lock stands for a disk that takes no write.
    let blocker = rusqlite::Connection::open(&path).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = store.write(put("a//2", Expected::Absent, "")).await;
    assert!(matches!(refused, Err(StoreError::Engine(_))), "{refused:?}");
    assert_eq!(content(&store.get("a//1").await.unwrap().unwrap()), "kept");
    assert!(store.get("a//2").await.unwrap().is_none());
    blocker.execute_batch("ROLLBACK").unwrap();
    store.write(put("a//2", Expected::Absent, "")).await.unwrap();
}

/// Copies the files at random moments while eight writers write; each copy must open, pass the integrity check
/// and hold whatever had been acknowledged before it was taken. `EDGELET_STORE_CUTS` sets how many copies.
#[tokio::test]
async fn copies_taken_mid_write_are_whole() {
    let cuts: usize = std::env::var("EDGELET_STORE_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let folder = tempfile::tempdir().unwrap();
    let (path, image) = (folder.path().join("db"), folder.path().join("image"));
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let acknowledged: Arc<std::sync::Mutex<BTreeMap<String, (u64, bool)>>> = Arc::default();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> =
        (0..8).map(|id| tokio::spawn(churn(store.clone(), acknowledged.clone(), stop.clone(), id))).collect();
    for cut in 0..cuts {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..8))).await;
        let before = acknowledged.lock().unwrap().clone();
        let (from, to) = (path.clone(), image.clone());
        tokio::task::spawn_blocking(move || copy(&from, &to)).await.unwrap();
        let reopened = SqliteStore::open(&image).unwrap_or_else(|error| panic!("cut {cut}: {error:?}"));
        for (key, (revision, exists)) in before {
            let found = reopened.get(&key).await.unwrap();
            let newer = found.as_ref().is_some_and(|entry| entry.revision >= revision);
            // A short-lived key may have been written again, or deleted, before its writer heard of it.
            let whole = match exists {
                true => newer || is_short(&key),
                false => found.as_ref().is_none_or(|entry| entry.revision > revision),
            };
            assert!(
                whole,
                "cut {cut}: {key} at {revision} exists {exists}, found {:?}",
                found.map(|entry| entry.revision)
            );
        }
        assert!(reopened.revision() >= store.revision() / 10_000 * 10_000);
        reopened.close().await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Keys that their writer deletes again at once.
fn is_short(key: &str) -> bool {
    key.ends_with("/short")
}

async fn churn(
    store: Arc<SqliteStore>,
    acknowledged: Arc<std::sync::Mutex<BTreeMap<String, (u64, bool)>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    id: usize,
) {
    let text = "x".repeat(3000);
    for round in 0.. {
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        let long = format!("a/{id}/{}", round % 50);
        let expected = if round < 50 { Expected::Absent } else { Expected::Present };
        let entry = store.write(put(&long, expected, &text)).await.unwrap();
        acknowledged.lock().unwrap().insert(long, (entry.revision, true));
        let short = format!("a/{id}/short");
        let made = store.write(put(&short, Expected::Absent, "")).await.unwrap();
        acknowledged.lock().unwrap().insert(short.clone(), (made.revision, true));
        let gone = store.write(delete(&short, Expected::Revision(made.revision))).await.unwrap();
        acknowledged.lock().unwrap().insert(short, (gone.revision, false));
    }
}

/// How the value lies in the file.
fn on_disk(path: &Path, key: &str) -> Vec<u8> {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row("SELECT value FROM object WHERE key=?1", [key], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn secrets_are_sealed_on_the_disk_those_of_before_too_and_only_their_key_opens_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let sealer = |key| seal::Sealer::new(&[key; seal::KEY_BYTES], vec!["secrets".into()]);
    let store = SqliteStore::open(&path).unwrap();
    store.write(put("secrets/a/old", Expected::Absent, "of before")).await.unwrap();
    store.close().await.unwrap();
    assert!(!seal::is_sealed(&on_disk(&path, "secrets/a/old")));

    let store = SqliteStore::open_sealed(&path, sealer(1)).unwrap();
    store.write(put("secrets/a/new", Expected::Absent, "s3cret")).await.unwrap();
    store.write(lazy(put("secrets/a/lazy", Expected::Absent, "s3cret too"))).await.unwrap();
    store.write(put("configmaps/a/b", Expected::Absent, "public")).await.unwrap();
    let before = contents(&store, None).await;
    store.close().await.unwrap();
    for key in ["secrets/a/old", "secrets/a/new", "secrets/a/lazy"] {
        assert!(seal::is_sealed(&on_disk(&path, key)), "{key}");
    }
    assert!(on_disk(&path, "configmaps/a/b").starts_with(b"{"));

    let store = SqliteStore::open_sealed(&path, sealer(1)).unwrap();
    assert_eq!(contents(&store, None).await, before);
    store.close().await.unwrap();
    let refused = |store: Result<SqliteStore, StoreError>| {
        let Err(StoreError::Engine(cause)) = store else { panic!("it must not open") };
        cause.to_string()
    };
    let other = refused(SqliteStore::open_sealed(&path, sealer(2)));
    assert!(other.ends_with("is sealed with another key than the one beside this database"), "{other}");
    assert!(refused(SqliteStore::open(&path)).ends_with("is sealed, and there is no key to open it"));
}

/// `node=NAME …` is tagged NAME.
fn tag_of(resource: &str, bytes: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (_, rest) = text.split_once("node=").filter(|_| resource == "pods")?;
    rest.split([' ', '"']).next().map(Into::into)
}

#[tokio::test]
async fn a_tag_finds_its_entries_and_wakes_for_nothing_else() {
    let store = Arc::new(MemoryStore::with_ring_limit(8 * 1024));
    let before = store.write(put("pods/x/0", Expected::Absent, "node=b")).await.unwrap();
    store.tag_with(tag_of);
    let tagged = |tag: &str| Subject::Tagged { prefix: "pods/".into(), tag: tag.into() };
    let keys = |tag: &str| -> Vec<String> {
        store.list_tagged("pods/", tag).entries.iter().map(|entry| entry.key.to_string()).collect()
    };
    assert_eq!(keys("b"), ["pods/x/0"], "what was there before is found too");
    let (mut a, mut b) =
        (store.follow(tagged("a"), before.revision).unwrap(), store.follow(tagged("b"), before.revision).unwrap());
    store.write(put("pods/x/1", Expected::Absent, "")).await.unwrap();
    store.write(put("pods/x/1", Expected::Present, "node=a")).await.unwrap();
    store.write(put("pods/x/1", Expected::Present, "node=a again")).await.unwrap();
    store.write(put("pods/x/1", Expected::Present, "node=b")).await.unwrap();
    store.write(delete("pods/x/1", Expected::Present)).await.unwrap();
    let seen = |watch: &mut Watch| -> Vec<(bool, bool)> {
        let events = std::iter::from_fn(|| watch.ready().unwrap());
        events.map(|event| (event.previous.is_some(), event.current.is_some())).collect()
    };
    // It comes (unbound before), changes, goes to the other; and is deleted there.
    assert_eq!(seen(&mut a), [(true, true), (true, true), (true, true)]);
    assert_eq!(seen(&mut b), [(true, true), (true, false)]);
    assert_eq!((keys("a"), keys("b")), (vec![], vec!["pods/x/0".to_owned()]));

    // Others fill the ring many times: an idle watch of a tag or of a key is not overtaken, and says how far it is.
    let mut one = store.follow(Subject::Key("pods/x/0".into()), store.revision()).unwrap();
    for index in 0..100 {
        store
            .write(put("pods/x/2", if index == 0 { Expected::Absent } else { Expected::Present }, "node=c"))
            .await
            .unwrap();
    }
    assert_eq!(one.resource_revision(), store.revision());
    assert!(one.catch_up() && one.revision() == store.revision());
    store.write(put("pods/x/0", Expected::Present, "node=b")).await.unwrap();
    assert!(!one.catch_up(), "something waits");
    for watch in [&mut one, &mut b] {
        assert_eq!(&*watch.next().await.unwrap().shown().key, "pods/x/0");
    }
    assert!(a.ready().unwrap().is_none());
    for _ in 0..100 {
        store.write(put("pods/x/0", Expected::Present, "node=b")).await.unwrap();
    }
    assert!(matches!(b.ready(), Err(StoreError::Compacted(..))), "its own events overtake it");
    assert!(a.ready().unwrap().is_none());
}

#[tokio::test]
async fn a_second_watch_of_a_subject_may_begin_earlier() {
    let store = MemoryStore::default();
    let first = store.write(put("pods/x/1", Expected::Absent, "1")).await.unwrap().revision;
    let second = store.write(put("pods/x/1", Expected::Present, "2")).await.unwrap().revision;
    store.write(put("pods/x/1", Expected::Present, "3")).await.unwrap();
    let subject = Subject::Key("pods/x/1".into());
    let mut late = store.follow(subject.clone(), second).unwrap();
    let mut early = store.follow(subject.clone(), first).unwrap();
    assert_eq!(early.ready().unwrap().map(|event| event.revision), Some(second));
    drop(early);
    assert_eq!(late.ready().unwrap().map(|event| event.revision), Some(second + 1));
    drop(late);
    assert_eq!(store.follow(subject, 1).unwrap().ready().unwrap().map(|event| event.revision), Some(first));
}
