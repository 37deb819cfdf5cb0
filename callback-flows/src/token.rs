//! The URLs of callbacks: capabilities that any host checks without looking anything up.
//!
//! `<base>/<key ID>.<run>.<payload>.<code>`: the payload names the flow and the callback, and the code is the first half of an
//! HMAC-SHA256 over all that is before it. Nothing is registered anywhere.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The number of bytes of the code in a URL.
const CODE_BYTES: usize = 16;
/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 4_096;

/// The secrets that callback URLs are signed with.
///
/// ```
/// use callback_flows::UrlKeys;
///
/// let keys = UrlKeys::new("k2", b"a secret of 32 random bytes ....")?.and_old("k1", b"the one before it, until all is gone")?;
/// # Ok::<(), callback_flows::KeyError>(())
/// ```
#[derive(Clone)]
pub struct UrlKeys {
    /// The first one signs.
    keys: Vec<(Arc<str>, Hmac<Sha256>)>,
}

impl fmt::Debug for UrlKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

/// The reason why a key for URLs, or a secret for signatures, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The secret of the key of this ID is too short.
    #[error("the secret of key {0:?} has fewer than 16 bytes")]
    Short(String),
    /// An ID that cannot be a part of a URL.
    #[error("{0:?} cannot be the ID of a key: 1 to 32 of a-z, A-Z, 0-9, - and _")]
    Id(String),
    /// There are two keys of this ID.
    #[error("there are two keys with the ID {0:?}")]
    Twice(String),
    /// No secret at all was given to check signatures with.
    #[error("give at least one secret")]
    None,
    /// The secret at this place, from zero, is empty: anybody could sign with that.
    #[error("secret {0} is empty")]
    Empty(usize),
    /// The secret at this place, from zero, is not the base64 that its scheme has, with or without `whsec_` before it.
    #[error("secret {0} is not base64")]
    Encoding(usize),
}

impl UrlKeys {
    /// The key that new URLs are signed with: its ID, which is in each URL, and at least 16 secret bytes.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with it.
    pub fn new(id: &str, secret: impl AsRef<[u8]>) -> Result<UrlKeys, KeyError> {
        UrlKeys { keys: Vec::new() }.and_old(id, secret)
    }

    /// A key whose URLs are still good, while a new one signs.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn and_old(mut self, id: &str, secret: impl AsRef<[u8]>) -> Result<UrlKeys, KeyError> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if id.is_empty() || id.len() > 32 || !id.bytes().all(is_part) {
            return Err(KeyError::Id(id.into()));
        }
        if secret.as_ref().len() < 16 {
            return Err(KeyError::Short(id.into()));
        }
        if self.keys.iter().any(|(known, _)| **known == *id) {
            return Err(KeyError::Twice(id.into()));
        }
        let secret = Hmac::new_from_slice(secret.as_ref()).expect("HMAC takes a key of any length");
        self.keys.push((id.into(), secret));
        Ok(self)
    }

    /// The token of a callback.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn sign(&self, flow: &str, run: u32, callback: &str) -> String {
        self.sign_below("", flow, run, callback)
    }

    /// The token of a callback, behind the beginning of a URL.
    fn sign_below(&self, base: &str, flow: &str, run: u32, callback: &str) -> String {
        let (id, secret) = &self.keys[0];
        // Neither an ID nor a name of an operation has a NUL.
        let payload = [flow.as_bytes(), &[0], callback.as_bytes()].concat();
        // With room for a number, and for what is in four characters in the place of three bytes.
        let mut url = String::with_capacity(base.len() + id.len() + payload.len() * 4 / 3 + 2 * CODE_BYTES + 16);
        url.push_str(base);
        let _ = write!(url, "{id}.{run}.");
        URL_SAFE_NO_PAD.encode_string(payload, &mut url);
        let code = secret.clone().chain_update(&url.as_bytes()[base.len()..]).finalize().into_bytes();
        url.push('.');
        URL_SAFE_NO_PAD.encode_string(&code[..CODE_BYTES], &mut url);
        url
    }

    /// The callback of a token that one of these keys has signed.
    pub(crate) fn check(&self, token: &str) -> Option<Target> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, code) = token.rsplit_once('.')?;
        let code = URL_SAFE_NO_PAD.decode(code).ok().filter(|code| code.len() == CODE_BYTES)?;
        let (id, rest) = signed.split_once('.')?;
        let (_, secret) = self.keys.iter().find(|(known, _)| **known == *id)?;
        // In constant time.
        secret.clone().chain_update(signed.as_bytes()).verify_truncated_left(&code).ok()?;
        let (run, payload) = rest.split_once('.')?;
        let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let (flow, callback) = payload.split_once('\0')?;
        Some(Target { flow: flow.into(), run: run.parse().ok()?, callback: callback.into() })
    }
}

