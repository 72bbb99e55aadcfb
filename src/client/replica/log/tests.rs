use super::*;
use std::fs;

fn keys() -> KeySource {
    KeySource::new(b"a node's private key", None)
}

fn put(key: &str, value: &str) -> Record {
    let value = Bytes::from(value.to_owned());
    Record { collection: "v1/pods".into(), key: key.into(), digest: digest(&[&value]), value: Some(value) }
}

fn delete(key: &str) -> Record {
    Record { collection: "v1/pods".into(), key: key.into(), digest: Digest::default(), value: None }
}

/// `key=value` of everything stored.
fn shown(contents: &Contents) -> Vec<String> {
    let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
    let all = contents.values().flatten();
    all.map(|(key, (_, value))| format!("{key}={}", &text(value)[..text(value).len().min(8)])).collect()
}

fn reopened(directory: &Path) -> Vec<String> {
    shown(&Log::open(directory, &keys()).expect("opened").1)
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

#[test]
fn what_was_written_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, contents) = Log::open(directory.path(), &keys()).unwrap();
    assert!(contents.is_empty());
    let long = "y".repeat(9000);
    assert_eq!(log.append(&[put("a/x", "1"), put("a/y", &long)]).unwrap(), PAGE_BYTES, "it is deflated");
    log.append(&[put("a/x", "2"), put("a/z", "1")]).unwrap();
    log.append(&[delete("a/z")]).unwrap();
    assert_eq!(shown(&Log::read(directory.path(), &keys()).unwrap()), ["a/x=2", "a/y=yyyyyyyy"]);
    drop(log);
    assert_eq!(reopened(directory.path()), ["a/x=2", "a/y=yyyyyyyy"]);
    let bytes = fs::read(directory.path().join("replica.0")).unwrap();
    assert!(!bytes.windows(4).any(|window| window == b"pods" || window == b"yyyy"), "nothing lies open");
}

#[test]
fn a_write_torn_at_any_byte_costs_only_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    log.append(&[put("a", "1"), put("b", "1")]).unwrap();
    let before = log.active.end;
    let noise: String = (0..12_000_u32).map(|n| char::from(b'a' + (n * n % 23) as u8 + (n % 3) as u8)).collect();
    log.append(&[put("a", "2"), put("c", &noise)]).unwrap();
    drop(log);
    let path = directory.path().join("replica.0");
    let whole = fs::read(&path).unwrap();
    let start = usize::try_from(before).unwrap();
    let sealed = u32::from_le_bytes(whole[start + 4..start + 8].try_into().unwrap()) as usize;
    let end = start + FRAME_HEAD_BYTES + sealed;
    for cut in start..end {
        // What follows the cut is nothing, or what was there before.
        let other: Vec<u8> = if cut % 16 == 0 { whole[cut..].iter().map(|byte| !byte).collect() } else { Vec::new() };
        fs::write(&path, [&whole[..cut], &other].concat()).unwrap();
        assert_eq!(shown(&Log::read(directory.path(), &keys()).unwrap()), ["a=1", "b=1"], "cut at {cut}");
    }
    fs::write(&path, &whole[..end]).unwrap();
    assert_eq!(shown(&Log::read(directory.path(), &keys()).unwrap()).len(), 3, "whole");
    // And it goes on after the cut.
    fs::write(&path, &whole[..start + 100]).unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    log.append(&[put("d", "1")]).unwrap();
    drop(log);
    assert_eq!(reopened(directory.path()), ["a=1", "b=1", "d=1"]);
}

#[test]
fn damage_in_the_middle_costs_only_what_it_hit() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    for (key, value) in [("a", "1"), ("b", "1"), ("c", "1")] {
        log.append(&[put(key, value)]).unwrap();
    }
    drop(log);
    let path = directory.path().join("replica.0");
    let whole = fs::read(&path).unwrap();
    for at in 0..64 {
        let mut bytes = whole.clone();
        bytes[2 * 4096 + at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(shown(&Log::read(directory.path(), &keys()).unwrap()), ["a=1", "c=1"], "byte {at}");
    }
    // Opening it writes it anew, without the hole.
    assert_eq!(reopened(directory.path()), ["a=1", "c=1"]);
    assert_eq!(reopened(directory.path()), ["a=1", "c=1"]);
    assert!(directory.path().join("replica.1").exists());
}

