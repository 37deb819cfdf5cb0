//! The steps in which the layout of a store grows, and the programs that may use it.
//!
//! **A step only adds**: a table, a column with a default, a function under a new name, a key. So a host that knows one step less goes on
//! beside those that know it, and the first host of a newer release brings an old store up to date in place. A store keeps two numbers: the
//! step it has reached, and the least step that a program must know to use it, which is the step before. A store from before there was such
//! a record is at step 1.
//!
//! Nothing here reads or writes: a store reads its [`Record`], asks which steps are [missing](Record::missing), and makes those in one
//! atomic change together with the new record.

use std::ops::RangeInclusive;

/// The release that this code belongs to.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The step of a store that has no record of its steps.
const FIRST: u32 = 1;

/// A store's record of its own layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The last step that was made.
    pub(crate) step: u32,
    /// The least step that a program must know.
    pub(crate) needs: u32,
    /// The release that made the last step, where one has noted it.
    pub(crate) release: Option<String>,
}

/// The reason why a program may not use a store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The store is more than one step ahead.
    #[error(
        "its layout is at step {step}, made by {release}, and needs a program that knows step {needs} or a later one; this program, of release \
         {RELEASE}, knows step {known}: run the release that made it, or a newer one"
    )]
    Newer { step: u32, needs: u32, known: u32, release: String },
    /// The numbers are none that a release writes.
    #[error(
        "it says that its layout is at step '{step}' and needs step '{needs}', which no release writes: it is damaged, or not a store of this \
         library; restore it from a copy, or name another"
    )]
    Unknown { step: String, needs: String },
}

impl Record {
    /// The record of a store on which all steps up to `step` have been made by this release.
    pub(crate) fn of(step: u32) -> Record {
        Record { step, needs: step.saturating_sub(1).max(FIRST), release: Some(RELEASE.to_owned()) }
    }

    /// Reads a record from the texts in which a store keeps it; what is absent was not written before step 2.
    pub(crate) fn read(step: Option<&str>, needs: Option<&str>, release: Option<&str>) -> Result<Record, Refused> {
        let number = |text: Option<&str>, absent| text.map_or(Some(absent), |text| text.parse().ok());
        let record = number(needs, FIRST).and_then(|needs| {
            let step = number(step, needs)?;
            Some(Record { step, needs, release: release.map(str::to_owned) })
        });
        let unknown = || {
            let shown = |text: Option<&str>| text.unwrap_or_default().escape_debug().to_string();
            Refused::Unknown { step: shown(step), needs: shown(needs) }
        };
        record.filter(|record| (FIRST..=record.step).contains(&record.needs)).ok_or_else(unknown)
    }

    /// The steps that a program that knows those up to `known` has to make; none where the store is as far or one step further.
    ///
    /// # Errors
    /// [`Refused::Newer`] if the store needs a program that knows more.
    pub(crate) fn missing(&self, known: u32) -> Result<RangeInclusive<u32>, Refused> {
        if self.needs > known {
            let release = self.release.as_ref().map_or("another release".to_owned(), |it| format!("release {it}"));
            return Err(Refused::Newer { step: self.step, needs: self.needs, known, release });
        }
        Ok(self.step + 1..=known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(record: &Record, known: u32) -> Vec<u32> {
        record.missing(known).expect("the program may use it").collect()
    }

    #[test]
    fn a_store_without_a_record_is_at_step_one_and_lacks_all_others() {
        let record = Record::read(None, None, None).expect("it is the first layout");
        assert!(missing(&record, 1).is_empty());
        assert_eq!(missing(&record, 4), [2, 3, 4]);
        // As the first release wrote it: one number, which it compares for being equal.
        assert_eq!(Record::read(None, Some("1"), None), Ok(record));
    }

    #[test]
    fn a_program_one_step_behind_makes_nothing_and_goes_on_and_one_two_steps_behind_is_refused_by_number() {
        let record = Record::of(7);
        assert_eq!((record.step, record.needs), (7, 6));
        assert!(missing(&record, 7).is_empty());
        assert!(missing(&record, 6).is_empty());
        let refused = record.missing(5).expect_err("it is too old").to_string();
        assert!(
            refused.contains("step 7") && refused.contains("knows step 5") && refused.contains(RELEASE),
            "{refused}"
        );
        assert!(refused.contains("run the release that made it"), "{refused}");
    }

    #[test]
    fn the_first_step_needs_nothing_before_it() {
        assert_eq!(Record::of(1).needs, 1);
        assert_eq!(Record::of(2).needs, 1, "the first release still opens what the second made");
    }

    #[test]
    fn numbers_that_no_release_writes_are_refused() {
        for (step, needs) in
            [(Some("x"), None), (None, Some("")), (Some("0"), None), (None, Some("0")), (Some("2"), Some("3"))]
        {
            let refused = Record::read(step, needs, None).expect_err("no release wrote that").to_string();
            assert!(refused.contains(&format!("'{}'", step.unwrap_or_default())), "{refused}");
            assert!(refused.contains("restore it"), "{refused}");
        }
    }
}
