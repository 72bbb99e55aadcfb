//! The five commands that seal and unseal, byte by byte. What a TPM answers is checked before it is used.

use super::TpmError;
use std::io;
use std::time::Duration;

/// Length of a sealed secret.
pub const SECRET_BYTES: usize = 32;
/// Part 2, 6.9: with and without authorizations.
const TAG_SESSIONS: u16 = 0x8002;
const TAG_NO_SESSIONS: u16 = 0x8001;
/// Part 1, 18: tag, size, code.
pub const HEAD_BYTES: usize = 10;
/// Part 2, 7.4: the owner's hierarchy. Its seed stays until the TPM is cleared, whatever boots.
const OWNER: u32 = 0x4000_0001;
/// Part 2, 7.2: the first byte of what lives in the TPM's memory, as loaded keys do.
const TRANSIENT: u32 = 0x80;
/// Part 1, 19.4: one authorization by password (`TPM_RS_PW`): no nonce, no attributes, an empty password.
const EMPTY_PASSWORD: &[u8] = b"\0\0\0\x09\x40\0\0\x09\0\0\0\0\0";
/// Part 2, 6.6: not now, ask again (`TPM_RC_YIELDED`, `TPM_RC_TESTING`, `TPM_RC_RETRY`).
const NOT_NOW: [u32; 3] = [0x908, 0x90a, 0x922];
/// With pauses from 1 ms, doubled each time: two seconds in all.
pub const ATTEMPTS: u32 = 12;
/// Part 2, 6.6: the code is of format one and blames a parameter.
const BLAMES_PARAMETER: u32 = 0xc0;

/// The storage key template of the TCG's "Provisioning Guidance", 7.5.1, for P-256 with AES-128-CFB: every TPM has
/// these, and makes this key in a moment where RSA takes many seconds. The same seed and template give the same key.
const STORAGE_KEY: &[u8] = &[
    0x00, 0x23, // TPM_ALG_ECC
    0x00, 0x0b, // TPM_ALG_SHA256
    0x00, 0x03, 0x04, 0x72, // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
    0x00, 0x00, // no policy
    0x00, 0x06, 0x00, 0x80, 0x00, 0x43, // TPM_ALG_AES, 128 bits, TPM_ALG_CFB
    0x00, 0x10, // no signing scheme
    0x00, 0x03, // TPM_ECC_NIST_P256
    0x00, 0x10, // no key derivation
    0x00, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, // x
    0x00, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, // y
];

/// Part 2, 12.2.4. No policy on PCRs: they change with every update of the firmware, which must not cost the pods.
const SEALED_DATA: &[u8] = &[
    0x00, 0x08, // TPM_ALG_KEYEDHASH
    0x00, 0x0b, // TPM_ALG_SHA256
    0x00, 0x00, 0x04, 0x52, // fixedTPM, fixedParent, userWithAuth, noDA
    0x00, 0x00, // no policy
    0x00, 0x10, // no scheme: data
    0x00, 0x00, // the TPM fills in what is unique
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    CreatePrimary = 0x131,
    Create = 0x153,
    Load = 0x157,
    Unseal = 0x15e,
    FlushContext = 0x165,
}

/// What carries a command to a TPM, and its response back.
pub trait Transport {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError>;

    /// Before a command is sent again.
    fn pause(&mut self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

/// A secret as only the TPM that sealed it reads it: `TPM2B_PRIVATE` and `TPM2B_PUBLIC` without their lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    private: Vec<u8>,
    public: Vec<u8>,
}

impl Sealed {
    const MAGIC: &[u8; 8] = b"edgetpm1";

    pub fn to_bytes(&self) -> Vec<u8> {
        [Self::MAGIC, &*sized(&self.private), &*sized(&self.public)].concat()
    }

    /// `None`: nothing that `to_bytes` made.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes.strip_prefix(Self::MAGIC)?);
        let sealed = Self::read(&mut reader)?;
        reader.0.is_empty().then_some(sealed)
    }

    fn read(reader: &mut Reader) -> Option<Self> {
        let (private, public) = (reader.sized()?.to_vec(), reader.sized()?.to_vec());
        (!private.is_empty() && !public.is_empty()).then_some(Self { private, public })
    }
}

/// 12.1, `TPM2_Create`. An HMAC key of the owner's hierarchy would do without anything stored, but `TPM2_HMAC` is not
/// among the commands that the PC Client profile asks for; sealing is, and every TPM can do it.
pub fn seal(transport: &mut dyn Transport, secret: &[u8; SECRET_BYTES]) -> Result<Sealed, TpmError> {
    with_storage_key(transport, |transport, storage_key| {
        let sensitive = sized(&[&sized(&[])[..], &sized(secret)].concat());
        let parameters = [&sensitive[..], &sized(SEALED_DATA), NO_OUTSIDE_INFO, NO_CREATION_PCRS].concat();
        let body = authorized(transport, Code::Create, storage_key, &parameters)?;
        let mut answer = Reader(&body).parameters(Code::Create)?;
        Sealed::read(&mut answer).ok_or(TpmError::Malformed(Code::Create.name()))
    })
}

