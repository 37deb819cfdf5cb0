//! `commit` and `post`.

use redis::Value;
use stable_interfaces::{
    Batch, BoxError, Epoch, InboxRow, Incarnation, NewMessage, Op, Posted, ShardId, StoreError, Timestamp, Write,
};

use super::failure::Failure;
use super::known::Shard;
use super::reply::{Texts, list};
use super::script::{COMMIT, COMMIT_REMOVALS, Call, POST};
use super::{Inner, key, keys_of};
use crate::codec;
use crate::ordered::{TIME, time_bytes};

/// How an alarm is laid out in front of its row: this byte, the revision, the due time. The commit script reads them.
pub(super) const LAYOUT: u8 = 1;
/// Bytes in front of an alarm's row.
pub(super) const ALARM_HEADER: usize = 1 + 16 + TIME;
/// Bytes in front of a message's row: layout and arrival. The post script writes them.
pub(super) const MESSAGE_HEADER: usize = 1 + TIME;

/// Messages in one script.
const MESSAGES_PER_CALL: usize = 250;

/// The operations of a batch by kind, as the commit script takes them: a count of each kind, then their arguments.
#[derive(Debug, Default)]
struct Arguments {
    kinds: [Vec<Vec<u8>>; 8],
}

/// How many arguments an operation of each kind has.
const WIDTHS: [usize; 8] = [2, 2, 2, 1, 2, 1, 2, 1];

impl Arguments {
    /// # Errors
    /// If an operation cannot be stored.
    fn new(ops: &[Op]) -> Result<Arguments, BoxError> {
        let mut arguments = Arguments::default();
        for op in ops {
            let (kind, items) = encoded(op)?;
            arguments.kinds[kind].extend(items);
        }
        Ok(arguments)
    }

    /// Whether it only takes memory away, so that it is to be done when memory is full.
    fn only_removes(&self) -> bool {
        [0, 2, 4, 6].iter().all(|kind| self.kinds[*kind].is_empty())
    }
}

/// The kind of an operation, and its arguments.
pub(super) fn encoded(op: &Op) -> Result<(usize, Vec<Vec<u8>>), BoxError> {
    Ok(match op {
        Op::PutAlarm(alarm) => {
            let row = codec::encode_alarm(alarm);
            let mut value = Vec::with_capacity(ALARM_HEADER + row.len());
            value.push(LAYOUT);
            value.extend_from_slice(&alarm.revision.epoch.0.to_be_bytes());
            value.extend_from_slice(&alarm.revision.counter.to_be_bytes());
            value.extend_from_slice(&time_bytes(alarm.due));
            value.extend_from_slice(&row);
            (0, vec![key::identity(&alarm.name, &alarm.id)?, value])
        }
        Op::RemoveAlarm { name, id, revision } => {
            let revision = [revision.epoch.0.to_be_bytes(), revision.counter.to_be_bytes()].concat();
            (1, vec![key::identity(name, id)?, revision])
        }
        Op::PutMessage(message) => {
            let member = key::timed(message.arrived, &key::identity(&message.name, &message.id)?);
            // Headers and body stay where they are.
            let progress = InboxRow { headers: Vec::new(), body: bytes::Bytes::new(), ..message.clone() };
            (2, vec![member, codec::encode_message(&progress)])
        }
        Op::RemoveMessage(at) => (3, vec![key::timed(at.arrived, &key::identity(&at.name, &at.id)?)]),
        Op::PutDead(letter) => (4, vec![key::dead(&letter.key())?, codec::encode_dead(letter)]),
        Op::RemoveDead(at) => (5, vec![key::dead(at)?]),
        Op::Put { name, key, value } => (6, vec![key::identity(name, key)?, codec::encode_stored(value)]),
        Op::Delete { name, key } => (7, vec![key::identity(name, key)?]),
    })
}

/// What came of one batch.
enum Outcome {
    Answered(Result<(), StoreError>),
    /// For the whole write.
    Stale(u64),
    Lost(String),
    /// Surely nothing was written.
    NotApplied {
        error: StoreError,
        is_out_of_memory: bool,
    },
    Unknown(StoreError),
}

