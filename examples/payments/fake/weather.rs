//! The weather between the fake Stripe and its clients: what goes wrong with a request, drawn from a seed and the request itself, so that
//! it does not depend on who comes first.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The fate of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weather {
    Fine,
    /// Refused before anything is done: 429, with `Retry-After`.
    TooMany,
    /// Refused before anything is done: 503.
    Away,
    /// Done, and answered with an error 500, also when it is asked for again under this key.
    DoneAndBroken,
    /// Not done, and answered with an error 500, also when it is asked for again under this key.
    Broken,
    /// Done, in more time than anybody waits.
    Slow,
    /// Done, and not answered.
    Hanging,
    /// Done, and the connection is dropped.
    Dropped,
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weather::Fine => "in fine weather",
            Weather::TooMany => "one too many (429)",
            Weather::Away => "while it was away (503)",
            Weather::DoneAndBroken => "done and answered 500",
            Weather::Broken => "answered 500",
            Weather::Slow => "done slowly",
            Weather::Hanging => "done and not answered",
            Weather::Dropped => "done and dropped",
        })
    }
}

impl Weather {
    /// The weather for the `arrival`th request, from 0, under the first key for `what`.
    pub(crate) fn of(seed: u64, what: &str, arrival: u32) -> Weather {
        let mut hash = DefaultHasher::new();
        (seed, what, arrival).hash(&mut hash);
        let percent = hash.finish() % 100;
        let is_refund = what.starts_with("refund");
        match (arrival, percent) {
            (0, 0..8) => Weather::TooMany,
            (0, 8..13) => Weather::Away,
            // What undoes something is tried until it succeeds, under its key: an answer that stays would need somebody to look.
            (0, 13..20) if is_refund => Weather::Away,
            (0, 13..17) => Weather::DoneAndBroken,
            (0, 17..20) => Weather::Broken,
            (0, 20..24) => Weather::Slow,
            (0, 24..30) => Weather::Hanging,
            (0, 30..40) => Weather::Dropped,
            (1, 0..10) => Weather::Dropped,
            (1, 10..20) => Weather::TooMany,
            _ => Weather::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_weathers_occur_and_none_lasts() {
        let weathers: BTreeSet<_> = (0..500).map(|n| Weather::of(1, &format!("order-{n}"), 0)).collect();
        assert_eq!(weathers.len(), 8);
        assert!((0..500).all(|n| Weather::of(1, &format!("order-{n}"), 2) == Weather::Fine));
        let refunds: BTreeSet<_> = (0..500).map(|n| Weather::of(1, &format!("refund of order-{n}"), 0)).collect();
        assert!(
            refunds.len() == 6 && !refunds.contains(&Weather::Broken) && !refunds.contains(&Weather::DoneAndBroken)
        );
    }
}
