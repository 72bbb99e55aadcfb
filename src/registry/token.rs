//! Continue tokens: the revision of the first page and the last key given out, in upstream's shape.
//! They are opaque to clients and not secret: a forged one only chooses where a permitted list begins.

use crate::api::status::{Result, Status};
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

/// Like Go's raw URL encoding: no padding, stray bits at the end are ignored.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);
const VERSION: &str = "meta.k8s.io/v1";

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

/// Where a list goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// `None`: the newest state, after the first page's revision has expired.
    pub revision: Option<u64>,
    /// The last key given out.
    pub after: String,
}

/// `key` is the last key of the page; `prefix` is what all keys of the list begin with.
pub(super) fn encode(prefix: &str, key: &str, revision: Option<u64>) -> String {
    let start = format!("{}\0", key.strip_prefix(prefix).unwrap_or(key));
    let rv = revision.map_or(-1, u64::cast_signed);
    let token = Token { v: VERSION.to_owned(), rv, start };
    BASE64.encode(serde_json::to_vec(&token).expect("strings and a number encode"))
}

pub(super) fn decode(prefix: &str, token: &str) -> Result<Position> {
    let invalid =
        |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = BASE64.decode(token).map_err(|error| invalid(error.to_string()))?;
    if bytes.first() != Some(&b'{') {
        let first = bytes.first().map_or("unexpected end of JSON input".to_owned(), |byte| {
            format!("invalid character '{}' looking for beginning of value", char::from(*byte))
        });
        return Err(invalid(first));
    }
    let token: Token = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let start = token.start.strip_suffix('\0').unwrap_or(&token.start);
    if token.v != VERSION || token.rv == 0 || start.is_empty() {
        return Err(invalid("incorrect encoded start resourceVersion or key".to_owned()));
    }
    Ok(Position { revision: u64::try_from(token.rv).ok(), after: format!("{prefix}{start}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_to_the_client_and_back() {
        for revision in [Some(369), None] {
            let token = encode("configmaps/g1/", "configmaps/g1/pg2", revision);
            let position = decode("configmaps/g1/", &token).unwrap();
            assert_eq!(position, Position { revision, after: "configmaps/g1/pg2".into() });
        }
    }

    #[test]
    fn rubbish_is_refused_in_upstreams_words() {
        let message = decode("x/", "zzz").unwrap_err().message;
        let expected = "invalid continue token: continue key is not valid: \
                        invalid character 'Ï' looking for beginning of value";
        assert_eq!(message, expected);
        assert!(decode("x/", "").is_err());
    }
}
