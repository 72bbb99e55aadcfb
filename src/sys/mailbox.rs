//! The property mailbox of a Raspberry Pi's firmware: reads the board's private key from one-time programmable
//! memory, where the kernel does not show it as a file.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

const DEVICE: &str = "/dev/vcio";
/// The firmware's tag "get private key".
const GET_PRIVATE_KEY: u32 = 0x0003_0081;
const ANSWERED: u32 = 0x8000_0000;
/// 32 bytes: what every board that has the key has.
const KEY_WORDS: usize = 8;
const HEAD_WORDS: usize = 7;
const MESSAGE_WORDS: usize = HEAD_WORDS + KEY_WORDS + 1;

type Message = [u32; MESSAGE_WORDS];

nix::ioctl_readwrite!(property, 100, 0, *mut u32);

/// The key as it is, programmed or not. An error: no such board, or its firmware keeps the key to itself.
pub fn private_key() -> io::Result<Vec<u8>> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut message = question();
    // SAFETY: the driver reads and writes as many bytes as the message's first word says, which is its length;
    // its argument is the message's address, and both outlive the call.
    unsafe { property(device.as_raw_fd(), message.as_mut_ptr().cast()) }?;
    answer(&message).ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the firmware gives no private key"))
}

/// Length, request; tag, room for the answer, length of the question, first row, rows, values; end.
fn question() -> Message {
    let bytes = |words: usize| u32::try_from(words * 4).unwrap_or(u32::MAX);
    let mut message = [0; MESSAGE_WORDS];
    message[0] = bytes(MESSAGE_WORDS);
    message[2] = GET_PRIVATE_KEY;
    message[3] = bytes(KEY_WORDS + 2);
    message[4] = bytes(KEY_WORDS + 2);
    message[6] = bytes(KEY_WORDS) / 4;
    message
}

fn answer(message: &Message) -> Option<Vec<u8>> {
    let understood = message[1] == ANSWERED && message[4] & ANSWERED != 0;
    understood.then(|| message[HEAD_WORDS..HEAD_WORDS + KEY_WORDS].iter().flat_map(|word| word.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_s_answer_is_the_key() {
        let mut message = question();
        assert_eq!((message[0], message[3], message[6]), (64, 40, 8));
        assert_eq!(answer(&message), None, "not answered");
        message[1] = ANSWERED;
        message[4] |= ANSWERED;
        message[HEAD_WORDS] = 0x0403_0201;
        let key = answer(&message).expect("answered");
        assert_eq!((key.len(), &key[..5]), (32, &[1, 2, 3, 4, 0][..]));
    }
}
