//! The replica on disk: two files of equal form that are written in turn and, once they have their size, in
//! place. A change is one sealed frame of whole pages: no page of an earlier change is ever written again, so a
//! torn write costs that change alone; and a write in place costs no file system journal, which on an SD card is
//! most of what a small append costs (measured in `benches/replica.rs`).

use super::key::{Binding, CHECK_BYTES, KeySource, SALT_BYTES};
use bytes::Bytes;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const PAGE_BYTES: u64 = 4096;
const FILES: [&str; 2] = ["replica.0", "replica.1"];
const MAGIC: &[u8; 8] = b"edgerepl";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 84;
const FRAME_MARK: u32 = 0x4752_4445;
/// Mark, length of what is sealed, generation, nonce.
const FRAME_HEAD_BYTES: usize = 16 + NONCE_LEN;
/// No frame is larger: the API server takes no object beyond 3 MiB.
const FRAME_LIMIT_BYTES: usize = 16 << 20;
/// A frame of a compaction is closed when it holds so much.
const FRAME_FILL_BYTES: usize = 64 << 10;
/// A file is written anew when its frames take this, and twice what they took when it was new.
const COMPACT_BYTES: u64 = 1 << 20;
const DEFLATE_LEVEL: u32 = 4;
/// Smaller frames gain nothing: they take a page anyway.
const DEFLATE_FROM_BYTES: usize = 2048;

/// What a stored value is compared by.
pub type Digest = [u8; 16];

/// The last state of a key; `None` = deleted. No `Debug`: Secrets are among them.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    pub collection: Arc<str>,
    pub key: Arc<str>,
    pub digest: Digest,
    pub value: Option<Bytes>,
}

/// What is stored, by collection and key.
pub type Contents = BTreeMap<Arc<str>, BTreeMap<Arc<str>, (Digest, Bytes)>>;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("no replica in {0}")]
    Absent(PathBuf),
    #[error("another edgelet uses the replica in {0}")]
    Claimed(PathBuf),
    #[error("the replica in {0} is sealed with another key")]
    Key(PathBuf),
    #[error("the replica has format {0}, this program knows {VERSION}")]
    Version(u8),
    #[error("replica: {0}")]
    Io(#[from] io::Error),
}

/// The file that is written now. Its owner calls it from where blocking is allowed.
pub struct Log {
    directory: PathBuf,
    keys: KeySource,
    active: Active,
    compact_at: u64,
    /// The folder, locked while this lives: two writers would destroy each other's work.
    claim: File,
}

struct Active {
    slot: usize,
    file: File,
    header: Header,
    sealing: LessSafeKey,
    /// Where the next frame goes.
    end: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Header {
    binding: Binding,
    generation: u64,
    salt: [u8; SALT_BYTES],
    check: [u8; CHECK_BYTES],
}

impl Log {
    /// Opens what a former process left, or makes it; `LogError::Key` and `LogError::Version` leave it untouched.
    pub fn open(directory: &Path, keys: &KeySource) -> Result<(Self, Contents), LogError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let claim = claim(directory)?;
        let active = match find(directory, keys, true) {
            Err(LogError::Absent(_)) => return Ok((Self::create(directory, keys, claim, 1)?, Contents::new())),
            found => found?,
        };
        let mut contents = Contents::new();
        let scan = active.scan(|record, _| keep(&mut contents, record))?;
        let rebind = active.header.binding != keys.binding();
        let compact_at = compact_at(active.end);
        let mut log = Self { directory: directory.to_owned(), keys: keys.clone(), active, compact_at, claim };
        log.active.end = scan.end;
        if scan.damaged {
            tracing::warn!(directory = %directory.display(), "part of the replica could not be read; the rest is kept");
        }
        if scan.damaged || rebind || log.is_full() {
            let former = directory.join(FILES[log.active.slot]);
            log.compact()?;
            if rebind {
                std::fs::remove_file(former)?; // the weaker key opens it
            }
        }
        Ok((log, contents))
    }

