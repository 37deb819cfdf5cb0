//! The deadlines of a flow's timers, and of its steps that wait for their next attempt, earliest first.
//!
//! Most flows have one, so they are kept in a plain list, with the earliest at its end.

use stable_interfaces::Timestamp;

/// Deadlines and the operations that they are of.
#[derive(Debug, Default)]
pub(super) struct Due(Vec<(Timestamp, usize)>);

impl Due {
    pub(super) fn first(&self) -> Option<(Timestamp, usize)> {
        self.0.last().copied()
    }

    pub(super) fn insert(&mut self, due: (Timestamp, usize)) {
        let at = self.place(due);
        if self.0.capacity() == 0 {
            self.0.reserve_exact(1);
        }
        self.0.insert(at, due);
    }

    pub(super) fn remove(&mut self, due: (Timestamp, usize)) {
        let at = self.place(due);
        if self.0.get(at) == Some(&due) {
            self.0.remove(at);
        }
    }

    /// The place of a deadline in the list, there or not.
    fn place(&self, due: (Timestamp, usize)) -> usize {
        self.0.partition_point(|other| *other > due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_earliest_first_in_whatever_order_they_were_set() {
        let at = Timestamp::from_millis;
        let mut due = Due::default();
        for (time, index) in [(30, 0), (10, 1), (20, 2), (10, 3)] {
            due.insert((at(time), index));
        }
        due.remove((at(20), 2));
        due.remove((at(20), 7));
        let mut found = Vec::new();
        while let Some(first) = due.first() {
            due.remove(first);
            found.push(first);
        }
        assert_eq!(found, [(at(10), 1), (at(10), 3), (at(30), 0)]);
    }
}
