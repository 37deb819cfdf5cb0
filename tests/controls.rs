//! Negative controls: stores that are broken on purpose. A check that never fails proves nothing, so each of these has to be
//! found out by the same simulation and the same checker that find nothing wrong with the library.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use stable_interfaces::testing::{Faults, Invariant, Simulation};
use stable_interfaces::{
    AlarmRow, Claim, Claimed, Epoch, Hints, Incarnation, Lane, Loaded, NewMessage, Op, Page, Posted, Read, ReadRows,
    Renewed, Rows, ShardId, Store, StoreError, Timestamp, Write,
};
use system_tests::exercise::Exercise;

/// How a store is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    AcknowledgesEarly,
    Reorders,
    AppliesPartly,
    IgnoresTheEpoch,
    IgnoresTheSequence,
    ForgetsRemovals,
    ReturnsPagesWithAHole,
    LosesPosts,
    ShowsAlarmsEarly,
    ForgetsValues,
}

/// Those that are counted, with what each does and by which promises it may be found out.
const CONTROLS: [(How, &str, &[Invariant]); 8] = [
    (
        How::AcknowledgesEarly,
        "a store that acknowledges before it writes, and forgets that in a crash",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (
        How::Reorders,
        "a store that applies writes in another order",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (
        How::AppliesPartly,
        "a store that applies a part of a batch",
        &[Invariant::Kept, Invariant::Once, Invariant::Read],
    ),
    (How::IgnoresTheEpoch, "a store that lets former owners write", &[Invariant::OneWriter]),
    (
        How::IgnoresTheSequence,
        "a store that applies repeated and late writes again",
        &[Invariant::Kept, Invariant::Once, Invariant::NotAfterCancel, Invariant::Read],
    ),
    (How::ForgetsRemovals, "a store that forgets to remove", &[Invariant::Once, Invariant::NotAfterCancel]),
    (How::ReturnsPagesWithAHole, "a store whose pages have a hole", &[Invariant::Handled, Invariant::InOrder]),
    (How::LosesPosts, "a store that loses posts", &[Invariant::Kept]),
];

/// Those of which one may ask why they are not there.
const MORE: [(How, &str, &[Invariant]); 2] = [
    (How::ShowsAlarmsEarly, "a store that shows alarms as due before their time", &[Invariant::NotEarly]),
    (How::ForgetsValues, "a store that forgets what it is to overwrite", &[Invariant::Once, Invariant::Kept]),
];

/// A broken store.
#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Store>,
    how: How,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    writes: u64,
    /// What was acknowledged and not written, or waits for its successor.
    kept_back: BTreeMap<(Incarnation, Lane), Write>,
    owners: BTreeMap<ShardId, (Incarnation, Epoch)>,
    seqs: BTreeMap<(Incarnation, Lane), u64>,
}

impl State {
    /// Whether it is the turn of the fault.
    fn is_turn(&mut self, of: u64) -> bool {
        self.writes += 1;
        self.writes.is_multiple_of(of)
    }

    /// A number that the store behind has not seen.
    fn next_seq(&mut self, write: &Write) -> u64 {
        let seq = self.seqs.entry((write.incarnation, write.lane)).or_default();
        *seq += 1;
        *seq
    }
}

type Answers = Result<Vec<Result<(), StoreError>>, StoreError>;

impl Broken {
    fn new(inner: Arc<dyn Store>, how: How) -> Broken {
        Broken { inner, how, state: Mutex::default() }
    }

    async fn write_again(&self, mut write: Write) -> Answers {
        write.seq = self.state.lock().next_seq(&write);
        self.inner.commit(&write).await
    }

    /// Writes in the name of whoever owns the shards now.
    async fn write_as_owner(&self, write: &Write) -> Answers {
        let answers = self.inner.commit(write).await?;
        for (batch, _) in write.batches.iter().zip(&answers).filter(|(_, answer)| answer.is_err()) {
            let forged = {
                let mut state = self.state.lock();
                let Some(&(incarnation, epoch)) = state.owners.get(&batch.shard) else { continue };
                let mut forged = Write { incarnation, lane: Lane(99), seq: 0, batches: vec![batch.clone()] };
                forged.batches[0].epoch = epoch;
                forged.seq = state.next_seq(&forged);
                forged
            };
            drop(self.inner.commit(&forged).await);
        }
        Ok(write.batches.iter().map(|_| Ok(())).collect())
    }

    async fn write(&self, write: &Write) -> Answers {
        match self.how {
            How::AcknowledgesEarly => {
                let before = self.state.lock().kept_back.insert((write.incarnation, write.lane), write.clone());
                match before {
                    Some(before) if before.seq != write.seq => drop(self.inner.commit(&before).await),
                    _ => {}
                }
                Ok(write.batches.iter().map(|_| Ok(())).collect())
            }
            How::Reorders => {
                let key = (write.incarnation, write.lane);
                let is_turn = self.state.lock().is_turn(4);
                if is_turn {
                    self.state.lock().kept_back.insert(key, write.clone());
                    return Ok(write.batches.iter().map(|_| Ok(())).collect());
                }
                let answers = self.write_again(write.clone()).await;
                let before = self.state.lock().kept_back.remove(&key);
                if let Some(before) = before {
                    drop(self.write_again(before).await);
                }
                answers
            }
            How::IgnoresTheEpoch => self.write_as_owner(write).await,
            How::IgnoresTheSequence => self.write_again(write.clone()).await,
            _ => {
                let mut write = write.clone();
                for batch in &mut write.batches {
                    let mut state = self.state.lock();
                    match self.how {
                        How::AppliesPartly if batch.ops.len() > 1 && state.is_turn(10) => drop(batch.ops.pop()),
                        How::ForgetsRemovals => batch.ops.retain(|op| {
                            let removes = matches!(op, Op::RemoveAlarm { .. } | Op::RemoveMessage(_));
                            !(removes && state.is_turn(10))
                        }),
                        How::ForgetsValues => {
                            batch.ops.retain(|op| !(matches!(op, Op::Put { .. }) && state.is_turn(40)));
                        }
                        _ => {}
                    }
                }
                self.inner.commit(&write).await
            }
        }
    }
}

/// One in ten alarms.
fn is_hidden(row: &AlarmRow) -> bool {
    row.id.bytes().map(u32::from).sum::<u32>() % 10 == 0
}

#[async_trait]
impl Store for Broken {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let claimed = self.inner.claim(claim).await?;
        let mut state = self.state.lock();
        for grant in &claimed.granted {
            state.owners.insert(grant.shard, (claim.incarnation, grant.epoch));
        }
        Ok(claimed)
    }

    async fn renew(&self, incarnation: Incarnation, lease: Duration) -> Result<Renewed, StoreError> {
        self.inner.renew(incarnation, lease).await
    }

    async fn release(&self, incarnation: Incarnation, shards: &[ShardId]) -> Result<(), StoreError> {
        self.inner.release(incarnation, shards).await
    }

    async fn commit(&self, write: &Write) -> Answers {
        self.write(write).await
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        if self.how == How::LosesPosts && self.state.lock().is_turn(5) {
            return Ok(messages.iter().map(|_| Posted::Inserted).collect());
        }
        self.inner.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let mut loaded = self.inner.load(pages).await?;
        for page in &mut loaded {
            let Rows::Alarms(rows) = &mut page.rows else { continue };
            match self.how {
                How::ReturnsPagesWithAHole => rows.retain(|row| !is_hidden(row)),
                How::ShowsAlarmsEarly => {
                    for row in rows {
                        row.due = Timestamp::from_millis(row.due.as_millis() - 5_000);
                    }
                }
                _ => {}
            }
        }
        Ok(loaded)
    }

    async fn read(&self, read: &Read) -> Result<ReadRows, StoreError> {
        self.inner.read(read).await
    }
}

