//! Backups of a store that is being written, there and back.

use super::*;
use crate::clock::Clock;
use crate::pki::Pki;
use crate::store::seal::{KEY_BYTES, Sealer};
use crate::store::{Durability, Expected, SqliteStore, Store, StoreError, Write, splice};
use bytes::Bytes;
use serde_json::json;
use std::time::Duration;

const NOW: &str = "2026-11-23T12:00:00Z";

fn sealer() -> Sealer {
    Sealer::new(&[9; KEY_BYTES], vec!["secrets".into()])
}

fn write(key: &str, content: &str) -> Write {
    let value = Bytes::from(json!({"data": content, "metadata": {"name": key}}).to_string());
    let splice_at = splice::metadata_offset(&value).unwrap();
    Write {
        key: key.into(),
        expected: Expected::Absent,
        value: Some(value),
        splice_at,
        durability: Durability::Durable,
    }
}

/// A server's data folder, with its store open.
fn server() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_sealed(&folder.path().join(DATABASE), sealer()).unwrap();
    Pki::open(&folder.path().join(KEYS), "https://cluster", Clock::simulated(NOW.parse().unwrap())).unwrap();
    std::fs::write(folder.path().join(CLUSTER_FACTS), "cluster-cidr: 10.42.0.0/16\n").unwrap();
    (folder, store)
}

async fn keys_of(store: &SqliteStore) -> Vec<String> {
    let page = store.list("", "", 0, None).await.unwrap();
    page.entries.iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_while_others_write_has_all_that_was_acknowledged_before() {
    let (folder, store) = server();
    let store = std::sync::Arc::new(store);
    for number in 0..50 {
        store.write(write(&format!("configmaps/a/before-{number}"), "x")).await.unwrap();
    }
    store.write(write("secrets/a/token", "s3cret")).await.unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0.. {
                let Ok(_) = store.write(write(&format!("configmaps/a/during-{number:06}"), &"y".repeat(500))).await
                else {
                    return;
                };
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let target = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().to_owned(), target.path().join("one.backup"));
    let made = file.clone();
    let passphrase = Some("correct horse");
    let now: Timestamp = NOW.parse().unwrap();
    let header = tokio::task::spawn_blocking(move || make(&data, &made, passphrase, now)).await.unwrap().unwrap();
    writing.abort();
    let newest = store.revision();
    store.close().await.unwrap();

    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"edgelet backup 1\n{\"createdAt\":\"2026-11-23T12:00:00Z\""));
    assert_eq!(super::header(&file).unwrap(), header);
    let restored = tempfile::tempdir().unwrap();
    let into = restored.path().join("data");
    restore(&file, &into, passphrase).unwrap();
    let again = SqliteStore::open_sealed(&into.join(DATABASE), sealer()).unwrap();
    let keys = keys_of(&again).await;
    assert_eq!(keys.iter().filter(|key| key.starts_with("configmaps/a/before-")).count(), 50);
    assert_eq!(keys.len() as u64, header.content.extent.objects);
    let secret = again.get("secrets/a/token").await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&secret.bytes).contains("s3cret"));
    // What was written one after the other is there without a gap: it is one moment.
    let during: Vec<&String> = keys.iter().filter(|key| key.starts_with("configmaps/a/during-")).collect();
    for (number, key) in during.iter().enumerate() {
        assert_eq!(**key, format!("configmaps/a/during-{number:06}"));
    }
    assert!(again.revision() >= newest + 900_000_000, "{} after {newest}", again.revision());
    assert!(matches!(again.watch("configmaps/", newest), Err(StoreError::Compacted(..))), "caches list again");
    let ca = |data: &Path| std::fs::read(data.join("pki/ca.crt")).unwrap();
    assert_eq!(ca(&into), ca(folder.path()));
    assert_eq!(std::fs::read_to_string(into.join(CLUSTER_FACTS)).unwrap(), "cluster-cidr: 10.42.0.0/16\n");
    again.close().await.unwrap();
}

