//! Backups by themselves: at an interval, only when something has changed, the newest few kept.

use super::file::PARTIAL;
use super::{Content, Header, Result, failed};
use crate::clock::Clock;
use crate::supervise::Shutdown;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SUFFIX: &str = ".edgelet-backup";
/// After a failure: the disk for backups may be plugged in again.
const RETRY: Duration = Duration::from_secs(300);

/// Where backups go, how often, and how many stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub directory: PathBuf,
    pub interval: Duration,
    pub keep: usize,
    pub passphrase_file: Option<PathBuf>,
}

/// Runs until shutdown.
pub async fn run(schedule: Schedule, data: PathBuf, clock: Clock, shutdown: Shutdown) {
    let mut failing = false;
    loop {
        let (work, data, now) = (schedule.clone(), data.clone(), clock.now());
        let round = tokio::task::spawn_blocking(move || work.round(&data, now)).await;
        let wait = match round.expect("a backup does not panic") {
            Ok((wait, made)) => {
                if let Some(path) = made {
                    tracing::info!(path = %path.display(), "backup written");
                }
                failing = false;
                wait
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, source, "no backup can be written; retrying");
                }
                RETRY.min(schedule.interval)
            }
        };
        tokio::select! {
            () = shutdown.requested() => return,
            () = clock.sleep(wait) => {}
        }
    }
}

/// How long until the next backup is due; zero: now. A last one of the future (a clock that was wrong) counts as
/// made now.
fn due_in(last: Option<Timestamp>, interval: Duration, now: Timestamp) -> Duration {
    let Some(last) = last else { return Duration::ZERO };
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    interval.saturating_sub(passed)
}

fn is_due(last: Option<&Header>, now_holds: &Content) -> bool {
    last.is_none_or(|last| last.content != *now_holds)
}

/// The names of those beyond the newest few; names sort by time.
fn surplus(mut names: Vec<String>, keep: usize) -> Vec<String> {
    names.sort();
    names.truncate(names.len().saturating_sub(keep));
    names
}

fn file_name(now: Timestamp) -> String {
    format!("{}{SUFFIX}", now.strftime("%Y-%m-%dT%H%M%SZ"))
}

impl Schedule {
    /// Writes a backup if it is time and anything has changed; how long until the next round.
    fn round(&self, data: &Path, now: Timestamp) -> Result<(Duration, Option<PathBuf>)> {
        // Never made here: it may be where a disk is to be mounted, and the backups would fill the board's own.
        let mut names = self.names()?;
        names.sort();
        let last = names.last().and_then(|name| super::header(&self.directory.join(name)).ok());
        let wait = due_in(last.as_ref().map(|last| last.created_at), self.interval, now);
        if !wait.is_zero() {
            return Ok((wait, None));
        }
        if !is_due(last.as_ref(), &super::content(data)?) {
            return Ok((self.interval, None));
        }
        self.drop_partial()?;
        let passphrase = self.passphrase_file.as_deref().map(super::passphrase).transpose()?;
        let target = self.directory.join(file_name(now));
        super::make(data, &target, passphrase.as_deref(), now)?;
        for name in surplus(self.names()?, self.keep) {
            let path = self.directory.join(name);
            std::fs::remove_file(&path).map_err(failed("remove old backup", &path))?;
        }
        Ok((self.interval, Some(target)))
    }

    /// What a power cut left of a backup that was being written.
    fn drop_partial(&self) -> Result<()> {
        for name in self.listed()?.into_iter().filter(|name| name.ends_with(&format!("{SUFFIX}{PARTIAL}"))) {
            let path = self.directory.join(name);
            std::fs::remove_file(&path).map_err(failed("remove partial backup", &path))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.listed()?.into_iter().filter(|name| name.ends_with(SUFFIX)).collect())
    }

    fn listed(&self) -> Result<Vec<String>> {
        let listed = std::fs::read_dir(&self.directory).map_err(failed("read backup folder", &self.directory))?;
        Ok(listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// `90s`, `30m`, `24h`, `7d`.
pub fn parse_interval(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is no interval: write 30m, 24h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)].into_iter().find(|(name, _)| *name == unit);
    let (_, seconds) = seconds.ok_or_else(wrong)?;
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let whole = count.checked_mul(seconds).filter(|whole| (60..=366 * 86_400).contains(whole));
    whole.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is not between a minute and a year"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_one_is_due_an_interval_after_the_last() {
        let (hour, now) = (Duration::from_secs(3600), at("2026-11-23T12:00:00Z"));
        let cases = [
            (None, 0),
            (Some("2026-11-23T11:00:00Z"), 0),
            (Some("2026-11-23T11:59:00Z"), 3540),
            (Some("2020-01-01T00:00:00Z"), 0),
            (Some("2036-01-01T00:00:00Z"), 3600),
        ];
        for (last, wait_s) in cases {
            assert_eq!(due_in(last.map(at), hour, now), Duration::from_secs(wait_s), "{last:?}");
        }
    }

    #[test]
    fn the_newest_few_stay() {
        let name = |text: &str| file_name(at(text));
        let all = ["2026-11-23T12:00:00Z", "2025-01-01T00:00:00Z", "2026-11-22T12:00:00Z"].map(name).to_vec();
        assert_eq!(surplus(all.clone(), 2), [name("2025-01-01T00:00:00Z")]);
        assert!(surplus(all, 3).is_empty());
        assert_eq!(name("2026-11-23T12:00:00Z"), "2026-11-23T120000Z.edgelet-backup");
    }

    #[test]
    fn intervals() {
        assert_eq!(parse_interval("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_interval("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "h", "5", "1s", "-1h", "900d", "1é", "1.5h"] {
            parse_interval(wrong).expect_err(wrong);
        }
    }
}
