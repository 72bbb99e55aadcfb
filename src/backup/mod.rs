//! One file that holds a server: its database as of one moment, its keys and certificates, what its cluster was
//! made with. Made beside the running server; restored into an empty data folder, on this board or another.
//! What the server still holds in memory alone (Events, renewed Leases) is not in it.
//! Calls block: call them from `spawn_blocking` or before anything else runs.

mod file;
pub mod schedule;
mod seal;

use crate::store::StoreError;
use crate::store::sqlite::backup::{self as database, Extent};
use jiff::Timestamp;
use seal::Sealing;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Names in the data folder.
const DATABASE: &str = "state.db";
const KEYS: &str = "pki";
/// What the cluster was made with, in the words of the config file.
pub const CLUSTER_FACTS: &str = "cluster.yaml";

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what} {path}")]
    Database {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: StoreError,
    },
    #[error("{0} holds no database: is it the data folder of a server?")]
    NoServer(PathBuf),
    #[error("{0} is no backup of edgelet")]
    NoBackup(PathBuf),
    #[error("backup {path} has format {format}, this program knows {known}: restore it with a newer edgelet")]
    Format { path: PathBuf, format: u32, known: u32 },
    #[error("backup {0} is sealed: give its passphrase with --passphrase-file")]
    Sealed(PathBuf),
    #[error("backup {0} is sealed in a way this program does not know")]
    Cipher(PathBuf),
    #[error("backup {path}: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("{path} is not empty (there is {found}): a backup is restored into an empty data folder only")]
    NotEmpty { path: PathBuf, found: String },
    #[error("the passphrase in {0} is empty")]
    EmptyPassphrase(PathBuf),
}

pub type Result<T> = std::result::Result<T, BackupError>;

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::File { what, path, source }
}

/// What stands readable at the head of a backup. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub created_at: Timestamp,
    /// Of the edgelet that made it.
    pub version: String,
    #[serde(flatten)]
    pub content: Content,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing: Option<Sealing>,
}

/// Tells whether a server has changed since a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    #[serde(flatten)]
    pub extent: Extent,
    /// A hash of the keys and certificates.
    pub keys: String,
}

/// Reads a passphrase: the first line of a file.
pub fn passphrase(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(failed("read passphrase", path))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(BackupError::EmptyPassphrase(path.to_owned()));
    }
    Ok(line.to_owned())
}

/// What the server of a data folder holds now.
pub fn content(data: &Path) -> Result<Content> {
    let database = existing_database(data)?;
    let extent = database::extent(&database);
    let extent = extent.map_err(|source| BackupError::Database { what: "read database", path: database, source })?;
    Ok(Content { extent, keys: keys_hash(data)? })
}

/// Writes a backup of the server of a data folder, running or not, to `target`: the old file or the whole new one.
pub fn make(data: &Path, target: &Path, passphrase: Option<&str>, now: Timestamp) -> Result<Header> {
    let database = existing_database(data)?;
    // On the server's own disk: only what is sealed leaves it, if it is to be sealed.
    let copied = Scratch::new(data, "backup")?;
    let copy = copied.0.join(DATABASE);
    let extent = database::copy(&database, &copy);
    let extent = extent.map_err(|source| BackupError::Database { what: "copy database", path: database, source })?;
    let sealing = passphrase.map(|_| Sealing::new()).transpose().map_err(failed("seal", target))?;
    let content = Content { extent, keys: keys_hash(data)? };
    let header = Header { created_at: now, version: env!("CARGO_PKG_VERSION").to_owned(), content, sealing };
    let mut parts = vec![(DATABASE.to_owned(), copy)];
    parts.extend(keys(data)?);
    let facts = data.join(CLUSTER_FACTS);
    if facts.is_file() {
        parts.push((CLUSTER_FACTS.to_owned(), facts));
    }
    file::write(target, &header, passphrase, &parts)?;
    Ok(header)
}

/// What a backup says of itself, without its passphrase.
pub fn header(file: &Path) -> Result<Header> {
    file::open(file).map(|opened| opened.header)
}

