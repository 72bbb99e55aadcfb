//! The file of a backup: a line that says what it is, a line of JSON (the header), then a gzipped tar, sealed as a
//! whole if a passphrase was given. `head -2` shows the header; `tail -n +3 | tar -tz` the contents of a plain one.

use super::seal::{OpeningReader, SealingWriter};
use super::{BackupError, CLUSTER_FACTS, DATABASE, Header, KEYS, Result, failed};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

const FORMAT: u32 = 1;
/// Behind the name of a file that is being written.
pub const PARTIAL: &str = ".partial";
const MAGIC: &str = "edgelet backup ";
const HEADER_LIMIT_BYTES: u64 = 64 << 10;
/// A key or a certificate larger than this is none.
const KEY_LIMIT_BYTES: u64 = 1 << 20;

fn head(header: &Header) -> Vec<u8> {
    let json = serde_json::to_string(header).expect("a header is plain data");
    format!("{MAGIC}{FORMAT}\n{json}\n").into_bytes()
}

/// Writes the file beside its place and puts it there when all of it is on the disk.
pub fn write(target: &Path, header: &Header, passphrase: Option<&str>, parts: &[(String, PathBuf)]) -> Result<()> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(PARTIAL);
    let partial = target.with_file_name(name);
    let written = write_all(&partial, header, passphrase, parts).and_then(|()| std::fs::rename(&partial, target));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = written.and_then(|()| File::open(directory)?.sync_all());
    synced.map_err(failed("write backup", target))
}

fn write_all(path: &Path, header: &Header, passphrase: Option<&str>, parts: &[(String, PathBuf)]) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let head = head(header);
    let mut out = BufWriter::new(file);
    out.write_all(&head)?;
    let out = match (&header.sealing, passphrase) {
        (Some(sealing), Some(passphrase)) => {
            let key = sealing.key(passphrase.as_bytes()).expect("made by this program");
            archive(SealingWriter::new(out, key, &head), parts)?.finish()?
        }
        _ => archive(out, parts)?,
    };
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn archive<W: Write>(out: W, parts: &[(String, PathBuf)]) -> io::Result<W> {
    let mut builder = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for (name, path) in parts {
        let file = File::open(path)?;
        let mut entry = tar::Header::new_gnu();
        entry.set_mode(0o600);
        entry.set_size(file.metadata()?.len());
        let size = entry.size()?;
        builder.append_data(&mut entry, name, file.take(size))?;
    }
    builder.into_inner()?.finish()
}

/// A backup whose head has been read.
pub struct Opened {
    pub header: Header,
    /// The head's very bytes: a sealed stream is bound to them.
    head: Vec<u8>,
    rest: BufReader<File>,
}

pub fn open(path: &Path) -> Result<Opened> {
    let file = File::open(path).map_err(failed("open backup", path))?;
    let mut reader = BufReader::new(file);
    let mut head = Vec::new();
    let mut line = |limit| -> Result<String> {
        let from = head.len();
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut head);
        read.map_err(failed("read backup", path))?;
        Ok(String::from_utf8_lossy(&head[from..]).trim_end().to_owned())
    };
    let no_backup = || BackupError::NoBackup(path.to_owned());
    let format = line(64)?.strip_prefix(MAGIC).and_then(|text| text.parse().ok()).ok_or_else(no_backup)?;
    if format != FORMAT {
        return Err(BackupError::Format { path: path.to_owned(), format, known: FORMAT });
    }
    let header = serde_json::from_str(&line(HEADER_LIMIT_BYTES)?).map_err(|_| no_backup())?;
    Ok(Opened { header, head, rest: reader })
}

/// Unpacks the file into an empty folder.
pub fn extract(path: &Path, passphrase: Option<&str>, into: &Path) -> Result<Header> {
    let Opened { header, head, rest } = open(path)?;
    let damaged = |error: io::Error| BackupError::Damaged { path: path.to_owned(), why: error.to_string() };
    match (&header.sealing, passphrase) {
        (None, _) => unpack(rest, into).map_err(damaged)?,
        (Some(_), None) => return Err(BackupError::Sealed(path.to_owned())),
        (Some(sealing), Some(passphrase)) => {
            let key = sealing.key(passphrase.as_bytes()).ok_or_else(|| BackupError::Cipher(path.to_owned()))?;
            let opened = OpeningReader::new(rest, key, &head).map_err(damaged)?;
            unpack(opened, into).map_err(damaged)?;
        }
    }
    Ok(header)
}

fn unpack(from: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(from));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if !is_ours(&name) || !entry.header().entry_type().is_file() {
            return Err(io::Error::other(format!("it holds {}, which is no part of a backup", name.display())));
        }
        let target = into.join(&name);
        if let Some(parent) = target.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        let limit = if name == Path::new(DATABASE) { u64::MAX } else { KEY_LIMIT_BYTES };
        let size = entry.size();
        if size > limit || io::copy(&mut entry, &mut file)? != size {
            return Err(io::Error::other(format!("its {} is too large or cut off", name.display())));
        }
    }
    // To the very end: a stream that was cut off after the archive's own end is damaged too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

fn is_ours(name: &Path) -> bool {
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    plain && (name == Path::new(DATABASE) || name == Path::new(CLUSTER_FACTS) || name.starts_with(KEYS))
}
