//! The tasks around the windows: one fires, one loads.
//!
//! What is due may be an alarm or a message from an inbox; the way is the same.
//!
//! The driver sleeps until the earliest deadline of all shards and wakes for nothing else, except that while something waits it
//! looks at the wall clock every few seconds, for the clock may step. It hands due alarms over in their order; each shard's
//! alarms go through one firing task, so their handlers are started in that order too, and a handler that blocks its thread
//! holds up a part of the shards only.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::marks;
use crate::clock::Moment;
use crate::error::WithCauses;
use crate::id::interface_of;
use crate::shards::delivery::Delivery;
use crate::shards::handoff::Handoff;
use crate::shards::wake::Wake;
use crate::shards::{BegunAfter, BegunPage};
use crate::shared::{AnyInterface, HostCore};
use crate::store::client::{Backoff, backoff};
use crate::store::deadlines::Deadlines;
use crate::store::portion::Portion;
use crate::store::{
    After, AlarmRow, Damaged, Hint, InboxRow, Incarnation, Loaded, Page, Rows, Sequence, ShardId, Store,
};
use crate::sync::{Arc, first_ready, mpsc};

/// While an alarm waits, the wall clock is looked at this often at least.
const CLOCK_CHECK: Duration = Duration::from_secs(5);
/// The number of tasks that start handlers of alarms.
const FIRING_TASKS: usize = 4;
/// The most of a shard that is handed out at once while there is a backlog.
const MAX_RUN: usize = 16;
/// The most damaged rows listed.
const MAX_DAMAGED: usize = 1_000;

