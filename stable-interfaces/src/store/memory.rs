//! A store in the memory of one process: for tests, simulations and trying things out.
//!
//! Everything stands behind one lock that is held for one call and never across an `.await`, so each call is atomic and
//! calls are in a single order. Nothing survives the process. The index of a row and the row itself change together:
//! each alarm has exactly one place in the order of firing, each inbox row exactly one identity.

mod alarms;
mod items;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU16;
use std::ops::Bound;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::alarms::Alarms;
use self::items::{Item, Named};
use super::{
    After, AlarmRow, Batch, Claim, ClaimKind, Claimed, DeadKey, DeadLetter, Epoch, Found, Grant, Held, Hint,
    HintSender, Hints, InboxKey, InboxRow, Incarnation, InstanceName, Lane, Loaded, Members, NewMessage, Op, Page,
    Posted, Read, ReadRange, ReadRows, Renewal, Renewed, Roster, Rows, Sequence, ShardId, Store, StoreError, Write,
};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::sync::{Arc, Mutex};

/// A store in memory. Clones are handles to the same rows, so that several hosts of one process can share them.
///
/// It keeps the whole contract of [`Store`] except durability: what was committed survives a host, not the process.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// The scope for which the numbers of writes are kept.
    sequence: Sequence,
    /// Leases run by its `elapsed`, arrivals are stamped with its `now`. The machine's, unless it was given before it was first read.
    clock: OnceLock<Arc<dyn Clock>>,
    /// All rows. One lock, because a commit spans shards and must check and write them in one step.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Shard count and hash version, as the first claim recorded them.
    layout: Option<(u32, u32)>,
    /// The name of the store itself, since the first claim.
    name: Option<Arc<str>>,
    members: Roster,
    /// Every incarnation that ever claimed, ended ones too: they must be told.
    lives: BTreeMap<Incarnation, Life>,
    shards: BTreeMap<ShardId, Shard>,
    /// Watchers, who hear of new inbox rows, and of changes of members and owners.
    watchers: Vec<HintSender>,
}

/// One life of a host.
struct Life {
    host: Arc<str>,
    /// The time by the lease clock at which the lease has run out.
    lease_until: Duration,
    /// Tells whether a later life of the same host name has started, or this one has left.
    ended: bool,
    /// The greatest sequence number taken, by lane; with [`Sequence::OfLane`].
    lanes: BTreeMap<Lane, u64>,
}

#[derive(Default)]
struct Shard {
    /// Zero until the first claim.
    epoch: Epoch,
    owner: Option<Incarnation>,
    /// Tells whether the present owner got it clean.
    clean: bool,
    /// The greatest sequence number taken from its owner, by lane; with [`Sequence::OfShard`].
    lanes: BTreeMap<Lane, u64>,
    alarms: Alarms,
    inbox: BTreeMap<InboxKey, InboxRow>,
    /// The arrival times of the rows of `inbox`, by the identity of each.
    arrivals: BTreeMap<Item, Timestamp>,
    dead: BTreeMap<DeadKey, DeadLetter>,
    storage: BTreeMap<Item, Bytes>,
}

impl MemoryStore {
    /// An empty store on the machine's clock, or on that of the [local host](crate::Host::local) that is started on it first.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::with(OnceLock::new(), Sequence::OfLane)
    }

    /// An empty store whose leases and arrival times follow `clock`.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> MemoryStore {
        MemoryStore::with(clock.into(), Sequence::OfLane)
    }

    /// As [`with_clock`](Self::with_clock), and it keeps the numbers of writes for each shard, as a store does that is spread
    /// over machines: [`Sequence::OfShard`].
    #[must_use]
    pub fn spread(clock: Arc<dyn Clock>) -> MemoryStore {
        MemoryStore::with(clock.into(), Sequence::OfShard)
    }

    fn with(clock: OnceLock<Arc<dyn Clock>>, sequence: Sequence) -> MemoryStore {
        MemoryStore { inner: Arc::new(Inner { sequence, clock, state: Mutex::default() }) }
    }

    /// Follows the clock of its only host, unless it has one already.
    pub(crate) fn follow(&self, clock: &Arc<dyn Clock>) {
        self.inner.clock.get_or_init(|| clock.clone());
    }

    fn clock(&self) -> &dyn Clock {
        &**self.inner.clock.get_or_init(|| Arc::new(SystemClock::default()))
    }

    /// Everything that is stored, as of one moment.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn dump(&self) -> crate::testing::StoreDump {
        use crate::testing::{ShardDump, StoreDump};
        let dump_shard = |shard: &Shard| ShardDump {
            epoch: shard.epoch,
            owner: shard.owner,
            alarms: shard.alarms.after(None).collect(),
            inbox: shard.inbox.values().cloned().collect(),
            dead: shard.dead.values().cloned().collect(),
            storage: shard
                .storage
                .iter()
                .map(|(item, value)| ((item.name.clone(), item.id.clone()), value.clone()))
                .collect(),
        };
        let state = self.inner.state.lock();
        StoreDump { shards: state.shards.iter().map(|(id, shard)| (*id, dump_shard(shard))).collect() }
    }
}

