//! The file: schema, loading, transactions, checkpoints. Knows nothing of queues or watches.
//! Revisions up to `ceiling` may have been given out; the file never holds a revision above it.

use crate::store::seal::{Sealer, is_sealed};
use crate::store::watch::Past;
use crate::store::{Entry, StoreError, splice};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Revisions are reserved in blocks, so that a write need not touch the page that counts them.
const REVISION_BLOCK: u64 = 10_000;
const SCHEMA_VERSION: i64 = 1;
/// How long a foreign tool (a backup) may hold the file before writes fail.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
/// The write-ahead log is copied back when it has grown to this and the writer is idle …
const CHECKPOINT_IDLE_BYTES: usize = 4 * 1024 * 1024;
/// … or, busy or not, to this.
const CHECKPOINT_BYTES: usize = 16 * 1024 * 1024;
/// What a small row costs in the log: a page of the table and a page of its index.
const ROW_LOG_BYTES: usize = 8 * 1024;

const PRAGMAS: &str = "
    PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;
    PRAGMA synchronous=FULL; PRAGMA cache_size=-1024; PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY;
    PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=16777216;";
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS object(
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
        create_revision INTEGER NOT NULL, revision INTEGER NOT NULL, value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;";

pub(super) struct Database {
    connection: Connection,
    start: u64,
    ceiling: u64,
    log_bytes: usize,
    sealer: Option<Sealer>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the file holds.
#[derive(Default)]
struct Objects {
    all: Vec<Arc<Entry>>,
    /// Those that lie there plain although they are to be sealed: of before they were.
    plain: Vec<Arc<Entry>>,
}

/// What a store begins with.
pub(super) struct Opened {
    pub entries: Vec<Arc<Entry>>,
    pub past: Past,
}

/// The last state of a key, to be written.
pub(super) enum Row<'a> {
    Put { key: &'a str, create_revision: u64, revision: u64, value: &'a [u8] },
    Delete { key: &'a str },
}

#[derive(Debug, thiserror::Error)]
enum DatabaseError {
    #[error("database is damaged: {0}")]
    Damaged(String),
    #[error("database has schema {0}, this program knows {SCHEMA_VERSION}")]
    Schema(i64),
    #[error("object {0} is sealed, and there is no key to open it")]
    Sealed(String),
}

impl Database {
    pub fn open(path: &Path, sealer: Option<Sealer>) -> Result<(Self, Opened), StoreError> {
        // Secrets lie in it: made before SQLite makes it, for its mode; the log takes the mode over.
        let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        made.map_err(StoreError::engine)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(StoreError::engine)?;
        connection.busy_timeout(BUSY_LIMIT).map_err(StoreError::engine)?;
        connection.set_prepared_statement_cache_capacity(8);
        let mut database = Self { connection, start: 1, ceiling: 0, log_bytes: 0, sealer };
        let opened = database.load().map_err(StoreError::engine)?;
        Ok((database, opened))
    }

    pub fn start_revision(&self) -> u64 {
        self.start
    }

    /// Whether `revision` may be given out without a transaction that raises the ceiling.
    pub fn reserved(&self, revision: u64) -> bool {
        revision <= self.ceiling
    }

    fn load(&mut self) -> Result<Opened, Failure> {
        self.connection.execute_batch(PRAGMAS)?;
        self.connection.execute_batch(SCHEMA)?;
        let schema = self.meta("schema_version")?.unwrap_or(SCHEMA_VERSION);
        if schema != SCHEMA_VERSION {
            return Err(DatabaseError::Schema(schema).into());
        }
        if self.meta("clean")?.unwrap_or(1) == 0 {
            self.check()?;
        }
        let Objects { all: entries, plain } = self.read()?;
        let ceiling = self.meta("revision_ceiling")?.unwrap_or(1);
        self.start = u64::try_from(ceiling)?.max(entries.iter().map(|entry| entry.revision).max().unwrap_or(1));
        let past = self.past()?.unwrap_or_else(|| Past::unknown(self.start));
        self.ceiling = next_ceiling(self.start);
        let mark =
            [("schema_version", SCHEMA_VERSION), ("clean", 0), ("revision_ceiling", i64::try_from(self.ceiling)?)];
        let transaction = self.connection.transaction()?;
        if let Some(sealer) = &self.sealer {
            for entry in plain {
                let value = splice::remove(&entry.bytes, entry.splice_at);
                let value = sealer.seal(&entry.key, &value)?;
                transaction.execute("UPDATE object SET value=?2 WHERE key=?1", params![entry.key, value])?;
            }
        }
        for (name, value) in mark {
            transaction.execute("INSERT OR REPLACE INTO meta(name, value) VALUES(?1, ?2)", params![name, value])?;
        }
        transaction.commit()?;
        Ok(Opened { entries, past })
    }

    /// What the last process has left, if it stopped at exactly the revision that this one starts with: after a crash,
    /// a restore or another program's stop nobody knows what watchers have seen.
    fn past(&self) -> rusqlite::Result<Option<Past>> {
        if self.meta("past_revision")? != Some(self.start.cast_signed()) {
            return Ok(None);
        }
        let sql = "SELECT value FROM meta WHERE name='past'";
        let text: Option<String> = self.connection.query_row(sql, [], |row| row.get(0)).optional()?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn meta(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        self.connection.query_row("SELECT value FROM meta WHERE name=?1", [name], |row| row.get(0)).optional()
    }

    /// After an unclean stop only: it reads the whole file.
    fn check(&self) -> Result<(), Failure> {
        let verdict: String = self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict == "ok" { Ok(()) } else { Err(DatabaseError::Damaged(verdict).into()) }
    }

    fn read(&self) -> Result<Objects, Failure> {
        let mut statement = self.connection.prepare("SELECT key, create_revision, revision, value FROM object")?;
        let mut rows = statement.query([])?;
        let mut objects = Objects::default();
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_str()?;
            let (create_revision, revision) =
                (row.get::<_, i64>(1)?.cast_unsigned(), row.get::<_, i64>(2)?.cast_unsigned());
            let stored = row.get_ref(3)?.as_blob()?;
            let value = match &self.sealer {
                Some(sealer) => sealer.open(key, stored)?,
                None if is_sealed(stored) => return Err(DatabaseError::Sealed(key.to_owned()).into()),
                None => stored.into(),
            };
            let splice_at = splice::metadata_offset(&value)
                .ok_or_else(|| DatabaseError::Damaged(format!("object {key} has no metadata")))?;
            let bytes = splice::insert(&value, splice_at, revision);
            let entry = Arc::new(Entry { key: key.into(), create_revision, revision, bytes, splice_at });
            if !is_sealed(stored) && self.sealer.as_ref().is_some_and(|sealer| sealer.covers(key)) {
                objects.plain.push(entry.clone());
            }
            objects.all.push(entry);
        }
        Ok(objects)
    }

    /// Writes rows in one transaction that is on disk when this returns. `newest`: the newest revision given out.
    pub fn commit<'a>(&mut self, rows: impl Iterator<Item = Row<'a>>, newest: u64) -> Result<(), Failure> {
        let ceiling = if newest > self.ceiling { next_ceiling(newest) } else { self.ceiling };
        let mut written = 0;
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if ceiling != self.ceiling {
            put_meta(&transaction, "revision_ceiling", ceiling)?;
        }
        for row in rows {
            written += write_row(&transaction, self.sealer.as_ref(), &row)?;
        }
        transaction.commit()?;
        self.ceiling = ceiling;
        self.log_bytes += written;
        Ok(())
    }

    /// Copies the log back into the file when it is time to; readers of the file are never waited for.
    pub fn checkpoint(&mut self, idle: bool) -> rusqlite::Result<()> {
        let limit = if idle { CHECKPOINT_IDLE_BYTES } else { CHECKPOINT_BYTES };
        if self.log_bytes < limit {
            return Ok(());
        }
        self.log_bytes = 0;
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        let mut vacuum = self.connection.prepare_cached("PRAGMA incremental_vacuum(64)")?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        Ok(())
    }

    /// Notes a clean stop at `revision`, and what happened until then, and empties the log.
    pub fn finish(mut self, revision: u64, past: &Past) -> Result<(), Failure> {
        let text = serde_json::to_string(past)?;
        let transaction = self.connection.transaction()?;
        transaction.execute("INSERT OR REPLACE INTO meta(name, value) VALUES('past', ?1)", [text])?;
        put_meta(&transaction, "past_revision", revision)?;
        put_meta(&transaction, "revision_ceiling", revision)?;
        put_meta(&transaction, "clean", 1)?;
        transaction.commit()?;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

fn next_ceiling(revision: u64) -> u64 {
    (revision / REVISION_BLOCK + 1) * REVISION_BLOCK
}

fn put_meta(connection: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO meta(name, value) VALUES(?1, ?2)")?;
    statement.execute(params![name, value.cast_signed()]).map(drop)
}

/// Returns about how many bytes it added to the log.
fn write_row(connection: &Connection, sealer: Option<&Sealer>, row: &Row) -> Result<usize, Failure> {
    match row {
        Row::Put { key, create_revision, revision, value } => {
            let sql = "INSERT INTO object(key, create_revision, revision, value) VALUES(?1, ?2, ?3, ?4)
                ON CONFLICT(key) DO UPDATE SET create_revision=?2, revision=?3, value=?4";
            let (create_revision, revision) = (create_revision.cast_signed(), revision.cast_signed());
            let value = match sealer {
                Some(sealer) => sealer.seal(key, value)?,
                None => Cow::Borrowed(*value),
            };
            connection.prepare_cached(sql)?.execute(params![key, create_revision, revision, value])?;
            Ok(ROW_LOG_BYTES + value.len())
        }
        Row::Delete { key } => {
            connection.prepare_cached("DELETE FROM object WHERE key=?1")?.execute([key])?;
            Ok(ROW_LOG_BYTES)
        }
    }
}