impl Inner {
    pub(super) async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Write { incarnation, lane, seq, ref batches } = *write;
        self.known.check(incarnation)?;
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(batches.len());
        let (mut calls, mut sent) = (Vec::with_capacity(batches.len()), Vec::with_capacity(batches.len()));
        for (index, batch) in batches.iter().enumerate() {
            // What a store must hold is what it held before it was asked.
            let known = self.known.shard(incarnation, batch.shard).filter(|known| known.epoch == batch.epoch);
            match self.commit_call(write, batch, known.as_ref()) {
                Ok(call) => {
                    outcomes.push(None);
                    calls.push(call);
                    sent.push((index, batch, known));
                }
                Err(error) => outcomes.push(Some(Outcome::Answered(Err(StoreError::Rejected(error))))),
            }
        }
        // Marked before it goes out: this future may be dropped at any await.
        let is_repeat = self.known.send(incarnation, lane, seq);
        for ((index, batch, known), answer) in sent.into_iter().zip(self.writes.run(&calls).await) {
            let outcome = match answer.and_then(|answer| read_commit(answer, incarnation, batch, known.as_ref())) {
                Ok(outcome) => outcome,
                Err(failure) => {
                    let is_out_of_memory = failure.is_out_of_memory();
                    match failure.into_store_error() {
                        error @ StoreError::Unavailable(_) => Outcome::Unknown(error),
                        error @ StoreError::NotApplied(_) => Outcome::NotApplied { error, is_out_of_memory },
                        error => Outcome::Answered(Err(error)),
                    }
                }
            };
            if matches!(outcome, Outcome::Answered(Ok(()))) {
                self.known.acknowledge(incarnation, batch.shard, batch.epoch, lane, seq);
            }
            outcomes[index] = Some(outcome);
        }
        self.answer(write, outcomes.into_iter().flatten().collect(), is_repeat)
    }

    /// Puts together what came of each batch.
    fn answer(
        &self,
        write: &Write,
        outcomes: Vec<Outcome>,
        is_repeat: bool,
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Write { incarnation, lane, seq, .. } = *write;
        let (mut answers, mut unknown, mut not_applied, mut others) = (Vec::new(), None, 0, 0);
        let mut is_full = false;
        for outcome in outcomes {
            match outcome {
                Outcome::Lost(what) => return Err(self.known.lose(incarnation, &what)),
                Outcome::Stale(newest) => {
                    self.known.answered(incarnation, lane, seq);
                    return Err(StoreError::Stale { lane, seq, newest });
                }
                Outcome::Unknown(error) => unknown = Some(error),
                Outcome::NotApplied { error, is_out_of_memory } => {
                    not_applied += 1;
                    is_full |= is_out_of_memory;
                    answers.push(Err(error));
                }
                Outcome::Answered(answer) => {
                    others += 1;
                    answers.push(answer);
                }
            }
        }
        if let Some(error) = unknown {
            return Err(error);
        }
        if not_applied > 0 && (is_repeat || (others == 0 && !is_full)) {
            // Of a repeat, this try did nothing and the one before may have: for the caller it stays unknown. Where nothing was
            // written anywhere, the whole may be tried again.
            if !is_repeat {
                self.known.answered(incarnation, lane, seq);
            }
            let refused = answers.into_iter().filter_map(Result::err).find(StoreError::is_retryable);
            return Err(match refused {
                Some(error) if others == 0 => error,
                Some(StoreError::NotApplied(error)) => StoreError::Unavailable(error),
                other => other.unwrap_or(StoreError::Replaced),
            });
        }
        self.known.answered(incarnation, lane, seq);
        Ok(answers)
    }

    fn commit_call(&self, write: &Write, batch: &Batch, known: Option<&Shard>) -> Result<Call, BoxError> {
        let arguments = Arguments::new(&batch.ops)?;
        let script = if arguments.only_removes() { &COMMIT_REMOVALS } else { &COMMIT };
        let acknowledged = known.and_then(|known| known.acknowledged.get(&write.lane));
        let mut call = Call::new(script, &self.keys.shard(batch.shard, keys_of::ALL))
            .once()
            .arg(write.incarnation.0)
            .arg(batch.epoch.0)
            .arg(write.lane.0)
            .arg(write.seq)
            .arg(acknowledged.map(u64::to_string).unwrap_or_default());
        for (items, width) in arguments.kinds.iter().zip(WIDTHS) {
            call = call.arg(items.len() / width);
        }
        for items in &arguments.kinds {
            for item in items {
                call = call.arg(item);
            }
        }
        Ok(call)
    }

    pub(super) async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        let mut by_shard = std::collections::BTreeMap::<ShardId, Vec<(usize, [Vec<u8>; 2])>>::new();
        for (index, message) in messages.iter().enumerate() {
            let row = posted_row(message).map_err(StoreError::Rejected)?;
            by_shard.entry(message.shard).or_default().push((index, row));
        }
        let (mut calls, mut places) = (Vec::new(), Vec::new());
        for (shard, rows) in &by_shard {
            let keys = self.keys.shard(*shard, [keys_of::INBOX, keys_of::INBOX_ORDER, keys_of::INBOX_PROGRESS]);
            for some in rows.chunks(MESSAGES_PER_CALL) {
                let call = Call::new(&POST, &keys).once().arg(self.keys.channel()).arg(shard.0);
                calls.push(some.iter().fold(call, |call, (_, [id, row])| call.arg(id).arg(row)));
                places.push(some.iter().map(|(index, _)| *index).collect::<Vec<_>>());
            }
        }
        let mut posted = vec![Posted::Duplicate; messages.len()];
        let (mut failed, mut any_done) = (None, false);
        for (answer, indexes) in self.writes.run(&calls).await.into_iter().zip(places) {
            match answer.and_then(Texts::new) {
                Ok(mut answer) => {
                    any_done = true;
                    for index in indexes {
                        let is_new = answer.text().map_err(Failure::into_store_error)? == "1";
                        posted[index] = if is_new { Posted::Inserted } else { Posted::Duplicate };
                    }
                }
                Err(failure) => failed = Some(failure.into_store_error()),
            }
        }
        match failed {
            None => Ok(posted),
            // Some are in their inboxes, so "nothing was written" would be wrong.
            Some(StoreError::NotApplied(error) | StoreError::Rejected(error)) if any_done => {
                Err(StoreError::Unavailable(error))
            }
            Some(error) => Err(error),
        }
    }
}