#[cfg(feature = "testing")]
impl MemoryStore {
    /// The work that a host whose wall shows `wall` has to handle of a shard: alarms, messages that came first, and those whose retry is due.
    pub(crate) fn due(&self, shard: ShardId, wall: Timestamp) -> (Vec<AlarmRow>, Vec<InboxRow>) {
        let state = self.inner.state.lock();
        let Some(shard) = state.shards.get(&shard) else { return (Vec::new(), Vec::new()) };
        let alarms = shard.alarms.after(None).take_while(|row| row.due <= wall);
        let messages = shard.inbox.values().filter(|row| row.attempts.failed == 0 || row.due <= wall);
        (alarms.collect(), messages.cloned().collect())
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let (elapsed, now) = (self.clock().elapsed(), self.clock().now());
        let mut state = self.inner.state.lock();
        state.check_layout(claim, elapsed)?;
        let version = state.members.version();
        state.begin_life(claim, elapsed)?;
        let (mut granted, mut held) = (Vec::new(), Vec::new());
        for &shard in &claim.shards {
            match state.claim_shard(shard, claim, elapsed) {
                Ok(grant) => granted.push(grant),
                Err(other) => held.push(other),
            }
        }
        let members = state.members_since(version, elapsed);
        // Incarnations are random, and this one is the store's first.
        let store = state.name.get_or_insert_with(|| format!("{}-{}", claim.incarnation.0, now.as_millis()).into());
        let store = Some(store.clone());
        Ok(Claimed { granted, held, sequence: self.inner.sequence, overlap: NonZeroU16::MAX, now, store, members })
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let Renewal { incarnation, lease, ref presence } = *renewal;
        let (elapsed, now) = (self.clock().elapsed(), self.clock().now());
        let mut state = self.inner.state.lock();
        let version = state.members.version();
        let State { lives, members, .. } = &mut *state;
        let life = lives.get_mut(&incarnation).filter(|life| !life.ended).ok_or(StoreError::Replaced)?;
        life.lease_until = elapsed.saturating_add(lease);
        members.note(incarnation, &life.host, presence, (elapsed, life.lease_until));
        let members = state.members_since(version, elapsed);
        let mine = || state.shards.iter().filter(|(_, shard)| shard.owner == Some(incarnation));
        Ok(Renewed {
            owned: mine().map(|(&id, _)| id).collect(),
            unknown: Vec::new(),
            inbox: mine().filter(|(_, shard)| !shard.inbox.is_empty()).map(|(&id, _)| id).collect(),
            now,
            members,
        })
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        let mut state = self.inner.state.lock();
        // An ended life has released nothing: its handlers may have been running.
        if state.lives.get(&incarnation).is_none_or(|life| life.ended) {
            return Ok(());
        }
        for (id, epoch) in given_up {
            let is_of = |shard: &Shard| epoch.is_none_or(|epoch| epoch == shard.epoch);
            let shard = state.shards.get_mut(id).filter(|shard| shard.owner == Some(incarnation) && is_of(shard));
            if let Some(shard) = shard {
                shard.owner = None;
            }
        }
        let owns_nothing = !state.shards.values().any(|shard| shard.owner == Some(incarnation));
        if owns_nothing
            && state.members.owns_nothing(incarnation)
            && let Some(life) = state.lives.get_mut(&incarnation)
        {
            life.ended = true;
        }
        state.hint(Hint::Fleet);
        Ok(())
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        let elapsed = self.clock().elapsed();
        let mut state = self.inner.state.lock();
        let version = state.members.version();
        let is_done = state.members.cordon(member, is_cordoned, seen, elapsed);
        state.members_since(version, elapsed);
        Ok(is_done)
    }

