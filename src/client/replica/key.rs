//! The key a replica is sealed with: from a secret fused into the board where there is one, else from one that the
//! board's TPM keeps, else from the node's key file alone, which protects copies of the disk's replica but not a
//! stolen card.

use super::sealed;
use crate::sys::tpm::Tpm;
use ring::{aead, hkdf};
use std::path::Path;
use std::{fmt, fs, io};

/// Length of a file's salt.
pub const SALT_BYTES: usize = 32;
/// Length of what tells a right key from a wrong one.
pub const CHECK_BYTES: usize = 16;
/// More is no secret of a board.
const SECRET_LIMIT_BYTES: usize = 256;
/// Where kernels show one-time programmable memory.
const NVMEM: &str = "/sys/bus/nvmem/devices";

/// What a key is made from. No `Debug`: all of it is secret.
#[derive(Clone)]
pub struct KeySource {
    board: Option<Vec<u8>>,
    tpm: Option<sealed::Secret>,
    node: Vec<u8>,
}

/// Which secrets a file's key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Node,
    Board,
    Tpm,
}

impl Binding {
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Node => 1,
            Self::Board => 2,
            Self::Tpm => 3,
        }
    }

    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Node),
            2 => Some(Self::Board),
            3 => Some(Self::Tpm),
            _ => None,
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Node => "the node's key file",
            Self::Board => "the board's one-time programmable memory",
            Self::Tpm => "the board's tpm",
        })
    }
}

impl KeySource {
    /// `node`: the bytes of the node's private key; `board`: the board's secret, if it has one.
    pub fn new(node: &[u8], board: Option<&[u8]>) -> Self {
        Self { board: board.map(<[u8]>::to_vec), tpm: None, node: node.to_vec() }
    }

    /// With the secret that the board's TPM keeps.
    #[cfg(test)]
    pub fn with_tpm(self, secret: sealed::Secret) -> Self {
        Self { tpm: Some(secret), ..self }
    }

    /// Reads the node's key file and asks the board for its secret; for those who only look. Blocks.
    pub fn read(node_key: &Path, tpm: &Tpm) -> io::Result<Self> {
        Self::gather(node_key, tpm, sealed::unseal)
    }

    /// As `read`, for the node itself: a board without a fused secret gets one that its TPM keeps, if it has a TPM.
    /// Blocks, at most for a minute. An error: this board's TPM does not answer now; what it sealed is still there.
    pub fn bind(node_key: &Path, tpm: &Tpm) -> io::Result<Self> {
        Self::gather(node_key, tpm, sealed::unseal_or_seal)
    }

    fn gather(
        node_key: &Path,
        tpm: &Tpm,
        ask: fn(&Path, &Tpm) -> Result<Option<sealed::Secret>, sealed::SealedError>,
    ) -> io::Result<Self> {
        let node = fs::read(node_key)?;
        let board = board_secret(Path::new(NVMEM));
        let file = node_key.with_file_name(sealed::FILE);
        let tpm = match board {
            None => ask(&file, tpm).map_err(io::Error::other)?,
            // Only a replica from before the board got its secret needs the TPM still.
            Some(_) => sealed::unseal(&file, tpm).unwrap_or_else(|error| {
                tracing::warn!(%error, "what a tpm had sealed is not read");
                None
            }),
        };
        Ok(Self { board, tpm, node })
    }

    /// What new files are bound to: the fused secret before the TPM's, because no clearing takes it away.
    pub fn binding(&self) -> Binding {
        match (&self.board, &self.tpm) {
            (Some(_), _) => Binding::Board,
            (None, Some(_)) => Binding::Tpm,
            (None, None) => Binding::Node,
        }
    }

    /// The key of one file, and the bytes that prove it. `None`: this machine lacks the secret.
    pub fn derive(&self, binding: Binding, salt: &[u8; SALT_BYTES]) -> Option<(aead::LessSafeKey, [u8; CHECK_BYTES])> {
        let mut secret = match binding {
            Binding::Node => Vec::new(),
            Binding::Board => self.board.clone()?,
            Binding::Tpm => self.tpm?.to_vec(),
        };
        secret.extend_from_slice(&self.node);
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&secret);
        let (mut key, mut check) = ([0; 32], [0; CHECK_BYTES]);
        expand(&root, b"edgelet replica key", &mut key);
        expand(&root, b"edgelet replica check", &mut check);
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &key).expect("a key of 32 bytes fits AES-256");
        Some((aead::LessSafeKey::new(key), check))
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(root: &hkdf::Prk, purpose: &[u8], out: &mut [u8]) {
    let purposes = [purpose];
    let okm = root.expand(&purposes, Length(out.len())).expect("a short output never exceeds HKDF's limit");
    okm.fill(out).expect("the output has the length that was asked for");
}

