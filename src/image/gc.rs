//! Which images go when the disk is short. The decision is pure; images in use never go.
//! Source of the thresholds: the kubelet's imageGCHighThresholdPercent, imageGCLowThresholdPercent and
//! imageMinimumGCAge. A share of a large disk is far more than pods need, so that free space has a limit too.

use super::{ImageStore, Index, Record, Result};
use std::collections::BTreeSet;

/// Collection starts above this share of the disk …
pub const HIGH_THRESHOLD_PERCENT: u64 = 85;
/// … and goes on until usage is below this one.
pub const LOW_THRESHOLD_PERCENT: u64 = 80;
/// … but never while more than this is free: somewhat more than what puts the node under pressure …
const HIGH_FREE_LIMIT_BYTES: u64 = 3 << 30;
/// … nor once this is.
const LOW_FREE_LIMIT_BYTES: u64 = 4 << 30;
/// A new image has been fetched for somebody who may not use it yet.
const YOUNG_S: i64 = 120;

/// A filesystem's size and what is taken of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub total_bytes: u64,
    pub used_bytes: u64,
}

impl Usage {
    /// Whether images are to go.
    fn is_short(self) -> bool {
        self.free_bytes() < self.wanted_free_bytes(HIGH_THRESHOLD_PERCENT, HIGH_FREE_LIMIT_BYTES)
    }

    fn free_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }

    fn wanted_free_bytes(self, threshold_percent: u64, limit_bytes: u64) -> u64 {
        (self.total_bytes * (100 - threshold_percent) / 100).min(limit_bytes)
    }
}

/// Ids to remove, the oldest first, until enough is freed.
pub fn plan(index: &Index, in_use: &BTreeSet<String>, usage: Usage, now_s: i64) -> Vec<String> {
    if !usage.is_short() {
        return Vec::new();
    }
    let mut to_free = usage.wanted_free_bytes(LOW_THRESHOLD_PERCENT, LOW_FREE_LIMIT_BYTES) - usage.free_bytes();
    let may_go = |(id, record): &(&String, &Record)| !in_use.contains(*id) && record.stored_at_s + YOUNG_S <= now_s;
    let mut unused: Vec<_> = index.images.iter().filter(may_go).collect();
    unused.sort_by_key(|(_, record)| record.stored_at_s);
    let mut doomed = Vec::new();
    for (id, record) in unused {
        if to_free == 0 {
            break;
        }
        to_free = to_free.saturating_sub(record.size_bytes.max(1));
        doomed.push(id.clone());
    }
    doomed
}

impl ImageStore {
    /// Removes unused images when the disk is short (or all unused ones); returns what went. Blocking.
    /// Fails while another process adds images.
    pub fn collect(&self, in_use: &BTreeSet<String>, all_unused: bool) -> Result<Vec<String>> {
        let _alone = self.alone()?;
        let index = self.index()?;
        let doomed = if all_unused {
            index.images.keys().filter(|id| !in_use.contains(*id)).cloned().collect()
        } else {
            plan(&index, in_use, self.usage()?, self.inner.clock.now().as_second())
        };
        for id in &doomed {
            self.forget(id)?;
        }
        self.drop_unused()?;
        Ok(doomed)
    }

    /// Whether images should go for want of space. Asks the file system only.
    pub fn is_short_of_space(&self) -> Result<bool> {
        Ok(self.usage()?.is_short())
    }

    fn usage(&self) -> Result<Usage> {
        let directory = &self.inner.directory;
        let stat = rustix::fs::statvfs(directory).map_err(|error| super::disk(directory)(error.into()))?;
        let total_bytes = stat.f_blocks * stat.f_frsize;
        Ok(Usage { total_bytes, used_bytes: total_bytes.saturating_sub(stat.f_bavail * stat.f_frsize) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_unused_images_go_until_the_low_threshold() {
        let mut index = Index::default();
        for (id, stored_at_s) in [("old", 1), ("used", 2), ("middle", 3), ("new", 4)] {
            index.images.insert(id.into(), Record { size_bytes: 5, stored_at_s, ..Record::default() });
        }
        let in_use = BTreeSet::from(["used".to_owned()]);
        let at = |used_bytes| plan(&index, &in_use, Usage { total_bytes: 100, used_bytes }, 1000);
        assert!(at(85).is_empty());
        assert_eq!(at(86), ["old", "middle"]);
        assert_eq!(at(99), ["old", "middle", "new"]);
        let soon = plan(&index, &in_use, Usage { total_bytes: 100, used_bytes: 99 }, 123);
        assert_eq!(soon, ["old", "middle"], "one is too young");
    }

    #[test]
    fn a_large_disk_is_short_only_when_little_is_free() {
        let short = |free_gib: u64| {
            let total_bytes = 1000 << 30;
            Usage { total_bytes, used_bytes: total_bytes - (free_gib << 30) }.is_short()
        };
        assert_eq!([2, 3, 100].map(short), [true, false, false]);
    }
}
