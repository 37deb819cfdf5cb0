//! The members of a fleet, as its store knows them: the hosts that hold a lease.
//!
//! A life of a host becomes a member by its first claim, and is one for as long as its lease runs by the store's clock; it is none
//! any more when a later life of its name starts, when it has released its last shard while it was [`Leaving`](MemberState::Leaving), which
//! ends it for good, or when its lease is over. Nobody has to say so: whoever claims or renews next finds it gone. What a host says of itself comes with each
//! claim and renewal ([`Presence`]), so there is nothing else that could differ from its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Claim, ClaimKind, Incarnation, StoreError};
use crate::sync::Arc;

/// The rule by which a fleet's shards are given to its hosts. While a host holds a lease, hosts of the other rule are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// A list of hosts that is the same on all of them.
    #[default]
    List,
    /// The hosts are those that hold a lease.
    Live,
}

impl Placement {
    /// The other rule.
    #[must_use]
    pub fn other(self) -> Placement {
        match self {
            Placement::List => Placement::Live,
            Placement::Live => Placement::List,
        }
    }
}

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Placement::List => "a list of hosts",
            Placement::Live => "live membership",
        })
    }
}

/// The part that a host takes in its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum MemberState {
    /// The host works, and shards are placed on it.
    #[default]
    Up,
    /// The host works, and gives its shards away: somebody has [marked](super::Store::cordon) it.
    Cordoned,
    /// The host is finishing what it has, and will be gone.
    Leaving,
}

impl MemberState {
    /// The state of a host that says this of itself and is marked so.
    #[must_use]
    pub fn of(is_leaving: bool, is_cordoned: bool) -> MemberState {
        match (is_leaving, is_cordoned) {
            (true, _) => MemberState::Leaving,
            (false, true) => MemberState::Cordoned,
            (false, false) => MemberState::Up,
        }
    }
}

/// The words of a host about itself, told with each claim and renewal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    /// The address at which other hosts reach it, if they do; at most 255 bytes without NUL.
    pub address: Option<Arc<str>>,
    /// The build of its program, for people; at most 255 bytes without NUL.
    pub build: Arc<str>,
    /// Says that the host is finishing what it has.
    pub is_leaving: bool,
    /// The rule by which it knows its shards; the same for all its life.
    pub placement: Placement,
    /// The newest version of the rule of placement that it knows.
    pub placement_version: u32,
}

/// A host that holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The life of the member.
    pub incarnation: Incarnation,
    /// The name of the member.
    pub name: Arc<str>,
    /// The address at which other hosts reach it, if they do.
    pub address: Option<Arc<str>>,
    /// The build of its program, as it was told.
    pub build: Arc<str>,
    /// The part that it takes.
    pub state: MemberState,
    /// The newest version of the rule of placement that it knows.
    pub placement_version: u32,
    /// The time that its lease still runs, unless renewed; more than zero.
    pub remaining: Duration,
    /// The time for which the host has been a member.
    pub up: Duration,
}

/// All members of a fleet at the time of a claim or renewal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Rises with each change: a host that joins, ends, leaves, comes back, says something else of itself, or is marked.
    pub version: u64,
    /// The members, ascending by name and then by incarnation, each life once. Two lives of one name are both members if the later one has
    /// not been started as a host is, but claimed as one that runs.
    pub list: Vec<Member>,
}

impl Members {
    /// The names of the hosts that shards are placed on: those that are up, or, where there are none, those that are cordoned.
    pub(crate) fn placeable(&self) -> Vec<Arc<str>> {
        let of = |state| self.list.iter().filter(move |member| member.state == state).map(|member| member.name.clone());
        let up: Vec<_> = of(MemberState::Up).collect();
        if up.is_empty() { of(MemberState::Cordoned).collect() } else { up }
    }

    /// Puts members in their order.
    #[must_use]
    pub fn new(version: u64, mut list: Vec<Member>) -> Members {
        list.sort_by(|a, b| (&a.name, a.incarnation).cmp(&(&b.name, b.incarnation)));
        Members { version, list }
    }
}

/// The members of a fleet in the memory of a store that keeps them there, by a clock that does not step.
#[derive(Debug, Default)]
pub struct Roster {
    version: u64,
    rows: BTreeMap<Incarnation, Row>,
}

#[derive(Debug)]
struct Row {
    name: Arc<str>,
    presence: Presence,
    is_cordoned: bool,
    since: Duration,
    /// The end of the lease, which is over once that time is reached.
    until: Duration,
}

impl Roster {
    /// Notes a claim or renewal at `now`, by which the lease of this life lasts until `until`. Whoever has said that it leaves is leaving to
    /// its end: what says otherwise was sent before, and came late.
    pub fn note(
        &mut self,
        incarnation: Incarnation,
        name: &Arc<str>,
        presence: &Presence,
        (now, until): (Duration, Duration),
    ) {
        self.forget_ended(now);
        let mut row = self.rows.remove(&incarnation).unwrap_or_else(|| {
            self.version += 1;
            Row { name: name.clone(), presence: presence.clone(), is_cordoned: false, since: now, until }
        });
        row.until = until;
        let presence = Presence { is_leaving: presence.is_leaving || row.presence.is_leaving, ..presence.clone() };
        if row.presence != presence {
            self.version += 1;
            row.presence = presence;
        }
        self.rows.insert(incarnation, row);
    }

