//! Container logs as `kubectl logs` shows them, from the CRI log files: since, tail, limit, follow, rotation.

use super::Kubelet;
use crate::runtime::ContainerState;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

const BUFFER_BYTES: usize = 16 << 10;
/// Older files of a log that are looked for.
const ROTATED_LIMIT: u32 = 16;

/// `v1.PodLogOptions`, parsed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<&'static str>,
}

impl Options {
    pub fn parse(query: &HashMap<String, String>, now: Timestamp) -> Result<Self, String> {
        let flag = |name: &str| query.get(name).is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let number = |name: &str| match query.get(name).filter(|value| !value.is_empty()) {
            Some(value) => value.parse::<u64>().map(Some).map_err(|_| format!("invalid {name}: {value}")),
            None => Ok(None),
        };
        let seconds = number("sinceSeconds")?.and_then(|seconds| i64::try_from(seconds).ok());
        let since = match (seconds, query.get("sinceTime").filter(|value| !value.is_empty())) {
            (Some(seconds), _) => {
                Some(now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
            }
            (None, Some(text)) => Some(text.parse().map_err(|_| format!("invalid sinceTime: {text}"))?),
            (None, None) => None,
        };
        Ok(Self {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            since,
            tail_lines: number("tailLines")?,
            limit_bytes: number("limitBytes")?,
            stream: match query.get("stream").map(String::as_str) {
                Some("Stdout") => Some("stdout"),
                Some("Stderr") => Some("stderr"),
                _ => None,
            },
        })
    }
}

/// Turns log lines into what is shown. Pure.
struct Renderer {
    options: Options,
    left_bytes: u64,
    /// The last line was a piece of a longer one.
    inside: bool,
}

impl Renderer {
    fn new(options: Options) -> Self {
        let left_bytes = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, left_bytes, inside: false }
    }

    /// Appends one line of the file; false when the limit is reached.
    fn add(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((time, stream, whole, content)) = parse(line) else { return true };
        if self.options.stream.is_some_and(|wanted| wanted.as_bytes() != stream) || self.is_before(time) {
            return true;
        }
        let began = out.len();
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(content);
        if whole {
            out.push(b'\n');
        }
        self.inside = !whole;
        let added = u64::try_from(out.len() - began).unwrap_or(u64::MAX);
        if added >= self.left_bytes {
            out.truncate(began + usize::try_from(self.left_bytes).unwrap_or(0));
            self.left_bytes = 0;
            return false;
        }
        self.left_bytes -= added;
        true
    }

    fn is_before(&mut self, time: &[u8]) -> bool {
        let Some(since) = self.options.since else { return false };
        let at = std::str::from_utf8(time).ok().and_then(|text| text.parse::<Timestamp>().ok());
        let before = at.is_some_and(|at| at < since);
        if !before {
            self.options.since = None; // lines are in order
        }
        before
    }
}

/// `TIME STREAM TAG CONTENT`: time, stream, whether the line is whole, content.
type Line<'a> = (&'a [u8], &'a [u8], bool, &'a [u8]);

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    Some((time, stream, tag.starts_with(b"F"), parts.next().unwrap_or_default()))
}

/// Sends a container's log until its end, the limit or the reader's end.
pub async fn send(
    kubelet: Arc<Kubelet>,
    path: PathBuf,
    options: Options,
    owner: (String, String),
    out: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut sender = Sender { renderer: Renderer::new(options.clone()), out };
    // The watch begins before the first read, so that no write falls between.
    let watch = if options.follow { Some(Watch::new(&path)?) } else { None };
    let mut files = existing(&path);
    let skip = match options.tail_lines {
        Some(lines) => seek_tail(&mut files, lines).await?,
        None => 0,
    };
    let mut last = None;
    for (index, file) in files.iter().enumerate() {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(file).await?);
        if index == 0 {
            reader.seek(SeekFrom::Start(skip)).await?;
        }
        if !sender.drain(&mut reader).await? {
            return Ok(());
        }
        last = Some(reader);
    }
    match watch {
        Some(watch) => follow(&kubelet, &path, watch, last, sender, &owner).await,
        None => Ok(()),
    }
}

/// The files of a log, oldest first.
fn existing(path: &Path) -> Vec<PathBuf> {
    let older = (1..ROTATED_LIMIT).rev().map(|index| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{index}"));
        PathBuf::from(name)
    });
    older.chain([path.to_owned()]).filter(|file| file.is_file()).collect()
}

/// Drops the files before the last `lines` lines; where to begin in the first that is left.
async fn seek_tail(files: &mut Vec<PathBuf>, lines: u64) -> io::Result<u64> {
    let mut wanted = lines;
    for index in (0..files.len()).rev() {
        let (found, offset) = tail_offset(&files[index], wanted).await?;
        if found >= wanted || index == 0 {
            files.drain(..index);
            return Ok(offset);
        }
        wanted -= found;
    }
    Ok(0)
}

/// How many lines (at most `wanted`) the end of the file has, and where they begin.
async fn tail_offset(path: &Path, wanted: u64) -> io::Result<(u64, u64)> {
    let mut file = File::open(path).await?;
    let mut end = file.metadata().await?.len();
    if wanted == 0 {
        return Ok((0, end));
    }
    let size = end;
    let mut found = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    while end > 0 {
        let length = end.min(BUFFER_BYTES as u64);
        let block = &mut buffer[..usize::try_from(length).unwrap_or(BUFFER_BYTES)];
        file.seek(SeekFrom::Start(end - length)).await?;
        file.read_exact(block).await?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = end - length + index as u64 + 1;
            if after == size {
                continue; // the end of the last line
            }
            found += 1;
            if found == wanted {
                return Ok((found, after));
            }
        }
        end -= length;
    }
    Ok((found + u64::from(size > 0), 0))
}

