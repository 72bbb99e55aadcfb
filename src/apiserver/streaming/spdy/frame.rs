//! SPDY/3.1 frames: heads and control payloads from bytes, frames to bytes. Pure; header blocks stay as they are.
//! A frame is 8 bytes of head and up to 16 MiB of payload. Control: 1 bit set, version (15), type (16), flags (8),
//! length (24). Data: 1 bit clear, stream (31), flags (8), length (24). All in network order.

use bytes::{BufMut, Bytes, BytesMut};

pub const HEAD_BYTES: usize = 8;
/// A control frame is a few headers at most.
pub const CONTROL_LIMIT_BYTES: u32 = 64 << 10;
/// The window of a stream, and of the session, until somebody says otherwise.
pub const WINDOW_BYTES: u32 = 64 << 10;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const LENGTH_MASK: u32 = 0x00ff_ffff;
const STREAM_MASK: u32 = 0x7fff_ffff;
const CONTROL_BIT: u16 = 0x8000;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;
const GOAWAY_OK: u32 = 0;

/// Why a stream is reset.
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("control frame of {0} bytes is too long")]
    TooLong(u32),
    #[error("control frame of type {0} is malformed")]
    Malformed(u16),
}

/// What the first eight bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, length: u32 },
    Control { kind: u16, flags: u8, length: u32 },
}

impl Head {
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, rest @ ..] = bytes;
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]);
        let first = u16::from_be_bytes([a, b]);
        if first & CONTROL_BIT == 0 {
            return Ok(Self::Data { stream: u32::from_be_bytes([a, b, c, d]), fin: flags & FLAG_FIN != 0, length });
        }
        let version = first & !CONTROL_BIT;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_LIMIT_BYTES {
            return Err(FrameError::TooLong(length));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame. `block` is a compressed header block: each must be inflated, wanted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    SynStream {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    /// `SYN_REPLY` and `HEADERS`: headers that follow those of the start.
    Headers {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        stream: u32,
    },
    /// The window that new streams begin with, if it says so.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// Of a type that is not known, which the specification says to ignore.
    Unknown,
}

impl Control {
    pub fn parse(kind: u16, flags: u8, payload: Bytes) -> Result<Self, FrameError> {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or(FrameError::Malformed(kind))
        };
        let stream = || word(0).map(|word| word & STREAM_MASK);
        let fin = flags & FLAG_FIN != 0;
        let block = |at: usize| if payload.len() < at { Bytes::new() } else { payload.slice(at..) };
        Ok(match kind {
            // Stream, the stream it belongs to, priority and slot.
            SYN_STREAM => Self::SynStream { stream: stream()?, fin, block: block(10) },
            SYN_REPLY | HEADERS => Self::Headers { stream: stream()?, fin, block: block(4) },
            RST_STREAM => Self::RstStream { stream: stream()? },
            SETTINGS => {
                let entries = payload.get(4..).ok_or(FrameError::Malformed(kind))?.chunks_exact(8);
                let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
                let mut settings = entries.map(|entry| (number(&entry[1..4]), number(&entry[4..])));
                let window = settings.find(|(id, _)| *id == SETTINGS_INITIAL_WINDOW_SIZE);
                Self::Settings { initial_window: window.map(|(_, value)| value & STREAM_MASK) }
            }
            PING => Self::Ping { id: word(0)? },
            GOAWAY => Self::GoAway,
            WINDOW_UPDATE => Self::WindowUpdate { stream: stream()?, delta: word(4)? & STREAM_MASK },
            _ => Self::Unknown,
        })
    }
}

/// A data frame. `payload` is shorter than 16 MiB.
pub fn data(stream: u32, fin: bool, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    frame.put_u32(stream & STREAM_MASK);
    frame.put_u32(flags_and_length(if fin { FLAG_FIN } else { 0 }, payload.len()));
    frame.put_slice(payload);
    frame.freeze()
}

pub fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    control(SYN_REPLY, &[&stream.to_be_bytes(), block])
}

pub fn rst_stream(stream: u32, why: u32) -> Bytes {
    control(RST_STREAM, &[&stream.to_be_bytes(), &why.to_be_bytes()])
}

pub fn ping(id: u32) -> Bytes {
    control(PING, &[&id.to_be_bytes()])
}

/// The end of the session, nothing being wrong.
pub fn go_away(last_stream: u32) -> Bytes {
    control(GOAWAY, &[&last_stream.to_be_bytes(), &GOAWAY_OK.to_be_bytes()])
}

pub fn window_update(stream: u32, delta: u32) -> Bytes {
    control(WINDOW_UPDATE, &[&stream.to_be_bytes(), &delta.to_be_bytes()])
}