    /// Begins anew over whatever is there.
    pub fn renew(directory: &Path, keys: &KeySource) -> Result<Self, LogError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let claim = claim(directory)?;
        let newest = FILES.iter().filter_map(|name| generation_of(&directory.join(name))).max().unwrap_or(0);
        let log = Self::create(directory, keys, claim, newest.saturating_add(1))?;
        match std::fs::remove_file(directory.join(FILES[1])) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(log),
        }
    }

    /// What is stored, for those who only look.
    pub fn read(directory: &Path, keys: &KeySource) -> Result<Contents, LogError> {
        let mut contents = Contents::new();
        find(directory, keys, false)?.scan(|record, _| keep(&mut contents, record))?;
        Ok(contents)
    }

    fn create(directory: &Path, keys: &KeySource, claim: File, generation: u64) -> Result<Self, LogError> {
        let active = Active::new(directory, keys, 0, generation)?;
        active.write_header()?;
        claim.sync_all()?;
        Ok(Self { directory: directory.to_owned(), keys: keys.clone(), active, compact_at: COMPACT_BYTES, claim })
    }

    /// Writes the records, on disk when this returns. The number of bytes written.
    pub fn append(&mut self, records: &[Record]) -> io::Result<u64> {
        let written = self.active.write_frame(records)?;
        self.active.file.sync_data()?;
        self.active.end += written;
        Ok(written)
    }

    pub fn is_full(&self) -> bool {
        self.active.end >= self.compact_at
    }

    /// Writes what is still valid to the other file. Whenever power is cut, one of the two is whole: the new
    /// one counts from the moment its header is there, which is written last. The number of bytes written.
    pub fn compact(&mut self) -> io::Result<u64> {
        let mut newest: HashMap<(Arc<str>, Arc<str>), u64> = HashMap::new();
        self.active.scan(|record, at| {
            newest.insert((record.collection, record.key), at);
        })?;
        let slot = 1 - self.active.slot;
        let generation = self.active.header.generation + 1;
        let mut next = Active::new(&self.directory, &self.keys, slot, generation)?;
        let (mut filling, mut filled_bytes, mut failed) = (Vec::new(), 0, Ok(()));
        self.active.scan(|record, at| {
            let place = (record.collection.clone(), record.key.clone());
            if failed.is_err() || record.value.is_none() || newest.get(&place) != Some(&at) {
                return;
            }
            filled_bytes += record.value.as_ref().map_or(0, Bytes::len);
            filling.push(record);
            if filled_bytes >= FRAME_FILL_BYTES {
                failed = next.push(&std::mem::take(&mut filling));
                filled_bytes = 0;
            }
        })?;
        failed?;
        if !filling.is_empty() {
            next.push(&filling)?;
        }
        next.file.sync_data()?;
        next.write_header()?;
        self.claim.sync_all()?;
        self.compact_at = compact_at(next.end);
        // Once it was far larger than it need be: give the rest back.
        if next.file.metadata()?.len() > 4 * self.compact_at {
            next.file.set_len(self.compact_at)?;
        }
        self.active = next;
        Ok(self.active.end)
    }
}

/// The kernel gives it back when the process ends, however it ends.
fn claim(directory: &Path) -> Result<File, LogError> {
    let folder = File::open(directory)?;
    match rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LogError::Claimed(directory.to_owned())),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn compact_at(fresh_bytes: u64) -> u64 {
    COMPACT_BYTES.max(fresh_bytes * 2)
}

fn keep(contents: &mut Contents, record: Record) {
    match record.value {
        Some(value) => {
            let place = contents.entry(record.collection).or_default();
            place.insert(record.key, (record.digest, value));
        }
        None => {
            if let Some(place) = contents.get_mut(&record.collection) {
                place.remove(&record.key);
            }
        }
    }
}

/// The newest file that is whole, of those that can be read.
fn find(directory: &Path, keys: &KeySource, write: bool) -> Result<Active, LogError> {
    let (mut best, mut refused) = (None::<Active>, None);
    for (slot, name) in FILES.iter().enumerate() {
        match Active::open(&directory.join(name), slot, keys, write) {
            Ok(active) => {
                if best.as_ref().is_none_or(|best| best.header.generation < active.header.generation) {
                    best = Some(active);
                }
            }
            // Never begun, or its making was cut short.
            Err(LogError::Absent(_)) => {}
            Err(error) => refused = Some(error),
        }
    }
    match (best, refused) {
        // A later program's file, or another key's, may be the newer one.
        (_, Some(error)) => Err(error),
        (Some(best), None) => Ok(best),
        (None, None) => Err(LogError::Absent(directory.to_owned())),
    }
}

