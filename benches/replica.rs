//! Bytes that a change of the replica costs on a disk: ours, SQLite's log and a plain append, on an ext4 of their own.
//! Run: `cargo bench --bench replica`. Needs root, mkfs.ext4 and a free loop device.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark ends at the first surprise"
)]

use bytes::Bytes;
use edgelet::client::replica::{KeySource, Replica};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHANGES: usize = 400;
const OBJECTS: usize = 40;
const DISK_BYTES: u64 = 256 << 20;

fn main() {
    if std::env::args().any(|argument| argument == "--list") || !rustix::process::geteuid().is_root() {
        return;
    }
    println!("{:<24} {:>10} {:>16}", "what", "value B", "written B/change");
    for value_bytes in [700, 4000] {
        let disk = Disk::new();
        let replica = Replica::open(&disk.folder.join("replica"), &KeySource::new(b"key", None)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Once round both files, so that they have their size.
        let change = |number: usize| {
            let value = Bytes::from(noise(value_bytes));
            replica.note("bench", &format!("object-{}", number % OBJECTS), Some(value.clone()), &value);
            runtime.block_on(replica.flush()).unwrap();
        };
        (0..2 * CHANGES).for_each(change);
        disk.row("replica", value_bytes, || (0..CHANGES).for_each(change));

        let database = rusqlite::Connection::open(disk.folder.join("sqlite")).unwrap();
        let pragmas = "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
            CREATE TABLE object(id INTEGER PRIMARY KEY, key TEXT UNIQUE, value BLOB);";
        database.execute_batch(pragmas).unwrap();
        let put = |number: usize| {
            let sql = "INSERT INTO object(key, value) VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value=?2";
            database.execute(sql, (format!("object-{}", number % OBJECTS), noise(value_bytes))).unwrap();
        };
        (0..OBJECTS).for_each(put);
        disk.row("SQLite, WAL, FULL", value_bytes, || (0..CHANGES).for_each(put));

        let file = File::create(disk.folder.join("append")).unwrap();
        let append = |number: usize| {
            file.write_all_at(&noise(value_bytes), (number * value_bytes) as u64).unwrap();
            file.sync_data().unwrap();
        };
        disk.row("append", value_bytes, || (0..CHANGES).for_each(append));
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

/// A file system of its own on a loop device, whose writes are counted.
struct Disk {
    image: PathBuf,
    folder: PathBuf,
    device: String,
}

impl Disk {
    fn new() -> Self {
        let base = std::env::temp_dir().join(format!("edgelet-bench-replica-{}", std::process::id()));
        let (image, folder) = (base.with_extension("img"), base);
        std::fs::create_dir_all(&folder).unwrap();
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        ok(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&image));
        let device = ok(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        ok(Command::new("mount").arg(&device).arg(&folder));
        Self { image, folder, device }
    }

    fn written_bytes(&self) -> u64 {
        rustix::fs::sync();
        let name = Path::new(&self.device).file_name().unwrap().to_string_lossy().into_owned();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
    }

    fn row(&self, what: &str, value_bytes: usize, work: impl FnOnce()) {
        let before = self.written_bytes();
        work();
        let each = (self.written_bytes() - before) / CHANGES as u64;
        println!("{what:<24} {value_bytes:>10} {each:>16}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.folder).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        let _ = std::fs::remove_file(&self.image);
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
