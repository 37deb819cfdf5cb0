//! Handing shards over to the hosts that they are placed on by now: a few at a time while the host runs, all of them when it drains.
//!
//! A shard with a living owner moves by that owner's will alone, and, unless that one leaves, only to a host that has been up for a while: so
//! one that comes and goes moves each shard once in that time at most. First its tasks are told, and served until they have come to an end;
//! then nothing is let in any more, what runs comes to its end, its instances stop, and it is released. Its next owner is told by
//! the store, and whoever asks meanwhile is sent there. A shard whose handlers take long holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lease::forget_unowned;
use crate::clock::within;
use crate::error::WithCauses;
use crate::shared::{AnyInterface, Health, HostCore};
use crate::store::client::Backoff;
use crate::store::deadlines::Deadlines;
use crate::store::{Epoch, Incarnation, MemberState, ShardId, Store};
use crate::sync::Arc;

/// The time to end, for handlers in a shard that takes nothing in any more and whose host stays.
const CLOSING: Duration = Duration::from_secs(1);
/// Shards of which nothing is in memory any more wait for so long for others that were closed with them, and instances that were begun by
/// what still runs are stopped after so long.
const TOGETHER: Duration = Duration::from_millis(20);
/// The time between two looks: so many instances end at once that looking after each would be work.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The store, as the life of a host that gives its shards away speaks to it.
#[derive(Clone, Copy)]
pub(crate) struct Giver<'a> {
    pub(crate) host: &'a HostCore,
    pub(crate) store: &'a Deadlines,
    pub(crate) incarnation: Incarnation,
}

/// The number of shards that were handed over, by the host that they went to.
pub(crate) type HandedOver = BTreeMap<Arc<str>, usize>;

/// The outcome of giving everything away.
#[derive(Default)]
pub(crate) struct Given {
    pub(crate) handed_over: HandedOver,
    /// Instances whose tasks were cut off.
    pub(crate) tasks: usize,
    /// Tells whether nothing is left.
    pub(crate) is_all: bool,
}