/// 12.2 and 12.7, `TPM2_Load` and `TPM2_Unseal`.
pub fn unseal(transport: &mut dyn Transport, sealed: &Sealed) -> Result<[u8; SECRET_BYTES], TpmError> {
    with_storage_key(transport, |transport, storage_key| {
        let parameters = [sized(&sealed.private), sized(&sealed.public)].concat();
        let body = authorized(transport, Code::Load, storage_key, &parameters).map_err(|error| match error {
            TpmError::Code { code, .. } if code & BLAMES_PARAMETER == BLAMES_PARAMETER => TpmError::Refused(code),
            error => error,
        })?;
        let object = Reader(&body).transient(Code::Load)?;
        flushed(transport, object, |transport| {
            let body = authorized(transport, Code::Unseal, object, &[])?;
            let secret = Reader(&body).parameters(Code::Unseal)?.sized();
            let secret = secret.and_then(|secret| secret.try_into().ok());
            secret.ok_or(TpmError::Malformed(Code::Unseal.name()))
        })
    })
}

const NO_OUTSIDE_INFO: &[u8] = &[0, 0];
const NO_CREATION_PCRS: &[u8] = &[0, 0, 0, 0];
/// An empty password and no data.
const EMPTY_SENSITIVE: &[u8] = &[0, 4, 0, 0, 0, 0];

/// 24.1, `TPM2_CreatePrimary`: the storage key, for as long as `task` takes.
fn with_storage_key<T>(
    transport: &mut dyn Transport,
    task: impl FnOnce(&mut dyn Transport, u32) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let parameters = [EMPTY_SENSITIVE, &sized(STORAGE_KEY), NO_OUTSIDE_INFO, NO_CREATION_PCRS].concat();
    let body = authorized(transport, Code::CreatePrimary, OWNER, &parameters)?;
    let storage_key = Reader(&body).transient(Code::CreatePrimary)?;
    flushed(transport, storage_key, |transport| task(transport, storage_key))
}

/// 28.4, `TPM2_FlushContext`, whatever came of the task: a TPM has room for three objects. That it fails takes nothing
/// from the outcome.
fn flushed<T>(
    transport: &mut dyn Transport,
    handle: u32,
    task: impl FnOnce(&mut dyn Transport) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let outcome = task(transport);
    let command = framed(TAG_NO_SESSIONS, Code::FlushContext, &handle.to_be_bytes());
    if let Err(error) = send(transport, Code::FlushContext, TAG_NO_SESSIONS, &command) {
        tracing::debug!(%error, "flush an object of the tpm");
    }
    outcome
}

/// A command on one handle, which the empty password opens; what follows the response's head.
fn authorized(transport: &mut dyn Transport, code: Code, handle: u32, parameters: &[u8]) -> Result<Vec<u8>, TpmError> {
    let body = [&handle.to_be_bytes()[..], EMPTY_PASSWORD, parameters].concat();
    send(transport, code, TAG_SESSIONS, &framed(TAG_SESSIONS, code, &body))
}

fn send(transport: &mut dyn Transport, code: Code, tag: u16, command: &[u8]) -> Result<Vec<u8>, TpmError> {
    let mut attempt = 1;
    loop {
        let response = transport.exchange(command)?;
        match parse(code, tag, &response) {
            Err(TpmError::Code { code, .. }) if NOT_NOW.contains(&code) && attempt < ATTEMPTS => {
                transport.pause(Duration::from_millis(1 << (attempt - 1)));
                attempt += 1;
            }
            parsed => return parsed.map(<[u8]>::to_vec),
        }
    }
}

/// What follows the head of a response that tells success.
fn parse(command: Code, tag: u16, response: &[u8]) -> Result<&[u8], TpmError> {
    let malformed = || TpmError::Malformed(command.name());
    let mut reader = Reader(response);
    let mut head = || Some((reader.u16()?, reader.u32()?, reader.u32()?));
    let (answered, size, code) = head().ok_or_else(malformed)?;
    if u32::try_from(response.len()) != Ok(size) {
        return Err(malformed());
    }
    match code {
        0 if answered == tag => Ok(reader.0),
        0 => Err(malformed()),
        code => Err(TpmError::Code { command: command.name(), code }),
    }
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::CreatePrimary => "CreatePrimary",
            Self::Create => "Create",
            Self::Load => "Load",
            Self::Unseal => "Unseal",
            Self::FlushContext => "FlushContext",
        }
    }
}

fn framed(tag: u16, code: Code, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEAD_BYTES + body.len()).expect("a command has a few hundred bytes");
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &(code as u32).to_be_bytes(), body].concat()
}

/// A `TPM2B`: the length goes first.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("templates are short, and what was sealed came with such a length");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// Reads only what is there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// The parameters of a response with authorizations: their length goes first, the authorizations follow.
    fn parameters(mut self, command: Code) -> Result<Reader<'a>, TpmError> {
        let length = self.u32().and_then(|length| usize::try_from(length).ok());
        let parameters = length.and_then(|length| self.take(length));
        parameters.map(Reader).ok_or(TpmError::Malformed(command.name()))
    }

    /// The handle of what was loaded.
    fn transient(mut self, command: Code) -> Result<u32, TpmError> {
        let handle = self.u32().filter(|handle| handle >> 24 == TRANSIENT);
        handle.ok_or(TpmError::Malformed(command.name()))
    }
}

/// The length that a response says it has, once that part of it is there.
pub fn announced_bytes(response: &[u8]) -> io::Result<Option<usize>> {
    let Some(size) = response.get(2..6) else { return Ok(None) };
    let size = size.iter().fold(0, |size: usize, byte| size << 8 | usize::from(*byte));
    if size < HEAD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the response says it is shorter than its head"));
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests;
