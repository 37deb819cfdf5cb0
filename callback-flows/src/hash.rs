//! Hashes as they are compared, stored and shown.

use sha2::{Digest as _, Sha256};

/// The bytes of a hash that are enough for a name.
const SHORT_BYTES: usize = 16;

/// Bytes in small hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash of a text that is long enough to be a name for it, in 32 hexadecimal digits.
pub(crate) fn short_hash(text: &[u8]) -> String {
    hex(&Sha256::digest(text)[..SHORT_BYTES])
}

/// A hash that two inputs share if they are the same.
pub(crate) fn hash_of(input: &[u8]) -> u64 {
    u64::from_le_bytes(Sha256::digest(input)[..8].try_into().expect("32 bytes are more than 8"))
}