/// Hands over what belongs elsewhere, until the host drains.
pub(crate) async fn run(host: Arc<HostCore>, store: Deadlines, incarnation: Incarnation) {
    let giver = Giver { host: &host, store: &store, incarnation };
    while host.health() == Health::Running {
        let (due, wait) = plan(&host);
        if !due.is_empty() {
            giver.hand_over(due).await;
            continue;
        }
        let settled = async {
            match wait {
                Some(wait) => host.clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { biased;
            () = host.wait_for(Health::Draining) => {}
            () = host.view_changed.notified() => {}
            () = settled => {}
        }
    }
}

/// The shards to hand over now, ascending, and, if there are none, the time until there may be some.
fn plan(host: &HostCore) -> (Vec<ShardId>, Option<Duration>) {
    let (view, now) = (host.view(), host.clock.elapsed());
    let settle = host.options.settle.unwrap_or(host.options.lease);
    let (mut due, mut wait) = (Vec::new(), None::<Duration>);
    let Some(placement) = &view.placement else { return (due, None) };
    for (shard, _) in host.shards.owned() {
        let Some(next) = placement.host_of(shard).filter(|next| **next != host.name) else { continue };
        match view.up(next, now) {
            Some(up) if up >= settle => due.push(shard),
            Some(up) => wait = Some(wait.unwrap_or(Duration::MAX).min(settle - up)),
            None => {}
        }
        if due.len() == host.options.handoff_batch {
            break;
        }
    }
    (due, wait)
}

impl Giver<'_> {
    /// Hands over shards, which are ascending. When this returns they are free, or the host drains or has ended.
    async fn hand_over(self, shards: Vec<ShardId>) {
        let host = self.host;
        let Ok(_alone) = host.departure.handing_over.acquire().await else { return };
        host.leave(&shards);
        let tasks_until = host.clock.elapsed().saturating_add(host.options.handoff_timeout);
        let mut leaving = Leaving::new(self, shards, tasks_until);
        let give = async {
            while !leaving.is_done() {
                leaving.close_next(host.options.handoff_batch, |_| true);
                leaving.release_ended().await;
                leaving.cut_off(CLOSING).await;
                leaving.wait_for_tasks().await;
            }
        };
        let is_given = tokio::select! { biased;
            () = give => true,
            () = host.wait_for(Health::Draining) => false,
        };
        if !is_given {
            // Those that are not closed all leave with the host; the others it ends with.
            leaving.stay();
        }
        leaving.report();
    }

    /// Gives away all shards, because the host leaves, for `limit` at most, of which their tasks have `tasks` to come to an end. Some are left
    /// if that was not time enough, and all if nobody is there to have them.
    pub(crate) async fn give_all(self, limit: Duration, tasks: Duration) -> Given {
        let host = self.host;
        let tasks_until = host.clock.elapsed().saturating_add(tasks.min(host.options.handoff_timeout));
        let mut leaving = Leaving { is_of_drain: true, ..Leaving::new(self, Vec::new(), tasks_until) };
        let give = async {
            let Ok(_alone) = host.departure.handing_over.acquire().await else { return };
            // What it grants is given away like the rest; granted later, nobody else could have it before the lease is over.
            host.wait_for_claim().await;
            leaving.take_up_closing();
            leaving.take_up_owned();
            // From then on the shards are placed on others, if there are any.
            while !is_known_to_leave(host) {
                within(&*host.clock, TOGETHER, host.view_changed.notified()).await;
            }
            let has_taker = |shard: &ShardId| host.placed(*shard).is_some_and(|next| next != host.name);
            while !leaving.is_done() {
                leaving.close_next(host.options.handoff_batch, has_taker);
                if leaving.closed.is_empty() && !leaving.waiting.iter().any(has_taker) {
                    return;
                }
                leaving.release_ended().await;
                leaving.wait_for_tasks().await;
            }
        };
        tokio::select! { biased;
            () = host.wait_for(Health::Stopped) => {}
            _ = within(&*host.clock, limit, give) => {}
        }
        leaving.report();
        let is_all = leaving.is_done();
        leaving.stay();
        Given { handed_over: leaving.handed_over, tasks: leaving.tasks, is_all }
    }
}

/// Tells whether this host has told the store that it leaves.
fn is_known_to_leave(host: &HostCore) -> bool {
    let view = host.view();
    view.members.list.iter().filter(|member| member.name == host.name).all(|own| own.state == MemberState::Leaving)
}

/// Shards that are on their way to other hosts.
struct Leaving<'a> {
    giver: Giver<'a>,
    /// Tells that these are all that the host has, and that it leaves with them.
    is_of_drain: bool,
    interfaces: Vec<Arc<dyn AnyInterface>>,
    /// Shards that are served as ever.
    waiting: BTreeSet<ShardId>,
    /// The moment until which tasks in them are waited for, by the lease clock.
    tasks_until: Duration,
    /// Shards that take nothing in any more, under which epoch, and since when, by the lease clock.
    closed: BTreeMap<ShardId, (Epoch, Duration)>,
    /// Shards of which the store is being told that they are free, each with the epoch that ends.
    releasing: Vec<(ShardId, Option<Epoch>)>,
    handed_over: HandedOver,
    /// Instances whose tasks were cut off.
    tasks: usize,
}

impl<'a> Leaving<'a> {
    fn new(giver: Giver<'a>, shards: Vec<ShardId>, tasks_until: Duration) -> Leaving<'a> {
        Leaving {
            giver,
            is_of_drain: false,
            interfaces: giver.host.interfaces.lock().clone(),
            waiting: shards.into_iter().collect(),
            tasks_until,
            closed: BTreeMap::new(),
            releasing: Vec::new(),
            handed_over: HandedOver::new(),
            tasks: 0,
        }
    }

    /// Goes on with what a handoff of this host had closed when the host began to drain.
    fn take_up_closing(&mut self) {
        let (host, now) = (self.giver.host, self.giver.host.clock.elapsed());
        for shard in host.shards.closing() {
            match host.shards.epoch(shard) {
                Some(epoch) => drop(self.closed.insert(shard, (epoch, now))),
                None => self.releasing.push((shard, host.shards.given_up(shard))),
            }
        }
    }

    /// Takes up all that the host owns.
    fn take_up_owned(&mut self) {
        let host = self.giver.host;
        let owned = host.shards.owned().map(|(shard, _)| shard);
        let new: Vec<_> =
            owned.filter(|shard| !self.closed.contains_key(shard) && !self.waiting.contains(shard)).collect();
        if !new.is_empty() {
            host.leave(&new);
            self.waiting.extend(new);
        }
    }

    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.closed.is_empty() && self.releasing.is_empty()
    }

    /// The shards of instances with a task that is not parked, among those that are served.
    fn with_busy_tasks(&self) -> Vec<ShardId> {
        let of: Vec<_> = self.waiting.iter().copied().collect();
        self.interfaces.iter().flat_map(|interface| interface.with_busy_tasks(Some(&of))).collect()
    }

