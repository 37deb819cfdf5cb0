//! `claim`, `renew` and `release`.
//!
//! A shard's owner, epoch and lease are one hash under the shard's own hash tag, so that one script decides about it and fences the
//! last owner in the same step; what concerns a whole life of a host is under the fleet's. See [the store](super) for why.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use stable_interfaces::store::{
    Claim, ClaimKind, Claimed, Epoch, Grant, Held, Incarnation, Lane, Members, Renewal, Renewed, Sequence, ShardId,
};
use stable_interfaces::{StoreError, Timestamp};

use super::failure::Failure;
use super::members::{put_said, read_members};
use super::node::within;
use super::reply::{Texts, optional_text, shards};
use super::script::{ALIVE, CLAIMED, Call, ENTER, LEASE, MARK, MEMBERS, RELEASE};
use super::watermarks::Life;
use super::{Inner, STEP, keys_of};
use crate::steps::Record;

/// Shards in one script on a single server: some tenths of a millisecond.
const SHARDS_PER_CALL: usize = 100;
/// Leases are compared as doubles, which hold this many milliseconds and the present exactly: 30,000 years.
const MAX_LEASE_MILLIS: u128 = 1_000_000_000_000_000;

/// A loss, in the words that its host is told.
const RECORD_IS_GONE: &str = "its record of this host is gone";

fn lease_millis(lease: Duration) -> String {
    lease.as_millis().min(MAX_LEASE_MILLIS).to_string()
}

/// A life that has entered: the store's name, the number of its start, the store's clock, the members, and at a start the shards that earlier lives
/// of its host may own.
struct Entered {
    store: Arc<str>,
    birth: u64,
    now: Timestamp,
    members: Members,
    past: Vec<ShardId>,
}

/// The life of a host that extends leases and claims shards.
struct Claimant<'a> {
    incarnation: Incarnation,
    host: &'a str,
    birth: u64,
    /// The time at which the claim was let in, by the fleet's server; none of a renewal.
    entered: Option<Timestamp>,
    is_start: bool,
    lease: Duration,
}

/// One shard, as the lease script describes it.
#[derive(Debug)]
struct Leased {
    state: State,
    epoch: Epoch,
    is_clean: bool,
    owner: Option<Incarnation>,
    holder: String,
    remaining: Duration,
    has_inbox: bool,
    /// The last write of each of the owner's lanes.
    taken: BTreeMap<Lane, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Mine,
    Replaced,
    Other,
}

