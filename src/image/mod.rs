//! OCI images: references, pulls, layers on disk, archives, garbage collection.
//! Layers are unpacked once, by diff id, and shared; compressed blobs are not kept (an SD card is small).
//! The index is one small file, replaced atomically; another process's change is seen by its stamp.

pub mod archive;
pub mod build;
pub mod gc;
mod lock;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod unpack;

use crate::clock::Clock;
use manifest::Config;
use reference::{Reference, ReferenceError, is_digest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Why an image could not be had. The message is what a pod's `waiting.message` shows.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("image {0} not found")]
    NotFound(String),
    #[error("pull image {reference}: {why}")]
    Pull { reference: String, why: String, transient: bool },
    #[error("read image archive: {0}")]
    Archive(String),
    #[error("no image archive (neither docker save nor OCI layout)")]
    NoArchive,
    #[error("store image in {path}: {source}")]
    Disk { path: PathBuf, source: io::Error },
    #[error("remove images: an image is being pulled or imported; try again when that is done")]
    Busy,
}

pub type Result<T> = std::result::Result<T, ImageError>;

/// An image that is present.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of the config.
    pub id: String,
    /// Fully spelt references: tags, then digests.
    pub names: Vec<String>,
    pub size_bytes: u64,
    pub config: Arc<Config>,
    /// Unpacked layers, the base first.
    pub layers: Vec<PathBuf>,
}

/// What the index file says of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    /// Diff ids, the base first.
    pub layers: Vec<String>,
    pub size_bytes: u64,
    /// Seconds since 1970; the oldest goes first when space is short.
    pub stored_at_s: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub images: BTreeMap<String, Record>,
}

/// The index as last read, and the stamp of the file it was read from.
#[derive(Default)]
struct Loaded {
    index: Arc<Index>,
    stamp: Option<(u64, i64, i64)>,
    configs: HashMap<String, Arc<Config>>,
}

/// Images on this board. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    clock: Clock,
    loaded: Mutex<Loaded>,
    pulls: pull::InFlight,
}

impl ImageStore {
    /// Opens (or makes) the store in a directory and drops what an interrupted pull left.
    pub fn open(directory: &Path, clock: Clock) -> Result<Self> {
        for part in ["", "configs", "layers", "staging"] {
            let path = directory.join(part);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(disk(&path))?;
        }
        let inner = Inner {
            directory: directory.to_owned(),
            clock,
            loaded: Mutex::default(),
            pulls: pull::InFlight::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        store.drop_staging();
        Ok(store)
    }

    /// The image behind a reference as a pod names it, or behind an id; `None` when it is not present.
    pub fn get(&self, name: &str) -> Result<Option<Image>> {
        let index = self.index()?;
        let Some((id, record)) = find(&index, name)? else { return Ok(None) };
        self.image(id, record).map(Some)
    }

    /// Every image.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.index()?.images.iter().map(|(id, record)| self.image(id, record)).collect()
    }

    /// Gives an image one more tag.
    pub fn tag(&self, name: &str, tag: &str) -> Result<()> {
        let spelt = Reference::parse(tag)?.to_string();
        self.change(|index| {
            let Some((id, _)) = find(index, name)? else { return Err(ImageError::NotFound(name.to_owned())) };
            let id = id.to_owned();
            retag(index, &id, &spelt);
            Ok(())
        })
    }

