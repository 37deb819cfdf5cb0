//! Hashes as they are compared, stored and shown.

use sha2::{Digest as _, Sha256};

/// The bytes of a hash that are enough for a name.
const SHORT_BYTES: usize = 16;

/// Bytes in small hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |digit: u8| char::from_digit(u32::from(digit), 16).expect("invariant: four bits are one digit");
    let mut text = String::with_capacity(2 * bytes.len());
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]));
    text
}

/// A hash of a text that is long enough to be a name for it, in 32 hexadecimal digits.
pub(crate) fn short_hash(text: &[u8]) -> String {
    hex(&Sha256::digest(text)[..SHORT_BYTES])
}

/// A hash that two inputs share if they are the same.
pub(crate) fn hash_of(input: &[u8]) -> u64 {
    u64::from_le_bytes(Sha256::digest(input)[..8].try_into().expect("32 bytes are more than 8"))
}