impl Inner {
    pub(super) async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.watermarks.check(claim.incarnation)?;
        let began = self.target.clock.elapsed();
        let Entered { store, birth, now, members, past } = self.enter(claim).await?;
        let wanted: BTreeSet<ShardId> = claim.shards.iter().copied().collect();
        let life = self.watermarks.life(claim.incarnation);
        // One lease covers all shards of a life; and a start ends what earlier lives of its name may own anywhere.
        let mine = life.iter().flat_map(|life| life.shards.keys().copied());
        let touched: BTreeSet<ShardId> = wanted.iter().copied().chain(mine).chain(past).collect();
        let claimant = Claimant {
            incarnation: claim.incarnation,
            host: &claim.host,
            birth,
            entered: Some(now),
            is_start: claim.kind == ClaimKind::Start,
            lease: claim.lease,
        };
        let given_up = claim.given_up.iter().copied().collect();
        let (calls, places) = self.lease_calls(&claimant, &touched, &wanted, &given_up);
        let (mut leased, _, failure) = read_leases(claim.incarnation, self.leases.run(&calls).await, &places)?;
        self.check_leases(claim.incarnation, life.as_ref(), &leased)?;
        if let Some(failure) = failure
            && leased.is_empty()
        {
            return Err(failure.into_open_error());
        }
        let (mut granted, mut held) = (Vec::new(), Vec::new());
        for &shard in &claim.shards {
            match leased.remove(&shard) {
                Some(Leased { state: State::Mine, epoch, is_clean, .. }) => {
                    self.watermarks.grant(claim.incarnation, shard, epoch);
                    granted.push(Grant { shard, epoch, clean: is_clean });
                }
                Some(Leased { holder, remaining, .. }) => held.push(Held { shard, holder: holder.into(), remaining }),
                // Its server cannot be reached: the others need not wait for it.
                None => held.push(Held { shard, holder: claim.host.clone(), remaining: Duration::ZERO }),
            }
        }
        let clock = &*self.target.clock;
        // The lease is running. What is not done in that time is left to the next start.
        let until = began.saturating_add((self.target.timeout / 2).min(claim.lease / 10));
        if claimant.is_start
            && clock.elapsed() < until
            && let Some(Err(failure)) = within(clock, until, self.forget_names()).await
        {
            tracing::debug!(error = failure.text(), "names that nobody has seen for long are not forgotten yet");
        }
        // A script waits for others on the server alone.
        let (sequence, overlap) = (Sequence::OfShard, NonZeroU16::MAX);
        Ok(Claimed { granted, held, sequence, overlap, now, store: Some(store), members })
    }

    /// Records this life.
    async fn enter(&self, claim: &Claim) -> Result<Entered, StoreError> {
        let Claim { shard_count, hash_version, incarnation, .. } = *claim;
        let host = &claim.host;
        let claimed = format!("claimed:{host}");
        let keys = ["fleet", "lives", "started", &claimed, &format!("past:{host}"), "members", "gone"]
            .map(|suffix| self.keys.fleet(suffix));
        let record = Record::of(STEP);
        let known = self.watermarks.life(incarnation).map(|life| life.birth.to_string());
        let call = Call::new(&ENTER, &keys)
            .arg(incarnation.0)
            .arg(&**host)
            .arg(if claim.kind == ClaimKind::Start { "start" } else { "running" })
            .arg(shard_count)
            .arg(hash_version)
            .arg(self.watermarks.store().unwrap_or_default())
            // Incarnations are random, and this one is the store's first.
            .arg(format!("{}-{}", incarnation.0, self.target.clock.now().as_millis()))
            .arg(u8::from(self.must_exist))
            .arg(record.step)
            .arg(record.needs)
            .arg(record.release);
        let call = put_said(call, lease_millis(claim.lease), &self.keys, &claim.presence)
            .arg(known.unwrap_or_default())
            .arg(claim.shards.iter().map(|shard| shard.0).collect::<Vec<_>>());
        let answer = self.leases.one(call).await.and_then(Texts::new).map_err(Failure::into_open_error)?;
        self.read_entry(claim, answer).map_err(Failure::into_store_error)?
    }

    /// Reads an answer of the script: the outer error is of reading, the inner one is what the store has said.
    fn read_entry(&self, claim: &Claim, mut answer: Texts) -> Result<Result<Entered, StoreError>, Failure> {
        let Claim { shard_count, hash_version, incarnation, .. } = *claim;
        Ok(Err(match answer.text()?.as_str() {
            "entered" => {
                let (store, birth, created) = (answer.text()?, answer.number()?, answer.text()?);
                let now = answer.time()?;
                let members = read_members(&mut answer, now)?;
                if created == "created" {
                    tracing::warn!(
                        store, prefix = %self.keys.fleet(""),
                        "the Redis store is empty: a new fleet begins here. If it held data before, that is lost"
                    );
                }
                let name = store.as_str().into();
                self.watermarks.enter(store, incarnation, &claim.host, birth);
                let mut past = Vec::new();
                while !answer.is_done() {
                    past.push(ShardId(answer.number()?));
                }
                return Ok(Ok(Entered { store: name, birth, now, members, past }));
            }
            "replaced" => {
                self.watermarks.end(incarnation);
                StoreError::Replaced
            }
            "placement" => {
                let placement = claim.presence.placement;
                StoreError::OtherPlacement { placement, stored: placement.other() }
            }
            "mismatch" => {
                let (stored_shard_count, stored_hash_version) = (answer.number()?, answer.number()?);
                StoreError::Mismatch { shard_count, hash_version, stored_shard_count, stored_hash_version }
            }
            "empty" => StoreError::Open(
                format!(
                    "there is no store under {}, and must_exist(true) was asked for; name the server and prefix that have it, or start \
                     once without",
                    self.keys.fleet("")
                ),
                None,
            ),
            "unfit" => {
                let mut part = || optional_text(answer.item()?);
                let (step, needs, release) = (part()?, part()?, part()?);
                match self.read_record(step.as_deref(), needs.as_deref(), release.as_deref()) {
                    Err(error) => error,
                    Ok(record) => return Err(Failure::unexpected(&record)),
                }
            }
            "lost" => match answer.text()?.as_str() {
                "" => self.watermarks.lose(incarnation, "its record of the fleet is gone"),
                other => self.watermarks.lose(incarnation, &format!("it is another store, {other}")),
            },
            "gone" => self.watermarks.lose(incarnation, RECORD_IS_GONE),
            other => return Err(Failure::unexpected(&other)),
        }))
    }

    /// Reads a fleet's record of its steps and checks that this program may use the store.
    pub(super) fn read_record(
        &self,
        step: Option<&str>,
        needs: Option<&str>,
        release: Option<&str>,
    ) -> Result<Record, StoreError> {
        let record = Record::read(step, needs, release).and_then(|record| record.missing(STEP).map(|_| record));
        record.map_err(|refused| StoreError::Open(format!("the store under {}: {refused}", self.keys.fleet("")), None))
    }

    pub(super) async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let Renewal { incarnation, lease, ref presence } = *renewal;
        self.watermarks.check(incarnation)?;
        let known = self.watermarks.life(incarnation);
        let life = match &known {
            Some(life) => life.clone(),
            None => self.life_from_store(incarnation).await?,
        };
        let claimant =
            Claimant { incarnation, host: &life.host, birth: life.birth, entered: None, is_start: false, lease };
        let mine = life.shards.keys().copied().collect();
        let (mut calls, places) = self.lease_calls(&claimant, &mine, &BTreeSet::new(), &BTreeMap::new());
        calls.push(put_said(self.alive_call(incarnation), lease_millis(lease), &self.keys, presence));
        let mut answers = self.renewals.run(&calls).await;
        let alive = answers.pop().unwrap_or_else(|| Err(Failure::unexpected(&"none")));
        let (leased, latest, failure) = read_leases(incarnation, answers, &places)?;
        // In a cluster the fleet's own server may be gone; the shards know by themselves who has been replaced.
        let mut members = Members::default();
        let (now, failure) = match alive.and_then(|alive| read_alive(alive, incarnation)) {
            Ok(alive) => {
                self.check_alive(incarnation, &life, known.is_some(), &alive)?;
                members = alive.members;
                (latest.max(Some(alive.now)), failure)
            }
            Err(failure) => (latest, Some(failure)),
        };
        self.check_leases(incarnation, known.as_ref(), &leased)?;
        let Some(now) = now else {
            return Err(failure.unwrap_or_else(|| Failure::unexpected(&"none")).into_store_error());
        };
        let unknown = mine.into_iter().filter(|shard| !leased.contains_key(shard)).collect();
        let (mut owned, mut inbox) = (Vec::new(), Vec::new());
        for (shard, leased) in leased {
            if leased.state == State::Mine {
                owned.push(shard);
                if leased.has_inbox {
                    inbox.push(shard);
                }
            } else if let Some(shard_known) = life.shards.get(&shard) {
                self.watermarks.give_up(incarnation, shard, shard_known.epoch);
            }
        }
        Ok(Renewed { owned, unknown, inbox, now, members })
    }

    fn alive_call(&self, incarnation: Incarnation) -> Call {
        let keys = ["fleet", "lives", "started", "members", "gone"].map(|suffix| self.keys.fleet(suffix));
        Call::new(&ALIVE, &keys).arg(incarnation.0)
    }

    /// A life that another handle led: what it may own.
    async fn life_from_store(&self, incarnation: Incarnation) -> Result<Life, StoreError> {
        let alive = self.renewals.one(self.alive_call(incarnation)).await;
        let alive = alive.and_then(|alive| read_alive(alive, incarnation)).map_err(Failure::into_store_error)?;
        let (birth, host) = alive.life.ok_or(StoreError::Replaced)?;
        let call = Call::new(&CLAIMED, &[self.keys.fleet(&format!("claimed:{host}"))]);
        let shards = self.renewals.one(call).await.and_then(shards).map_err(Failure::into_store_error)?;
        Ok(Life { host, birth, shards: shards.into_iter().map(|shard| (shard, Default::default())).collect() })
    }

    fn check_alive(
        &self,
        incarnation: Incarnation,
        life: &Life,
        is_known: bool,
        alive: &Alive,
    ) -> Result<(), StoreError> {
        if is_known && self.watermarks.store().is_some_and(|store| store != alive.store) {
            let what = if alive.store.is_empty() { "its record of the fleet is gone" } else { "it is another store" };
            return Err(self.watermarks.lose(incarnation, what));
        }
        let is_past = alive.started.is_some_and(|started| started > life.birth);
        if is_past || (alive.life.is_none() && (!is_known || life.birth <= alive.dropped)) {
            self.watermarks.end(incarnation);
            return Err(StoreError::Replaced);
        }
        if alive.life.is_none() {
            return Err(self.watermarks.lose(incarnation, RECORD_IS_GONE));
        }
        Ok(())
    }

    /// Compares what shards say with what was known before they were asked.
    fn check_leases(
        &self,
        incarnation: Incarnation,
        life: Option<&Life>,
        leased: &BTreeMap<ShardId, Leased>,
    ) -> Result<(), StoreError> {
        if leased.values().any(|leased| leased.state == State::Replaced) {
            self.watermarks.end(incarnation);
            return Err(StoreError::Replaced);
        }
        for (shard, known) in life.iter().flat_map(|life| &life.shards) {
            if let Some(leased) = leased.get(shard)
                && let Some(what) = known.lost(incarnation, leased.epoch, leased.owner, &leased.taken)
            {
                return Err(self.watermarks.lose(incarnation, &format!("shard {shard}: {what}")));
            }
        }
        Ok(())
    }

    pub(super) async fn release(
        &self,
        incarnation: Incarnation,
        given_up: &[(ShardId, Option<Epoch>)],
    ) -> Result<(), StoreError> {
        self.watermarks.check(incarnation)?;
        let chunks = self.chunks(given_up);
        let call = |some: &&[(ShardId, Option<Epoch>)]| {
            let keys: Vec<String> = some.iter().flat_map(|(shard, _)| self.keys.shard(*shard, ["own"])).collect();
            let epochs = some.iter().map(|(_, epoch)| epoch.map_or_else(String::new, |epoch| epoch.to_string()));
            Call::new(&RELEASE, &keys).arg(incarnation.0).arg(self.keys.channel()).arg(epochs.collect::<Vec<_>>())
        };
        let calls: Vec<Call> = chunks.iter().map(call).collect();
        let mut failed = None;
        for (some, answer) in chunks.iter().zip(self.leases.run(&calls).await) {
            match answer {
                Ok(_) => {
                    for &(shard, epoch) in *some {
                        let known = || self.watermarks.shard(incarnation, shard).map(|known| known.epoch);
                        if let Some(epoch) = epoch.or_else(known) {
                            self.watermarks.give_up(incarnation, shard, epoch);
                        }
                    }
                }
                // An unknown outcome weighs more than a known one.
                Err(failure) => {
                    let error = failure.into_store_error();
                    if failed.as_ref().is_none_or(|failed: &StoreError| !failed.may_have_happened()) {
                        failed = Some(error);
                    }
                }
            }
        }
        // What it may own still was not released, or is not known to this process.
        if failed.is_none() && self.watermarks.life(incarnation).is_some_and(|life| life.shards.is_empty()) {
            failed =
                self.leases.one(self.mark_call("left").arg(incarnation.0)).await.err().map(Failure::into_store_error);
        }
        failed.map_or(Ok(()), Err)
    }

    pub(super) async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        let call = self.mark_call("cordon").arg(member.0).arg(u8::from(is_cordoned)).arg(seen);
        let is_done = |answer| Texts::new(answer)?.text().map(|is_done| is_done == "1");
        self.leases.one(call).await.and_then(is_done).map_err(Failure::into_store_error)
    }

    pub(super) async fn members(&self) -> Result<Members, StoreError> {
        let keys = ["fleet", "members"].map(|suffix| self.keys.fleet(suffix));
        let read = |answer| {
            let mut answer = Texts::new(answer)?;
            let now = answer.time()?;
            read_members(&mut answer, now)
        };
        self.leases.one(Call::new(&MEMBERS, &keys)).await.and_then(read).map_err(Failure::into_store_error)
    }

    fn mark_call(&self, what: &str) -> Call {
        let keys = ["fleet", "members", "lives", "started", "gone"].map(|suffix| self.keys.fleet(suffix));
        Call::new(&MARK, &keys).arg(self.keys.channel()).arg(what)
    }

    /// Shards that one script may touch: on a single server many, in a cluster one, because each has a slot of its own.
    pub(super) fn chunks<'a, T>(&self, shards: &'a [T]) -> Vec<&'a [T]> {
        shards.chunks(if self.target.is_cluster { 1 } else { SHARDS_PER_CALL }).collect()
    }

    fn lease_calls(
        &self,
        claimant: &Claimant<'_>,
        touched: &BTreeSet<ShardId>,
        wanted: &BTreeSet<ShardId>,
        given_up: &BTreeMap<ShardId, Epoch>,
    ) -> (Vec<Call>, Vec<Vec<ShardId>>) {
        let touched: Vec<ShardId> = touched.iter().copied().collect();
        let wish = |shard: &ShardId| {
            let epoch = given_up.get(shard).map_or(0, |epoch| epoch.0);
            if wanted.contains(shard) { epoch.to_string() } else { String::new() }
        };
        let call = |some: &&[ShardId]| {
            let keys: Vec<String> =
                some.iter().flat_map(|shard| self.keys.shard(*shard, ["own", keys_of::INBOX_ORDER])).collect();
            Call::new(&LEASE, &keys)
                .arg(claimant.incarnation.0)
                .arg(claimant.host)
                .arg(claimant.birth)
                .arg(if claimant.is_start { "start" } else { "running" })
                .arg(lease_millis(claimant.lease))
                .arg(claimant.entered.map_or_else(String::new, |entered| entered.as_millis().to_string()))
                .arg(some.iter().map(wish).collect::<Vec<_>>())
        };
        let chunks = self.chunks(&touched);
        (chunks.iter().map(call).collect(), chunks.into_iter().map(<[ShardId]>::to_vec).collect())
    }
}

