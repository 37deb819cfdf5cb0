//! Requests under keys: all that is asked under one key has one effect and one reply.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, History, Invariant, Violation, What};

impl History {
    /// A reply was given under a key: all replies under it are equal.
    pub fn replied(&self, key: &str, reply: i64) {
        let mut record = self.0.lock();
        record.step(10, key);
        let first = *record.replies.entry(key.to_owned()).or_insert(reply);
        if first != reply {
            let what = format!("{reply} was the reply under the key {key}, and {first} before");
            record.violations.push(Violation { invariant: Invariant::Keyed, what });
        }
    }

    /// A request was refused because its key is that of another message.
    pub fn key_reused(&self, key: &str) {
        let mut record = self.0.lock();
        record.step(11, key);
        record.reused.insert(key.to_owned());
    }
}

impl<'a> Checker<'a> {
    /// The effects that were asked for under keys.
    pub(super) fn keyed(&self) -> BTreeSet<&'a str> {
        self.keys().into_values().flatten().collect()
    }

    /// The keys, and the effects that were asked for under each.
    fn keys(&self) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut keys = BTreeMap::<_, BTreeSet<_>>::new();
        for asked in &self.record.asked {
            if let What::Keyed { key, effect } = &asked.what {
                keys.entry(key.as_str()).or_default().insert(effect.as_str());
            }
        }
        keys
    }

    /// I12: of all that was asked under one key one thing happened at most, and what was acknowledged did. A key that was said to be another
    /// message's was answered under.
    pub(super) fn check_keys(&mut self) {
        let record = self.record;
        for (key, effects) in self.keys() {
            let happened: i64 = effects.iter().map(|effect| self.happened(effect)).sum();
            let done = |effect: &&&str| record.counts.get(**effect).is_some_and(|count| count.done > 0);
            let lost: Vec<_> = effects.iter().filter(done).filter(|effect| self.happened(effect) == 0).collect();
            let wrong = if happened > 1 {
                format!("{happened} effects happened under it: {effects:?}")
            } else if !lost.is_empty() {
                format!("{lost:?} was acknowledged, and did not happen")
            } else if happened == 0 && record.reused.contains(key) {
                "it was said to be another message's, and nothing happened under it".to_owned()
            } else {
                continue;
            };
            self.wrong(Invariant::Keyed, format!("the key {key}: {wrong}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{End, Outcome};
    use super::*;

    fn ask(history: &History, effect: &str, outcome: Outcome) {
        let what = What::Keyed { key: "a/k".to_owned(), effect: effect.to_owned() };
        history.ask(what).told(outcome);
    }

    fn found(history: &History, happened: &[(&str, i64)]) -> Vec<Invariant> {
        let effects = happened.iter().map(|(effect, times)| ((*effect).to_owned(), *times)).collect();
        let end = End { effects, ..End::default() };
        history.check(&end).into_iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn a_key_with_two_effects_or_an_acknowledged_one_that_did_not_happen_is_found_out() {
        let history = History::default();
        ask(&history, "a/1", Outcome::Unknown);
        ask(&history, "a/1", Outcome::Done);
        ask(&history, "a/2", Outcome::Not);
        assert_eq!(found(&history, &[("a/1", 1)]), []);
        assert_eq!(found(&history, &[("a/1", 2)]), [Invariant::Keyed]);
        assert_eq!(found(&history, &[]), [Invariant::Keyed]);
        assert_eq!(found(&history, &[("a/1", 1), ("a/2", 1)]), [Invariant::Answered, Invariant::Keyed]);
    }

    #[test]
    fn of_two_messages_under_one_key_either_may_happen_and_not_both() {
        let history = History::default();
        ask(&history, "a/1", Outcome::Unknown);
        ask(&history, "a/2", Outcome::Unknown);
        for happened in [&[][..], &[("a/1", 1)], &[("a/2", 1)]] {
            assert_eq!(found(&history, happened), [], "{happened:?}");
        }
        assert_eq!(found(&history, &[("a/1", 1), ("a/2", 1)]), [Invariant::Keyed]);
        history.key_reused("a/k");
        assert_eq!(found(&history, &[("a/2", 1)]), []);
        assert_eq!(found(&history, &[]), [Invariant::Keyed]);
    }

    #[test]
    fn two_replies_under_one_key_are_found_out() {
        let history = History::default();
        ask(&history, "a/1", Outcome::Done);
        history.replied("a/k", 7);
        history.replied("a/k", 7);
        assert_eq!(found(&history, &[("a/1", 1)]), []);
        history.replied("a/k", 8);
        assert_eq!(found(&history, &[("a/1", 1)]), [Invariant::Keyed]);
    }
}