/// Hands out what is due, until the host stops working.
pub(crate) async fn run(host: Arc<HostCore>) {
    let firing: Vec<_> = (0..FIRING_TASKS)
        .map(|_| {
            // As large as what may be in flight, so that sending never has to wait.
            let (send, receive) = mpsc::channel(host.options.limits.max_firing);
            if let Some(started) = host.started() {
                started.system.spawn(fire(host.clone(), receive));
            }
            send
        })
        .collect();
    while host.fires() {
        let changed = host.shards.changed.notified();
        let now = Moment::of(&*host.clock);
        let may_act = host.lease_holds();
        if may_act {
            loop {
                let run = host.shards.pop_run(now, MAX_RUN);
                let Some(first) = run.first() else { break };
                let task = first.shard().0.0 as usize % FIRING_TASKS;
                // A full or closed channel drops the run, and its alarms wait again.
                drop(firing[task].try_send(run));
            }
        }
        // While too much is being handled, the end of one wakes this task.
        if !host.shards.may_fire() {
            changed.await;
            continue;
        }
        let now = Moment::of(&*host.clock);
        let (deadline, wait) = (host.shards.next_deadline(), host.shards.next_wait());
        let is_due = deadline.is_some_and(|due| due <= now.wall) || wait.is_some_and(|wait| wait <= now.elapsed);
        let until_due = async {
            match deadline {
                // Due, but the lease has to be renewed first.
                _ if is_due && !may_act => host.clock.sleep(Duration::from_millis(100)).await,
                Some(deadline) => host.clock.sleep_exact(deadline.min(now.wall + CLOCK_CHECK)).await,
                None => std::future::pending().await,
            }
        };
        let until_ready = async {
            match wait {
                Some(wait) if may_act => host.clock.sleep(wait.saturating_sub(now.elapsed)).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! { biased;
            () = changed => {}
            () = until_due => {}
            () = until_ready => {}
        }
    }
}

/// Starts handlers of what is due, in the order in which it comes.
async fn fire(host: Arc<HostCore>, mut due: mpsc::Receiver<Vec<Delivery>>) {
    let interfaces: Vec<Arc<dyn AnyInterface>> = host.interfaces.lock().clone();
    while let Some(run) = due.recv().await {
        let mut to_be_marked = Vec::new();
        for delivery in run {
            let Some((interface, delivery)) = admit(&host, &interfaces, delivery) else { continue };
            if delivery.must_mark && delivery.wake().attempts().all_crashes() == 0 {
                to_be_marked.push((interface, delivery));
                continue;
            }
            interface.wake(delivery);
            // Each of these handlers ran on this task: let others have their turn.
            tokio::task::consume_budget().await;
        }
        marks::wake_marked(&host, to_be_marked);
    }
}

/// Finds the interface of what is due, if it may begin now.
fn admit(
    host: &HostCore,
    interfaces: &[Arc<dyn AnyInterface>],
    delivery: Delivery,
) -> Option<(Arc<dyn AnyInterface>, Delivery)> {
    // A host that drains starts nothing more by itself, and one that stood still may have lost its lease meanwhile: what was
    // handed out already goes back.
    let is_closing = host.shards.handoff(delivery.shard().0) == Handoff::Closing;
    if !host.fires() || is_closing || !host.lease_holds() {
        return None;
    }
    let name = delivery.wake().name();
    // Anyone may post, also who has another shard count in mind: handled here, it would be in two places.
    if host.fleet.shard_of(&name.instance) != Ok(delivery.shard().0) {
        let (kind, id) = (delivery.wake().kind(), delivery.wake().id());
        tracing::error!(instance = %name, kind, %id, shard = %delivery.shard().0,
            "it is in a shard that is not its instance's; it is left in the store");
        metrics::counter!(crate::metrics::SET_ASIDE).increment(1);
        delivery.set_aside();
        return None;
    }
    let interface = interface_of(&name.interface).0;
    match interfaces.iter().find(|known| known.name() == interface) {
        Some(interface) if interface.handles(delivery.wake()) => {
            if let Wake::Alarm(alarm) = delivery.wake()
                && alarm.attempts.failed == 0
            {
                let late = host.clock.now().since(alarm.due);
                metrics::histogram!(crate::metrics::ALARM_LATENESS).record(late.as_secs_f64());
            }
            metrics::counter!(crate::metrics::WOKEN, "kind" => delivery.wake().kind()).increment(1);
            Some((interface.clone(), delivery))
        }
        _ => {
            let (kind, id) = (delivery.wake().kind(), delivery.wake().id());
            tracing::error!(instance = %delivery.wake().name(), kind, %id,
                "this program has not registered what it takes to handle it; it is left in the store");
            metrics::counter!(crate::metrics::SET_ASIDE).increment(1);
            delivery.set_aside();
            None
        }
    }
}

/// Loads pages into the windows that want them, many shards in one call, and less after one that failed. Never ends by itself.
///
/// Where a part of the store may be away by itself, shards of a call that failed are asked for one by one until they answer, beside
/// the calls for the others.
pub(crate) async fn load(host: Arc<HostCore>, sequence: Sequence) {
    // How often each shard that is asked for by itself has failed.
    let mut troubled = BTreeMap::<ShardId, u32>::new();
    let mut failures = 0_u32;
    let mut portion = Portion::default();
    let mut running = Vec::<Pin<Box<dyn Future<Output = Asked> + Send>>>::new();
    let mut is_joint_under_way = false;
    loop {
        let room = host.shards.room.notified();
        // While what is being handled leaves no room, nothing more is begun.
        let has_room = host.shards.has_room();
        if !is_joint_under_way && has_room {
            let begun = host.shards.begin_pages(portion.shards());
            let (alone, joint): (Vec<_>, Vec<_>) =
                begun.into_iter().partition(|page| troubled.contains_key(&page.shard));
            let mut by_shard = BTreeMap::<ShardId, Vec<BegunPage>>::new();
            for page in alone {
                by_shard.entry(page.shard).or_default().push(page);
            }
            for (shard, pages) in by_shard {
                let failures = troubled.get(&shard).copied().unwrap_or_default();
                let portion = Portion::halved(failures);
                running.push(Box::pin(ask(host.clone(), pages, false, failures, portion)));
            }
            if !joint.is_empty() {
                is_joint_under_way = true;
                running.push(Box::pin(ask(host.clone(), joint, true, failures, portion.clone())));
            }
        }
        let Asked { begun, is_joint, loaded } = tokio::select! { biased;
            asked = first_ready(&mut running) => asked,
            () = host.shards.pages_wanted.notified(), if !is_joint_under_way && has_room => continue,
            () = room, if !has_room => continue,
        };
        is_joint_under_way &= !is_joint;
        match loaded {
            Some(loaded) => {
                if is_joint {
                    failures = 0;
                    portion.succeeded();
                }
                portion.met(loaded.iter().filter_map(largest).max());
                for (begun, page) in begun.iter().zip(loaded) {
                    troubled.remove(&begun.shard);
                    note_damaged(&host, page.damaged);
                    match page.rows {
                        Rows::Alarms(rows) => host.shards.merge_alarms(begun, rows, page.is_last),
                        Rows::Inbox(rows) => host.shards.merge_inbox(begun, rows, page.is_last),
                        Rows::Dead(_) => host.shards.abandon_page(begun),
                    }
                }
            }
            None => {
                if is_joint {
                    portion.failed();
                }
                let failed: BTreeSet<ShardId> = begun.iter().map(|page| page.shard).collect();
                if sequence == Sequence::OfShard {
                    failed.into_iter().for_each(|shard| *troubled.entry(shard).or_default() += 1);
                } else {
                    failures = failures.saturating_add(1);
                }
                begun.iter().for_each(|page| host.shards.abandon_page(page));
            }
        }
    }
}

/// The outcome of a call for pages.
struct Asked {
    begun: Vec<BegunPage>,
    /// Says whether it was the one for all that is not troubled.
    is_joint: bool,
    /// `None` if it failed.
    loaded: Option<Vec<Loaded>>,
}

/// The bytes of the largest row of a page, if it has one.
fn largest(page: &Loaded) -> Option<usize> {
    match &page.rows {
        Rows::Alarms(rows) => rows.iter().map(AlarmRow::bytes).max(),
        Rows::Inbox(rows) => rows.iter().map(InboxRow::bytes).max(),
        Rows::Dead(_) => None,
    }
}

/// Asks the store for pages. If that fails it waits, for an abandoned page is wanted again at once.
async fn ask(host: Arc<HostCore>, begun: Vec<BegunPage>, is_joint: bool, failures: u32, portion: Portion) -> Asked {
    let bytes = portion.bytes() / begun.len();
    let page = |begun: &BegunPage| Page {
        shard: begun.shard,
        after: match &begun.after {
            BegunAfter::Alarms(after) => After::Alarms(after.clone()),
            BegunAfter::Inbox(after) => After::Inbox(after.clone()),
        },
        limit: begun.limit.min(portion.rows()),
        bytes: begun.bytes.min(bytes).max(1),
        keys_only: begun.keys_only,
    };
    let pages: Vec<_> = begun.iter().map(page).collect();
    let loaded = match host.load(&pages).await {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            if is_joint {
                tracing::warn!(error = %WithCauses(&error), pages = begun.len(), "the store could not be read; trying again with less");
            }
            host.clock.sleep(backoff(&*host.random, failures)).await;
            None
        }
    };
    Asked { begun, is_joint, loaded }
}

/// Keeps a list of stored rows that cannot be used, for an operator to look at.
fn note_damaged(host: &HostCore, rows: Vec<Damaged>) {
    for row in rows {
        let mut damaged = host.shards.damaged.lock();
        if !damaged.contains(&row) && damaged.len() < MAX_DAMAGED {
            damaged.push(row.clone());
            drop(damaged);
            tracing::error!(shard = %row.shard, place = %row.place, "a stored row {}; it is left alone", row.reason);
            metrics::counter!(crate::metrics::DAMAGED_ROWS).increment(1);
        }
    }
}

/// Follows the store's hints about new messages. Never ends by itself.
pub(crate) async fn watch(host: Arc<HostCore>, store: Deadlines, incarnation: Incarnation) {
    let mut backoff = Backoff::new(&*host.clock, &*host.random);
    loop {
        match store.watch(incarnation).await {
            Ok(mut hints) => {
                // What was posted before it began has gone unheard: a renewal says where.
                host.shards.lost.notify_one();
                backoff.reset();
                while let Some(hint) = hints.next().await {
                    match hint {
                        Hint::Inbox(shard) if shard.0 < host.fleet.shards() => host.shards.hint_of_store(shard),
                        Hint::Inbox(_) => {}
                        // A renewal says who is there, and what is wanted is claimed after it.
                        Hint::Fleet => host.news.notify_one(),
                    }
                }
                tracing::warn!("the store's hints about new messages have ended; they are asked for again");
            }
            Err(error) if backoff.is_first() => {
                tracing::warn!(error = %WithCauses(&error), "the store gives no hints about new messages; trying again");
            }
            Err(_) => {}
        }
        metrics::counter!(crate::metrics::WATCHES_LOST).increment(1);
        backoff.pause().await;
    }
}
