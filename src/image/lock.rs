//! Who may touch the layers: many may add images at once, whoever removes images is alone, across processes.
//! A layer is on the disk before the index names it; only this keeps it from being taken for unused.

use super::{ImageError, ImageStore, Result, disk};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::time::Duration;

/// How long a removal waits for pulls and imports of other processes …
const WAIT_LIMIT: Duration = Duration::from_secs(5);
/// … looking so often: the kernel tells nobody that a lock is free.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The kernel gives it back when it is dropped, or when the process ends.
pub(super) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

impl ImageStore {
    /// To be held while layers are added, from before the first is looked for until the index names them.
    /// Blocking, for as long as a removal takes.
    pub(super) fn adding(&self) -> Result<Lock> {
        self.lock(FlockOperation::LockShared)
    }

    /// To be held while layers are removed. Blocking, a few seconds at most.
    pub(super) fn alone(&self) -> Result<Lock> {
        self.alone_within(WAIT_LIMIT)
    }

    fn alone_within(&self, limit: Duration) -> Result<Lock> {
        let mut left = limit;
        loop {
            match self.lock(FlockOperation::NonBlockingLockExclusive) {
                Err(ImageError::Busy) if !left.is_zero() => {
                    std::thread::sleep(LOOK_EVERY.min(left));
                    left = left.saturating_sub(LOOK_EVERY);
                }
                outcome => return outcome,
            }
        }
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock> {
        let path = self.inner.directory.join("layers.lock");
        let file = File::options().create(true).append(true).open(&path).map_err(disk(&path))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Lock(file)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Err(ImageError::Busy),
                Err(error) => return Err(disk(&path)(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::image::manifest::Process;

    #[test]
    fn removing_images_during_another_process_s_pull_takes_no_layer_that_is_not_recorded_yet() {
        let directory = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        let store = || ImageStore::open(directory.path(), Clock::real()).unwrap();
        let (pulling, removing) = (store(), store());
        removing.build(tree.path(), Process::default(), "old:v1").unwrap();
        let pull = pulling.adding().unwrap();
        let unrecorded = pulling.layer_path("sha256:fresh");
        std::fs::create_dir(&unrecorded).unwrap();

        let refused = removing.alone_within(Duration::ZERO).map(drop).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "remove images: an image is being pulled or imported; try again when that is done"
        );
        let second = removing.adding().expect("several may add at once");
        drop((pull, second));
        removing.remove("old:v1").unwrap();
        assert!(!unrecorded.exists(), "nobody adds: it is a leftover");
    }
}
