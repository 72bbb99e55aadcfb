use super::*;

const KEY: u32 = 0x8000_0000;
const OBJECT: u32 = 0x8000_0001;
const SECRET: [u8; SECRET_BYTES] = [7; SECRET_BYTES];

/// Answers what it was told to, then that all is well; keeps what it was asked.
#[derive(Default)]
struct Scripted {
    answers: Vec<Vec<u8>>,
    asked: Vec<Vec<u8>>,
    paused: Duration,
}

impl Scripted {
    fn new(answers: &[&[u8]]) -> Self {
        Self { answers: answers.iter().rev().map(|answer| answer.to_vec()).collect(), ..Self::default() }
    }

    fn codes(&self) -> Vec<u32> {
        let code = |command: &Vec<u8>| u32::from_be_bytes(command[6..10].try_into().unwrap());
        self.asked.iter().map(code).collect()
    }
}

impl Transport for Scripted {
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.asked.push(command.to_vec());
        Ok(self.answers.pop().unwrap_or_else(|| response(TAG_NO_SESSIONS, 0, &[])))
    }

    fn pause(&mut self, pause: Duration) {
        self.paused += pause;
    }
}

fn response(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEAD_BYTES + body.len()).unwrap();
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

fn failure(code: u32) -> Vec<u8> {
    response(TAG_NO_SESSIONS, code, &[])
}

/// A handle, then parameters that nobody reads.
fn loaded(handle: u32) -> Vec<u8> {
    response(TAG_SESSIONS, 0, &[&handle.to_be_bytes()[..], &[0, 0, 0, 2, 0, 0], &[0, 0, 1, 0, 0]].concat())
}

fn parameters(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    response(TAG_SESSIONS, 0, &[&length[..], bytes, &[0, 0, 1, 0, 0]].concat())
}

fn sealed() -> Sealed {
    Sealed { private: vec![1; 40], public: vec![2; 30] }
}

#[test]
fn sealing_says_what_the_specification_says() {
    let created = parameters(&[sized(&[1; 40]), sized(&[2; 30]), sized(&[3; 9])].concat());
    let mut tpm = Scripted::new(&[&loaded(KEY), &created]);
    assert_eq!(seal(&mut tpm, &SECRET).unwrap(), sealed());
    assert_eq!(tpm.codes(), [0x131, 0x153, 0x165]);
    for command in &tpm.asked {
        assert_eq!(command[2..6], u32::try_from(command.len()).unwrap().to_be_bytes());
    }
    let head = [0x80, 0x02, 0, 0, 0, 131, 0, 0, 0x01, 0x31, 0x40, 0, 0, 0x01];
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let sensitive_and_length_of_template = [0, 4, 0, 0, 0, 0, 0, 90];
    assert_eq!(tpm.asked[0][..35], [&head[..], &password, &sensitive_and_length_of_template].concat());
    assert_eq!(tpm.asked[0][125..], [0; 6], "no outside information, no PCRs");
    let sensitive =
        [&[0, 36, 0, 0, 0, 32][..], &SECRET, &[0, 14, 0, 8, 0, 11, 0, 0, 4, 0x52, 0, 0, 0, 16, 0, 0]].concat();
    assert_eq!(tpm.asked[1][27..], [&sensitive[..], &[0; 6]].concat());
    assert_eq!(tpm.asked[2], [0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x65, 0x80, 0, 0, 0]);
}

#[test]
fn unsealing_loads_and_frees_both_objects() {
    let mut tpm = Scripted::new(&[&loaded(KEY), &loaded(OBJECT), &parameters(&sized(&SECRET))]);
    assert_eq!(unseal(&mut tpm, &sealed()).unwrap(), SECRET);
    assert_eq!(tpm.codes(), [0x131, 0x157, 0x15e, 0x165, 0x165]);
    assert_eq!(tpm.asked[1][10..14], KEY.to_be_bytes());
    assert_eq!(tpm.asked[1][27..], [sized(&[1; 40]), sized(&[2; 30])].concat());
    assert_eq!(tpm.asked[2][10..14], OBJECT.to_be_bytes());
    assert_eq!((&tpm.asked[3][10..], &tpm.asked[4][10..]), (&OBJECT.to_be_bytes()[..], &KEY.to_be_bytes()[..]));
}

#[test]
fn what_is_loaded_is_freed_after_every_error() {
    let (key, object) = (loaded(KEY), loaded(OBJECT));
    // What the TPM answers in turn, and how many objects are freed then.
    let cases: [(&[&[u8]], usize); 6] = [
        (&[&failure(0x9a2)], 0),
        (&[&key, &failure(0x1df)], 1),
        (&[&key, &failure(0x902)], 1),
        (&[&key, &object, &failure(0x101)], 2),
        (&[&key, &object, &parameters(&[0, 32, 1])], 2),
        (&[&key, &object, &[]], 2),
    ];
    for (number, (answers, freed)) in cases.into_iter().enumerate() {
        let mut tpm = Scripted::new(answers);
        assert!(unseal(&mut tpm, &sealed()).is_err(), "case {number}");
        assert_eq!(tpm.codes().iter().filter(|code| **code == 0x165).count(), freed, "case {number}");
    }
}