/// Identity and row of a message; the script stamps its arrival.
pub(super) fn posted_row(message: &NewMessage) -> Result<[Vec<u8>; 2], BoxError> {
    let id = key::identity(&message.name, &message.id)?;
    Ok([id, codec::encode_message(&message.clone().into_row(Timestamp::UNIX_EPOCH))])
}

fn read_commit(answer: Value, me: Incarnation, batch: &Batch, known: Option<&Shard>) -> Result<Outcome, Failure> {
    let mut answer = Texts::new(Value::Array(list(answer)?))?;
    let shard = batch.shard;
    Ok(match answer.text()?.as_str() {
        "done" => Outcome::Answered(Ok(())),
        "fenced" => {
            let newest = Epoch(answer.number()?);
            let owner = Some(answer.text()?).filter(|owner| !owner.is_empty()).and_then(|owner| owner.parse().ok());
            // An end by a start of the same name leaves owner and writes as they were.
            let taken = known.map(|known| known.acknowledged.clone()).unwrap_or_default();
            match known.and_then(|known| known.lost(me, newest, owner.map(Incarnation), &taken)) {
                Some(what) => Outcome::Lost(format!("shard {shard}: {what}")),
                None => Outcome::Answered(Err(StoreError::Fenced { shard, held: batch.epoch, newest })),
            }
        }
        "stale" => Outcome::Stale(answer.number()?),
        "lost" => {
            let stored = answer.text()?;
            let stored = if stored.is_empty() { "none" } else { &stored };
            Outcome::Lost(format!("shard {shard}: of the writes it had taken, {stored} is the last"))
        }
        "wrongtype" => {
            let (key, found) = (answer.text()?, answer.text()?);
            Outcome::Answered(Err(StoreError::Rejected(
                format!("the key {key} holds a {found}, which is not ours").into(),
            )))
        }
        "newer" => {
            let id = super::reply::bytes(answer.item()?)?.unwrap_or_default();
            let text = format!("alarm {} is stored in the format of a newer version", id.escape_ascii());
            Outcome::Answered(Err(StoreError::Rejected(text.into())))
        }
        other => return Err(Failure::unexpected(&other)),
    })
}