#[test]
fn a_compaction_cut_short_anywhere_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    for round in 0..5 {
        for key in ["a", "b", "c"] {
            log.append(&[put(key, &round.to_string())]).unwrap();
        }
    }
    log.append(&[delete("b")]).unwrap();
    let want = ["a=4", "c=4"];
    // Twice, so that the file written to has frames and a header of its own already.
    for _ in 0..2 {
        let before = copy(directory.path());
        let slot = 1 - log.active.slot;
        log.compact().unwrap();
        let new = fs::read(directory.path().join(FILES[slot])).unwrap();
        let old = fs::read(before.path().join(FILES[slot])).unwrap_or_default();
        let with = |bytes: &[u8]| {
            let cut = copy(before.path());
            fs::write(cut.path().join(FILES[slot]), bytes).unwrap();
            assert_eq!(reopened(cut.path()), want);
        };
        // The frames, up to any byte, under the header of before.
        let head: Vec<u8> = old.iter().copied().chain(std::iter::repeat(0)).take(4096).collect();
        for cut in (4096..=new.len()).step_by(509).chain([new.len()]) {
            with(&[&head, &new[4096..cut], old.get(cut..).unwrap_or_default()].concat());
        }
        // Then the header, up to any byte.
        for cut in 0..=HEADER_BYTES {
            with(&[&new[..cut], &head[cut..], &new[4096..]].concat());
        }
        assert_eq!(shown(&Log::read(directory.path(), &keys()).unwrap()), want);
    }
}

#[test]
fn a_file_is_written_in_place_once_it_has_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    let (mut sizes, mut compactions) = (Vec::new(), 0);
    for round in 0..1200 {
        log.append(&[put(&format!("k{}", round % 40), &round.to_string())]).unwrap();
        if log.is_full() {
            log.compact().unwrap();
            compactions += 1;
        }
        if round % 600 == 599 {
            sizes.push(FILES.map(|name| fs::metadata(directory.path().join(name)).map_or(0, |meta| meta.len())));
        }
    }
    assert_eq!(compactions, 4);
    assert_eq!(sizes[0], sizes[1]);
    assert_eq!(Log::read(directory.path(), &keys()).unwrap()["v1/pods"].len(), 40);
}

#[test]
fn another_key_and_another_format_are_told_apart_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    log.append(&[put("a", "1")]).unwrap();
    drop(log);
    let other = KeySource::new(b"another key", None);
    assert!(matches!(Log::open(directory.path(), &other), Err(LogError::Key(_))));
    assert_eq!(reopened(directory.path()), ["a=1"]);

    let path = directory.path().join("replica.0");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = VERSION + 1;
    let sum = digest(&[&bytes[..68]]);
    bytes[68..84].copy_from_slice(&sum);
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(Log::open(directory.path(), &keys()), Err(LogError::Version(2))));
    assert_eq!(fs::read(&path).unwrap(), bytes);

    let mut log = Log::renew(directory.path(), &keys()).unwrap();
    log.append(&[put("n", "1")]).unwrap();
    drop(log);
    assert_eq!(reopened(directory.path()), ["n=1"]);
}

#[test]
fn a_board_that_gets_a_secret_binds_its_replica_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    log.append(&[put("a", "1")]).unwrap();
    drop(log);
    let bound = KeySource::new(b"a node's private key", Some(b"fused into the board"));
    let (log, contents) = Log::open(directory.path(), &bound).unwrap();
    assert_eq!((shown(&contents), log.active.header.binding), (vec!["a=1".to_owned()], Binding::Board));
    drop(log);
    // The file that the node's key alone opens is older and says so; a card moved to another board is no use.
    assert!(matches!(Log::open(directory.path(), &keys()), Err(LogError::Key(_))));
}

#[test]
fn a_replica_follows_its_board_to_the_strongest_secret_and_stays_readable_on_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(directory.path(), &keys()).unwrap();
    log.append(&[put("a", "1")]).unwrap();
    drop(log);
    let tpm = || keys().with_tpm([7; 32]);
    let fused = KeySource::new(b"a node's private key", Some(b"fused into the board"));
    let way = [(tpm(), Binding::Tpm), (tpm(), Binding::Tpm), (fused.clone().with_tpm([7; 32]), Binding::Board)];
    for (source, binding) in way {
        let (log, contents) = Log::open(directory.path(), &source).unwrap();
        assert_eq!((shown(&contents), log.active.header.binding), (vec!["a=1".to_owned()], binding));
        drop(log);
        assert!(matches!(Log::open(directory.path(), &keys()), Err(LogError::Key(_))));
        assert!(matches!(Log::open(directory.path(), &keys().with_tpm([8; 32])), Err(LogError::Key(_))));
    }
    assert!(matches!(Log::open(directory.path(), &tpm()), Err(LogError::Key(_))));
    assert_eq!(shown(&Log::open(directory.path(), &fused).unwrap().1), ["a=1"]);
}
