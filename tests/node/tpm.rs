//! Sealing with an emulated TPM (Debian's swtpm), and what becomes of a replica that a TPM no longer opens.

use crate::bed::bounded;
use edgelet::client::replica::{KeySource, Replica, ReplicaError};
use edgelet::sys::tpm::{Tpm, TpmError};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SECRET: [u8; 32] = [7; 32];
/// `TPM2_Clear` by the lockout's empty password: the owner's hierarchy gets another seed.
const CLEAR: &[u8] = b"\x80\x02\0\0\0\x1b\0\0\x01\x26\x40\0\0\x0a\0\0\0\x09\x40\0\0\x09\0\0\0\0\0";
/// `TPM2_GetCapability`: at most 16 handles from the first transient one on.
const LOADED: &[u8] = b"\x80\x01\0\0\0\x16\0\0\x01\x7a\0\0\0\x01\x80\0\0\0\0\0\0\x10";

/// An emulated TPM, which has no resource manager: room for three objects and no more.
struct Emulated {
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Emulated {
    fn start() -> Self {
        let mut emulated = Self { folder: tempfile::tempdir().unwrap(), process: None };
        emulated.power_on();
        emulated
    }

    fn power_on(&mut self) {
        let (socket, state) = (self.socket(), self.folder.path().join("state"));
        fs::create_dir_all(&state).unwrap();
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init"]);
        command.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
        command.arg("--tpmstate").arg(format!("dir={}", state.display()));
        self.process = Some(command.stderr(Stdio::null()).spawn().unwrap());
        assert!(bounded(Duration::from_secs(10), || UnixStream::connect(&socket).is_ok()), "swtpm answers");
    }

    fn power_off(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            let _ = fs::remove_file(self.socket());
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tpm")
    }

    fn tpm(&self) -> Tpm {
        Tpm::at(&self.socket())
    }

    fn raw(&self, command: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(command).unwrap();
        let mut response = vec![0; 4096];
        let length = stream.read(&mut response).unwrap();
        response.truncate(length);
        assert_eq!(response[6..10], [0; 4], "a code that tells success");
        response
    }

    fn loaded(&self) -> u32 {
        let response = self.raw(LOADED);
        u32::from_be_bytes(response[15..19].try_into().unwrap())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Loud when the emulator is missing, and an error when every tier is asked for.
fn can_emulate() -> bool {
    let have =
        Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !have {
        let required = std::env::var_os("EDGELET_REQUIRE_ALL_TIERS").is_some();
        assert!(!required, "swtpm is missing, and every tier is required");
        eprintln!("NOT RUN: swtpm is missing (tests/run installs it)");
    }
    have
}

#[test]
fn a_tpm_tells_what_it_sealed_after_a_restart_but_not_when_cleared_and_no_other_does() {
    if !can_emulate() {
        return;
    }
    let mut own = Emulated::start();
    let begun = Instant::now();
    let sealed = own.tpm().seal(SECRET).unwrap();
    eprintln!("sealed and tried in {:?}, {} bytes", begun.elapsed(), sealed.to_bytes().len());
    assert_eq!(own.tpm().unseal(&sealed).unwrap(), SECRET);
    own.power_off();
    own.power_on();
    assert_eq!(own.tpm().unseal(&sealed).unwrap(), SECRET);

    let other = Emulated::start();
    assert!(matches!(other.tpm().unseal(&sealed), Err(TpmError::Refused(0x1df))));
    assert_eq!(other.loaded(), 0);
    own.raw(CLEAR);
    assert!(matches!(own.tpm().unseal(&sealed), Err(TpmError::Refused(0x1df))));
    let anew = own.tpm().seal(SECRET).unwrap();
    assert_eq!(own.tpm().unseal(&anew).unwrap(), SECRET);
}

#[test]
fn nothing_stays_in_a_tpm() {
    if !can_emulate() {
        return;
    }
    let (emulated, other) = (Emulated::start(), Emulated::start());
    let foreign = other.tpm().seal(SECRET).unwrap();
    for _ in 0..10 {
        let sealed = emulated.tpm().seal(SECRET).unwrap();
        assert!(emulated.tpm().unseal(&foreign).is_err());
        assert_eq!(emulated.tpm().unseal(&sealed).unwrap(), SECRET);
        assert_eq!(emulated.loaded(), 0);
    }
}

/// Through the kernel's driver and resource manager; several at once, and more than the TPM has room for.
#[test]
fn this_machine_s_own_tpm_seals_and_tells() {
    if !Tpm::of_board().is_present() {
        assert!(std::env::var_os("EDGELET_REQUIRE_TPM").is_none(), "this machine was to have a TPM");
        eprintln!("NOT RUN: this machine has no TPM (the one of tests/vm/run has)");
        return;
    }
    let begun = Instant::now();
    let sealed = Tpm::of_board().seal(SECRET).unwrap();
    let took = begun.elapsed();
    let users: Vec<_> = (0..6)
        .map(|_| {
            let sealed = sealed.clone();
            std::thread::spawn(move || Tpm::of_board().unseal(&sealed).unwrap())
        })
        .collect();
    assert!(users.into_iter().all(|user| user.join().unwrap() == SECRET));
    eprintln!("sealed and tried in {took:?}, told six at once after {:?}", begun.elapsed());
    let node = Node::new();
    note(&node.open(&Tpm::of_board()).0, b"1");
    assert_eq!(node.noted(&Tpm::of_board()), (Some(b"1".to_vec()), BY_TPM.to_owned()));
}

/// A node's folder as `edgelet node` has it.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("node.key"), "a node's private key").unwrap();
        Self(folder)
    }

    fn key_file(&self) -> PathBuf {
        self.0.path().join("node.key")
    }

    fn sealed_file(&self) -> PathBuf {
        self.0.path().join("tpm.sealed")
    }

    fn folder(&self) -> PathBuf {
        Replica::folder(self.0.path())
    }

    /// As the node's start: the replica, and what it is bound to.
    fn open(&self, tpm: &Tpm) -> (Replica, String) {
        let key = KeySource::bind(&self.key_file(), tpm).unwrap();
        (Replica::open_or_new(&self.folder(), &key).unwrap(), key.binding().to_string())
    }

    /// What a former start left under `b`, after another start.
    fn noted(&self, tpm: &Tpm) -> (Option<Vec<u8>>, String) {
        let (replica, binding) = self.open(tpm);
        (replica.noted("a", "b").map(|value| value.to_vec()), binding)
    }
}

fn note(replica: &Replica, value: &'static [u8]) {
    replica.note("a", "b", Some(value.into()), value);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(replica.flush()).unwrap();
}

const BY_TPM: &str = "the board's tpm";
const BY_FILE: &str = "the node's key file";

#[test]
fn a_replica_that_a_tpm_keeps_opens_on_its_board_alone_and_is_begun_anew_elsewhere() {
    if !can_emulate() {
        return;
    }
    let (mut own, mut other, node) = (Emulated::start(), Emulated::start(), Node::new());
    let none = Tpm::at(Path::new("/nonexistent/tpm"));
    // A board whose TPM comes later: what it had stays readable, then needs the TPM.
    let (replica, binding) = node.open(&none);
    assert_eq!((binding.as_str(), node.sealed_file().exists()), (BY_FILE, false));
    note(&replica, b"1");
    drop(replica);
    assert_eq!(node.noted(&own.tpm()), (Some(b"1".to_vec()), BY_TPM.to_owned()));
    assert_eq!(fs::metadata(node.sealed_file()).unwrap().permissions().mode() & 0o777, 0o600);
    own.power_off();
    own.power_on();
    let sealed = fs::read(node.sealed_file()).unwrap();
    assert_eq!(node.noted(&own.tpm()), (Some(b"1".to_vec()), BY_TPM.to_owned()));
    assert_eq!(fs::read(node.sealed_file()).unwrap(), sealed, "sealed once");

    // A copy of the disk: those who only look are told why, and change nothing.
    assert!(KeySource::read(&node.key_file(), &own.tpm()).is_ok());
    let told = KeySource::read(&node.key_file(), &other.tpm()).err().unwrap().to_string();
    assert!(told.contains("does not know what was sealed"), "{told}");
    let by_file = KeySource::new(b"a node's private key", None);
    assert!(matches!(Replica::open(&node.folder(), &by_file), Err(ReplicaError::Key(_))));
    assert_eq!(fs::read(node.sealed_file()).unwrap(), sealed);

    // The disk in another board: a new replica, kept by the other TPM from now on.
    assert_eq!(node.noted(&other.tpm()), (None, BY_TPM.to_owned()));
    note(&node.open(&other.tpm()).0, b"2");
    other.power_off();
    other.power_on();
    assert_eq!(node.noted(&other.tpm()), (Some(b"2".to_vec()), BY_TPM.to_owned()));
    other.raw(CLEAR);
    assert_eq!(node.noted(&other.tpm()), (None, BY_TPM.to_owned()));
    fs::write(node.sealed_file(), b"torn").unwrap();
    assert_eq!(node.noted(&other.tpm()), (None, BY_TPM.to_owned()));
    note(&node.open(&other.tpm()).0, b"3");
    assert_eq!(node.noted(&other.tpm()).0, Some(b"3".to_vec()));

    // In a board without a TPM, or under a kernel without its driver: nothing is given up until its owner says so.
    let told = KeySource::bind(&node.key_file(), &none).err().unwrap().to_string();
    assert!(told.contains("there is no tpm") && told.contains("remove the file"), "{told}");
    assert_eq!(node.noted(&other.tpm()).0, Some(b"3".to_vec()));
    fs::remove_file(node.sealed_file()).unwrap();
    assert_eq!(node.noted(&none), (None, BY_FILE.to_owned()));
}

#[test]
fn a_tpm_that_does_not_answer_now_costs_neither_the_replica_nor_the_start() {
    if !can_emulate() {
        return;
    }
    let (own, node, strange) = (Emulated::start(), Node::new(), tempfile::tempdir().unwrap());
    note(&node.open(&own.tpm()).0, b"1");
    let sealed = fs::read(node.sealed_file()).unwrap();
    let silent = UnixListener::bind(strange.path().join("silent")).unwrap();
    let begun = Instant::now();
    let told = KeySource::bind(&node.key_file(), &Tpm::at(&strange.path().join("silent"))).err().unwrap().to_string();
    assert!(told.contains("no answer") && begun.elapsed() < Duration::from_secs(25), "{told}");
    drop(silent);

    // One that is in failure mode, for whoever asks.
    let failing = UnixListener::bind(strange.path().join("failing")).unwrap();
    std::thread::spawn(move || {
        for stream in failing.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(b"\x80\x01\0\0\0\x0a\0\0\x01\x01"));
        }
    });
    let failing = Tpm::at(&strange.path().join("failing"));
    let told = KeySource::bind(&node.key_file(), &failing).err().unwrap().to_string();
    assert!(told.contains("0x101"), "{told}");
    assert_eq!(fs::read(node.sealed_file()).unwrap(), sealed);
    assert_eq!(node.noted(&own.tpm()), (Some(b"1".to_vec()), BY_TPM.to_owned()));
    // Where nothing was sealed yet it is as if there were none.
    let fresh = Node::new();
    assert_eq!(fresh.open(&failing).1, BY_FILE);
    assert!(!fresh.sealed_file().exists());
}

#[test]
fn a_tpm_whose_driver_is_late_is_waited_for() {
    if !can_emulate() {
        return;
    }
    let (own, node) = (Emulated::start(), Node::new());
    note(&node.open(&own.tpm()).0, b"1");
    let (socket, late) = (own.socket(), own.folder.path().join("late"));
    let driver = std::thread::spawn({
        let late = late.clone();
        move || {
            std::thread::sleep(Duration::from_millis(500));
            fs::rename(socket, late).unwrap();
        }
    });
    assert!(!late.exists());
    assert_eq!(node.noted(&Tpm::at(&late)), (Some(b"1".to_vec()), BY_TPM.to_owned()));
    driver.join().unwrap();
}
