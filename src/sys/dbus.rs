//! A D-Bus client, as much of one as talking to systemd's login manager takes: calls with text arguments, signals,
//! and descriptors that come with answers. Source: the D-Bus specification, protocol version 1.

use super::seqpacket;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The largest message that is read; the login manager's have a few hundred bytes.
const MESSAGE_LIMIT_BYTES: usize = 64 << 10;
/// Signals that came while an answer was waited for.
const SIGNALS_LIMIT: usize = 16;
const FIXED_HEADER_BYTES: usize = 16;
const LINE_LIMIT_BYTES: usize = 4096;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Fields of a header, by their number.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;
const FDS: u8 = 9;

/// What a call is addressed to.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

/// One message, as far as it matters here.
#[derive(Debug, Default)]
pub struct Message {
    kind: u8,
    pub serial: u32,
    pub reply_to: u32,
    pub interface: String,
    pub member: String,
    pub error: String,
    pub signature: String,
    pub body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// A body that is one boolean.
    pub fn boolean(&self) -> Option<bool> {
        (self.signature == "b").then(|| read_u32(&self.body, 0).map(|value| value == 1))?
    }

    /// A body that is a variant with an unsigned number of 64 bits.
    pub fn variant_u64(&self) -> Option<u64> {
        // Signature of the variant: length, `t`, zero; then padding to eight.
        let is_number = self.signature == "v" && self.body.get(..3) == Some(&[1, b't', 0][..]);
        let bytes = self.body.get(8..16).filter(|_| is_number)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// A body of texts alone.
    pub fn texts(&self) -> Vec<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        self.signature.chars().map_while(|sort| (sort == 's').then(|| reader.text()).flatten()).collect()
    }
}

/// A connection to the bus. Not cancel-safe while a call is under way.
pub struct Bus {
    stream: UnixStream,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    signals: VecDeque<Message>,
    serial: u32,
}

impl Bus {
    /// Connects, proves who we are by the socket's credentials, and says hello.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let mut bus =
            Self { stream, received: Vec::new(), descriptors: VecDeque::new(), signals: VecDeque::new(), serial: 0 };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        bus.stream.write_all(b"\0").await?;
        bus.ask(&format!("AUTH EXTERNAL {hex}"), "OK").await?;
        bus.ask("NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD").await?;
        bus.stream.write_all(b"BEGIN\r\n").await?;
        let own = "org.freedesktop.DBus";
        let hello = Method { destination: own, path: "/org/freedesktop/DBus", interface: own, member: "Hello" };
        bus.call(hello, &[]).await?;
        Ok(bus)
    }

    /// Asks for signals that the rule matches.
    pub async fn add_match(&mut self, rule: &str) -> io::Result<()> {
        let own = "org.freedesktop.DBus";
        let method = Method { destination: own, path: "/org/freedesktop/DBus", interface: own, member: "AddMatch" };
        self.call(method, &[rule]).await.map(drop)
    }

    /// Calls a method with texts as arguments and waits for its answer.
    pub async fn call(&mut self, method: Method<'_>, arguments: &[&str]) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&encode_call(method, arguments, serial)).await?;
        loop {
            let message = self.receive().await?;
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let why = message.texts().into_iter().next().unwrap_or_default();
                    return Err(io::Error::other(format!("call {}: {}: {why}", method.member, message.error)));
                }
                SIGNAL => {
                    if self.signals.len() == SIGNALS_LIMIT {
                        self.signals.pop_front();
                    }
                    self.signals.push_back(message);
                }
                _ => {}
            }
        }
    }

    /// The next signal. Cancel-safe.
    pub async fn signal(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.signals.pop_front() {
                return Ok(message);
            }
            let message = self.receive().await?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    /// One line of the authentication and its answer.
    async fn ask(&mut self, line: &str, expected: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        let end = loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                break end;
            }
            if self.received.len() > LINE_LIMIT_BYTES {
                return Err(io::Error::other("the bus answered without end"));
            }
            self.read().await?;
        };
        let line: Vec<u8> = self.received.drain(..end + 2).collect();
        if line.starts_with(expected.as_bytes()) {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&line).trim().to_owned();
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the bus answered {told}")))
    }

    async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Some(length) = message_length(&self.received)?
                && self.received.len() >= length
            {
                let bytes: Vec<u8> = self.received.drain(..length).collect();
                return self.decode(&bytes);
            }
            self.read().await?;
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> io::Result<Message> {
        let (mut message, count) = decode(bytes).ok_or_else(|| io::Error::other("the bus sent nonsense"))?;
        let count = usize::try_from(count).unwrap_or(0).min(self.descriptors.len());
        message.descriptors = self.descriptors.drain(..count).collect();
        Ok(message)
    }

    async fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let take = || seqpacket::receive(&self.stream, &mut buffer).map_err(io::Error::from);
        let (length, descriptors) = self.stream.async_io(Interest::READABLE, take).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&buffer[..length]);
        self.descriptors.extend(descriptors);
        Ok(())
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The whole length of the message that begins here, once its fixed part is there.
fn message_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.len() < FIXED_HEADER_BYTES {
        return Ok(None);
    }
    if bytes[0] != b'l' {
        return Err(io::Error::other("the bus speaks big-endian"));
    }
    let part = |at: usize| read_u32(bytes, at).map_or(MESSAGE_LIMIT_BYTES, |value| value as usize);
    let length = FIXED_HEADER_BYTES.saturating_add(aligned(part(12), 8)).saturating_add(part(4));
    if length > MESSAGE_LIMIT_BYTES {
        return Err(io::Error::other("the bus sent too large a message"));
    }
    Ok(Some(length))
}

