//! One layer's tar stream into a directory that overlayfs can stack: whiteouts become device nodes.
//! Blocking: runs on a `spawn_blocking` thread. Never follows a path out of the layer.
//! Source: OCI image spec 1.1, layer.md; kernel Documentation/filesystems/overlayfs.rst.

use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// Bytes an unpacked layer may take; a bomb is refused, not swallowed.
pub const LAYER_LIMIT_BYTES: u64 = 32 << 30;

/// What unpacking found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed tar, `sha256:…`.
    pub diff_id: String,
    /// Bytes of regular files.
    pub size_bytes: u64,
}

/// Hashes everything that is read through it.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
    read_bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), read_bytes: 0 }
    }

    /// Reads what is left (padding after the archive's end) and returns the digest.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((digest(self.hash), self.read_bytes))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.read_bytes += count as u64;
        Ok(count)
    }
}

/// `sha256:` and the hexadecimal digest.
pub fn digest(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The reader for a compressed layer, by its first bytes: gzip, zstd or plain tar.
pub fn decompress<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match input.read(&mut magic[have..])? {
            0 => break,
            count => have += count,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(input);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(ruzstd::decoding::StreamingDecoder::new(whole).map_err(io::Error::other)?),
        _ => Box::new(whole),
    })
}

/// Unpacks an uncompressed tar stream into `target`, which must be empty.
pub fn unpack(input: impl Read, target: &Path) -> io::Result<Unpacked> {
    let mut archive = tar::Archive::new(Hashing::new(input));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o755))?;
    let mut size_bytes = 0u64;
    // Directories get their mode and mtime last: a read-only one must still take its entries.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        size_bytes += entry.size();
        if size_bytes > LAYER_LIMIT_BYTES {
            return Err(io::Error::other(format!("layer is larger than {LAYER_LIMIT_BYTES} bytes")));
        }
        if whiteout(target, &path)? {
            continue;
        }
        if entry.header().entry_type().is_dir() {
            directories.push((path.clone(), entry.header().mtime()?, entry.header().mode()?));
        }
        entry.unpack_in(target).map_err(|error| named(&error, &path))?;
    }
    for (path, mtime, mode) in directories.into_iter().rev() {
        finish_directory(target, &path, mtime, mode)?;
    }
    let (diff_id, _) = archive.into_inner().finish()?;
    Ok(Unpacked { diff_id, size_bytes })
}

fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("unpack {}: {error}", path.display()))
}

/// Handles `.wh.NAME` and `.wh..wh..opq`; false when the entry is neither.
fn whiteout(target: &Path, path: &Path) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default();
    if !name.as_bytes().starts_with(WHITEOUT.as_bytes()) {
        return Ok(false);
    }
    let Some(parent) = inside(target, path.parent().unwrap_or(Path::new("")))? else {
        return Ok(true);
    };
    std::fs::create_dir_all(&parent)?;
    if name == OPAQUE {
        rustix::fs::setxattr(&parent, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())?;
        return Ok(true);
    }
    let hidden = parent.join(OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]));
    let mode = rustix::fs::Mode::from_raw_mode(0);
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &hidden,
        rustix::fs::FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(0, 0),
    );
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// A directory of the layer, resolved without following symlinks; `None` when it would leave the layer.
fn inside(target: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let mut place = target.to_path_buf();
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::CurDir | Component::RootDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Ok(None),
        }
        match std::fs::symlink_metadata(&place) {
            Ok(meta) if meta.file_type().is_symlink() => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(place))
}

fn finish_directory(target: &Path, path: &Path, mtime: u64, mode: u32) -> io::Result<()> {
    let Some(place) = inside(target, path)? else { return Ok(()) };
    if !place.is_dir() {
        return Ok(());
    }
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode & 0o7777))?;
    let seconds = i64::try_from(mtime).unwrap_or(0);
    let at = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(rustix::fs::CWD, &place, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            // Written raw: `append_data` would refuse the hostile paths under test.
            let name = path.as_bytes();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_path_out_of_the_layer_is_not_written() {
        let outer = tempfile::tempdir().unwrap();
        let layer = outer.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        let bytes = archive(&[("../evil", b"x"), ("/etc/ok", b"y"), ("../.wh.victim", b"")]);
        std::fs::write(outer.path().join("victim"), "stays").unwrap();
        unpack(bytes.as_slice(), &layer).unwrap();
        assert!(!outer.path().join("evil").exists());
        assert_eq!(std::fs::read(layer.join("etc/ok")).unwrap(), b"y");
        assert_eq!(std::fs::read(outer.path().join("victim")).unwrap(), b"stays");
    }

    #[test]
    fn the_diff_id_is_the_digest_of_the_whole_stream() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = archive(&[("a", b"1")]);
        bytes.extend_from_slice(&[0; 4096]); // padding after the end counts too
        let unpacked = unpack(bytes.as_slice(), directory.path()).unwrap();
        assert_eq!(unpacked.diff_id, digest(Sha256::new().chain_update(&bytes)));
        assert_eq!(unpacked.size_bytes, 1);
    }

    #[test]
    fn compression_is_found_by_its_magic() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"plain text").unwrap();
        let compressed = gzip.finish().unwrap();
        for input in [compressed.as_slice(), b"plain text"] {
            let mut out = String::new();
            decompress(input).unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(out, "plain text");
        }
    }
}