/// The base and the keys that callback URLs are made with, and checked.
#[derive(Debug)]
pub(crate) struct Urls {
    /// The base, with one slash at its end.
    base: String,
    pub(crate) keys: UrlKeys,
}

impl Urls {
    pub(crate) fn new(base: &str, keys: UrlKeys) -> Urls {
        Urls { base: format!("{}/", base.trim_end_matches('/')), keys }
    }

    pub(crate) fn of(&self, flow: &str, run: u32, callback: &str) -> String {
        self.keys.sign_below(&self.base, flow, run, callback)
    }
}

/// The address of a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `name/id`.
    pub(crate) flow: String,
    pub(crate) run: u32,
    pub(crate) callback: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> UrlKeys {
        UrlKeys::new("k2", [2; 32]).unwrap().and_old("k1", [1; 16]).unwrap()
    }

    #[test]
    fn a_token_names_its_callback_and_old_keys_still_count() {
        let token = keys().sign("order/ä 17", 3, "customer/callback:accept#0");
        let target = Target { flow: "order/ä 17".into(), run: 3, callback: "customer/callback:accept#0".into() };
        assert_eq!(keys().check(&token), Some(target.clone()));
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)), "{token}");
        let old = UrlKeys::new("k1", [1; 16]).unwrap().sign("order/ä 17", 3, "customer/callback:accept#0");
        assert_eq!(keys().check(&old), Some(target));
        assert_eq!(UrlKeys::new("k3", [2; 32]).unwrap().check(&token), None);
    }

    #[test]
    fn a_token_with_any_other_character_is_none() {
        let token = keys().sign("order/17", 1, "callback:accept#0");
        for at in 0..token.len() {
            for other in ['A', 'b', '7', '.', '-'] {
                let mut changed: Vec<_> = token.chars().collect();
                changed[at] = other;
                let changed: String = changed.into_iter().collect();
                assert!(changed == token || keys().check(&changed).is_none(), "{changed}");
            }
            assert_eq!(keys().check(&token[..at]), None);
        }
        assert_eq!(keys().check(&(token + "A")), None);
        assert_eq!(keys().check(&"a".repeat(MAX_TOKEN + 1)), None);
    }

    #[test]
    fn there_is_one_text_for_each_token() {
        // The last character of a code has two bits that are of no byte.
        let token = keys().sign("order/17", 1, "callback:accept#0");
        let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = digits.find(token.chars().next_back().unwrap()).unwrap();
        let other = digits.chars().nth(last ^ 1).unwrap();
        assert_eq!(keys().check(&format!("{}{other}", &token[..token.len() - 1])), None);
        assert_eq!(keys().check(&(token + "=")), None);
    }

    #[test]
    fn keys_that_cannot_be_are_refused_by_name() {
        assert_eq!(UrlKeys::new("k1", [1; 15]).unwrap_err(), KeyError::Short("k1".into()));
        assert_eq!(UrlKeys::new("k.1", [1; 16]).unwrap_err(), KeyError::Id("k.1".into()));
        assert_eq!(keys().and_old("k1", [1; 16]).unwrap_err(), KeyError::Twice("k1".into()));
        assert_eq!(format!("{:?}", keys()), "[\"k2\", \"k1\"]", "no secret");
    }
}