fn generation_of(path: &Path) -> Option<u64> {
    let mut bytes = [0; HEADER_BYTES];
    File::open(path).ok()?.read_exact(&mut bytes).ok()?;
    parse_header(&bytes).map(|(_, header)| header.generation)
}

/// The version and, if this program knows it, the header; `None`: it is torn or no header at all.
fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Option<(u8, Header)> {
    let (fields, sum) = bytes.split_at(HEADER_BYTES - 16);
    if fields[..8] != MAGIC[..] || digest(&[fields]) != sum {
        return None;
    }
    let header = Header {
        binding: Binding::from_byte(fields[9]).unwrap_or(Binding::Node),
        generation: u64::from_le_bytes(fields[12..20].try_into().ok()?),
        salt: fields[20..52].try_into().ok()?,
        check: fields[52..68].try_into().ok()?,
    };
    Some((fields[8], header))
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        (bytes[8], bytes[9]) = (VERSION, self.binding.to_byte());
        bytes[12..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..52].copy_from_slice(&self.salt);
        bytes[52..68].copy_from_slice(&self.check);
        let sum = digest(&[&bytes[..68]]);
        bytes[68..].copy_from_slice(&sum);
        bytes
    }
}

struct Scanned {
    /// After the last frame.
    end: u64,
    /// Something before the last frame cannot be read.
    damaged: bool,
}

impl Active {
    /// A file to be written from its start. Its old header stays until `write_header`.
    fn new(directory: &Path, keys: &KeySource, slot: usize, generation: u64) -> io::Result<Self> {
        let path = directory.join(FILES[slot]);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        let binding = keys.binding();
        let (sealing, check) = keys.derive(binding, &salt).expect("the binding is one that this machine has");
        let header = Header { binding, generation, salt, check };
        Ok(Self { slot, file, header, sealing, end: PAGE_BYTES })
    }

    fn open(path: &Path, slot: usize, keys: &KeySource, write: bool) -> Result<Self, LogError> {
        let absent = || LogError::Absent(path.to_owned());
        let file = match OpenOptions::new().read(true).write(write).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
            file => file?,
        };
        let mut bytes = [0; HEADER_BYTES];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Err(absent());
        }
        let (version, header) = parse_header(&bytes).ok_or_else(absent)?;
        if version != VERSION {
            return Err(LogError::Version(version));
        }
        let derived = keys.derive(header.binding, &header.salt).filter(|(_, check)| *check == header.check);
        let (sealing, _) = derived.ok_or_else(|| LogError::Key(path.to_owned()))?;
        Ok(Self { slot, file, header, sealing, end: PAGE_BYTES })
    }

    fn write_header(&self) -> io::Result<()> {
        self.file.write_all_at(&self.header.to_bytes(), 0)?;
        self.file.sync_all()
    }

    fn push(&mut self, records: &[Record]) -> io::Result<()> {
        self.end += self.write_frame(records)?;
        Ok(())
    }

    fn write_frame(&self, records: &[Record]) -> io::Result<u64> {
        let mut sealed = pack(records)?;
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let length = u32::try_from(sealed.len() + self.sealing.algorithm().tag_len()).map_err(io::Error::other)?;
        let head = [FRAME_MARK.to_le_bytes(), length.to_le_bytes()].concat();
        let head = [&head[..], &self.header.generation.to_le_bytes()].concat();
        let sealing =
            self.sealing.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&head), &mut sealed);
        sealing.map_err(|_| io::Error::other("a frame is too large to seal"))?;
        let mut frame = [&head[..], &nonce, &sealed].concat();
        frame.resize(frame.len().next_multiple_of(usize::try_from(PAGE_BYTES).unwrap_or(4096)), 0);
        self.file.write_all_at(&frame, self.end)?;
        Ok(frame.len() as u64)
    }

    /// Hands over every record with the place of its frame, in the order they were written. Pages that hold no
    /// frame of this generation are passed over: what an older one left, or what has been damaged.
    fn scan(&self, mut take: impl FnMut(Record, u64)) -> io::Result<Scanned> {
        let length = self.file.metadata()?.len();
        let (mut at, mut end, mut skipped, mut damaged) = (PAGE_BYTES, PAGE_BYTES, false, false);
        while at + FRAME_HEAD_BYTES as u64 <= length {
            match self.read_frame(at, length)? {
                Some((records, bytes)) => {
                    damaged |= skipped;
                    records.into_iter().for_each(|record| take(record, at));
                    at += bytes.next_multiple_of(PAGE_BYTES);
                    end = at;
                }
                None => {
                    skipped = true;
                    at += PAGE_BYTES;
                }
            }
        }
        Ok(Scanned { end, damaged })
    }

    fn read_frame(&self, at: u64, file_bytes: u64) -> io::Result<Option<(Vec<Record>, u64)>> {
        let mut head = [0; FRAME_HEAD_BYTES];
        self.file.read_exact_at(&mut head, at)?;
        let word = |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
        let length = word(4) as usize;
        let own = word(0) == FRAME_MARK && head[8..16] == self.header.generation.to_le_bytes();
        let bytes = (FRAME_HEAD_BYTES + length) as u64;
        if !own || length > FRAME_LIMIT_BYTES || at + bytes > file_bytes {
            return Ok(None);
        }
        let mut sealed = vec![0; length];
        self.file.read_exact_at(&mut sealed, at + FRAME_HEAD_BYTES as u64)?;
        let nonce = Nonce::try_assume_unique_for_key(&head[16..]).expect("the rest of the head is a nonce");
        let opened = self.sealing.open_in_place(nonce, Aad::from(&head[..16]), &mut sealed);
        Ok(opened.ok().and_then(|plain| unpack(plain)).map(|records| (records, bytes)))
    }
}