    /// Closes at most so many of those that may go and whose tasks have come to their end, or to the end of their time.
    fn close_next(&mut self, most: usize, may_go: impl Fn(&ShardId) -> bool) {
        let (host, now) = (self.giver.host, self.giver.host.clock.elapsed());
        let (busy, is_over) = (self.with_busy_tasks(), now >= self.tasks_until);
        let may_close = |shard: &&ShardId| (is_over || !busy.contains(*shard)) && may_go(shard);
        let next: Vec<_> = self.waiting.iter().filter(may_close).take(most).copied().collect();
        self.tasks += busy.iter().filter(|shard| next.binary_search(shard).is_ok()).count();
        for shard in next {
            self.waiting.remove(&shard);
            match host.shards.close(shard) {
                Some(epoch) => drop(self.closed.insert(shard, (epoch, now))),
                // Lost meanwhile.
                None => host.shards.end_handoff(shard),
            }
        }
    }

    /// Waits for tasks, if there is nothing else to wait for.
    async fn wait_for_tasks(&self) {
        let host = self.giver.host;
        if !self.closed.is_empty() || self.waiting.is_empty() {
            return;
        }
        let rest = async {
            while self.with_busy_tasks().into_iter().collect::<BTreeSet<_>>().len() == self.waiting.len() {
                host.handed_on.notified().await;
            }
        };
        within(&*host.clock, self.tasks_until.saturating_sub(host.clock.elapsed()), rest).await;
    }

    /// Has instances in closed shards stop, and releases the shards of which nothing is in memory any more.
    async fn release_ended(&mut self) {
        let host = self.giver.host;
        let of: Vec<_> = self.closed.keys().copied().collect();
        for interface in &self.interfaces {
            interface.clone().stop_all(Some(&of));
        }
        if !of.is_empty() {
            let gone = async {
                while !self.in_memory(&of).is_empty() {
                    host.handed_on.notified().await;
                    host.clock.sleep(LOOK_AGAIN).await;
                }
            };
            within(&*host.clock, TOGETHER, gone).await;
        }
        let left = self.in_memory(&of);
        self.release(|shard, _| !left.contains(shard)).await;
    }

    fn in_memory(&self, of: &[ShardId]) -> BTreeSet<ShardId> {
        self.interfaces.iter().flat_map(|interface| interface.in_memory(of)).collect()
    }

    /// Ends what still runs in shards that were closed so long ago, and releases them.
    async fn cut_off(&mut self, limit: Duration) {
        let since = self.giver.host.clock.elapsed().saturating_sub(limit);
        let is_over = |_: &ShardId, closed: &Duration| *closed <= since;
        let over = self.closed.iter().filter(|(shard, (_, closed))| is_over(shard, closed)).count();
        if over > 0 {
            tracing::warn!(shards = over, "handlers still run in shards that are handed over; they are cut off");
            self.release(is_over).await;
        }
    }

    /// Releases some of the closed shards, however long the store is away: nobody else can have them until it has been told.
    async fn release(&mut self, which: impl Fn(&ShardId, &Duration) -> bool) {
        let host = self.giver.host;
        let released = self.closed.extract_if(.., |shard, (_, since)| which(shard, since));
        for (shard, (epoch, _)) in released {
            host.shards.lose(shard, epoch);
            self.releasing.push((shard, Some(epoch)));
        }
        if self.releasing.is_empty() {
            return;
        }
        forget_unowned(host);
        // A handoff of a host that runs may come here when a drain has just begun: the others of its shards are not in it.
        if self.is_of_drain && self.closed.is_empty() && self.waiting.is_empty() {
            // Whoever has said that it leaves is no member any more once it has released everything, and is none again by a renewal.
            host.note_gone();
        }
        let Giver { store, incarnation, .. } = self.giver;
        let mut backoff = Backoff::new(&*host.clock, &*host.random);
        while let Err(error) = store.release(incarnation, &self.releasing).await {
            if backoff.is_first() {
                tracing::warn!(error = %WithCauses(&error), "shards that are handed over could not be released; trying again");
            }
            backoff.pause().await;
        }
        metrics::counter!(crate::metrics::SHARDS_HANDED_OVER).increment(self.releasing.len() as u64);
        for (shard, _) in self.releasing.drain(..) {
            host.shards.end_handoff(shard);
            if let Some(next) = host.placed(shard) {
                *self.handed_over.entry(next).or_default() += 1;
            }
        }
    }

    /// Leaves those that were not closed as they were.
    fn stay(&mut self) {
        for shard in std::mem::take(&mut self.waiting) {
            self.giver.host.shards.end_handoff(shard);
        }
    }

    fn report(&self) {
        if !self.handed_over.is_empty() {
            let shards: usize = self.handed_over.values().sum();
            tracing::info!(host = %self.giver.host.name, shards, to = ?self.handed_over, "handed over");
        }
    }
}