    /// Takes a tag away; an image without tags goes, with the layers no other image needs. Blocking.
    /// Fails while another process adds images: their layers are there before anything names them.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _alone = self.alone()?;
        self.forget(name)?;
        self.drop_unused()
    }

    /// The image's record alone.
    fn forget(&self, name: &str) -> Result<()> {
        self.change(|index| {
            let Some((id, _)) = find(index, name)? else { return Err(ImageError::NotFound(name.to_owned())) };
            let id = id.to_owned();
            let spelt = Reference::parse(name).map(|reference| reference.to_string()).unwrap_or_default();
            let record = index.images.get_mut(&id).expect("find returned a key of the map");
            let was_tag = record.tags.remove(&spelt);
            if !was_tag || record.tags.is_empty() {
                index.images.remove(&id);
            }
            Ok(())
        })
    }

    /// Where a layer of this diff id is, or will be.
    pub fn layer_path(&self, diff_id: &str) -> PathBuf {
        self.inner.directory.join("layers").join(diff_id.trim_start_matches("sha256:"))
    }

    pub fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    /// Unpacks a layer (compressed or not) unless its diff id is present. Blocking.
    pub(crate) fn add_layer(&self, input: impl Read, expected_diff_id: &str) -> Result<u64> {
        let staging = self.staging("layer")?;
        let directory = staging.path.clone();
        let unpacked = unpack::decompress(input)
            .and_then(|reader| unpack::unpack(reader, &directory))
            .map_err(disk(&directory))?;
        if unpacked.diff_id != expected_diff_id {
            let why = format!("layer has diff id {}, expected {expected_diff_id}", unpacked.diff_id);
            return Err(ImageError::Archive(why));
        }
        self.keep_layer(staging, expected_diff_id)?;
        Ok(unpacked.size_bytes)
    }

    /// Makes a staged directory a layer: on disk first, then visible.
    pub(crate) fn keep_layer(&self, staging: Staging, diff_id: &str) -> Result<()> {
        let target = self.layer_path(diff_id);
        let sync = File::open(&staging.path).and_then(|file| Ok(rustix::fs::syncfs(file)?));
        sync.map_err(disk(&staging.path))?;
        match std::fs::rename(&staging.path, &target) {
            Ok(()) => Ok(()),
            // Another pull was faster; the staged copy goes with `staging`.
            Err(_) if target.is_dir() => Ok(()),
            Err(error) => Err(disk(&target)(error)),
        }
    }

    /// Records an image whose layers are all present.
    pub(crate) fn add_image(&self, config: &[u8], tag: &str, digest: &str, size_bytes: u64) -> Result<String> {
        let id = unpack::digest(<sha2::Sha256 as sha2::Digest>::new_with_prefix(config));
        let parsed = Config::parse(config).map_err(ImageError::Archive)?;
        self.write_file(&self.config_path(&id), config)?;
        let now_s = self.inner.clock.now().as_second();
        self.change(|index| {
            let record = index.images.entry(id.clone()).or_default();
            record.layers.clone_from(&parsed.rootfs.diff_ids);
            record.size_bytes = size_bytes.max(record.size_bytes);
            record.stored_at_s = now_s;
            if !digest.is_empty() {
                record.digests.insert(digest.to_owned());
            }
            if !tag.is_empty() {
                retag(index, &id, tag);
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// An empty directory on the store's file system that vanishes when dropped.
    pub fn scratch(&self) -> Result<Staging> {
        self.staging("scratch")
    }

    /// A private directory that vanishes unless it is kept.
    pub(crate) fn staging(&self, what: &str) -> Result<Staging> {
        let name = format!("{what}-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = self.inner.directory.join("staging").join(name);
        std::fs::create_dir(&path).map_err(disk(&path))?;
        Ok(Staging { path })
    }

    fn image(&self, id: &str, record: &Record) -> Result<Image> {
        Ok(Image {
            id: id.to_owned(),
            names: record.tags.iter().chain(&record.digests).cloned().collect(),
            size_bytes: record.size_bytes,
            config: self.config(id)?,
            layers: record.layers.iter().map(|diff_id| self.layer_path(diff_id)).collect(),
        })
    }

    fn config_path(&self, id: &str) -> PathBuf {
        self.inner.directory.join("configs").join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    fn config(&self, id: &str) -> Result<Arc<Config>> {
        let mut loaded = self.inner.loaded.lock().expect("no panic while the image index is locked");
        if let Some(config) = loaded.configs.get(id) {
            return Ok(config.clone());
        }
        let path = self.config_path(id);
        let bytes = std::fs::read(&path).map_err(disk(&path))?;
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|error| ImageError::Archive(format!("config {id}: {error}")))?;
        let config = Arc::new(config);
        loaded.configs.insert(id.to_owned(), config.clone());
        Ok(config)
    }

    /// The index, read again only when the file was replaced.
    fn index(&self) -> Result<Arc<Index>> {
        let path = self.inner.directory.join("index.json");
        let mut loaded = self.inner.loaded.lock().expect("no panic while the image index is locked");
        let stamp = match std::fs::metadata(&path) {
            Ok(meta) => Some((meta.ino(), meta.mtime(), meta.mtime_nsec())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(disk(&path)(error)),
        };
        if stamp != loaded.stamp || stamp.is_none() {
            loaded.index = Arc::new(read_index(&path)?);
            loaded.stamp = stamp;
            let Loaded { index, configs, .. } = &mut *loaded;
            configs.retain(|id, _| index.images.contains_key(id));
        }
        Ok(loaded.index.clone())
    }

    /// Changes the index under a lock that other processes respect too.
    fn change(&self, edit: impl FnOnce(&mut Index) -> Result<()>) -> Result<()> {
        let lock_path = self.inner.directory.join("lock");
        let lock = File::create(&lock_path).map_err(disk(&lock_path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| disk(&lock_path)(error.into()))?;
        let path = self.inner.directory.join("index.json");
        let before = read_index(&path)?;
        let mut after = before.clone();
        edit(&mut after)?;
        if after == before {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&after).map_err(|error| ImageError::Archive(error.to_string()))?;
        self.write_file(&path, &bytes)
    }

    /// Replaces a file: readers see the old or the new one, after a power cut too.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = path.with_extension(format!("tmp{:08x}", fastrand::u32(..)));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(disk(path))
    }

    /// Removes staged directories whose process is gone.
    fn drop_staging(&self) {
        let Ok(entries) = std::fs::read_dir(self.inner.directory.join("staging")) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').nth(1).unwrap_or_default().to_owned();
            if owner == std::process::id().to_string() || !Path::new("/proc").join(&owner).exists() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Layers and configs that no image in the index has.
    fn drop_unused(&self) -> Result<()> {
        let index = self.index()?;
        let layers = index.images.values().flat_map(|record| &record.layers).map(|diff_id| self.layer_path(diff_id));
        self.keep_only("layers", &layers.collect(), |path| std::fs::remove_dir_all(path))?;
        let configs = index.images.keys().map(|id| self.config_path(id));
        self.keep_only("configs", &configs.collect(), |path| std::fs::remove_file(path))
    }

    fn keep_only(&self, part: &str, used: &BTreeSet<PathBuf>, remove: fn(&Path) -> io::Result<()>) -> Result<()> {
        let directory = self.inner.directory.join(part);
        for entry in std::fs::read_dir(&directory).map_err(disk(&directory))?.flatten() {
            if !used.contains(&entry.path()) {
                remove(&entry.path()).map_err(disk(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// A directory under `staging` that is removed when dropped.
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::Disk { path, source }
}

fn read_index(path: &Path) -> Result<Index> {
    match std::fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| ImageError::Archive(format!("{}: {error}", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
        Err(error) => Err(disk(path)(error)),
    }
}

/// By id, by tag or by digest.
fn find<'a>(index: &'a Index, name: &str) -> Result<Option<(&'a str, &'a Record)>> {
    if is_digest(name) {
        return Ok(index.images.get_key_value(name).map(|(id, record)| (id.as_str(), record)));
    }
    let reference = Reference::parse(name)?;
    let wanted =
        if reference.digest.is_empty() { reference.to_string() } else { reference.at_digest(&reference.digest) };
    let found =
        index.images.iter().find(|(_, record)| record.tags.contains(&wanted) || record.digests.contains(&wanted));
    Ok(found.map(|(id, record)| (id.as_str(), record)))
}

/// A tag belongs to one image: it moves.
fn retag(index: &mut Index, id: &str, tag: &str) {
    for record in index.images.values_mut() {
        record.tags.remove(tag);
    }
    if let Some(record) = index.images.get_mut(id) {
        record.tags.insert(tag.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> ImageStore {
        ImageStore::open(directory, Clock::real()).unwrap()
    }

    #[test]
    fn a_tag_moves_to_the_newer_image_and_layers_are_shared() {
        let directory = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("a"), "1").unwrap();
        let images = store(directory.path());
        let build = |cmd: &str| {
            let process = manifest::Process { cmd: Some(vec![cmd.to_owned()]), ..Default::default() };
            images.build(tree.path(), process, "app:v1").unwrap()
        };
        let (first, second) = (build("one"), build("two"));
        assert_ne!(first, second);
        assert_eq!(images.get("app:v1").unwrap().unwrap().id, second);
        let layers = |id: &str| images.get(id).unwrap().unwrap().layers;
        assert_eq!(layers(&first), layers(&second));
        images.remove("app:v1").unwrap();
        assert!(images.get("app:v1").unwrap().is_none());
        assert!(layers(&first)[0].is_dir(), "the first image still needs the layer");
        images.remove(&first).unwrap();
        assert_eq!(std::fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
    }

    #[test]
    fn an_image_that_is_removed_leaves_no_config_behind() {
        let (directory, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let images = store(directory.path());
        images.build(tree.path(), manifest::Process::default(), "app:v1").unwrap();
        let configs = || std::fs::read_dir(directory.path().join("configs")).unwrap().count();
        assert_eq!(configs(), 1);
        images.remove("app:v1").unwrap();
        assert_eq!(configs(), 0);
    }

    #[test]
    fn another_process_s_change_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        let (ours, theirs) = (store(directory.path()), store(directory.path()));
        assert!(ours.get("app:v1").unwrap().is_none());
        theirs.build(tree.path(), manifest::Process::default(), "app:v1").unwrap();
        assert!(ours.get("app:v1").unwrap().is_some());
    }
}