    /// A life has been ended by a later one of its name.
    pub fn end(&mut self, incarnation: Incarnation) {
        self.version += u64::from(self.rows.remove(&incarnation).is_some());
    }

    /// A life has released what it had and owns nothing: if it is leaving, it has left, and this tells so. Its life is then over.
    #[must_use]
    pub fn owns_nothing(&mut self, incarnation: Incarnation) -> bool {
        let has_left = self.rows.get(&incarnation).is_some_and(|row| row.presence.is_leaving);
        if has_left {
            self.end(incarnation);
        }
        has_left
    }

    /// As [`Store::cordon`](super::Store::cordon).
    pub fn cordon(&mut self, member: Incarnation, is_cordoned: bool, seen: u64, now: Duration) -> bool {
        self.forget_ended(now);
        let Some(row) = self.rows.get_mut(&member).filter(|_| self.version == seen) else { return false };
        row.is_cordoned = is_cordoned;
        self.version += 1;
        true
    }

    /// Refuses a claim at `now` if a member goes by the other placement that is neither the claimer nor ended by the claim.
    ///
    /// # Errors
    /// [`StoreError::OtherPlacement`].
    pub fn check(&self, claim: &Claim, now: Duration) -> Result<(), StoreError> {
        let placement = claim.presence.placement;
        let is_own = |incarnation: Incarnation, row: &Row| {
            incarnation == claim.incarnation || (claim.kind == ClaimKind::Start && row.name == claim.host)
        };
        let is_other = |(incarnation, row): &(&Incarnation, &Row)| {
            row.until > now && row.presence.placement != placement && !is_own(**incarnation, row)
        };
        let other = self.rows.iter().find(is_other).map(|(_, row)| row.presence.placement);
        other.map_or(Ok(()), |stored| Err(StoreError::OtherPlacement { placement, stored }))
    }

    /// The number of the last change that is known.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All members at `now`.
    pub fn members(&mut self, now: Duration) -> Members {
        self.forget_ended(now);
        let member = |(incarnation, row): (&Incarnation, &Row)| Member {
            incarnation: *incarnation,
            name: row.name.clone(),
            address: row.presence.address.clone(),
            build: row.presence.build.clone(),
            state: MemberState::of(row.presence.is_leaving, row.is_cordoned),
            placement_version: row.presence.placement_version,
            remaining: row.until.saturating_sub(now),
            up: now.saturating_sub(row.since),
        };
        Members::new(self.version, self.rows.iter().map(member).collect())
    }

    fn forget_ended(&mut self, now: Duration) {
        let before = self.rows.len();
        self.rows.retain(|_, row| row.until > now);
        self.version += (before - self.rows.len()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn roster() -> Roster {
        let mut roster = Roster::default();
        for (life, name) in [(3, "b"), (2, "a"), (1, "b")] {
            roster.note(Incarnation(life), &name.into(), &Presence::default(), (SECOND, SECOND * 10));
        }
        roster
    }

    fn lives(members: &Members) -> Vec<u64> {
        members.list.iter().map(|member| member.incarnation.0).collect()
    }

    #[test]
    fn members_come_by_name_and_then_by_life() {
        assert_eq!(lives(&roster().members(SECOND * 2)), [2, 1, 3]);
    }

    #[test]
    fn a_renewal_that_says_nothing_new_changes_nothing_but_the_time_left() {
        let mut roster = roster();
        let before = roster.members(SECOND * 2);
        roster.note(Incarnation(2), &"a".into(), &Presence::default(), (SECOND * 5, SECOND * 20));
        let after = roster.members(SECOND * 5);
        assert_eq!((after.version, after.list[0].remaining), (before.version, SECOND * 15));
        assert_eq!(after.list[0].up, SECOND * 4);
    }

    #[test]
    fn whoever_looks_after_a_lease_has_ended_finds_another_number_and_one_less() {
        let mut roster = roster();
        let before = roster.members(SECOND);
        let after = roster.members(SECOND * 10);
        assert!(after.version > before.version && after.list.is_empty());
        // One that comes back has come anew.
        roster.note(Incarnation(2), &"a".into(), &Presence::default(), (SECOND * 11, SECOND * 20));
        assert_eq!(roster.members(SECOND * 12).list[0].up, SECOND);
    }

    #[test]
    fn one_that_owns_nothing_has_left_only_if_it_was_leaving() {
        let mut roster = roster();
        assert!(!roster.owns_nothing(Incarnation(2)));
        let leaving = Presence { is_leaving: true, ..Presence::default() };
        roster.note(Incarnation(3), &"b".into(), &leaving, (SECOND, SECOND * 10));
        roster.note(Incarnation(3), &"b".into(), &Presence::default(), (SECOND, SECOND * 10));
        assert!(roster.owns_nothing(Incarnation(3)), "what was said before and came late is not heard");
        assert_eq!(lives(&roster.members(SECOND * 2)), [2, 1]);
    }
}