/// Restores a backup into a data folder that is empty. The database comes last: a folder without it holds nothing
/// that a server would take for its own.
pub fn restore(file: &Path, data: &Path, passphrase: Option<&str>) -> Result<Header> {
    crate::pki::files::make_private_dir(data)
        .map_err(|error| BackupError::Damaged { path: data.to_owned(), why: error.to_string() })?;
    refuse_used(data)?;
    let restored = Scratch::new(data, "restore")?;
    let header = file::extract(file, passphrase, &restored.0)?;
    let (copy, keys) = (restored.0.join(DATABASE), restored.0.join(KEYS));
    if !copy.is_file() || !keys.is_dir() {
        return Err(BackupError::Damaged { path: file.to_owned(), why: "it holds no database or no keys".into() });
    }
    let revived = database::revive(&copy);
    revived.map_err(|source| BackupError::Database { what: "restore database from", path: file.to_owned(), source })?;
    sync(&restored.0)?;
    for name in [CLUSTER_FACTS, KEYS, DATABASE] {
        let (from, to) = (restored.0.join(name), data.join(name));
        if from.exists() {
            std::fs::rename(&from, &to).map_err(failed("move into place", &to))?;
        }
    }
    sync(data)?;
    Ok(header)
}

fn existing_database(data: &Path) -> Result<PathBuf> {
    let database = data.join(DATABASE);
    match std::fs::metadata(&database) {
        Ok(meta) if meta.is_file() => Ok(database),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("look for (try sudo)", &database)(error))
        }
        _ => Err(BackupError::NoServer(data.to_owned())),
    }
}

/// What a restore may find: nothing of a server or of a node. Images imported before are welcome.
fn refuse_used(data: &Path) -> Result<()> {
    const HARMLESS: [&str; 3] = ["lost+found", "images", "edgelet.lock"];
    for entry in std::fs::read_dir(data).map_err(failed("read folder", data))? {
        let found = entry.map_err(failed("read folder", data))?.file_name().to_string_lossy().into_owned();
        if !HARMLESS.contains(&found.as_str()) && !found.starts_with(SCRATCH) {
            return Err(BackupError::NotEmpty { path: data.to_owned(), found });
        }
    }
    Ok(())
}

/// The files below the folder of keys, by their names in a backup; not those half-written.
fn keys(data: &Path) -> Result<Vec<(String, PathBuf)>> {
    let (mut found, mut open) = (Vec::new(), vec![(KEYS.to_owned(), data.join(KEYS))]);
    while let Some((name, path)) = open.pop() {
        for entry in std::fs::read_dir(&path).map_err(failed("read folder", &path))? {
            let entry = entry.map_err(failed("read folder", &path))?;
            let (name, path) = (format!("{name}/{}", entry.file_name().to_string_lossy()), entry.path());
            match entry.file_type().map_err(failed("read folder", &path))? {
                kind if kind.is_dir() => open.push((name, path)),
                kind if kind.is_file() && !name.ends_with(".new") => found.push((name, path)),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

fn keys_hash(data: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, path) in keys(data)? {
        let content = std::fs::read(&path).map_err(failed("read", &path))?;
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    Ok(crate::pki::hex(&hash.finalize()[..8]))
}

fn sync(directory: &Path) -> Result<()> {
    let synced = std::fs::File::open(directory).and_then(|open| Ok(rustix::fs::syncfs(open)?));
    synced.map_err(failed("sync", directory))
}

const SCRATCH: &str = ".edgelet-";

/// A private folder in the data folder that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(data: &Path, what: &str) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("{SCRATCH}{what}-");
        // What a crash left; the pid may be anybody's by now.
        for entry in std::fs::read_dir(data).map_err(failed("read folder", data))?.flatten() {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let owner = file_name.strip_prefix(&name).unwrap_or("self");
            if !Path::new("/proc").join(owner).exists() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let path = data.join(format!("{name}{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed("make folder", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
