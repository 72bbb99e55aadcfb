//! What a restarted edgelet must find: one record per pod and per container in memory-backed files
//! below the run directory, replaced atomically. Nothing is written to the disk.

use crate::runtime::shim::protocol::{ExitRecord, Isolation};
use crate::runtime::spec::ProcessContext;
use crate::runtime::{Exit, SandboxConfig};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// As the kubelet limits them.
const TERMINATION_MESSAGE_LIMIT_BYTES: u64 = 4096;
const LOG_TAIL_LIMIT_BYTES: usize = 2048;
const LOG_TAIL_LIMIT_LINES: usize = 80;

/// Every field has a default: the record of another version must not make its pod unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxRecord {
    pub config: SandboxConfig,
    pub created_at: Timestamp,
    pub cgroup: String,
    /// The file the shim runs from.
    pub binary: PathBuf,
    pub shim_pid: i32,
    pub ip: Option<IpAddr>,
    pub netns: Option<PathBuf>,
    pub reaper: Option<i32>,
    /// Everything is set up, and nothing has been stopped.
    pub ready: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub created_at: Timestamp,
    pub spec_hash: u64,
    pub cgroup: String,
    pub log: PathBuf,
    pub context: ProcessContext,
    pub isolation: Isolation,
    pub stop_signal: i32,
    pub tty: bool,
    pub termination_message_from_log: bool,
    #[serde(default)]
    pub devices: Vec<String>,
}

/// Where the files of one pod are.
#[derive(Clone, Debug)]
pub struct PodPaths {
    pub directory: PathBuf,
    /// Writable layers, on the disk.
    pub layers: PathBuf,
}

impl PodPaths {
    pub fn socket(&self) -> PathBuf {
        self.directory.join("shim.sock")
    }

    pub fn record(&self) -> PathBuf {
        self.directory.join("sandbox.json")
    }

    pub fn shm(&self) -> PathBuf {
        self.directory.join("shm")
    }

    /// All that containers can write of what is in memory, on a file system of their own: the run
    /// directory is the whole host's.
    pub fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    /// libcontainer's own state.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn containers(&self) -> PathBuf {
        self.directory.join("containers")
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.container(id).join("rootfs")
    }

    pub fn container_record(&self, id: &str) -> PathBuf {
        self.container(id).join("record.json")
    }

    pub fn exit_record(&self, id: &str) -> PathBuf {
        self.container(id).join("exit.json")
    }

    pub fn termination_log(&self, id: &str) -> PathBuf {
        self.files().join(format!("termination-log-{id}"))
    }

    pub fn layer(&self, id: &str) -> PathBuf {
        self.layers.join(id)
    }
}

/// Image ids, and the pods (`NAMESPACE/NAME`) that have containers of them.
pub type Users = BTreeMap<String, BTreeSet<String>>;

/// Which images the records below a run folder tell of. Fails where a record cannot be read: what it says may count.
pub fn images_in_use(run_directory: &Path) -> io::Result<Users> {
    let mut users = Users::new();
    for pod in entries(&run_directory.join("pods"))? {
        let paths = PodPaths { directory: pod, layers: PathBuf::new() };
        let Some(sandbox) = read::<SandboxRecord>(&paths.record())? else { continue };
        let pod = format!("{}/{}", sandbox.config.pod.namespace, sandbox.config.pod.name);
        for container in entries(&paths.containers())? {
            if let Some(container) = read::<ContainerRecord>(&container.join("record.json"))? {
                users.entry(container.image_id).or_default().insert(pod.clone());
            }
        }
    }
    Ok(users)
}

/// None where the folder is not there.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// `None`: it is not written yet, or gone.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// All or nothing, readable by root only.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

pub fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// A container's end in the words of its pod's status.
pub fn exit(record: &ExitRecord, container: &ContainerRecord, paths: &PodPaths) -> Exit {
    let reason = match record {
        ExitRecord { start_error: Some(_), .. } => "StartError",
        ExitRecord { oom_killed: true, .. } => "OOMKilled",
        ExitRecord { code: 0, .. } => "Completed",
        _ => "Error",
    };
    let (code, message) = match &record.start_error {
        Some(error) => (128, error.clone()),
        None => (record.code, termination_message(record, container, paths)),
    };
    let finished_at = Some(record.finished_at);
    Exit { code, signal: record.signal, finished_at, reason: reason.to_owned(), message }
}

fn termination_message(record: &ExitRecord, container: &ContainerRecord, paths: &PodPaths) -> String {
    let bytes = end_of(&paths.termination_log(&container.id), TERMINATION_MESSAGE_LIMIT_BYTES).unwrap_or_default();
    if bytes.is_empty() && container.termination_message_from_log && record.code != 0 {
        return log_tail(&container.log).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// At most so many bytes of a file, its last ones.
fn end_of(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit_bytes)))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last lines of a log without their CRI prefix.
fn log_tail(path: &Path) -> io::Result<String> {
    // Prefixes count too, so more than the limit is read.
    let bytes = end_of(path, 4 * LOG_TAIL_LIMIT_BYTES as u64)?;
    let text = String::from_utf8_lossy(&bytes);
    let contents: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let tail = contents[contents.len().saturating_sub(LOG_TAIL_LIMIT_LINES)..].join("\n");
    let from = tail.len().saturating_sub(LOG_TAIL_LIMIT_BYTES);
    let from = (from..=tail.len()).find(|at| tail.is_char_boundary(*at)).unwrap_or(tail.len());
    Ok(tail[from..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_termination_message_the_end_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        for (written, end) in [("", ""), ("abc", "abc"), ("0123456789", "6789")] {
            std::fs::write(&path, written).expect("written");
            assert_eq!(end_of(&path, 4).expect("read"), end.as_bytes(), "{written}");
        }
        assert!(end_of(&folder.path().join("none"), 4).is_err());
    }
}
