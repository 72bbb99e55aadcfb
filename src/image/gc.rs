//! Which images go when the disk is short. The decision is pure; images in use never go.
//! Source of the thresholds: the kubelet's imageGCHighThresholdPercent and imageGCLowThresholdPercent.

use super::{ImageStore, Index, Result};
use std::collections::BTreeSet;

/// Collection starts above this share of the disk …
pub const HIGH_THRESHOLD_PERCENT: u64 = 85;
/// … and goes on until usage is below this one.
pub const LOW_THRESHOLD_PERCENT: u64 = 80;

/// A filesystem's size and what is taken of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// Ids to remove, the oldest first, until enough is freed.
pub fn plan(index: &Index, in_use: &BTreeSet<String>, usage: Usage) -> Vec<String> {
    if usage.total_bytes == 0 || usage.used_bytes * 100 <= usage.total_bytes * HIGH_THRESHOLD_PERCENT {
        return Vec::new();
    }
    let mut to_free = usage.used_bytes.saturating_sub(usage.total_bytes / 100 * LOW_THRESHOLD_PERCENT);
    let mut unused: Vec<_> = index.images.iter().filter(|(id, _)| !in_use.contains(*id)).collect();
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
    pub fn collect(&self, in_use: &BTreeSet<String>, all_unused: bool) -> Result<Vec<String>> {
        let index = self.index()?;
        let doomed = if all_unused {
            index.images.keys().filter(|id| !in_use.contains(*id)).cloned().collect()
        } else {
            plan(&index, in_use, self.usage()?)
        };
        for id in &doomed {
            self.remove(id)?;
        }
        Ok(doomed)
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
    use super::super::Record;
    use super::*;

    #[test]
    fn the_oldest_unused_images_go_until_the_low_threshold() {
        let mut index = Index::default();
        for (id, stored_at_s) in [("old", 1), ("used", 2), ("middle", 3), ("new", 4)] {
            index.images.insert(id.into(), Record { size_bytes: 5, stored_at_s, ..Record::default() });
        }
        let in_use = BTreeSet::from(["used".to_owned()]);
        let at = |used_bytes| plan(&index, &in_use, Usage { total_bytes: 100, used_bytes });
        assert!(at(85).is_empty());
        assert_eq!(at(86), ["old", "middle"]);
        assert_eq!(at(99), ["old", "middle", "new"]);
    }
}
