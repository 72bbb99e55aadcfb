//! Device access on cgroup v2: a small BPF program per container, the successor of v1's `devices.allow`.
//! Attached, it lives as long as its cgroup.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Beside what a service manager may have attached above; all must agree.
const ALLOW_MULTI: u32 = 2;

/// Bits of an access, as the kernel's.
pub const MKNOD: u8 = 1;
pub const READ: u8 = 2;
pub const WRITE: u8 = 4;

/// What may be done; everything else is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    pub block: bool,
    /// `None` = any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate: immediate.cast_signed() }
}

const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_IF_ANY_BIT: u8 = 0x45;
const EXIT: u8 = 0x95;

/// Registers: 1 = context, 2 = type, 3 = access, 4 = major, 5 = minor.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let first = program.len();
        let mut checks = vec![(JUMP_UNLESS_EQUAL, 2, if rule.block { 1 } else { 2 })];
        checks.push((JUMP_IF_ANY_BIT, 3, u32::from(!rule.access & (MKNOD | READ | WRITE))));
        checks.extend(rule.major.map(|major| (JUMP_UNLESS_EQUAL, 4, major)));
        checks.extend(rule.minor.map(|minor| (JUMP_UNLESS_EQUAL, 5, minor)));
        // A failed check goes on behind this rule's two last instructions.
        for (code, register, value) in
            checks.iter().copied().filter(|(code, _, value)| *code != JUMP_IF_ANY_BIT || *value != 0)
        {
            program.push(instruction(code, register, 0, 0, value));
        }
        program.push(instruction(SET, 0, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
        let end = program.len();
        for (at, check) in program.iter_mut().enumerate().take(end - 2).skip(first) {
            check.offset = i16::try_from(end - at - 1).expect("a rule is short");
        }
    }
    program.push(instruction(SET, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// `attributes` is the part of the kernel's union that `command` reads.
fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes and, for a load, the instructions and the
    // license named in them; the callers keep all of them alive for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(0)) }
}

fn load(rules: &[DeviceRule]) -> io::Result<OwnedFd> {
    let instructions = program(rules);
    let attributes = LoadAttributes {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        ..LoadAttributes::default()
    };
    let fd = bpf(PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the processes of the cgroup at `directory` (cgroup v2) use these devices and no others.
pub fn restrict_devices(directory: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let program = load(rules)?;
    let target = File::open(directory)?;
    let number = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attributes = AttachAttributes {
        target: number(target.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allows(rules: &[DeviceRule], block: bool, access: u8, major: u32, minor: u32) -> bool {
        let program = program(rules);
        let context = [u32::from(access) << 16 | if block { 1 } else { 2 }, major, minor];
        let (mut registers, mut at) = ([0u32; 6], 0usize);
        loop {
            let step = program[at];
            let (destination, source) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let value = step.immediate.cast_unsigned();
            at += 1;
            let jump = usize::try_from(step.offset).expect("forward");
            match step.code {
                LOAD_WORD => registers[destination] = context[jump / 4],
                COPY => registers[destination] = registers[source],
                SET => registers[destination] = value,
                AND => registers[destination] &= value,
                SHIFT_RIGHT => registers[destination] >>= value,
                JUMP_UNLESS_EQUAL => at += if registers[destination] == value { 0 } else { jump },
                JUMP_IF_ANY_BIT => at += if registers[destination] & value == 0 { 0 } else { jump },
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_what_a_rule_names_is_allowed() {
        let rule = |block, major, minor, access| DeviceRule { block, major, minor, access };
        let rules = [
            rule(true, None, None, MKNOD),
            rule(false, Some(1), Some(3), MKNOD | READ | WRITE),
            rule(false, Some(136), None, READ | WRITE),
        ];
        assert!(allows(&rules, true, MKNOD, 8, 0) && !allows(&rules, true, READ, 8, 0));
        assert!(allows(&rules, false, READ | WRITE, 1, 3) && !allows(&rules, false, READ, 1, 1));
        assert!(allows(&rules, false, WRITE, 136, 7) && !allows(&rules, false, MKNOD, 136, 7));
        assert!(!allows(&[], false, READ, 1, 3));
    }
}
