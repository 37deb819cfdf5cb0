//! The fleet as this host sees it: who holds a lease, which shards are placed on whom, and who was found to hold which.
//!
//! It is what the store told last, and may be old: whoever acts on it asks the store, which alone decides. It is looked at where shards are
//! claimed or handed over, and for the text of a refusal; a request that is let in never reads it.

use std::time::Duration;

use super::{Health, HostCore};
use crate::fleet::placement::{PLACEMENT_VERSION, Placement as Places, in_force};
use crate::shards::handoff::Handoff;
use crate::store::{Grant, Held, MemberState, Members, Placement, Presence, ShardId};
use crate::sync::Arc;

/// The fleet as a store has told it.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) members: Members,
    /// The time at which that was noted, by the lease clock.
    noted: Duration,
    /// The place of each shard, in a live fleet.
    pub(crate) placement: Option<Arc<Places>>,
}

impl View {
    /// The view after another one; `live` is the shard count of a live fleet. Shards are placed anew only if other hosts are there to have them.
    fn next(before: &View, members: &Members, noted: Duration, live: Option<u32>) -> View {
        let placement = live.map(|shards| {
            let rule = in_force(members.list.iter().map(|member| member.placement_version));
            let hosts = members.placeable();
            match &before.placement {
                Some(placement) if placement.is_of(rule, &hosts) => placement.clone(),
                _ => Arc::new(Places::new(rule, hosts, shards)),
            }
        });
        View { members: members.clone(), noted, placement }
    }

    /// The time for which the member of this name has been up by now; `None` if there is none.
    pub(crate) fn up(&self, host: &str, now: Duration) -> Option<Duration> {
        let up = self.members.list.iter().filter(|member| *member.name == *host).map(|member| member.up).max()?;
        Some(up.saturating_add(now.saturating_sub(self.noted)))
    }

    /// The time at which the first lease of anybody but `host` would end, by the lease clock.
    pub(crate) fn first_end(&self, host: &str) -> Option<Duration> {
        let others = self.members.list.iter().filter(|member| *member.name != *host);
        Some(self.noted.saturating_add(others.map(|member| member.remaining).min()?))
    }
}

impl HostCore {
    /// The host that should own the shard, if there is one.
    pub(crate) fn placed(&self, shard: ShardId) -> Option<Arc<str>> {
        match self.fleet.is_live() {
            true => self.view().placement.as_ref()?.host_of(shard).cloned(),
            false => Some(self.fleet.host_of(shard).clone()),
        }
    }

    /// Tells whether the shard is to be this host's.
    pub(crate) fn is_placed_here(&self, shard: ShardId) -> bool {
        self.placed(shard).is_some_and(|host| *host == *self.name)
    }

    /// The host that holds the shard, as far as this one knows; this one, if it knows of nobody.
    pub(crate) fn holder(&self, shard: ShardId) -> Arc<str> {
        let held = self.holders.lock().get(&shard).cloned();
        held.or_else(|| self.placed(shard)).unwrap_or_else(|| self.name.clone())
    }

    /// Tells whether another host was found to hold the shard.
    pub(crate) fn is_held_elsewhere(&self, shard: ShardId) -> bool {
        self.holders.lock().get(&shard).is_some_and(|holder| *holder != self.name)
    }

    /// The words of this host about itself to the store.
    pub(crate) fn presence(&self) -> Presence {
        Presence {
            address: self.options.address.clone(),
            build: self.options.build.clone(),
            is_leaving: self.health() >= Health::Draining,
            placement: if self.fleet.is_live() { Placement::Live } else { Placement::List },
            placement_version: PLACEMENT_VERSION,
        }
    }