/// Reads the answers of the lease scripts: the shards that could be asked, the latest of the servers' clocks, and why some could not.
#[allow(clippy::type_complexity, reason = "taken apart where it is called")]
fn read_leases(
    me: Incarnation,
    answers: Vec<Result<Value, Failure>>,
    places: &[Vec<ShardId>],
) -> Result<(BTreeMap<ShardId, Leased>, Option<Timestamp>, Option<Failure>), StoreError> {
    let (mut leased, mut latest, mut failed) = (BTreeMap::new(), None, None);
    for (answer, shards) in answers.into_iter().zip(places) {
        match answer.and_then(|answer| read_lease_call(me, answer, shards)) {
            Ok((now, some)) => {
                latest = latest.max(Some(now));
                leased.extend(shards.iter().copied().zip(some));
            }
            Err(failure) => failed = Some(failure),
        }
    }
    Ok((leased, latest, failed))
}

fn read_lease_call(me: Incarnation, answer: Value, shards: &[ShardId]) -> Result<(Timestamp, Vec<Leased>), Failure> {
    let mut answer = Texts::new(answer)?;
    let now = answer.time()?;
    let leased = shards.iter().map(|_| read_leased(me, answer.item()?)).collect::<Result<_, _>>()?;
    Ok((now, leased))
}

