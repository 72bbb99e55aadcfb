//! Container logs in the CRI format, written by the shim: `TIME STREAM P|F LINE`.
//! Bounded: a line is split at 16 KiB, a file is rotated at its limit and few are kept.

use crate::clock::Clock;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longer lines are written in pieces tagged `P`.
pub const LINE_LIMIT_BYTES: usize = 16 << 10;
/// A file that has grown over this is rotated.
pub const FILE_LIMIT_BYTES: u64 = 10 << 20;
/// Files kept per container, the current one included.
pub const FILES_LIMIT: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container. Lines of one stream are never torn by the other's.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size_bytes: u64,
    limit_bytes: u64,
    pending: [Vec<u8>; 2],
    clock: Clock,
}

impl Log {
    /// Opens the log, which may hold lines already.
    pub fn open(path: &Path, clock: Clock) -> io::Result<Self> {
        Self::with_limit(path, clock, FILE_LIMIT_BYTES)
    }

    fn with_limit(path: &Path, clock: Clock, limit_bytes: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size_bytes = file.metadata()?.len();
        let pending = [Vec::new(), Vec::new()];
        Ok(Self { path: path.to_owned(), file: Some(file), size_bytes, limit_bytes, pending, clock })
    }

    /// Takes what was read from the stream and writes the lines that are complete.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let time = self.time();
        while !bytes.is_empty() {
            let room = LINE_LIMIT_BYTES - pending.len();
            let newline = bytes.iter().take(room + 1).position(|&byte| byte == b'\n');
            let (taken, tag) = match newline {
                Some(at) => (at, Some(b'F')),
                None if bytes.len() > room => (room, Some(b'P')),
                None => (bytes.len(), None),
            };
            pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken + usize::from(newline.is_some())..];
            if let Some(tag) = tag {
                line(&mut out, &time, stream, tag, &pending);
                pending.clear();
            }
        }
        // An empty buffer is given back: shims are many and mostly idle.
        self.pending[stream as usize] = if pending.is_empty() { Vec::new() } else { pending };
        self.append(&out)
    }

    /// Writes what is left of the stream after its end: a line without newline is tagged `P`, as containerd does.
    pub fn end(&mut self, stream: Stream) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if pending.is_empty() {
            return Ok(());
        }
        let mut out = Vec::with_capacity(pending.len() + 64);
        line(&mut out, &self.time(), stream, b'P', &pending);
        self.append(&out)
    }

    fn time(&self) -> String {
        self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
    }

    fn append(&mut self, out: &[u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if self.size_bytes > 0 && self.size_bytes + out.len() as u64 > self.limit_bytes {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.file = Some(append(&self.path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(out)?;
            self.size_bytes += out.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for index in (1..FILES_LIMIT).rev() {
            let from = if index == 1 { self.path.clone() } else { rotated(&self.path, index - 1) };
            match std::fs::rename(&from, rotated(&self.path, index)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.size_bytes = 0;
        Ok(())
    }
}

/// The name of the `index`-th older file of a log: `0.log.1` is the newest of them.
pub fn rotated(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    PathBuf::from(name)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn line(out: &mut Vec<u8>, time: &str, stream: Stream, tag: u8, content: &[u8]) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("log");
        text.lines().map(|line| line.split_once(' ').expect("time").1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_split_or_left_for_later() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("0.log");
        let mut log = Log::open(&path, Clock::real()).expect("open");
        log.write(Stream::Stdout, b"one\ntw").expect("write");
        log.write(Stream::Stderr, b"err\n").expect("write");
        log.write(Stream::Stdout, b"o\n\nrest").expect("write");
        log.end(Stream::Stdout).expect("end");
        log.end(Stream::Stderr).expect("end");
        assert_eq!(read(&path), ["stdout F one", "stderr F err", "stdout F two", "stdout F ", "stdout P rest"]);
    }

    #[test]
    fn a_line_at_the_limit_is_whole_and_a_longer_one_is_split() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("0.log");
        let mut log = Log::open(&path, Clock::real()).expect("open");
        let mut input = vec![b'a'; LINE_LIMIT_BYTES];
        input.push(b'\n');
        input.extend(vec![b'b'; LINE_LIMIT_BYTES + 1]);
        input.push(b'\n');
        for piece in input.chunks(5000) {
            log.write(Stream::Stdout, piece).expect("write");
        }
        let lines = read(&path);
        let shapes: Vec<_> = lines.iter().map(|line| (&line[..9], line.len() - 9)).collect();
        assert_eq!(shapes, [("stdout F ", LINE_LIMIT_BYTES), ("stdout P ", LINE_LIMIT_BYTES), ("stdout F ", 1)]);
    }

    #[test]
    fn files_rotate_and_few_are_kept() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("0.log");
        let mut log = Log::with_limit(&path, Clock::real(), 100).expect("open");
        for index in 0..20 {
            log.write(Stream::Stdout, format!("line {index}\n").as_bytes()).expect("write");
        }
        assert_eq!(read(&path).last().map(String::as_str), Some("stdout F line 19"));
        assert!(rotated(&path, FILES_LIMIT - 1).exists() && !rotated(&path, FILES_LIMIT).exists());
    }
}
