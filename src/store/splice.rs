//! Putting `metadata.resourceVersion` into stored bytes and taking it out again, without decoding them.
//! Stored bytes carry no revision, so a write is encoded before its revision is known.

use bytes::Bytes;
use std::io::Write as _;

const HEAD: &[u8] = b"\"resourceVersion\":\"";

/// The offset just after the `{` of the top-level member `metadata`; `None` when there is none.
/// A scan and not a search: values (`ControllerRevision.data`) may hold a `metadata` of their own.
pub fn metadata_offset(value: &[u8]) -> Option<usize> {
    const KEY: &[u8] = b"\"metadata\":{";
    let mut depth = 0_usize;
    let mut at = 0;
    while at < value.len() {
        match value[at] {
            b'"' => {
                if depth == 1 && value[at..].starts_with(KEY) {
                    return Some(at + KEY.len());
                }
                at = string_end(value, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The offset after the closing quote of the string that opens at `open`.
fn string_end(value: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        match value.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// `value` with `"resourceVersion":"N"` at `at`.
pub fn insert(value: &[u8], at: usize, revision: u64) -> Bytes {
    let mut digits = [0_u8; 20];
    let mut rest = &mut digits[..];
    write!(rest, "{revision}").expect("a u64 has at most 20 digits");
    let left = rest.len();
    let digits = &digits[..20 - left];
    let tail: &[u8] = if value.get(at) == Some(&b'}') { b"\"" } else { b"\"," };
    let mut bytes = Vec::with_capacity(value.len() + HEAD.len() + digits.len() + tail.len());
    for part in [&value[..at], HEAD, digits, tail, &value[at..]] {
        bytes.extend_from_slice(part);
    }
    Bytes::from(bytes)
}

/// The inverse of `insert`.
pub fn remove(bytes: &[u8], at: usize) -> Vec<u8> {
    let (head, tail) = without(bytes, at);
    [head, tail].concat()
}

/// Whether `bytes` is `value` with some revision in it.
pub fn equals(bytes: &[u8], at: usize, value: &[u8]) -> bool {
    let (head, tail) = without(bytes, at);
    value.len() == head.len() + tail.len() && value.starts_with(head) && value.ends_with(tail)
}

/// What is before and what is after the spliced member.
fn without(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    let digits = bytes[at + HEAD.len()..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = at + HEAD.len() + digits + 1;
    if bytes.get(end) == Some(&b',') {
        end += 1;
    }
    (&bytes[..at], &bytes[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn finds_only_the_top_level_metadata() {
        let object = json!({
            "data": {"metadata": {"name": "inner"}, "text": "\"metadata\":{ \\\" }"},
            "list": [{"metadata": {}}],
            "metadata": {"name": "outer"},
        });
        let bytes = serde_json::to_vec(&object).unwrap();
        let at = metadata_offset(&bytes).unwrap();
        assert!(bytes[at..].starts_with(b"\"name\":\"outer\""));
        assert_eq!(metadata_offset(br#"{"data":{"metadata":{}}}"#), None);
        assert_eq!(metadata_offset(br#"{"broken":"x"#), None);
    }

    #[test]
    fn inserts_and_removes() {
        for metadata in [json!({}), json!({"name": "a", "resourceVersion2": "1"})] {
            let raw = serde_json::to_vec(&json!({"a": [1, "]"], "metadata": metadata, "z": 1})).unwrap();
            let at = metadata_offset(&raw).unwrap();
            let bytes = insert(&raw, at, 12_345);
            let shown: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(shown["metadata"]["resourceVersion"], "12345");
            assert_eq!(remove(&bytes, at), raw);
            assert!(equals(&bytes, at, &raw) && !equals(&bytes, at, &bytes));
        }
    }
}