    async fn members(&self) -> Result<Members, StoreError> {
        let elapsed = self.clock().elapsed();
        let mut state = self.inner.state.lock();
        let version = state.members.version();
        Ok(state.members_since(version, elapsed))
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut state = self.inner.state.lock();
        let State { lives, shards, .. } = &mut *state;
        let life = lives.get_mut(&write.incarnation);
        let ended = life.as_ref().is_none_or(|life| life.ended);
        let is_repeat = |lanes: &mut BTreeMap<Lane, u64>| {
            let newest = lanes.entry(write.lane).or_default();
            if write.seq < *newest {
                return Err(StoreError::Stale { lane: write.lane, seq: write.seq, newest: *newest });
            }
            Ok(std::mem::replace(newest, write.seq) == write.seq)
        };
        let repeated = match life {
            Some(life) if self.inner.sequence == Sequence::OfLane => is_repeat(&mut life.lanes)?,
            _ => false,
        };
        let apply = |batch: &Batch| {
            let shard = shards.get_mut(&batch.shard);
            let newest = shard.as_ref().map_or(Epoch(0), |shard| shard.epoch);
            match shard {
                Some(shard) if !ended && shard.owner == Some(write.incarnation) && batch.epoch == newest => {
                    let repeated = match self.inner.sequence {
                        Sequence::OfLane => repeated,
                        Sequence::OfShard => is_repeat(&mut shard.lanes)?,
                    };
                    if !repeated {
                        batch.ops.iter().for_each(|op| shard.apply(op));
                    }
                    Ok(())
                }
                _ => Err(StoreError::Fenced { shard: batch.shard, held: batch.epoch, newest }),
            }
        };
        Ok(write.batches.iter().map(apply).collect())
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        let arrived = self.clock().now();
        let mut state = self.inner.state.lock();
        let posted = messages
            .iter()
            .map(|message| state.shards.entry(message.shard).or_default().post(message, arrived))
            .collect();
        let touched: BTreeSet<ShardId> = messages.iter().map(|message| message.shard).collect();
        for shard in touched {
            state.hint(Hint::Inbox(shard));
        }
        Ok(posted)
    }

    async fn watch(&self, _incarnation: Incarnation) -> Result<Hints, StoreError> {
        let (sender, hints) = Hints::channel();
        self.inner.state.lock().watchers.push(sender);
        Ok(hints)
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let state = self.inner.state.lock();
        let empty = Shard::default();
        Ok(pages.iter().map(|page| state.shards.get(&page.shard).unwrap_or(&empty).load(page)).collect())
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        let state = self.inner.state.lock();
        let empty = Shard::default();
        let shard = state.shards.get(&read.shard).unwrap_or(&empty);
        let most = (read.limit, read.bytes);
        let (rows, is_last) = match &read.range {
            ReadRange::Storage(from, to) => {
                let rows = values(&shard.storage, &read.name, from);
                let rows = rows.take_while(|(key, _)| to.as_ref().is_none_or(|to| key < to));
                let (rows, is_last) = fitting(most, rows, |(_, value)| value.len());
                (ReadRows::Storage(rows), is_last)
            }
            ReadRange::Alarms(from, to) => {
                let rows = shard.alarms.of(&read.name, from);
                let rows = rows.take_while(|row| to.as_ref().is_none_or(|to| row.id < *to));
                let (rows, is_last) = fitting(most, rows, AlarmRow::bytes);
                (ReadRows::Alarms(rows), is_last)
            }
        };
        Ok(Found { rows, is_last })
    }
}

/// The values of one instance from a key on, by key.
fn values(
    storage: &BTreeMap<Item, Bytes>,
    name: &InstanceName,
    from: &Arc<str>,
) -> impl Iterator<Item = (Arc<str>, Bytes)> {
    let from = Bound::Included(&(name, from) as &dyn Named);
    let values = storage.range::<dyn Named + '_, _>((from, Bound::Unbounded));
    let values = values.take_while(move |(item, _)| item.name == *name);
    values.map(|(item, value)| (item.id.clone(), value.clone()))
}

/// The first of `rows` that fit into an answer of so many rows and bytes, and whether they are all.
fn fitting<T>(
    (limit, most_bytes): (usize, usize),
    rows: impl Iterator<Item = T>,
    bytes: fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let (mut fitting, mut total) = (Vec::new(), 0_usize);
    for row in rows {
        total = total.saturating_add(bytes(&row));
        if fitting.len() >= limit || (total > most_bytes && !fitting.is_empty()) {
            return (fitting, false);
        }
        fitting.push(row);
    }
    (fitting, true)
}

