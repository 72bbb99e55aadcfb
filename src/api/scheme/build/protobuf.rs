//! As much protobuf as `openapi.v2.Document` needs: written, never read.

use crate::json::Json;

#[derive(Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// Empty text is left out.
    pub fn text(&mut self, tag: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(tag, text.as_bytes());
        }
    }

    pub fn message(&mut self, tag: u64, inner: &Self) {
        self.bytes(tag, &inner.0);
    }

    /// `NamedSchema`, `NamedPathItem`, …: name and value.
    pub fn named(name: &str, value: &Self) -> Self {
        let mut out = Self::default();
        out.text(1, name);
        out.message(2, value);
        out
    }

    /// `NamedAny`: the value as YAML, of which JSON is a part.
    pub fn extension(name: &str, value: &Json) -> Self {
        let mut any = Self::default();
        any.text(2, &format!("{value}\n"));
        Self::named(name, &any)
    }

    fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push((number & 0x7f) as u8);
    }
}