fn read_leased(me: Incarnation, answer: Value) -> Result<Leased, Failure> {
    let mut answer = match answer {
        Value::BulkString(text) => return read_mine(me, &text),
        answer => Texts::new(answer)?,
    };
    let state = if answer.text()? == "replaced" { State::Replaced } else { State::Other };
    let epoch = Epoch(answer.number()?);
    let is_clean = answer.text()? == "1";
    let owner = Some(answer.text()?).filter(|owner| !owner.is_empty()).and_then(|owner| owner.parse().ok());
    let holder = answer.text()?;
    let remaining = Duration::from_millis(answer.number()?);
    let has_inbox = answer.text()? == "1";
    let mut taken = BTreeMap::new();
    while !answer.is_done() {
        taken.insert(Lane(answer.number()?), answer.number()?);
    }
    Ok(Leased { state, epoch, is_clean, owner: owner.map(Incarnation), holder, remaining, has_inbox, taken })
}

/// A shard of the asker: epoch, whether its last owner had released it, whether its inbox has rows; then each lane and its last write.
fn read_mine(me: Incarnation, text: &[u8]) -> Result<Leased, Failure> {
    let broken = || Failure::unexpected(&String::from_utf8_lossy(text));
    let numbers = std::str::from_utf8(text).map_err(|_| broken())?.split(' ').map(str::parse::<u64>);
    let numbers = numbers.collect::<Result<Vec<_>, _>>().map_err(|_| broken())?;
    let [epoch, is_clean, has_inbox, taken @ ..] = numbers.as_slice() else { return Err(broken()) };
    let of_lane = |pair: &[u64]| Some((Lane(u16::try_from(pair[0]).ok()?), *pair.get(1)?));
    let taken = taken.chunks(2).map(of_lane).collect::<Option<BTreeMap<_, _>>>().ok_or_else(broken)?;
    Ok(Leased {
        state: State::Mine,
        epoch: Epoch(*epoch),
        is_clean: *is_clean == 1,
        owner: Some(me),
        holder: String::new(),
        remaining: Duration::ZERO,
        has_inbox: *has_inbox == 1,
        taken,
    })
}

