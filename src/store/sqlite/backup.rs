//! A copy of the database as it is at one moment, made beside the one who writes it, in its process or another one;
//! and what a copy needs to be somebody's database again.

use crate::store::StoreError;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, params};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How far above the copied ceiling a restored database begins: more revisions than a cluster gives out between a
/// backup and the loss of its server, so that none is given out twice and every cache lists again.
pub const REVISION_LEAP: u64 = 1_000_000_000;
/// How long a writer may keep the copy from its first page.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// What a database holds, as far as it tells copies apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The newest revision of an object.
    pub revision: u64,
    pub objects: u64,
}

#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the database is locked by another program")]
    Busy,
    #[error("database is damaged: {0}")]
    Damaged(String),
}

/// Copies the database into a new file, in one step: writers go on, the copy does not see them. Blocking.
pub fn copy(database: &Path, target: &Path) -> Result<Extent, StoreError> {
    let source = open(database)?;
    // Secrets lie in it: made before SQLite makes it, for its mode.
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(target).map_err(StoreError::engine)?;
    let mut copy = open(target)?;
    {
        let backup = Backup::new(&source, &mut copy).map_err(StoreError::engine)?;
        match backup.step(-1).map_err(StoreError::engine)? {
            StepResult::Done => {}
            _ => return Err(StoreError::engine(CopyError::Busy)),
        }
    }
    // One file, without a log beside it.
    copy.execute_batch("PRAGMA journal_mode=DELETE").map_err(StoreError::engine)?;
    extent_of(&copy).map_err(StoreError::engine)
}

/// What the database holds now. Blocking.
pub fn extent(database: &Path) -> Result<Extent, StoreError> {
    extent_of(&open(database)?).map_err(StoreError::engine)
}

/// Checks a copy and lets its revisions begin far above those of the database it was copied from. Blocking.
pub fn revive(copy: &Path) -> Result<(), StoreError> {
    let mut connection = open(copy)?;
    let verdict: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(StoreError::engine)?;
    if verdict != "ok" {
        return Err(StoreError::engine(CopyError::Damaged(verdict)));
    }
    raise(&mut connection).map_err(StoreError::engine)
}

fn raise(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let sql = "SELECT max((SELECT coalesce(max(value), 1) FROM meta WHERE name='revision_ceiling'),
        (SELECT coalesce(max(revision), 1) FROM object))";
    let ceiling: i64 = transaction.query_row(sql, [], |row| row.get(0))?;
    for (name, value) in [("revision_ceiling", ceiling + REVISION_LEAP.cast_signed()), ("clean", 1)] {
        transaction.execute("INSERT OR REPLACE INTO meta(name, value) VALUES(?1, ?2)", params![name, value])?;
    }
    transaction.commit()
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(StoreError::engine)?;
    connection.busy_timeout(BUSY_LIMIT).map_err(StoreError::engine)?;
    Ok(connection)
}

fn extent_of(connection: &Connection) -> rusqlite::Result<Extent> {
    connection.query_row("SELECT coalesce(max(revision), 0), count(*) FROM object", [], |row| {
        let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
        Ok(Extent { revision: number(0)?, objects: number(1)? })
    })
}
