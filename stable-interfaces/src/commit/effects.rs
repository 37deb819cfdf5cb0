//! Changes that handlers record, and their folding into one.
//!
//! Effects are plain data: recording never waits and never fails for anything but size. Of several operations on one target
//! the last counts, except that an alarm's greater revision outlives a smaller one, in whichever order they come; so folding
//! any run of commits gives what applying them one by one would give. (A removal leaves nothing behind that could outlive a put
//! in a later write, so a put older than a removal before it would make a difference: hosts never set an alarm like that.)

use std::cmp::Ordering;

use bytes::Bytes;

use crate::error::ContextError;
use crate::store::{AlarmRow, InstanceName, Op, Revision};
use crate::sync::Arc;

/// See [`Context::MAX_EFFECTS`](crate::Context::MAX_EFFECTS).
pub(crate) const MAX_EFFECTS: usize = 1_000;
/// See [`Context::MAX_EFFECT_BYTES`](crate::Context::MAX_EFFECT_BYTES).
pub(crate) const MAX_EFFECT_BYTES: usize = 4 * 1024 * 1024;

/// The operations a handler has recorded since its last commit, in the order it recorded them.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    ops: Vec<Op>,
    bytes: usize,
}

impl Effects {
    /// Records an effect of the application, within the limits.
    pub(crate) fn record(&mut self, op: Op) -> Result<(), ContextError> {
        let bytes = op.bytes();
        if self.ops.len() >= MAX_EFFECTS {
            return Err(ContextError::TooLarge(format!(
                "a handler may have {MAX_EFFECTS} effects between two commits"
            )));
        }
        if self.bytes + bytes > MAX_EFFECT_BYTES {
            return Err(ContextError::TooLarge(format!(
                "a handler's effects may have {MAX_EFFECT_BYTES} bytes between two commits"
            )));
        }
        self.push(op, bytes);
        Ok(())
    }

    /// Records an effect of the library itself, such as the completion of the alarm that woke the handler: beside the limits.
    pub(crate) fn record_own(&mut self, op: Op) {
        let bytes = op.bytes();
        self.push(op, bytes);
    }

    fn push(&mut self, op: Op, bytes: usize) {
        if self.ops.is_empty() {
            // Most handlers record one, and an operation is large.
            self.ops.reserve_exact(1);
        }
        self.bytes += bytes;
        self.ops.push(op);
    }

    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    pub(crate) fn take(&mut self) -> Vec<Op> {
        self.bytes = 0;
        std::mem::take(&mut self.ops)
    }

    /// Forgets all but the first `len` operations.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.ops.truncate(len);
        self.bytes = self.ops.iter().map(Op::bytes).sum();
    }
}

/// The amount that a handler had recorded at one moment.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) ops: usize,
    pub(crate) outputs: usize,
    pub(crate) has_recorded: bool,
}

impl Op {
    /// Roughly how much memory and log this takes.
    pub(crate) fn bytes(&self) -> usize {
        const FIXED: usize = 64;
        FIXED
            + match self {
                Op::PutAlarm(row) => row.id.len() + row.meta.len(),
                Op::RemoveAlarm { id, .. } => id.len(),
                Op::PutMessage(row) => row.id.len() + row.attempts.bytes(),
                Op::RemoveMessage(key) => key.id.len(),
                Op::PutDead(letter) => match &letter.row {
                    crate::store::DeadRow::Alarm(row) => row.meta.len(),
                    crate::store::DeadRow::Message(row) => row.body.len(),
                },
                Op::RemoveDead(key) => key.id.len(),
                Op::Put { key, value, .. } => key.len() + value.len(),
                Op::Delete { key, .. } => key.len(),
            }
    }

    /// Orders operations by their target. Equal means: the same target.
    fn cmp_target(&self, other: &Op) -> Ordering {
        fn rank(op: &Op) -> u8 {
            match op {
                Op::PutAlarm(_) | Op::RemoveAlarm { .. } => 0,
                Op::PutMessage(_) | Op::RemoveMessage(_) => 1,
                Op::PutDead(_) | Op::RemoveDead(_) => 2,
                Op::Put { .. } | Op::Delete { .. } => 3,
            }
        }
        fn text(op: &Op) -> (&InstanceName, &str) {
            match op {
                Op::PutAlarm(row) => (&row.name, &row.id),
                Op::RemoveAlarm { name, id, .. } => (name, id),
                Op::PutMessage(row) => (&row.name, &row.id),
                Op::RemoveMessage(key) => (&key.name, &key.id),
                Op::PutDead(letter) => match &letter.row {
                    crate::store::DeadRow::Alarm(row) => (&row.name, &row.id),
                    crate::store::DeadRow::Message(row) => (&row.name, &row.id),
                },
                Op::RemoveDead(key) => (&key.name, &key.id),
                Op::Put { name, key, .. } | Op::Delete { name, key } => (name, key),
            }
        }
        rank(self).cmp(&rank(other)).then_with(|| text(self).cmp(&text(other))).then_with(|| match (self, other) {
            // One alarm may die several times, so a dead letter has its time and kind in its key.
            (Op::PutDead(_) | Op::RemoveDead(_), _) => dead_rest(self).cmp(&dead_rest(other)),
            _ => Ordering::Equal,
        })
    }

    /// The revision of an operation on an alarm.
    fn revision(&self) -> Option<Revision> {
        match self {
            Op::PutAlarm(row) => Some(row.revision),
            Op::RemoveAlarm { revision, .. } => Some(*revision),
            _ => None,
        }
    }
}