fn aligned(at: usize, to: usize) -> usize {
    at.div_ceil(to).saturating_mul(to)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = aligned(self.at, to);
    }

    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        self.at += 4;
        read_u32(self.bytes, self.at - 4)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        self.take(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.take(length)
    }

    /// Text with a zero behind it.
    fn take(&mut self, length: usize) -> Option<String> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length + 1;
        String::from_utf8(bytes.to_vec()).ok()
    }
}

/// The message, and how many descriptors belong to it.
fn decode(bytes: &[u8]) -> Option<(Message, u32)> {
    let mut message = Message { kind: *bytes.get(1)?, serial: read_u32(bytes, 8)?, ..Message::default() };
    let end = FIXED_HEADER_BYTES + read_u32(bytes, 12)? as usize;
    let mut reader = Reader { bytes: bytes.get(..end)?, at: FIXED_HEADER_BYTES };
    let mut descriptors = 0;
    loop {
        reader.align(8);
        if reader.at >= end {
            break;
        }
        let field = reader.byte()?;
        match reader.signature()?.as_str() {
            "u" => {
                let number = reader.number()?;
                match field {
                    REPLY_SERIAL => message.reply_to = number,
                    FDS => descriptors = number,
                    _ => {}
                }
            }
            "s" | "o" => {
                let text = reader.text()?;
                match field {
                    INTERFACE => message.interface = text,
                    MEMBER => message.member = text,
                    ERROR_NAME => message.error = text,
                    _ => {}
                }
            }
            "g" => {
                let text = reader.signature()?;
                if field == SIGNATURE {
                    message.signature = text;
                }
            }
            _ => return None,
        }
    }
    message.body = bytes.get(aligned(end, 8)..)?.to_vec();
    Some((message, descriptors))
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(aligned(self.0.len(), to), 0);
    }

    fn number(&mut self, value: usize) {
        self.align(4);
        self.0.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    fn field(&mut self, number: u8, sort: &str, text: &str) {
        self.align(8);
        self.0.push(number);
        self.signature(sort);
        if sort == "g" { self.signature(text) } else { self.text(text) }
    }
}

fn encode_call(method: Method, arguments: &[&str], serial: u32) -> Vec<u8> {
    let mut fields = Writer::default();
    fields.field(PATH, "o", method.path);
    fields.field(DESTINATION, "s", method.destination);
    fields.field(INTERFACE, "s", method.interface);
    fields.field(MEMBER, "s", method.member);
    let mut body = Writer::default();
    if !arguments.is_empty() {
        fields.field(SIGNATURE, "g", &"s".repeat(arguments.len()));
        arguments.iter().for_each(|argument| body.text(argument));
    }
    message(METHOD_CALL, serial, fields, &body)
}

fn message(kind: u8, serial: u32, mut fields: Writer, body: &Writer) -> Vec<u8> {
    let mut whole = Writer(vec![b'l', kind, 0, 1]);
    whole.number(body.0.len());
    whole.number(serial as usize);
    whole.number(fields.0.len());
    fields.align(8);
    whole.0.append(&mut fields.0);
    whole.0.extend(&body.0);
    whole.0
}

