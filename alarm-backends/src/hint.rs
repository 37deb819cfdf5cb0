//! Hints on their way from one host to another, as texts.

use stable_interfaces::store::{Hint, ShardId};

/// The hint that a notification carries; `None` if it is none that this version knows.
pub(crate) fn hint(payload: &str) -> Option<Hint> {
    match payload {
        "fleet" => Some(Hint::Fleet),
        shard => Some(Hint::Inbox(ShardId(shard.parse().ok()?))),
    }
}