/// The records of one frame: a byte that says whether they are deflated, their length, then the records.
fn pack(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    for record in records {
        let length = |bytes: usize| u32::try_from(bytes).map(u32::to_le_bytes).map_err(io::Error::other);
        let value = record.value.as_deref().unwrap_or_default();
        plain.push(u8::from(record.value.is_some()));
        plain.extend_from_slice(&record.digest);
        for part in [record.collection.as_bytes(), record.key.as_bytes(), value] {
            plain.extend_from_slice(&length(part.len())?);
            plain.extend_from_slice(part);
        }
    }
    if plain.len() > FRAME_LIMIT_BYTES {
        return Err(io::Error::other("a change is too large for the replica"));
    }
    let length = u32::try_from(plain.len()).map_err(io::Error::other)?.to_le_bytes();
    if plain.len() < DEFLATE_FROM_BYTES {
        return Ok([&[0][..], &length, &plain].concat());
    }
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(DEFLATE_LEVEL));
    encoder.write_all(&plain)?;
    Ok([&[1][..], &length, &encoder.finish()?].concat())
}

/// `None`: not what `pack` writes.
fn unpack(frame: &[u8]) -> Option<Vec<Record>> {
    let (deflated, rest) = frame.split_first()?;
    let (length, body) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let plain = match deflated {
        0 => Bytes::copy_from_slice(body),
        1 if length <= FRAME_LIMIT_BYTES => {
            let mut plain = Vec::with_capacity(length);
            let mut decoder = flate2::read::DeflateDecoder::new(body).take(length as u64);
            decoder.read_to_end(&mut plain).ok()?;
            Bytes::from(plain)
        }
        _ => return None,
    };
    if plain.len() != length {
        return None;
    }
    let (mut records, mut rest) = (Vec::new(), plain);
    while !rest.is_empty() {
        records.push(record(&mut rest)?);
    }
    Some(records)
}

fn record(rest: &mut Bytes) -> Option<Record> {
    let present = take(rest, 1)?[0] == 1;
    let digest = take(rest, 16)?[..].try_into().ok()?;
    let mut part = || {
        let length = take(rest, 4)?;
        let length = u32::from_le_bytes(length[..].try_into().ok()?);
        take(rest, length as usize)
    };
    let (collection, key, value) = (part()?, part()?, part()?);
    let text = |bytes: &Bytes| std::str::from_utf8(bytes).ok().map(Arc::from);
    Some(Record { collection: text(&collection)?, key: text(&key)?, digest, value: present.then_some(value) })
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (rest.len() >= length).then(|| rest.split_to(length))
}

/// The first half of the parts' SHA-256.
pub fn digest(parts: &[&[u8]]) -> Digest {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut half = Digest::default();
    half.copy_from_slice(&context.finish().as_ref()[..16]);
    half
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))
}

#[cfg(test)]
mod tests;