/// The first seed with which the store is found out, and by which promise.
fn catch(how: How, by: &[Invariant]) -> Option<(u64, String)> {
    (1..=12).find_map(|seed| {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = simulation.behind(move |store| Arc::new(Broken::new(store, how))).run(Exercise::default());
        let found = run.violations.iter().find(|violation| by.contains(&violation.invariant))?;
        Some((seed, found.to_string()))
    })
}

fn catch_all(controls: &'static [(How, &'static str, &'static [Invariant])]) -> usize {
    // Side by side: they have nothing to do with each other.
    let caught: Vec<_> = std::thread::scope(|scope| {
        let half = controls.len().div_ceil(2);
        let runs = controls.chunks(half).map(|some| {
            scope.spawn(move || some.iter().map(|(how, what, by)| (*what, catch(*how, by))).collect::<Vec<_>>())
        });
        let runs: Vec<_> = runs.collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    for (what, found) in &caught {
        match found {
            Some((seed, found)) => println!("caught {what}: seed {seed}, {found}"),
            None => println!("NOT caught: {what}"),
        }
    }
    caught.iter().filter(|(_, found)| found.is_some()).count()
}

#[test]
fn every_broken_store_is_found_out() {
    let caught = catch_all(&CONTROLS);
    println!("{caught} of {} caught", CONTROLS.len());
    assert_eq!(caught, CONTROLS.len());
}

#[test]
fn stores_broken_in_rarer_ways_are_found_out_too() {
    assert_eq!(catch_all(&MORE), MORE.len());
}

#[test]
fn nothing_is_found_out_about_a_store_that_is_not_broken() {
    for seed in 1..=3 {
        let simulation = Simulation::new(seed).length(Duration::from_secs(240)).faults(Faults::ALL);
        let run = simulation.behind(|store| store).run(Exercise::default());
        assert!(run.violations.is_empty(), "seed {seed}: {:#?}", run.violations);
    }
}