fn dead_rest(op: &Op) -> Option<(crate::Timestamp, bool)> {
    match op {
        Op::PutDead(letter) => Some((letter.died_at, matches!(letter.row, crate::store::DeadRow::Message(_)))),
        Op::RemoveDead(key) => Some((key.died_at, key.is_message)),
        _ => None,
    }
}

/// As [`fold`], of the operations of one commit. What is folded already, as a single operation is, is not copied.
pub(crate) fn folded(ops: &Arc<[Op]>) -> Arc<[Op]> {
    let is_folded = ops.is_sorted_by(|one, next| one.cmp_target(next).is_lt());
    if is_folded { ops.clone() } else { fold(ops.to_vec()).into() }
}

/// Folds operations, given in the order they were decided, into one per target, ascending by target.
pub(crate) fn fold(mut ops: Vec<Op>) -> Vec<Op> {
    // Stable: operations on one target stay in the order they were decided.
    ops.sort_by(Op::cmp_target);
    ops.dedup_by(|later, kept| {
        if kept.cmp_target(later) != Ordering::Equal {
            return false;
        }
        if later.revision() >= kept.revision() {
            std::mem::swap(later, kept);
        }
        true
    });
    ops
}

/// The word of unsettled operations about one value, newest last: `None` if nothing.
pub(crate) fn find_value<'a>(
    ops: impl DoubleEndedIterator<Item = &'a Op>,
    of: &InstanceName,
    wanted: &str,
) -> Option<Option<Bytes>> {
    ops.rev().find_map(|op| match op {
        Op::Put { key, value, name } if **key == *wanted && name == of => Some(Some(value.clone())),
        Op::Delete { key, name } if **key == *wanted && name == of => Some(None),
        _ => None,
    })
}

/// The word of unsettled operations about an alarm: `Some(None)` if it is removed, `None` if they do not touch it.
pub(crate) fn find_alarm<'a>(ops: impl Iterator<Item = &'a Op>, wanted: &str) -> Option<Option<&'a AlarmRow>> {
    let touching = ops.filter(|op| match op {
        Op::PutAlarm(row) => *row.id == *wanted,
        Op::RemoveAlarm { id, .. } => **id == *wanted,
        _ => false,
    });
    // Of equal revisions the last counts, and that is the one `max_by_key` returns.
    match touching.max_by_key(|op| op.revision())? {
        Op::PutAlarm(row) => Some(Some(row)),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::store::{Attempts, Epoch};

    fn name() -> InstanceName {
        InstanceName { interface: "order".into(), instance: "1".into() }
    }

    fn put(key: &str, value: &str) -> Op {
        Op::Put { name: name(), key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
    }

    fn revision(counter: u64) -> Revision {
        Revision { epoch: Epoch(1), counter }
    }

    fn alarm(id: &str, counter: u64) -> Op {
        Op::PutAlarm(AlarmRow {
            name: name(),
            id: id.into(),
            due: Timestamp::from_millis(5),
            scheduled_at: Timestamp::from_millis(5),
            revision: revision(counter),
            attempts: Attempts::default(),
            meta: Bytes::from_static(b"null"),
        })
    }

    fn remove(id: &str, counter: u64) -> Op {
        Op::RemoveAlarm { name: name(), id: id.into(), revision: revision(counter) }
    }

    #[test]
    fn folding_keeps_the_last_of_each_target_in_ascending_order() {
        let folded =
            fold(vec![put("b", "1"), put("a", "1"), put("b", "2"), Op::Delete { name: name(), key: "a".into() }]);
        assert_eq!(folded, vec![Op::Delete { name: name(), key: "a".into() }, put("b", "2")]);
    }

    #[test]
    fn operations_of_a_commit_that_are_folded_already_are_not_copied() {
        let ops: Arc<[Op]> = Arc::new([put("a", "1"), put("b", "1")]);
        assert!(Arc::ptr_eq(&folded(&ops), &ops));
        let ops: Arc<[Op]> = Arc::new([put("a", "1"), put("a", "2")]);
        assert_eq!(*folded(&ops), [put("a", "2")]);
    }

    #[test]
    fn completing_an_old_revision_does_not_remove_the_newer_setting() {
        assert_eq!(fold(vec![alarm("a", 2), remove("a", 1)]), vec![alarm("a", 2)]);
        assert_eq!(fold(vec![alarm("a", 2), remove("a", 2)]), vec![remove("a", 2)]);
        assert_eq!(fold(vec![remove("a", 2), alarm("a", 3)]), vec![alarm("a", 3)]);
    }

    #[test]
    fn alarms_and_storage_with_the_same_text_are_different_targets() {
        assert_eq!(fold(vec![put("a", "1"), alarm("a", 1)]).len(), 2);
    }

    #[test]
    fn effects_past_the_limits_are_refused_and_nothing_is_recorded() {
        let mut effects = Effects::default();
        for i in 0..MAX_EFFECTS {
            effects.record(put(&i.to_string(), "v")).expect("within the limit");
        }
        assert!(matches!(effects.record(put("one more", "v")), Err(ContextError::TooLarge(_))));
        assert_eq!(effects.ops().len(), MAX_EFFECTS);

        let mut effects = Effects::default();
        let large = "x".repeat(MAX_EFFECT_BYTES / 2);
        effects.record(put("a", &large)).expect("within the limit");
        assert!(matches!(effects.record(put("b", &large)), Err(ContextError::TooLarge(_))));
    }
}
