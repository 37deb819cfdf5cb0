//! Members of the fleet, on their way to the tables and back.

use std::time::Duration;

use stable_interfaces::store::{Incarnation, Member, MemberState, Members, Placement, Presence};
use tokio_postgres::Row;

/// The words of a host about itself, as the functions of step 3 take them.
pub(super) struct Said<'a> {
    pub(super) address: Option<&'a str>,
    pub(super) build: &'a str,
    pub(super) is_leaving: bool,
    pub(super) is_live: bool,
    pub(super) placement: i64,
}

impl Said<'_> {
    pub(super) fn of(presence: &Presence) -> Said<'_> {
        Said {
            address: presence.address.as_deref(),
            build: &presence.build,
            is_leaving: presence.is_leaving,
            is_live: presence.placement == Placement::Live,
            placement: presence.placement_version.into(),
        }
    }
}

/// The members in an answer, which come in their order.
pub(super) fn members(row: &Row) -> Members {
    let (lives, names) = (row.get::<_, Vec<i64>>("lives"), row.get::<_, Vec<&str>>("names"));
    let (addresses, builds) = (row.get::<_, Vec<Option<&str>>>("addresses"), row.get::<_, Vec<&str>>("builds"));
    let (leaving, cordoned) = (row.get::<_, Vec<bool>>("leaving"), row.get::<_, Vec<bool>>("cordoned"));
    let placements = row.get::<_, Vec<i64>>("placements");
    let (left, up) = (row.get::<_, Vec<i64>>("member_left"), row.get::<_, Vec<i64>>("member_up"));
    let member = |at: usize| Member {
        incarnation: Incarnation(lives[at].unsigned_abs()),
        name: names[at].into(),
        address: addresses[at].map(Into::into),
        build: builds[at].into(),
        state: MemberState::of(leaving[at], cordoned[at]),
        placement_version: u32::try_from(placements[at]).unwrap_or(u32::MAX),
        remaining: Duration::from_millis(left[at].unsigned_abs()),
        up: Duration::from_millis(up[at].unsigned_abs()),
    };
    let version = row.get::<_, Option<i64>>("members").map_or(0, i64::unsigned_abs);
    Members { version, list: (0..lives.len()).map(member).collect() }
}