fn control(kind: u16, parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u16(CONTROL_BIT | VERSION);
    frame.put_u16(kind);
    frame.put_u32(flags_and_length(0, length));
    parts.iter().for_each(|part| frame.put_slice(part));
    frame.freeze()
}

fn flags_and_length(flags: u8, length: usize) -> u32 {
    let length = u32::try_from(length).ok().filter(|length| *length <= LENGTH_MASK);
    u32::from(flags) << 24 | length.expect("payloads are cut to far less than 16 MiB")
}

/// The frames of a client, for tests.
#[cfg(test)]
pub mod client {
    use super::*;

    pub fn syn_stream(stream: u32, fin: bool, block: &[u8]) -> Bytes {
        let mut frame = BytesMut::from(&control(SYN_STREAM, &[&stream.to_be_bytes(), &[0; 4], &[0, 0], block])[..]);
        frame[4] = if fin { FLAG_FIN } else { 0 };
        frame.freeze()
    }

    pub fn initial_window(bytes: u32) -> Bytes {
        let entry = [1u32, SETTINGS_INITIAL_WINDOW_SIZE, bytes].map(u32::to_be_bytes).concat();
        control(SETTINGS, &[&entry])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(hex: &str) -> Result<Head, FrameError> {
        Head::parse(bytes(hex)[..].try_into().unwrap())
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: String = hex.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn heads() {
        let data = |stream, fin, length| Ok(Head::Data { stream, fin, length });
        let control = |kind, flags, length| Ok(Head::Control { kind, flags, length });
        let cases = [
            ("00000001 00000003", data(1, false, 3)),
            ("7fffffff 01ffffff", data(STREAM_MASK, true, LENGTH_MASK)),
            ("80030001 0100000a", control(SYN_STREAM, 1, 10)),
            ("80030006 00000004", control(PING, 0, 4)),
            ("80020001 00000000", Err(FrameError::Version(2))),
            ("80030001 00010001", Err(FrameError::TooLong(0x10001))),
        ];
        for (hex, expected) in cases {
            assert_eq!(head(hex), expected, "{hex}");
        }
    }

    #[test]
    fn control_payloads() {
        let parse = |kind, flags, hex: &str| Control::parse(kind, flags, Bytes::from(bytes(hex)));
        let block = |hex: &str| Bytes::from(bytes(hex));
        let cases = [
            (
                parse(SYN_STREAM, 1, "00000005 00000000 e000 78bb"),
                Control::SynStream { stream: 5, fin: true, block: block("78bb") },
            ),
            (parse(SYN_REPLY, 0, "80000005 aa"), Control::Headers { stream: 5, fin: false, block: block("aa") }),
            (parse(HEADERS, 1, "00000005"), Control::Headers { stream: 5, fin: true, block: Bytes::new() }),
            (parse(RST_STREAM, 0, "00000007 00000005"), Control::RstStream { stream: 7 }),
            (
                parse(SETTINGS, 0, "00000002 00000004 00000064 01000007 00020000"),
                Control::Settings { initial_window: Some(0x20000) },
            ),
            (parse(SETTINGS, 0, "00000000"), Control::Settings { initial_window: None }),
            (parse(PING, 0, "00000001"), Control::Ping { id: 1 }),
            (parse(GOAWAY, 0, "00000000 00000000"), Control::GoAway),
            (parse(WINDOW_UPDATE, 0, "00000003 80000100"), Control::WindowUpdate { stream: 3, delta: 0x100 }),
            (parse(10, 0, "00"), Control::Unknown),
        ];
        for (parsed, expected) in cases {
            assert_eq!(parsed, Ok(expected));
        }
        for (kind, hex) in [(SYN_STREAM, "0000"), (SETTINGS, "00"), (PING, ""), (WINDOW_UPDATE, "00000001")] {
            assert_eq!(parse(kind, 0, hex), Err(FrameError::Malformed(kind)));
        }
    }

    #[test]
    fn frames_are_the_specifications_bytes() {
        let cases = [
            (data(3, false, b"hi"), "00000003 00000002 6869"),
            (data(3, true, b""), "00000003 01000000"),
            (syn_reply(1, &[0xaa]), "80030002 00000005 00000001 aa"),
            (rst_stream(9, reset::CANCEL), "80030003 00000008 00000009 00000005"),
            (ping(7), "80030006 00000004 00000007"),
            (go_away(5), "80030007 00000008 00000005 00000000"),
            (window_update(0, 256), "80030009 00000008 00000000 00000100"),
        ];
        for (frame, hex) in cases {
            assert_eq!(frame, bytes(hex), "{hex}");
        }
    }
}
