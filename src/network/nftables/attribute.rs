//! Netlink attributes: type, length, value, padded to four bytes. Written for nfnetlink, read for its dumps.

/// Set on attributes that hold attributes.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Attributes being written.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
        self
    }

    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.close(start);
        self
    }

    /// nf_tables' numbers are big-endian.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | NESTED);
        inside(self);
        self.close(start);
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).expect("callers chunk what goes into one attribute");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes of a message, without their flags. Ends at the first malformed one.
pub fn read(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    read(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text without its final zero; empty when it is absent or no UTF-8.
pub fn text(attributes: &[u8], kind: u16) -> &str {
    let value = find(attributes, kind).unwrap_or_default();
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).unwrap_or_default()
}

pub fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(attributes, kind)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.text(1, "edgelet").number(2, 7).nest(3, |inner| {
            inner.bytes(1, &[9]).bytes(2, &[]);
        });
        assert_eq!(writer.0.len() % 4, 0);
        assert_eq!((text(&writer.0, 1), number(&writer.0, 2)), ("edgelet", Some(7)));
        let inner = find(&writer.0, 3).unwrap();
        assert_eq!(read(inner).collect::<Vec<_>>(), [(1, &[9u8][..]), (2, &[][..])]);
        assert_eq!((find(&writer.0, 4), text(&writer.0, 4)), (None, ""));
    }

    #[test]
    fn malformed_input_ends_the_list() {
        for bytes in [&[][..], &[4], &[0, 0, 1, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 5], &[8, 0, 1, 0, 5, 5]] {
            assert_eq!(read(bytes).count(), 0, "{bytes:?}");
        }
    }
}
