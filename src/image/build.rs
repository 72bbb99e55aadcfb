//! An image from a folder: one layer, the folder as it is. Enough for a static binary and its files.
//! Deterministic: the same tree gives the same image id on every board.

use super::manifest::{Config, Platform, Process, RootFs};
use super::unpack::{Hashing, digest};
use super::{ImageError, ImageStore, Result, disk, reference::Reference};
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

impl ImageStore {
    /// Makes an image of the tree under `root` for machines like this one and tags it; returns its id. Blocking.
    pub fn build(&self, root: &Path, process: Process, tag: &str) -> Result<String> {
        self.build_for(Platform::host(), root, process, tag)
    }

    /// The same for another platform's programs. Nothing of the tree is run.
    pub fn build_for(&self, platform: Platform, root: &Path, process: Process, tag: &str) -> Result<String> {
        let tag = Reference::parse(tag)?.to_string();
        let _adding = self.adding()?;
        let mut hash = HashWriter(Sha256::new());
        write_layer(root, &mut hash).map_err(disk(root))?;
        let diff_id = digest(hash.0);
        let size_bytes = if self.has_layer(&diff_id) {
            self.layer_size(&diff_id)?
        } else {
            let staging = self.staging("build")?;
            let path = staging.path.join("layer.tar");
            let mut file = File::create(&path).map_err(disk(&path))?;
            write_layer(root, &mut file).map_err(disk(&path))?;
            self.add_layer(File::open(&path).map_err(disk(&path))?, &diff_id)?
        };
        let config = Config {
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            created: None,
            config: process,
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![diff_id] },
        };
        // By way of a `Value`, whose members are sorted: exporting and importing keeps the id.
        let bytes = serde_json::to_value(&config).map_err(|error| ImageError::Archive(error.to_string()))?;
        let bytes = bytes.to_string().into_bytes();
        self.add_image(&bytes, &tag, "", size_bytes)
    }

    /// Bytes of the files in a layer that is present.
    pub(super) fn layer_size(&self, diff_id: &str) -> Result<u64> {
        let layer = self.layer_path(diff_id);
        let sum = || -> io::Result<u64> {
            let sizes = walk(&layer)?.into_iter().map(std::fs::symlink_metadata);
            sizes.filter(|meta| meta.as_ref().map_or(true, Metadata::is_file)).map(|meta| Ok(meta?.len())).sum()
        };
        sum().map_err(disk(&layer))
    }
}

struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a tree as a layer: sorted, times at zero, overlay's whiteouts turned back into `.wh.` files.
pub(super) fn write_layer(root: &Path, output: &mut dyn Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(output);
    builder.follow_symlinks(false);
    let mut links: std::collections::HashMap<(u64, u64), PathBuf> = std::collections::HashMap::new();
    for path in walk(root)? {
        let meta = std::fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).expect("walk stays below root").to_owned();
        append(&mut builder, &path, &name, &meta, &mut links)?;
    }
    builder.finish()
}

type Links = std::collections::HashMap<(u64, u64), PathBuf>;

fn append(
    builder: &mut tar::Builder<&mut dyn Write>,
    path: &Path,
    name: &Path,
    meta: &Metadata,
    links: &mut Links,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(meta, tar::HeaderMode::Complete);
    header.set_mtime(0);
    let kind = meta.file_type();
    if kind.is_char_device() && meta.rdev() == 0 {
        let hidden = name.file_name().unwrap_or_default();
        let marker = name.with_file_name(format!(".wh.{}", hidden.to_string_lossy()));
        return empty_file(builder, &marker);
    }
    if kind.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())?;
        let mut value = [0u8; 1];
        if matches!(rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value), Ok(1)) && value == *b"y" {
            empty_file(builder, &name.join(".wh..wh..opq"))?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        header.set_size(0);
        return builder.append_link(&mut header, name, std::fs::read_link(path)?);
    }
    if kind.is_file() {
        if meta.nlink() > 1
            && let Some(first) = links.insert((meta.dev(), meta.ino()), name.to_owned())
        {
            links.insert((meta.dev(), meta.ino()), first.clone());
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            return builder.append_link(&mut header, name, first);
        }
        let file = File::open(path)?;
        return builder.append_data(&mut header, name, file.take(meta.len()));
    }
    if kind.is_block_device() || kind.is_char_device() || kind.is_fifo() {
        header.set_size(0);
        return builder.append_data(&mut header, name, io::empty());
    }
    Ok(()) // A socket means nothing in an image.
}

fn empty_file(builder: &mut tar::Builder<&mut dyn Write>, name: &Path) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, io::empty())
}

/// Everything below `root`, parents before children, in byte order.
fn walk(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

/// Copies a stream into a file and returns the digest and the size of what was copied.
pub(super) fn copy_hashed(input: impl Read, output: &mut impl Write) -> io::Result<(String, u64)> {
    let mut hashing = Hashing::new(input);
    io::copy(&mut hashing, output)?;
    hashing.finish()
}
