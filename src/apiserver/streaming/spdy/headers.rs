//! SPDY/3.1 header blocks: a count, then length-prefixed names and values, all as one zlib stream per direction
//! with a dictionary that the specification gives. What comes is inflated; what goes needs no compressor.

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Names and values of one stream are a hundred bytes.
const BLOCK_LIMIT_BYTES: usize = 16 << 10;
const PAIRS_LIMIT: u32 = 64;
const CHUNK_BYTES: usize = 1 << 10;

/// The dictionary's words, each after its length; then its tail. (SPDY/3, section 2.6.10.1)
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200+OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
const TAIL: &str = "10010120120220520630030230330430530630740240540640740840941041141241341441541641750250450520\
    3 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// zlib's header (deflate, a dictionary is set) and the dictionary's Adler-32.
const PREAMBLE: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('+', " ");
        bytes.put_u32(u32::try_from(word.len()).expect("words are short"));
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TAIL.as_bytes());
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("header block does not inflate")]
    Inflate,
    #[error("header block inflates to more than {BLOCK_LIMIT_BYTES} bytes")]
    TooLong,
    #[error("header block is malformed")]
    Malformed,
}

/// The headers of a stream; names are lower case on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, empty when it is not there.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > PAIRS_LIMIT {
            return Err(HeaderError::Malformed);
        }
        let pair = |_| Ok((text(&mut rest)?.to_lowercase(), text(&mut rest)?));
        (0..count).map(pair).collect::<Result<_, _>>().map(Self)
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = usize::try_from(number(rest)?).unwrap_or(usize::MAX);
    let (bytes, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Inflates the blocks of one direction, in the order they came.
pub struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        let mut out = Vec::new();
        let mut rest = block;
        // All is out once there was room left over.
        while !rest.is_empty() || out.len() == out.capacity() {
            if out.len() > BLOCK_LIMIT_BYTES {
                return Err(HeaderError::TooLong);
            }
            out.reserve(CHUNK_BYTES);
            let (before, produced) = (self.0.total_in(), out.len());
            let result = self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before).expect("no more than the block");
            rest = &rest[taken..];
            let stuck = !rest.is_empty() && taken == 0 && out.len() == produced;
            match result {
                Ok(Status::StreamEnd) => return Err(HeaderError::Inflate),
                Ok(_) if stuck => return Err(HeaderError::Inflate),
                Ok(_) => {}
                // zlib asks for the dictionary once it has read that there is one.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| HeaderError::Inflate)?;
                }
                Err(_) => return Err(HeaderError::Inflate),
            }
        }
        Headers::parse(&out)
    }
}

/// Writes the blocks of one direction as stored blocks of zlib: no state, and ours hold no headers anyway.
#[derive(Default)]
pub struct Storer {
    begun: bool,
}

impl Storer {
    /// A block without headers.
    pub fn empty(&mut self) -> Bytes {
        let mut block = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.put_slice(&PREAMBLE);
        }
        // Four bytes, the count 0; then the empty block at which readers know that all is there.
        block.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        block.put_slice(&[0, 0, 0, 0xff, 0xff]);
        block.freeze()
    }
}

/// What a client compresses with, for tests.
#[cfg(test)]
pub mod client {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    pub struct Deflater(Compress);

    impl Deflater {
        pub fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).unwrap();
            Self(compress)
        }

        pub fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = Vec::new();
            plain.put_u32(headers.len() as u32);
            for part in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.put_u32(part.len() as u32);
                plain.put_slice(part.as_bytes());
            }
            let mut out = Vec::with_capacity(64 << 10);
            self.0.compress_vec(&plain, &mut out, FlushCompress::Sync).unwrap();
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::client::Deflater;
    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((b << 16 | a).to_be_bytes(), PREAMBLE[2..]);
        assert_eq!(u16::from_be_bytes([PREAMBLE[0], PREAMBLE[1]]) % 31, 0, "zlib's check of its header");
    }

    /// Each block counts on those before it.
    #[test]
    fn blocks_of_one_direction_are_inflated_in_order() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for (kind, id) in [("error", "0"), ("data", "0"), ("error", "1")] {
            let block = deflater.block(&[("Streamtype", kind), ("port", "8080"), ("requestid", id)]);
            let headers = inflater.headers(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("requestid")), (kind, id));
            assert_eq!(headers.get("absent"), "");
        }
    }

    #[test]
    fn our_blocks_inflate_to_no_headers() {
        let (mut storer, mut inflater) = (Storer::default(), Inflater::new());
        for _ in 0..3 {
            assert_eq!(inflater.headers(&storer.empty()), Ok(Headers::default()));
        }
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let refused = |block: &[u8]| Inflater::new().headers(block).unwrap_err();
        assert_eq!(refused(b"\x78\x01\xff\xff\xff"), HeaderError::Inflate);
        assert_eq!(refused(b""), HeaderError::Malformed);
        let mut deflater = Deflater::new();
        let long = "a".repeat(64 << 10);
        assert_eq!(refused(&deflater.block(&[("name", &long)])), HeaderError::TooLong);
        for plain in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0, 0, 9, b'a'], &[0xff; 4], &[0, 0, 0, 65]] {
            assert_eq!(Headers::parse(plain), Err(HeaderError::Malformed));
        }
    }
}