/// The private key in a Raspberry Pi's one-time programmable memory, else its customer's rows; `None` when the
/// board has none or nobody has programmed them (all zeros or all ones).
fn board_secret(devices: &Path) -> Option<Vec<u8>> {
    let nvmem = |part: &str| -> Option<Vec<u8>> {
        let mut names: Vec<String> = fs::read_dir(devices)
            .ok()?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.retain(|name| name.contains("otp") && name.contains(part));
        names.sort();
        let contents = names.iter().filter_map(|name| fs::read(devices.join(name).join("nvmem")).ok());
        contents.into_iter().find(|bytes| is_programmed(bytes))
    };
    let mailbox = || crate::sys::mailbox::private_key().ok().filter(|bytes| is_programmed(bytes));
    nvmem("priv").or_else(mailbox).or_else(|| nvmem("cust"))
}

fn is_programmed(bytes: &[u8]) -> bool {
    bytes.len() >= 16
        && bytes.len() <= SECRET_LIMIT_BYTES
        && bytes.iter().any(|byte| *byte != 0)
        && bytes.iter().any(|byte| *byte != 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_every_secret_and_on_the_salt() {
        let check = |source: &KeySource, binding, salt: u8| source.derive(binding, &[salt; SALT_BYTES]).unwrap().1;
        let (bare, bound) = (KeySource::new(b"node", None), KeySource::new(b"node", Some(b"board-secret-0123")));
        let same = check(&bare, Binding::Node, 1);
        assert_eq!(same, check(&bound, Binding::Node, 1), "a board bound later still reads what it had");
        let others = [
            check(&bare, Binding::Node, 2),
            check(&bound, Binding::Board, 1),
            check(&KeySource::new(b"other", None), Binding::Node, 1),
        ];
        assert!(others.iter().all(|other| *other != same));
        assert!(bare.derive(Binding::Board, &[1; SALT_BYTES]).is_none());
    }

    #[test]
    fn the_fused_secret_goes_before_the_tpm_s_and_each_binding_needs_its_own() {
        let with = |board: Option<&[u8]>, tpm| KeySource { tpm, ..KeySource::new(b"node", board) };
        let fused = Some(&b"board-secret-0123"[..]);
        let sources = [with(None, None), with(None, Some([7; 32])), with(fused, None), with(fused, Some([7; 32]))];
        let bindings = [Binding::Node, Binding::Tpm, Binding::Board, Binding::Board];
        assert_eq!(sources.each_ref().map(KeySource::binding), bindings);
        let derives = |source: &KeySource, binding| source.derive(binding, &[1; SALT_BYTES]).map(|(_, check)| check);
        let tpm = sources.each_ref().map(|source| derives(source, Binding::Tpm));
        assert!(tpm[0].is_none() && tpm[2].is_none() && tpm[1].is_some());
        assert_eq!(tpm[1], tpm[3], "what the tpm's secret sealed is still read");
        assert_ne!(tpm[1], derives(&with(None, Some([8; 32])), Binding::Tpm));
        for binding in bindings {
            assert_eq!(Binding::from_byte(binding.to_byte()), Some(binding));
        }
    }

    #[test]
    fn only_programmed_memory_of_a_board_is_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, bytes: &[u8]| {
            fs::create_dir_all(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("nvmem"), bytes).unwrap();
        };
        make("mmc0", &[7; 32]);
        make("rpi_otp_cust1", &[0; 32]);
        assert_eq!(board_secret(directory.path()), None);
        make("rpi_otp_cust1", &[5; 32]);
        assert_eq!(board_secret(directory.path()), Some(vec![5; 32]));
        make("rpi_otp_priv2", &[6; 32]);
        assert_eq!(board_secret(directory.path()), Some(vec![6; 32]));
        assert_eq!(board_secret(&directory.path().join("none")), None);
    }
}