#[test]
fn only_what_blames_the_sealed_object_is_refusal() {
    let refused =
        |answers: &[&[u8]]| matches!(unseal(&mut Scripted::new(answers), &sealed()), Err(TpmError::Refused(_)));
    let key = loaded(KEY);
    // Integrity of the first parameter, size of the second.
    assert!(refused(&[&key, &failure(0x1df)]) && refused(&[&key, &failure(0x2d5)]));
    // No memory, failure mode, a wrong password; and nothing of this while the storage key is made.
    assert!(!refused(&[&key, &failure(0x902)]) && !refused(&[&key, &failure(0x101)]));
    assert!(!refused(&[&key, &failure(0x9a2)]) && !refused(&[&failure(0x1df)]));
}

#[test]
fn a_busy_tpm_is_asked_again_but_not_for_ever() {
    let created = parameters(&[sized(&[1; 40]), sized(&[2; 30])].concat());
    let busy: Vec<Vec<u8>> = NOT_NOW.iter().map(|code| failure(*code)).collect();
    let mut tpm = Scripted::new(&[&busy[0], &busy[1], &loaded(KEY), &busy[2], &created]);
    assert_eq!(seal(&mut tpm, &SECRET).unwrap(), sealed());
    assert_eq!(tpm.codes(), [0x131, 0x131, 0x131, 0x153, 0x153, 0x165]);
    assert_eq!(tpm.paused, Duration::from_millis(1 + 2 + 1));

    let always: Vec<&[u8]> = vec![&busy[2]; 100];
    let mut tpm = Scripted::new(&always);
    assert!(matches!(seal(&mut tpm, &SECRET), Err(TpmError::Code { code: 0x922, command: "CreatePrimary" })));
    assert_eq!((tpm.asked.len(), tpm.paused), (12, Duration::from_millis(2047)));
}

#[test]
fn no_response_is_trusted_in_its_lengths() {
    let whole = parameters(&sized(&SECRET));
    let read = |response: &[u8]| unseal(&mut Scripted::new(&[&loaded(KEY), &loaded(OBJECT), response]), &sealed());
    assert_eq!(read(&whole).unwrap(), SECRET);
    for length in 0..whole.len() {
        assert!(matches!(read(&whole[..length]), Err(TpmError::Malformed("Unseal"))), "cut to {length}");
        // With a size that fits, only the authorization at the end may be missing.
        let mut cut = whole[..length].to_vec();
        if let Some(size) = cut.get_mut(2..6) {
            size.copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        }
        assert_eq!(read(&cut).is_ok(), length >= whole.len() - 5, "shortened to {length}");
    }
    let changed = |at: usize, byte: u8| {
        let mut response = whole.clone();
        response[at] = byte;
        read(&response)
    };
    // Tag, size, length of the parameters, length of the secret.
    for (at, byte) in [(1, 1), (0, 0), (5, 0), (2, 255), (13, 33), (10, 255), (15, 31), (15, 33), (14, 255)] {
        assert!(matches!(changed(at, byte), Err(TpmError::Malformed("Unseal"))), "byte {at} is {byte}");
    }
    for handle in [0, OWNER, 0x8100_0001, u32::MAX] {
        let mut tpm = Scripted::new(&[&loaded(handle)]);
        assert!(matches!(seal(&mut tpm, &SECRET), Err(TpmError::Malformed("CreatePrimary"))));
        assert_eq!(tpm.asked.len(), 1, "nothing of others is freed");
    }
    let mut empty = Scripted::new(&[&loaded(KEY), &parameters(&[0, 0, 0, 0])]);
    assert!(matches!(seal(&mut empty, &SECRET), Err(TpmError::Malformed("Create"))));
}

#[test]
fn a_response_s_size_is_known_from_its_sixth_byte_on() {
    let sizes: [(&[u8], Option<usize>); 3] =
        [(&[], None), (&[0x80, 1, 0, 0, 0], None), (&[0x80, 1, 0, 0, 1, 2], Some(258))];
    for (bytes, size) in sizes {
        assert_eq!(announced_bytes(bytes).unwrap(), size);
    }
    assert!(announced_bytes(&[0x80, 1, 0, 0, 0, 9]).is_err());
    assert_eq!(announced_bytes(&[0xff; 6]).unwrap(), Some(0xffff_ffff));
}

#[test]
fn what_is_stored_is_read_again_and_nothing_else() {
    let bytes = sealed().to_bytes();
    assert_eq!(Sealed::from_bytes(&bytes), Some(sealed()));
    for length in 0..bytes.len() {
        assert_eq!(Sealed::from_bytes(&bytes[..length]), None);
    }
    assert_eq!(Sealed::from_bytes(&[&bytes[..], &[0]].concat()), None);
    assert_eq!(Sealed::from_bytes(b"edgetpm1\0\0\0\0"), None);
    assert_eq!(Sealed::from_bytes(b"edgetpm2\0\x01a\0\x01b"), None);
}