#[tokio::test]
async fn a_restored_server_is_the_authority_it_was_also_after_rotations() {
    let (folder, store) = server();
    store.write(write("configmaps/a/b", "x")).await.unwrap();
    store.close().await.unwrap();
    let clock = Clock::simulated(NOW.parse().unwrap());
    let open = |data: &Path| Pki::open(&data.join(KEYS), "https://cluster", clock.clone()).unwrap();
    let pki = open(folder.path());
    let at_rest = crate::pki::at_rest::key(&folder.path().join(KEYS)).unwrap();
    let before = content(folder.path()).unwrap();
    for finished in [true, false] {
        pki.rotate(&crate::pki::hex(pki.trust().current.key_hash())).unwrap();
        if finished {
            pki.finish_rotation().unwrap();
        }
    }
    assert_ne!(content(folder.path()).unwrap(), before, "a rotation is a change that is worth a backup");
    let target = tempfile::tempdir().unwrap();
    let (file, into) = (target.path().join("backup"), target.path().join("data"));
    make(folder.path(), &file, Some("pass"), NOW.parse().unwrap()).unwrap();
    restore(&file, &into, Some("pass")).unwrap();
    assert!(into.join("pki/authorities.json").is_file());
    let restored = open(&into);
    let (old, new) = (pki.trust(), restored.trust());
    let keys = |trust: &crate::pki::trust::Trust| trust.all().map(|one| one.key_pem()).collect::<Vec<_>>();
    assert_eq!((keys(&old).len(), keys(&new)), (3, keys(&old)), "the current key and both former ones");
    assert_eq!(new.offered_pem(), old.offered_pem(), "boards that know a former one alone can follow");
    assert_eq!(restored.ca_pem(), pki.ca_pem(), "and who is trusted is as it was");
    assert_eq!(restored.token_key().key_set(), pki.token_key().key_set(), "pods' tokens count on");
    assert!(crate::pki::at_rest::key(&into.join(KEYS)).unwrap() == at_rest, "Secrets can be read");
}

#[tokio::test]
async fn what_cannot_be_restored_says_why_and_changes_nothing() {
    let (folder, store) = server();
    store.write(write("configmaps/a/b", "x")).await.unwrap();
    store.close().await.unwrap();
    let (target, now) = (tempfile::tempdir().unwrap(), NOW.parse().unwrap());
    let (plain, sealed) = (target.path().join("plain"), target.path().join("sealed"));
    make(folder.path(), &plain, None, now).unwrap();
    make(folder.path(), &sealed, Some("pass"), now).unwrap();
    let into = target.path().join("into");
    let refused = |file: &Path, passphrase| {
        let error = restore(file, &into, passphrase).unwrap_err();
        assert_eq!(std::fs::read_dir(&into).unwrap().count(), 0, "{error}");
        error.to_string()
    };
    assert!(refused(&sealed, None).ends_with("is sealed: give its passphrase with --passphrase-file"));
    assert!(refused(&sealed, Some("wrong")).ends_with("the passphrase is wrong, or the file is damaged"));
    let other = target.path().join("other");
    std::fs::write(&other, "no backup at all").unwrap();
    assert!(refused(&other, None).ends_with("is no backup of edgelet"));
    std::fs::write(&other, "edgelet backup 7\n{}\n").unwrap();
    assert!(refused(&other, None).contains("has format 7, this program knows 1"));
    let cut = std::fs::read(&plain).unwrap();
    std::fs::write(&other, &cut[..cut.len() - 20]).unwrap();
    refused(&other, None);

    let error = restore(&plain, folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("is not empty (there is ") && error.contains("an empty data folder only"), "{error}");
    let error = make(target.path(), &other, None, now).unwrap_err().to_string();
    assert!(error.ends_with("holds no database: is it the data folder of a server?"), "{error}");
    restore(&plain, &into, None).unwrap();
}

#[tokio::test(start_paused = true)]
async fn backups_come_by_themselves_but_only_when_something_changed() {
    let (folder, store) = server();
    store.write(write("configmaps/a/b", "x")).await.unwrap();
    let (target, clock) = (tempfile::tempdir().unwrap(), Clock::simulated(NOW.parse().unwrap()));
    let hour = Duration::from_secs(3600);
    let plan =
        schedule::Schedule { directory: target.path().to_owned(), interval: hour, keep: 2, passphrase_file: None };
    let mut tree = crate::supervise::Tree::default();
    tree.spawn("backups", schedule::run(plan, folder.path().to_owned(), clock, tree.shutdown()));
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(target.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        names.sort();
        names
    };
    tokio::time::sleep(hour / 2).await;
    let first = names();
    let partial = target.path().join("2020-01-01T000000Z.edgelet-backup.partial");
    std::fs::write(&partial, "cut off").unwrap();
    assert_eq!(first.len(), 1, "the first at once: {first:?}");
    tokio::time::sleep(hour * 10).await;
    assert_eq!(names().last(), first.last(), "nothing has changed");
    for number in 0..3 {
        store.write(write(&format!("configmaps/a/c{number}"), "x")).await.unwrap();
        tokio::time::sleep(hour * 2).await;
    }
    let later = names();
    assert!(later.len() == 2 && !later.contains(&first[0]), "{later:?}");
    tree.end(Duration::from_secs(1)).await;
    store.close().await.unwrap();
}