/// Everything strictly after `key`, or everything.
fn after<K: Clone>(key: &Option<K>) -> (Bound<K>, Bound<K>) {
    (key.clone().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl State {
    /// Refuses a claimer that is configured otherwise; changes nothing.
    fn check_layout(&self, claim: &Claim, elapsed: Duration) -> Result<(), StoreError> {
        let (shard_count, hash_version) = (claim.shard_count, claim.hash_version);
        if let Some((stored_shard_count, stored_hash_version)) = self.layout
            && (stored_shard_count, stored_hash_version) != (shard_count, hash_version)
        {
            return Err(StoreError::Mismatch { shard_count, hash_version, stored_shard_count, stored_hash_version });
        }
        self.members.check(claim, elapsed)
    }

    /// The members, and a hint for all if they have changed since.
    fn members_since(&mut self, version: u64, elapsed: Duration) -> Members {
        let members = self.members.members(elapsed);
        if members.version != version {
            self.hint(Hint::Fleet);
        }
        members
    }

    fn hint(&mut self, hint: Hint) {
        self.watchers.retain(|watcher| !watcher.is_closed());
        self.watchers.iter().for_each(|watcher| watcher.send(hint));
    }

    /// Records the claimer and its lease and, at a start, ends the earlier lives of its host.
    fn begin_life(&mut self, claim: &Claim, elapsed: Duration) -> Result<(), StoreError> {
        let lease_until = elapsed.saturating_add(claim.lease);
        match self.lives.entry(claim.incarnation) {
            Entry::Occupied(life) if life.get().ended => return Err(StoreError::Replaced),
            Entry::Occupied(mut life) => life.get_mut().lease_until = lease_until,
            Entry::Vacant(life) => {
                life.insert(Life { host: claim.host.clone(), lease_until, ended: false, lanes: BTreeMap::new() });
            }
        }
        self.layout = Some((claim.shard_count, claim.hash_version));
        if claim.kind == ClaimKind::Start {
            for (incarnation, life) in &mut self.lives {
                if *incarnation != claim.incarnation && life.host == claim.host {
                    life.ended = true;
                    self.members.end(*incarnation);
                }
            }
        }
        self.members.note(claim.incarnation, &claim.host, &claim.presence, (elapsed, lease_until));
        Ok(())
    }

    fn claim_shard(&mut self, id: ShardId, claim: &Claim, elapsed: Duration) -> Result<Grant, Held> {
        let shard = self.shards.entry(id).or_default();
        let is_mine = shard.owner == Some(claim.incarnation);
        if is_mine && claim.given_up.contains(&(id, shard.epoch)) {
            shard.clean = false;
            shard.epoch.0 += 1;
            shard.lanes.clear();
        } else if !is_mine {
            if let Some(life) = shard.owner.and_then(|owner| self.lives.get(&owner)) {
                let own_past = claim.kind == ClaimKind::Start && life.host == claim.host;
                if life.lease_until > elapsed && !own_past {
                    return Err(Held { shard: id, holder: life.host.clone(), remaining: life.lease_until - elapsed });
                }
            }
            shard.clean = shard.owner.is_none();
            shard.owner = Some(claim.incarnation);
            shard.epoch.0 += 1;
            shard.lanes.clear();
        }
        Ok(Grant { shard: id, epoch: shard.epoch, clean: shard.clean })
    }
}

impl Shard {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::PutAlarm(row) => self.alarms.put(row),
            Op::RemoveAlarm { name, id, revision } => self.alarms.remove(name, id, *revision),
            Op::PutMessage(row) => self.put_message(row),
            Op::RemoveMessage(key) => {
                if self.inbox.remove(key).is_some() {
                    self.arrivals.remove(&(&key.name, &key.id) as &dyn Named);
                }
            }
            Op::PutDead(letter) => {
                self.dead.insert(letter.key(), letter.clone());
            }
            Op::RemoveDead(key) => {
                self.dead.remove(key);
            }
            Op::Put { name, key, value } => match self.storage.get_mut(&(name, key) as &dyn Named) {
                Some(stored) => *stored = value.clone(),
                None => {
                    self.storage.insert(Item::new(name, key), value.clone());
                }
            },
            Op::Delete { name, key } => {
                self.storage.remove(&(name, key) as &dyn Named);
            }
        }
    }

    fn put_message(&mut self, row: &InboxRow) {
        if let Some(stored) = self.inbox.get_mut(&row.key()) {
            let (headers, body) = (std::mem::take(&mut stored.headers), std::mem::take(&mut stored.body));
            *stored = InboxRow { headers, body, ..row.clone() };
        }
    }

    fn post(&mut self, message: &NewMessage, arrived: Timestamp) -> Posted {
        let Entry::Vacant(place) = self.arrivals.entry(Item::new(&message.name, &message.id)) else {
            return Posted::Duplicate;
        };
        place.insert(arrived);
        let row = message.clone().into_row(arrived);
        self.inbox.insert(row.key(), row);
        Posted::Inserted
    }

    fn load(&self, page: &Page) -> Loaded {
        let most = (page.limit, page.bytes);
        let (rows, is_last) = match &page.after {
            After::Alarms(key) => {
                let (rows, is_last) = fitting(most, self.alarms.after(key.as_ref()), AlarmRow::bytes);
                (Rows::Alarms(rows), is_last)
            }
            After::Inbox(key) => {
                let rows = self.inbox.range(after(key)).map(|(_, row)| row);
                let (mut rows, is_last) = fitting(most, rows.cloned(), InboxRow::bytes);
                if page.keys_only {
                    rows.iter_mut().for_each(|row| *row = row.key().into_row());
                }
                (Rows::Inbox(rows), is_last)
            }
            After::Dead(key) => {
                let (rows, is_last) =
                    fitting(most, self.dead.range(after(key)).map(|(_, row)| row.clone()), DeadLetter::bytes);
                (Rows::Dead(rows), is_last)
            }
        };
        Loaded { rows, damaged: Vec::new(), is_last }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::store::Presence;
    use crate::testing::SimClock;

    const LEASE: Duration = Duration::from_secs(10);

    fn claim(incarnation: u64, host: &str) -> Claim {
        Claim {
            incarnation: Incarnation(incarnation),
            host: host.into(),
            shards: vec![ShardId(0)],
            given_up: Vec::new(),
            shard_count: 16,
            hash_version: 1,
            lease: LEASE,
            kind: ClaimKind::Running,
            presence: Presence::default(),
        }
    }

    fn message(id: &str) -> NewMessage {
        let name = InstanceName { interface: "order".into(), instance: "i".into() };
        NewMessage { shard: ShardId(0), name, id: id.into(), headers: vec![], body: Bytes::new() }
    }

    fn simulated() -> (MemoryStore, SimClock) {
        let clock = SimClock::new(Timestamp::from_millis(1_000_000));
        (MemoryStore::with_clock(Arc::new(clock.clone())), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_at_its_time_and_no_sooner() {
        let (store, clock) = simulated();
        store.claim(&claim(1, "host-a")).await.unwrap();
        clock.sleep(LEASE - Duration::from_millis(1)).await;
        let held = store.claim(&claim(2, "host-b")).await.unwrap().held;
        assert_eq!(held, [Held { shard: ShardId(0), holder: "host-a".into(), remaining: Duration::from_millis(1) }]);
        clock.sleep(Duration::from_millis(1)).await;
        let granted = store.claim(&claim(2, "host-b")).await.unwrap().granted;
        assert_eq!(granted, [Grant { shard: ShardId(0), epoch: Epoch(2), clean: false }]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_neither_ends_nor_lengthens_a_lease() {
        let (store, clock) = simulated();
        store.claim(&claim(1, "host-a")).await.unwrap();
        clock.step(3_600_000);
        assert_eq!(store.claim(&claim(2, "host-b")).await.unwrap().held.len(), 1);
        clock.step(-7_200_000);
        clock.sleep(LEASE).await;
        assert_eq!(store.claim(&claim(2, "host-b")).await.unwrap().granted.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn arrivals_are_stamped_with_the_wall_of_the_store() {
        let (store, clock) = simulated();
        clock.step(5);
        store.post(&[message("m")]).await.unwrap();
        assert_eq!(store.dump().inbox().next().unwrap().arrived, Timestamp::from_millis(1_000_005));
        assert_eq!(store.claim(&claim(1, "host-a")).await.unwrap().now, Timestamp::from_millis(1_000_005));
    }

    #[tokio::test]
    async fn a_listener_that_does_not_listen_costs_no_post_and_loses_no_hint() {
        let (store, _) = simulated();
        let mut hints = store.watch(Incarnation(1)).await.unwrap();
        drop(store.watch(Incarnation(2)).await.unwrap());
        for n in 0..3_000 {
            store.post(&[NewMessage { shard: ShardId(n % 1_500), ..message(&n.to_string()) }]).await.unwrap();
        }
        assert_eq!(store.inner.state.lock().watchers.len(), 1, "who is gone is forgotten");
        drop(store);
        for shard in 0..1_500 {
            assert_eq!(hints.next().await, Some(Hint::Inbox(ShardId(shard))));
        }
        assert_eq!(hints.next().await, None, "the end of the store ends the stream");
    }

    #[tokio::test]
    async fn clones_are_handles_to_the_same_rows() {
        let store = MemoryStore::new();
        store.clone().post(&[message("m")]).await.unwrap();
        assert_eq!(store.dump().shards[&ShardId(0)].inbox.len(), 1);
        assert_eq!(MemoryStore::new().dump().shards.len(), 0);
    }
}
