//! The size of the next question when pages are loaded.
//!
//! A link, a deadline and a server's buffer all bound an answer, and none of them says how. So each answer that does not come halves
//! what is asked for, down to one row of one shard, which always makes progress; answers that come double it again, and where a
//! larger question has failed the next try of it takes longer and longer to come, for each costs the deadline of a call.

/// The most shards whose pages are asked for in one call of the store.
const MAX_SHARDS: usize = 256;
/// The most rows of one page.
const MAX_ROWS: usize = 4_096;
/// The most bytes of an answer, apart from the one row that each page has whatever its size.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// After so many halvings a question is for one row of one shard.
const MAX_HALVINGS: u32 = MAX_ROWS.ilog2();
/// The most answers that must come before a larger question is tried.
const MAX_PATIENCE: u32 = 1_024;

/// The amount to ask for at once.
#[derive(Debug, Clone)]
pub(crate) struct Portion {
    halvings: u32,
    /// The number of answers that have come to questions of this size.
    answers: u32,
    /// The number of answers that must come before a larger one is tried.
    patience: u32,
    /// Says whether the size before this one was smaller.
    has_grown: bool,
    /// The bytes of the largest row in the last answer that had any: the next may have one of that size from each shard.
    largest: usize,
}

impl Default for Portion {
    fn default() -> Portion {
        Portion { halvings: 0, answers: 0, patience: 1, has_grown: false, largest: 0 }
    }
}

impl Portion {
    /// The amount asked for after so many halvings.
    pub(crate) fn halved(halvings: u32) -> Portion {
        Portion { halvings: halvings.min(MAX_HALVINGS), ..Portion::default() }
    }

    pub(crate) fn shards(&self) -> usize {
        let fitting = self.bytes().checked_div(self.largest).unwrap_or(MAX_SHARDS);
        (MAX_SHARDS >> self.halvings).min(fitting).max(1)
    }

    pub(crate) fn rows(&self) -> usize {
        (MAX_ROWS >> self.halvings).max(1)
    }

    pub(crate) fn bytes(&self) -> usize {
        MAX_BYTES >> self.halvings
    }

    /// An answer came.
    pub(crate) fn succeeded(&mut self) {
        self.answers = self.answers.saturating_add(1);
        if self.halvings > 0 && self.answers >= self.patience {
            self.halvings -= 1;
            (self.answers, self.has_grown) = (0, true);
        }
        if self.halvings == 0 && self.answers > 0 {
            self.patience = 1;
        }
    }

    /// The largest row of an answer has so many bytes, if it has any.
    pub(crate) fn met(&mut self, largest: Option<usize>) {
        self.largest = largest.unwrap_or(self.largest);
    }

    /// None came.
    pub(crate) fn failed(&mut self) {
        if self.has_grown && self.answers == 0 {
            self.patience = (self.patience * 2).min(MAX_PATIENCE);
        }
        self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        (self.answers, self.has_grown) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_that_fail_get_smaller_down_to_one_row_of_one_shard_and_grow_again_when_they_are_answered() {
        let mut portion = Portion::default();
        let mut before = (portion.shards(), portion.rows(), portion.bytes());
        for _ in 0..MAX_HALVINGS {
            portion.failed();
            let now = (portion.shards(), portion.rows(), portion.bytes());
            assert!(now.0 <= before.0 && now.1 == before.1 / 2 && now.2 == before.2 / 2, "{now:?} after {before:?}");
            before = now;
        }
        assert_eq!((before.0, before.1), (1, 1));
        portion.failed();
        assert_eq!((portion.shards(), portion.rows()), (1, 1));
        for _ in 0..MAX_HALVINGS {
            portion.succeeded();
        }
        assert_eq!((portion.shards(), portion.rows(), portion.bytes()), (MAX_SHARDS, MAX_ROWS, MAX_BYTES));
    }

    #[test]
    fn a_size_that_fails_again_and_again_is_tried_less_and_less() {
        let mut portion = Portion::default();
        let mut failures = 0;
        for _ in 0..10_000 {
            // More than this is too much for a link.
            if portion.bytes() > MAX_BYTES / 8 {
                portion.failed();
                failures += 1;
            } else {
                portion.succeeded();
            }
        }
        assert!((3..30).contains(&failures), "{failures} of 10,000 failed");
    }
}
