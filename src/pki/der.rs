//! The DER of a certificate for a key that was made elsewhere: subject, public key and names are copied byte for
//! byte from the request, so that what was judged is what is signed. Source: RFC 5280, section 4.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` and `[3]`, explicit: version and extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2, as an AlgorithmIdentifier.
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// UTCTime ends in 2049.
const LAST_UTC_YEAR: i16 = 2049;
const PEM_LINE: usize = 64;

/// Extensions, 2.5.29.x.
const KEY_USAGE: u8 = 15;
const SUBJECT_NAMES: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;

/// Usages as the API spells them and their bit in KeyUsage.
const KEY_USAGES: [(&str, u8); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Usages as the API spells them and the last part of their OID under 1.3.6.1.5.5.7.3.
const EXTENDED_USAGES: [(&str, u8); 9] = [
    ("server auth", 1),
    ("client auth", 2),
    ("code signing", 3),
    ("email protection", 4),
    ("s/mime", 4),
    ("ipsec end system", 5),
    ("ipsec tunnel", 6),
    ("ipsec user", 7),
    ("timestamping", 8),
];
const OCSP_SIGNING: (&str, u8) = ("ocsp signing", 9);

/// Everything in a certificate but the signature.
pub(super) struct ToSign<'a> {
    pub serial: [u8; 16],
    pub issuer: &'a [u8],
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub subject: &'a [u8],
    pub public_key: &'a [u8],
    /// The value of the subjectAltName extension.
    pub subject_names: Option<&'a [u8]>,
    pub subject_is_empty: bool,
    pub authority_key_id: &'a [u8],
    pub usages: &'a [&'a str],
}

impl ToSign<'_> {
    pub fn encode(&self) -> Vec<u8> {
        // Positive, and never zero at the front.
        let mut serial = self.serial;
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let validity = [time(self.not_before), time(self.not_after)].concat();
        let parts = [
            tlv(VERSION, &tlv(INTEGER, &[2])),
            tlv(INTEGER, &serial),
            ECDSA_SHA256.to_vec(),
            self.issuer.to_vec(),
            tlv(SEQUENCE, &validity),
            self.subject.to_vec(),
            self.public_key.to_vec(),
            tlv(EXTENSIONS, &tlv(SEQUENCE, &self.extensions())),
        ];
        tlv(SEQUENCE, &parts.concat())
    }

    fn extensions(&self) -> Vec<u8> {
        let mut all = Vec::new();
        if let Some(value) = key_usage(self.usages) {
            all.extend(extension(KEY_USAGE, true, &value));
        }
        if let Some(value) = extended_key_usage(self.usages) {
            all.extend(extension(EXTENDED_KEY_USAGE, false, &value));
        }
        all.extend(extension(BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
        if !self.authority_key_id.is_empty() {
            all.extend(extension(AUTHORITY_KEY_ID, false, &tlv(SEQUENCE, &tlv(0x80, self.authority_key_id))));
        }
        if let Some(names) = self.subject_names {
            all.extend(extension(SUBJECT_NAMES, self.subject_is_empty, names));
        }
        all
    }
}

/// The whole certificate.
pub(super) fn certificate(to_sign: &[u8], signature: &[u8]) -> Vec<u8> {
    let signature = [&[0], signature].concat();
    tlv(SEQUENCE, &[to_sign.to_vec(), ECDSA_SHA256.to_vec(), tlv(BIT_STRING, &signature)].concat())
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(value.len()) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let length = value.len().to_be_bytes();
            let digits: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | u8::try_from(digits.len()).expect("a length has eight bytes at most"));
            out.extend(digits);
        }
    }
    out.extend(value);
    out
}

fn time(at: Timestamp) -> Vec<u8> {
    let year = at.to_zoned(jiff::tz::TimeZone::UTC).year();
    match year <= LAST_UTC_YEAR {
        true => tlv(UTC_TIME, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()),
        false => tlv(GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()),
    }
}

fn extension(id: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = tlv(0x06, &[0x55, 0x1d, id]);
    if critical {
        parts.extend(tlv(BOOLEAN, &[0xff]));
    }
    parts.extend(tlv(OCTET_STRING, value));
    tlv(SEQUENCE, &parts)
}

fn key_usage(usages: &[&str]) -> Option<Vec<u8>> {
    let bits = KEY_USAGES.iter().filter(|(name, _)| usages.contains(name));
    let mask = bits.fold(0u16, |mask, (_, bit)| mask | (0x8000 >> bit));
    if mask == 0 {
        return None;
    }
    let [first, second] = mask.to_be_bytes();
    let (unused, bytes) = if second == 0 {
        (first.trailing_zeros(), vec![first])
    } else {
        (second.trailing_zeros(), vec![first, second])
    };
    let unused = u8::try_from(unused).expect("a byte has eight bits");
    Some(tlv(BIT_STRING, &[vec![unused], bytes].concat()))
}

fn extended_key_usage(usages: &[&str]) -> Option<Vec<u8>> {
    let mut ids: Vec<u8> = Vec::new();
    for (name, id) in EXTENDED_USAGES.into_iter().chain([OCSP_SIGNING]) {
        if usages.contains(&name) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    let id = |id: &u8| tlv(0x06, &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, *id]);
    let mut listed = ids.iter().flat_map(id).collect::<Vec<u8>>();
    if usages.contains(&"any") {
        listed.extend(tlv(0x06, &[0x55, 0x1d, EXTENDED_KEY_USAGE, 0x00]));
    }
    (!listed.is_empty()).then(|| tlv(SEQUENCE, &listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_times() {
        assert_eq!(tlv(4, &[1; 3])[..2], [4, 3]);
        assert_eq!(tlv(4, &[1; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(4, &[1; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(time("2026-11-23T01:02:03Z".parse().unwrap())[2..], *b"261123010203Z");
        assert_eq!(time("2051-11-23T01:02:03Z".parse().unwrap())[2..], *b"20511123010203Z");
    }

    #[test]
    fn usages_become_bits_and_ids() {
        assert_eq!(key_usage(&["digital signature", "key encipherment"]), Some(vec![3, 2, 5, 0xa0]));
        assert_eq!(key_usage(&["client auth"]), None);
        assert_eq!(extended_key_usage(&["client auth"]).map(|value| value[11]), Some(2));
        assert_eq!(extended_key_usage(&["signing"]), None);
    }
}