/// The other side of the bus, for tests of what talks to it.
#[cfg(test)]
pub mod fake {
    use super::{FDS, INTERFACE, MEMBER, METHOD_RETURN, Message, REPLY_SERIAL, SIGNAL, SIGNATURE, Writer};
    use super::{decode, message, message_length, seqpacket};
    use std::os::fd::BorrowedFd;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
    use tokio::net::UnixStream;

    /// One client's connection, authenticated.
    pub struct Served {
        stream: UnixStream,
        received: Vec<u8>,
    }

    impl Served {
        pub async fn accept(mut stream: UnixStream) -> Self {
            let mut lines = Vec::new();
            let mut byte = [0];
            loop {
                stream.read_exact(&mut byte).await.expect("authentication");
                lines.push(byte[0]);
                let answer: &[u8] = match lines.as_slice() {
                    line if line.ends_with(b"BEGIN\r\n") => return Self { stream, received: Vec::new() },
                    line if line.ends_with(b"NEGOTIATE_UNIX_FD\r\n") => b"AGREE_UNIX_FD\r\n",
                    line if line.starts_with(b"\0AUTH EXTERNAL ") && line.ends_with(b"\r\n") => b"OK 1234\r\n",
                    _ => continue,
                };
                stream.write_all(answer).await.expect("answer");
                lines = vec![0];
            }
        }

        /// The next call; `None` when the client is gone.
        pub async fn call(&mut self) -> Option<Message> {
            loop {
                if let Some(length) = message_length(&self.received).expect("a message")
                    && self.received.len() >= length
                {
                    let bytes: Vec<u8> = self.received.drain(..length).collect();
                    return Some(decode(&bytes).expect("a message").0);
                }
                let mut buffer = [0; 1024];
                let read = self.stream.read(&mut buffer).await.unwrap_or(0);
                if read == 0 {
                    return None;
                }
                self.received.extend_from_slice(&buffer[..read]);
            }
        }

        /// Answers with a body of this signature, and perhaps with a descriptor.
        pub async fn answer(&mut self, call: &Message, signature: &str, body: &[u8], fd: Option<BorrowedFd<'_>>) {
            let mut fields = Writer::default();
            number_field(&mut fields, REPLY_SERIAL, call.serial);
            if !signature.is_empty() {
                fields.field(SIGNATURE, "g", signature);
            }
            number_field(&mut fields, FDS, u32::from(fd.is_some()));
            let bytes = message(METHOD_RETURN, 1, fields, &Writer(body.to_vec()));
            let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
            let send = || seqpacket::send(&self.stream, &bytes, &fds).map_err(std::io::Error::from);
            self.stream.async_io(Interest::WRITABLE, send).await.expect("answer");
        }

        /// A signal with one boolean.
        pub async fn signal(&mut self, interface: &str, member: &str, value: bool) {
            let mut fields = Writer::default();
            fields.field(INTERFACE, "s", interface);
            fields.field(MEMBER, "s", member);
            fields.field(SIGNATURE, "g", "b");
            let body = Writer(u32::from(value).to_le_bytes().to_vec());
            self.stream.write_all(&message(SIGNAL, 2, fields, &body)).await.expect("signal");
        }
    }

    fn number_field(fields: &mut Writer, number: u8, value: u32) {
        fields.align(8);
        fields.0.push(number);
        fields.signature("u");
        fields.number(value as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_back_as_it_was_written() {
        let method = Method { destination: "a.b", path: "/a/b", interface: "a.b.C", member: "Do" };
        let bytes = encode_call(method, &["one", "", "three"], 7);
        assert_eq!(message_length(&bytes).expect("length"), Some(bytes.len()));
        let (message, descriptors) = decode(&bytes).expect("message");
        assert_eq!((message.kind, message.serial, descriptors), (METHOD_CALL, 7, 0));
        assert_eq!((message.interface.as_str(), message.member.as_str()), ("a.b.C", "Do"));
        assert_eq!(message.texts(), ["one", "", "three"]);
    }

    #[test]
    fn truncated_and_oversized_messages_are_refused() {
        let method = Method { destination: "a.b", path: "/a/b", interface: "a.b.C", member: "Do" };
        let bytes = encode_call(method, &["one"], 7);
        for length in 0..bytes.len() {
            // Nothing panics, whatever is cut off.
            let _ = decode(&bytes[..length]);
        }
        let mut huge = bytes;
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(message_length(&huge).is_err());
    }
}