    /// The fleet as the store told last; empty without a store.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.lock().clone()
    }

    /// The address at which a host is reached, as it has told the store; the one of its life that goes on, if one of them leaves.
    pub(crate) fn address_of(&self, name: &str) -> Option<Arc<str>> {
        let view = self.view();
        let lives = view.members.list.iter().filter(|member| *member.name == *name);
        lives.min_by_key(|member| member.state == MemberState::Leaving)?.address.clone()
    }

    /// Notes the members as the store has just told them, and tells whether it could say.
    pub(crate) fn note_members(&self, members: &Members) -> bool {
        // Whoever asks is one of them, but for the moment in which somebody noted that its lease had been over.
        let is_there = members.list.iter().any(|member| member.name == self.name);
        if is_there {
            self.see_members(members);
        }
        is_there
    }

    /// Notes the members.
    pub(crate) fn see_members(&self, members: &Members) {
        metrics::gauge!(crate::metrics::MEMBERS).set(u32::try_from(members.list.len()).unwrap_or(u32::MAX));
        let before = self.view();
        let view =
            View::next(&before, members, self.clock.elapsed(), self.fleet.is_live().then(|| self.fleet.shards()));
        let is_news = view.members.version != before.members.version;
        if is_news && let Some(placement) = &view.placement {
            // Who is gone holds nothing, and what belongs to others is theirs to know.
            let is_there = |holder: &str| view.members.list.iter().any(|member| *member.name == *holder);
            self.holders.lock().retain(|shard, holder| {
                is_there(holder) && placement.host_of(*shard).is_some_and(|host| *host == self.name)
            });
        }
        *self.view.lock() = Arc::new(view);
        if is_news {
            self.view_changed.notify_one();
            self.shards.gained.notify_waiters();
        }
    }

    /// Completes when the host begins to drain, or to hand over the shard.
    pub(crate) async fn wait_leaving(&self, shard: ShardId) {
        self.wait_until(|| self.health() >= Health::Draining || self.shards.handoff(shard) > Handoff::None).await;
    }

    /// Tells the tasks of shards that those are going to be handed over.
    pub(crate) fn leave(&self, shards: &[ShardId]) {
        shards.iter().for_each(|shard| self.shards.leave(*shard));
        self.health_changed.notify_waiters();
    }

    /// A task of an instance has ended or is parked.
    pub(crate) fn task_rests(&self, shard: ShardId) {
        self.task_rested.notify_one();
        self.hand_on(shard);
    }

    /// Something has come to its end that a handoff of its shard may wait for.
    pub(crate) fn hand_on(&self, shard: ShardId) {
        if self.shards.handoff(shard) > Handoff::None {
            self.handed_on.notify_one();
        }
    }

    /// Notes who was found to hold which shards.
    pub(crate) fn note_holders(&self, held: &[Held], granted: &[Grant]) {
        let mut holders = self.holders.lock();
        for grant in granted {
            holders.remove(&grant.shard);
        }
        holders.extend(held.iter().map(|held| (held.shard, held.holder.clone())));
        drop(holders);
        // Whoever waits for these to come here goes there.
        if !held.is_empty() {
            self.shards.gained.notify_waiters();
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::store::{Incarnation, Member};

    fn member(life: u64, name: &str, state: MemberState) -> Member {
        Member {
            incarnation: Incarnation(life),
            name: name.into(),
            address: Some(format!("{name}:7000").into()),
            build: "1".into(),
            state,
            placement_version: PLACEMENT_VERSION,
            remaining: Duration::from_secs(9),
            up: Duration::from_secs(1),
        }
    }

    #[test]
    fn shards_are_placed_anew_only_when_other_hosts_are_there_to_have_them() {
        let up = |life, name| member(life, name, MemberState::Up);
        let next = |before: &View, version, list| {
            View::next(before, &Members::new(version, list), Duration::from_secs(version), Some(64))
        };
        let first = next(&View::default(), 1, vec![up(1, "a"), up(2, "b")]);
        let placed = first.placement.clone().expect("it is a live fleet");
        let is_same = |view: &View| view.placement.as_ref().is_some_and(|after| Arc::ptr_eq(&placed, after));
        // Told again, with another time left, another address, another life of the name, or somebody who has no shards.
        assert!(is_same(&next(&first, 1, first.members.list.clone())));
        let elsewhere = Member { address: None, remaining: Duration::from_secs(1), ..up(1, "a") };
        assert!(is_same(&next(&first, 2, vec![elsewhere, up(3, "b")])));
        assert!(is_same(&next(&first, 3, vec![up(1, "a"), up(2, "b"), member(4, "c", MemberState::Leaving)])));
        for list in [vec![up(1, "a")], vec![up(1, "a"), up(2, "b"), up(4, "c")], vec![up(1, "a"), up(4, "c")]] {
            assert!(!is_same(&next(&first, 4, list)));
        }
        assert!(!is_same(&next(&first, 5, vec![up(1, "a"), member(2, "b", MemberState::Cordoned)])));
    }
}
