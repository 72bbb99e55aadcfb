//! A board's TPM 2.0, through the kernel's resource manager: it seals a secret so that this board alone reads it.
//! Sections are those of the TCG's "TPM 2.0 Library", part 3 (commands), unless another part is named.

mod command;
mod device;

pub use command::{SECRET_BYTES, Sealed};

use device::Device;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The resource manager: it keeps users of the TPM apart, and frees what a user leaves.
const DEVICE: &str = "/dev/tpmrm0";
/// All commands of a task together; a slow TPM makes a key on P-256 within a second or two.
const TASK_LIMIT: Duration = Duration::from_secs(20);

/// Where a TPM is. Cheap to clone; nothing is opened before it is used.
#[derive(Clone, Debug)]
pub struct Tpm(PathBuf);

#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error("there is no tpm at {0}")]
    Absent(PathBuf),
    /// Another TPM sealed it, or this one was cleared since, or somebody changed it.
    #[error("the tpm does not know what was sealed (code {0:#x})")]
    Refused(u32),
    #[error("the tpm answers TPM2_{command} with code {code:#x}")]
    Code { command: &'static str, code: u32 },
    #[error("the tpm's answer to TPM2_{0} makes no sense")]
    Malformed(&'static str),
    #[error("the tpm gave no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("tpm: {0}")]
    Io(#[from] io::Error),
}

impl Tpm {
    pub fn of_board() -> Self {
        Self::at(Path::new(DEVICE))
    }

    /// A character device, or the Unix socket of an emulated TPM.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn is_present(&self) -> bool {
        self.0.exists()
    }

    /// Waits until there is one: drivers of TPMs on a slow bus are loaded while services already start. Blocks.
    pub fn wait(&self, limit: Duration) -> bool {
        device::wait(&self.0, limit)
    }

    /// Has the secret sealed, and tries whether it is read again. Blocks.
    pub fn seal(&self, secret: [u8; SECRET_BYTES]) -> Result<Sealed, TpmError> {
        self.bounded(move |device| {
            let sealed = command::seal(device, &secret)?;
            let same = command::unseal(device, &sealed)? == secret;
            same.then_some(sealed).ok_or(TpmError::Malformed("Unseal"))
        })
    }

    /// The secret; `TpmError::Refused`: this TPM will never tell it. Blocks.
    pub fn unseal(&self, sealed: &Sealed) -> Result<[u8; SECRET_BYTES], TpmError> {
        let sealed = sealed.clone();
        self.bounded(move |device| command::unseal(device, &sealed))
    }

    /// On a thread of its own: drivers may hold the caller of any system call, `poll` too, until the TPM has
    /// answered. One that never does costs this thread; closing its descriptor frees all in the TPM.
    fn bounded<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Device) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (done, outcome) = mpsc::sync_channel(1);
        let path = self.0.clone();
        std::thread::Builder::new().name("tpm".into()).spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = done.send(Device::open(&path).and_then(|mut device| task(&mut device)));
        })?;
        outcome.recv_timeout(TASK_LIMIT).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => Err(TpmError::Silent(TASK_LIMIT)),
            mpsc::RecvTimeoutError::Disconnected => Err(io::Error::other("the thread that asked it panicked").into()),
        })
    }
}
