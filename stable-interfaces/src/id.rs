//! Names and IDs: the one rule that every entrance of the library applies, so that each store can hold what came in.
//!
//! Rows of the library itself, as directives to instances of an interface, lie under the name of the interface and a `!`, which is in no name
//! that an interface can have.

use bytes::Bytes;

use crate::quiet::drop_quietly;
use crate::sync::Arc;

/// The reason why a text cannot be an ID or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Empty.
    #[error("it is empty")]
    Empty,
    /// Too long.
    #[error("it is {bytes} bytes long, more than {max}")]
    TooLong {
        /// The text's length in bytes.
        bytes: usize,
        /// The greatest length allowed.
        max: usize,
    },
    /// A NUL character in it.
    #[error("it contains a NUL character")]
    Nul,
    /// The name of an interface with something else than `a-z`, `0-9`, `_` and `-` in it.
    #[error("it contains something else than a-z, 0-9, _ and -")]
    Characters,
}

/// The longest instance or alarm ID, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 512;
/// The longest storage key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;
/// The largest storage value, alarm meta or message body, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 * 1024;

/// Checks an instance, alarm or message ID: 1 to [`MAX_ID_BYTES`] bytes of UTF-8 without NUL.
///
/// NUL is excluded because Postgres text cannot hold it; the length because its indexes cannot hold much more.
///
/// # Errors
/// [`InvalidId`] says which of the rules is broken.
pub fn check_id(id: &str) -> Result<(), InvalidId> {
    check(id, MAX_ID_BYTES)
}

/// Checks a storage key: as [`check_id`], up to [`MAX_KEY_BYTES`].
///
/// # Errors
/// [`InvalidId`] says which of the rules is broken.
pub fn check_key(key: &str) -> Result<(), InvalidId> {
    check(key, MAX_KEY_BYTES)
}

fn check(text: &str, max: usize) -> Result<(), InvalidId> {
    match text.len() {
        0 => Err(InvalidId::Empty),
        bytes if bytes > max => Err(InvalidId::TooLong { bytes, max }),
        _ if has_nul(text) => Err(InvalidId::Nul),
        _ => Ok(()),
    }
}

/// Looks for a zero byte eight bytes at a time (Warren, "Hacker's Delight", 6-1): every request has an ID, and most are short.
#[inline]
fn has_nul(text: &str) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH_BITS: u64 = ONES << 7;
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let has_zero = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        word.wrapping_sub(ONES) & !word & HIGH_BITS != 0
    };
    words.iter().any(has_zero) || rest.contains(&0)
}

/// The same bytes in memory of the library's own: those of an owner of the application's would run its code wherever the last
/// reference goes. What nobody else refers to is not copied.
pub(crate) fn own_bytes(bytes: Bytes) -> Bytes {
    match bytes.try_into_mut() {
        Ok(own) => own.freeze(),
        Err(theirs) => {
            let own = Bytes::copy_from_slice(&theirs);
            drop_quietly(theirs);
            own
        }
    }
}

/// Checks an interface name, as [`is_interface_name`], for somebody who is not to register it.
pub(crate) fn check_interface_name(name: &str) -> Result<(), InvalidId> {
    check(name, 64)?;
    if is_interface_name(name) { Ok(()) } else { Err(InvalidId::Characters) }
}

/// Checks an interface name: `[a-z0-9_-]{1,64}`.
pub(crate) fn is_interface_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// The end of the name under which the library's own rows lie beside those of an interface. No interface's own name can contain it.
const SUFFIX: char = '!';

/// The name under which the library's own rows of instances of `interface` are stored: directives to them in the inbox, and in their storage the
/// replies that are kept for them.
pub(crate) fn beside(interface: &str) -> Arc<str> {
    format!("{interface}{SUFFIX}").into()
}

/// The interface that rows under this name belong to, and whether they are the library's own.
pub(crate) fn interface_of(name: &str) -> (&str, bool) {
    match name.strip_suffix(SUFFIX) {
        Some(interface) => (interface, true),
        None => (name, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_to_512_bytes_without_nul() {
        assert_eq!(check_id(""), Err(InvalidId::Empty));
        assert_eq!(check_id(&"é".repeat(256)), Ok(()));
        assert_eq!(check_id(&"x".repeat(513)), Err(InvalidId::TooLong { bytes: 513, max: 512 }));
        assert_eq!(check_id("a\0b"), Err(InvalidId::Nul));
        assert_eq!(check_id("any text, \"even\" 'this'\n"), Ok(()));
        for length in 1..40 {
            let others: String = "\u{1}\u{7f}\u{80}\u{100}".chars().cycle().take(length).collect();
            assert_eq!(check_id(&others), Ok(()), "{others:?}");
        }
        for (length, place) in (1..40).flat_map(|length| (0..length).map(move |place| (length, place))) {
            let text: String = (0..length).map(|at| if at == place { '\0' } else { '\u{1}' }).collect();
            assert_eq!(check_id(&text), Err(InvalidId::Nul), "{text:?}");
        }
    }

    #[test]
    fn an_interface_name_is_plain_ascii() {
        assert!(is_interface_name("order-2_x"));
        for bad in ["", "Order", "a b", "é", &"x".repeat(65)] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
    }
}
