//! The functions that the fuzz targets of this crate try on any bytes: whatever comes from outside before it is known who sent it. Each
//! function panics where something does not hold, and tells whether the bytes were of any use.
//!
//! `tests/run fuzz` feeds them what a fuzzer makes up; the test below, on every run, what is in `fuzz/corpus`.

#![allow(
    clippy::must_use_candidate,
    clippy::panic,
    missing_docs,
    reason = "not for programs; what does not hold ends the fuzzer"
)]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use stable_interfaces::Timestamp;

use crate::Call;
use crate::token::{Target, UrlKeys};
use crate::verify::Verify;

#[cfg(feature = "http")]
pub use crate::http::fuzzing::{idempotency_key, last_event_id, prefer};

const SECRET: &[u8] = b"a secret of thirty-two bytes ...";
/// The time of every call, in seconds.
const NOW: i64 = 1_700_000_000;

static KEYS: LazyLock<UrlKeys> = LazyLock::new(|| {
    let keys = UrlKeys::new("k2", [2; 32]).and_then(|keys| keys.and_old("k1", [1; 16]));
    keys.expect("both keys are long enough")
});

/// The bytes up to the first of this value, and the rest.
fn split(data: &[u8], at: u8) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == at).unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// A token as it comes: whatever is accepted is what signing writes. And a token that was signed, `flow NL callback NL place, difference`, is
/// accepted as it is, and not with another byte.
pub fn token(data: &[u8]) -> bool {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(Target { flow, run, callback }) = KEYS.check(text)
    {
        let is_either = |keys: &UrlKeys| keys.sign(&flow, run, &callback) == text;
        let old = UrlKeys::new("k1", [1; 16]).expect("it is long enough");
        assert!(is_either(&KEYS) || is_either(&old), "a second way of writing {text:?}");
    }
    let (flow, rest) = split(data, b'\n');
    let (callback, change) = split(rest, b'\n');
    let (Ok(flow), Ok(callback)) = (std::str::from_utf8(flow), std::str::from_utf8(callback)) else { return false };
    if flow.contains('\0') || callback.contains('\0') {
        return false;
    }
    let run = u32::try_from(data.len()).unwrap_or_default();
    let signed = KEYS.sign(flow, run, callback);
    let target = Target { flow: flow.to_owned(), run, callback: callback.into() };
    let is_short = signed.len() <= 4_096;
    assert_eq!(KEYS.check(&signed), is_short.then_some(target));
    if let [place, difference, ..] = change {
        let mut changed = signed.clone().into_bytes();
        let place = usize::from(*place) % changed.len();
        changed[place] ^= difference & 0x7f;
        let changed = String::from_utf8(changed).expect("no byte of a token has its highest bit set");
        assert!(changed == signed || KEYS.check(&changed).is_none(), "{changed} is accepted for {signed}");
    }
    is_short && !flow.is_empty()
}

/// Headers of signatures, `name NL value NL .. NL NL body`: none that was not signed is accepted by any scheme. And the body signed by each scheme
/// is accepted, and not with another byte.
pub fn signatures(data: &[u8]) -> bool {
    let now = Timestamp::from_millis(NOW * 1_000);
    let secret = STANDARD.encode(SECRET);
    let schemes = [Verify::standard_webhooks([&secret]), Verify::stripe([SECRET]), Verify::github([SECRET])]
        .map(|scheme| scheme.expect("its secret is one"));
    let (mut headers, mut rest) = (Vec::new(), data);
    while !rest.is_empty() && rest[0] != b'\n' && headers.len() < 8 {
        let (name, after) = split(rest, b'\n');
        let (value, after) = split(after, b'\n');
        if let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) {
            headers.push((name, value));
        }
        rest = after;
    }
    let body = rest.get(1..).unwrap_or_default();
    let call = |body: Vec<u8>| headers.iter().fold(Call::new(body), |call, (name, value)| call.header(name, value));
    for scheme in &schemes {
        assert!(scheme.check(&call(body.to_vec()), now).is_err(), "{headers:?} are taken for a signature");
    }
    let code = |parts: &[&[u8]]| {
        let mut code = Hmac::<Sha256>::new_from_slice(SECRET).expect("HMAC takes a key of any length");
        parts.iter().for_each(|part| code.update(part));
        code.finalize().into_bytes()
    };
    let hex = |parts: &[&[u8]]| crate::hash::hex(&code(parts));
    let time = NOW.to_string();
    let signed = [
        vec![
            ("webhook-id", "m".to_owned()),
            ("webhook-timestamp", time.clone()),
            ("webhook-signature", format!("v1,{}", STANDARD.encode(code(&[b"m.", time.as_bytes(), b".", body])))),
        ],
        vec![("Stripe-Signature", format!("t={time},v1={}", hex(&[time.as_bytes(), b".", body])))],
        vec![("X-Hub-Signature-256", format!("sha256={}", hex(&[body])))],
    ];
    for (scheme, signed) in schemes.iter().zip(signed) {
        let with = |body: Vec<u8>| signed.iter().fold(Call::new(body), |call, (name, value)| call.header(name, value));
        assert!(scheme.check(&with(body.to_vec()), now).is_ok(), "what was signed is refused");
        let mut longer = body.to_vec();
        longer.push(0);
        assert!(scheme.check(&with(longer), now).is_err(), "a longer body is accepted");
        if let Some(last) = body.last() {
            let mut other = body.to_vec();
            *other.last_mut().expect("it has a last byte") = last ^ 1;
            assert!(scheme.check(&with(other), now).is_err(), "another body is accepted");
        }
    }
    !headers.is_empty()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    type TargetOf = (&'static str, fn(&[u8]) -> bool);

    #[test]
    fn what_the_fuzzers_of_tokens_signatures_and_headers_begin_with_holds() {
        let targets: &[TargetOf] = &[
            ("token", token),
            ("signatures", signatures),
            #[cfg(feature = "http")]
            ("prefer", prefer),
            #[cfg(feature = "http")]
            ("last_event_id", last_event_id),
            #[cfg(feature = "http")]
            ("idempotency_key", idempotency_key),
        ];
        for (target, run) in targets {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
            let mut useful = 0;
            for file in std::fs::read_dir(&corpus).unwrap() {
                let path = file.unwrap().path();
                println!("{}", path.display());
                useful += usize::from(run(&std::fs::read(&path).unwrap()));
            }
            assert!(useful >= 5, "{} has {useful} useful files", corpus.display());
        }
    }
}