struct Sender {
    renderer: Renderer,
    out: mpsc::Sender<Bytes>,
}

impl Sender {
    /// Sends what the file holds now; false when nothing more is wanted.
    async fn drain(&mut self, reader: &mut BufReader<File>) -> io::Result<bool> {
        let mut line = Vec::new();
        let mut shown = Vec::with_capacity(BUFFER_BYTES);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).await?;
            let whole = line.ends_with(b"\n");
            if read > 0 && !whole {
                // A line that is being written: it is read again when it is whole.
                reader.seek(SeekFrom::Current(-i64::try_from(read).unwrap_or(0))).await?;
            }
            let more = !whole || self.renderer.add(&line, &mut shown);
            let ended = !whole || !more;
            if (ended || shown.len() >= BUFFER_BYTES)
                && !shown.is_empty()
                && self.out.send(Bytes::from(std::mem::take(&mut shown))).await.is_err()
            {
                return Ok(false);
            }
            if ended {
                return Ok(more);
            }
        }
    }
}

/// Wakes when something is written, made or renamed in the log's directory.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, events)?;
        Ok(Self(crate::sys::watch::watch(fd)?))
    }

    async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0; 1024];
        while rustix::io::read(self.0.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

/// Until the container has ended and all is read, or the reader has gone.
async fn follow(
    kubelet: &Kubelet,
    path: &Path,
    watch: Watch,
    mut reader: Option<BufReader<File>>,
    mut sender: Sender,
    (uid, id): &(String, String),
) -> io::Result<()> {
    loop {
        let happened = kubelet.runtime_changed.notified();
        tokio::pin!(happened);
        happened.as_mut().enable();
        let running = is_running(kubelet, uid, id).await;
        if let Some(open) = &mut reader
            && !sender.drain(open).await?
        {
            return Ok(());
        }
        if let Some(next) = successor(path, reader.as_ref()).await? {
            reader = Some(next);
            continue;
        }
        if !running {
            return Ok(());
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            () = happened => {}
            () = sender.out.closed() => return Ok(()),
        }
    }
}

/// The file at `path` if it is another one than the one that is open.
async fn successor(path: &Path, reader: Option<&BufReader<File>>) -> io::Result<Option<BufReader<File>>> {
    let next = match File::open(path).await {
        Ok(next) => next,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(reader) = reader
        && reader.get_ref().metadata().await?.ino() == next.metadata().await?.ino()
    {
        return Ok(None);
    }
    Ok(Some(BufReader::with_capacity(BUFFER_BYTES, next)))
}

async fn is_running(kubelet: &Kubelet, uid: &str, id: &str) -> bool {
    let status = kubelet.runtime.status(uid).await;
    let running = |status: crate::runtime::SandboxStatus| {
        let mut records = status.containers.into_iter();
        records.any(|record| record.id == id && !matches!(record.state, ContainerState::Exited(_)))
    };
    status.is_ok_and(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 5] = [
        "2026-11-23T00:00:01.000000001Z stdout F one\n",
        "2026-11-23T00:00:02.000000000Z stderr F two\n",
        "2026-11-23T00:00:03.000000000Z stdout P thr\n",
        "2026-11-23T00:00:03.100000000Z stdout F ee\n",
        "2026-11-23T00:00:04.000000000Z stdout F four\n",
    ];

    fn shown(options: Options) -> String {
        let mut renderer = Renderer::new(options);
        let mut out = Vec::new();
        for line in LINES {
            if !renderer.add(line.as_bytes(), &mut out) {
                break;
            }
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_are_shown_as_asked() {
        let plain = Options::default();
        assert_eq!(shown(plain.clone()), "one\ntwo\nthree\nfour\n");
        assert_eq!(shown(Options { limit_bytes: Some(6), ..plain.clone() }), "one\ntw");
        assert_eq!(shown(Options { stream: Some("stderr"), ..plain.clone() }), "two\n");
        let since = "2026-11-23T00:00:03Z".parse().ok();
        assert_eq!(shown(Options { since, ..plain.clone() }), "three\nfour\n");
        let stamped = shown(Options { timestamps: true, since, ..plain });
        assert_eq!(stamped, "2026-11-23T00:00:03.000000000Z three\n2026-11-23T00:00:04.000000000Z four\n");
    }

    #[tokio::test]
    async fn tails_reach_into_rotated_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        std::fs::write(directory.path().join("0.log.1"), LINES[..2].concat()).expect("written");
        std::fs::write(&path, LINES[2..].concat()).expect("written");
        for (lines, files, offset) in [
            (0, 1, LINES[2..].concat().len()),
            (1, 1, LINES[2].len() + LINES[3].len()),
            (3, 1, 0),
            (4, 2, LINES[0].len()),
            (9, 2, 0),
        ] {
            let mut all = existing(&path);
            let at = seek_tail(&mut all, lines).await.expect("sought");
            assert_eq!((all.len(), at), (files, offset as u64), "{lines} lines");
        }
    }

    #[test]
    fn options_are_read() {
        let query = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            Options::parse(&pairs, "2026-11-23T00:01:00Z".parse().expect("a time"))
        };
        let options = query(&[("follow", "true"), ("sinceSeconds", "60"), ("tailLines", "5")]).expect("options");
        assert_eq!((options.follow, options.tail_lines), (true, Some(5)));
        assert_eq!(options.since, "2026-11-23T00:00:00Z".parse().ok());
        assert_eq!(query(&[("tailLines", "x")]), Err("invalid tailLines: x".to_owned()));
    }
}
