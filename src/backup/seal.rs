//! A stream sealed under a passphrase: AES-256-GCM in chunks, each bound to its place and to being the last or not,
//! so that a chunk can neither be moved nor cut off. The key comes from the passphrase by PBKDF2.
//! Source: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár (2015).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::num::NonZeroU32;

const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
const PREFIX_BYTES: usize = NONCE_LEN - 5;
/// As OWASP advises for PBKDF2 with HMAC-SHA-256 (2023).
const ITERATIONS: u32 = 600_000;
/// A file that asks for more is none of ours: it would only keep the processor busy.
const ITERATIONS_LIMIT: u32 = 10_000_000;

/// What a file says of how it is sealed; not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealing {
    pub cipher: String,
    pub iterations: u32,
    pub salt: String,
    pub prefix: String,
}

/// The key of one file.
pub struct Key {
    key: LessSafeKey,
    prefix: [u8; PREFIX_BYTES],
}

const CIPHER: &str = "aes-256-gcm-stream, pbkdf2-hmac-sha256";

impl Sealing {
    /// For a new file.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; 16 + PREFIX_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
        let (salt, prefix) = bytes.split_at(16);
        let (salt, prefix) = (STANDARD.encode(salt), STANDARD.encode(prefix));
        Ok(Self { cipher: CIPHER.to_owned(), iterations: ITERATIONS, salt, prefix })
    }

    /// The key for this file. Takes about a second on a board. `None`: the file is sealed in a way not known here.
    pub fn key(&self, passphrase: &[u8]) -> Option<Key> {
        let iterations = NonZeroU32::new(self.iterations).filter(|count| count.get() <= ITERATIONS_LIMIT)?;
        let salt = STANDARD.decode(&self.salt).ok()?;
        let prefix = STANDARD.decode(&self.prefix).ok()?.try_into().ok()?;
        if self.cipher != CIPHER {
            return None;
        }
        let mut bytes = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, passphrase, &mut bytes);
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("the key has the length of the algorithm's");
        Some(Key { key: LessSafeKey::new(key), prefix })
    }
}

impl Key {
    fn nonce(&self, number: u32, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.prefix);
        nonce[PREFIX_BYTES..NONCE_LEN - 1].copy_from_slice(&number.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals what is written to it. Without `finish` the file is cut off, and is refused as such.
pub struct SealingWriter<W> {
    inner: W,
    key: Key,
    head: Vec<u8>,
    chunk: Vec<u8>,
    number: u32,
}

impl<W: Write> SealingWriter<W> {
    /// `head`: what stands in front of the stream and must not be changed either.
    pub fn new(inner: W, key: Key, head: &[u8]) -> Self {
        Self { inner, key, head: head.to_owned(), chunk: Vec::with_capacity(CHUNK_BYTES + TAG_BYTES), number: 0 }
    }

    fn emit(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.key.nonce(self.number, last);
        let sealed = self.key.key.seal_in_place_append_tag(nonce, Aad::from(&self.head), &mut self.chunk);
        sealed.map_err(|_| io::Error::other("seal a chunk"))?;
        self.inner.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number = self.number.checked_add(1).ok_or_else(|| io::Error::other("too large to be sealed"))?;
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.emit(true)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for SealingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits for more: only then is it known not to be the last.
        if self.chunk.len() == CHUNK_BYTES {
            self.emit(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Why a stream cannot be read on; the kind of the error is `InvalidData`.
fn refused(number: u32) -> io::Error {
    let why =
        if number == 0 { "the passphrase is wrong, or the file is damaged" } else { "the file is damaged or cut off" };
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads what a `SealingWriter` wrote.
pub struct OpeningReader<R> {
    inner: R,
    key: Key,
    head: Vec<u8>,
    /// Sealed, read ahead: a chunk is the last one when nothing follows it.
    ahead: Vec<u8>,
    open: Vec<u8>,
    at: usize,
    number: u32,
    ended: bool,
}

impl<R: Read> OpeningReader<R> {
    pub fn new(mut inner: R, key: Key, head: &[u8]) -> io::Result<Self> {
        let ahead = sealed_chunk(&mut inner)?;
        Ok(Self { inner, key, head: head.to_owned(), ahead, open: Vec::new(), at: 0, number: 0, ended: false })
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let following = sealed_chunk(&mut self.inner)?;
        let last = following.is_empty();
        self.open = std::mem::replace(&mut self.ahead, following);
        let nonce = self.key.nonce(self.number, last);
        let opened = self.key.key.open_in_place(nonce, Aad::from(&self.head), &mut self.open);
        let length = opened.map_err(|_| refused(self.number))?.len();
        self.open.truncate(length);
        (self.at, self.ended) = (0, last);
        self.number = self.number.checked_add(1).ok_or_else(|| refused(self.number))?;
        Ok(())
    }
}

impl<R: Read> Read for OpeningReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.open.len() && !self.ended {
            self.next_chunk()?;
        }
        let taken = buffer.len().min(self.open.len() - self.at);
        buffer[..taken].copy_from_slice(&self.open[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

fn sealed_chunk(inner: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
    inner.take((CHUNK_BYTES + TAG_BYTES) as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few rounds: the tests are about the stream.
    fn sealing() -> Sealing {
        Sealing { iterations: 10, ..Sealing::new().unwrap() }
    }

    fn seal(sealing: &Sealing, content: &[u8]) -> Vec<u8> {
        let mut writer = SealingWriter::new(Vec::new(), sealing.key(b"pass").unwrap(), b"head");
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn open(sealing: &Sealing, passphrase: &[u8], head: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        let reader = OpeningReader::new(sealed, sealing.key(passphrase).unwrap(), head);
        let read = reader.and_then(|mut reader| reader.read_to_end(&mut content));
        read.map(|_| content).map_err(|error| error.to_string())
    }

    #[test]
    fn any_length_comes_back() {
        let sealing = sealing();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sealed = seal(&sealing, &content);
            assert_eq!(open(&sealing, b"pass", b"head", &sealed).unwrap(), content, "{length}");
        }
    }

    #[test]
    fn what_was_changed_cut_off_or_put_in_another_order_is_refused() {
        let sealing = sealing();
        let content = vec![7; 2 * CHUNK_BYTES + 5];
        let sealed = seal(&sealing, &content);
        let chunk = CHUNK_BYTES + TAG_BYTES;
        let wrong = "the passphrase is wrong, or the file is damaged";
        assert_eq!(open(&sealing, b"other", b"head", &sealed).unwrap_err(), wrong);
        assert_eq!(open(&sealing, b"pass", b"another head", &sealed).unwrap_err(), wrong);
        let swapped = [&sealed[chunk..2 * chunk], &sealed[..chunk], &sealed[2 * chunk..]].concat();
        assert_eq!(open(&sealing, b"pass", b"head", &swapped).unwrap_err(), wrong);
        for cut in [0, chunk, 2 * chunk, sealed.len() - 1] {
            open(&sealing, b"pass", b"head", &sealed[..cut]).expect_err("cut off");
        }
        let mut flipped = sealed;
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(open(&sealing, b"pass", b"head", &flipped).unwrap_err(), "the file is damaged or cut off");
    }

    #[test]
    fn a_file_that_asks_for_endless_work_is_refused() {
        assert!(Sealing { iterations: u32::MAX, ..sealing() }.key(b"pass").is_none());
        assert!(Sealing { cipher: "rot13".into(), ..sealing() }.key(b"pass").is_none());
    }
}
