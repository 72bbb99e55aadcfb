//! Kubernetes' protobuf by the scheme's table: `k8s\0`, then `runtime.Unknown` around the object.
//! Both directions; no generated message types.

mod decode;
mod encode;

pub use decode::decode;
pub use encode::encode;

pub const MAGIC: &[u8] = b"k8s\0";
/// As deep as serde_json goes.
const DEPTH_LIMIT: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: illegal wireType")]
    WireType,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("string field contains invalid UTF-8")]
    Utf8,
    #[error("proto: message nested too deeply")]
    Depth,
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// What the envelope says.
#[derive(Debug, Default)]
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    /// Empty for protobuf.
    pub content_type: String,
}

pub fn envelope(body: &[u8]) -> Result<Unknown<'_>> {
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?);
    let mut unknown = Unknown::default();
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => {
                let mut meta = Reader(wire.bytes()?);
                while let Some((tag, wire)) = meta.next()? {
                    match tag {
                        1 => unknown.api_version = wire.text()?,
                        2 => unknown.kind = wire.text()?,
                        _ => {}
                    }
                }
            }
            2 => unknown.raw = wire.bytes()?,
            4 => unknown.content_type = wire.text()?,
            _ => {}
        }
    }
    Ok(unknown)
}

/// One field's value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn varint(self) -> Result<u64> {
        if let Self::Varint(number) = self { Ok(number) } else { Err(ProtobufError::WireType) }
    }

    fn bytes(self) -> Result<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(ProtobufError::WireType) }
    }

    fn text(self) -> Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| ProtobufError::Utf8)
    }

    fn double(self) -> Result<f64> {
        if let Self::Fixed64(bytes) = self { Ok(f64::from_le_bytes(bytes)) } else { Err(ProtobufError::WireType) }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().expect("eight bytes were taken")),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(ProtobufError::WireType),
        };
        Ok(Some((key >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut number = 0_u64;
        for at in 0..10 {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProtobufError::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }
}