/// A life of a host, as the store knows it.
struct Alive {
    store: String,
    /// Birth and host, if it is known.
    life: Option<(u64, String)>,
    /// The birth of the last start of its host.
    started: Option<u64>,
    /// The greatest birth of a life whose record was dropped.
    dropped: u64,
    now: Timestamp,
    /// None, unless it was renewed.
    members: Members,
}

fn read_alive(answer: Value, incarnation: Incarnation) -> Result<Alive, Failure> {
    let mut answer = Texts::new(answer)?;
    let (store, life, started) = (answer.text()?, answer.text()?, answer.text()?);
    let life = match life.split_once(' ') {
        Some((birth, host)) => {
            let birth = birth.parse();
            let birth =
                birth.map_err(|_| Failure::Unknown(format!("the record of life {} is damaged", incarnation.0)))?;
            Some((birth, host.to_owned()))
        }
        None => None,
    };
    let dropped = answer.number()?;
    let now = answer.time()?;
    let members = if answer.is_done() { Members::default() } else { read_members(&mut answer, now)? };
    Ok(Alive { store, life, started: started.parse().ok(), dropped, now, members })
}

#[cfg(all(test, feature = "testing-servers"))]
mod tests {
    use super::*;
    use crate::RedisStore;
    use crate::testing::servers::Redis;

    /// Has the shards 0 and 1 decide on a claim of shard 1, which was let in so long ago; their states.
    async fn come(store: &RedisStore, me: u64, is_start: bool, ago: Duration) -> Vec<State> {
        let (incarnation, lease) = (Incarnation(me), Duration::from_secs(600));
        let entered = Some(store.0.target.clock.now() - ago);
        let claimant = Claimant { incarnation, host: "a", birth: me, entered, is_start, lease };
        let (touched, wanted) = ([ShardId(0), ShardId(1)].into(), [ShardId(1)].into());
        let (calls, places) = store.0.lease_calls(&claimant, &touched, &wanted, &BTreeMap::new());
        let answers = store.0.leases.run(&calls).await;
        let (leased, ..) = read_leases(incarnation, answers, &places).expect("the server answers");
        leased.values().map(|leased| leased.state).collect()
    }

    #[tokio::test]
    async fn a_claim_that_comes_to_the_shards_days_after_it_was_let_in_is_granted_nothing() {
        let server = Redis::start();
        let store = RedisStore::builder(server.url()).build().expect("it is a good address");
        let days = Duration::from_secs(3 * 24 * 3600);
        let (late, early) = (days + Duration::from_secs(60), days - Duration::from_secs(60));
        for is_start in [false, true] {
            assert_eq!(come(&store, 1, is_start, late).await, [State::Other, State::Other]);
            assert_eq!(server.execute(&["KEYS", "*"]), "", "nothing of it is there");
        }
        assert_eq!(come(&store, 2, true, early).await, [State::Other, State::Mine]);
        assert_eq!(come(&store, 1, false, Duration::ZERO).await, [State::Replaced, State::Replaced]);
        // A later start ends what its past owns, however late it comes.
        assert_eq!(come(&store, 3, true, late).await, [State::Other, State::Other]);
        assert_eq!(server.execute(&["HGET", "{stable:1}:own", "ended"]), "1");
        assert_eq!(come(&store, 2, false, Duration::ZERO).await, [State::Other, State::Replaced]);
    }
}
