//! `commit` and `post`.

use redis::Value;
use stable_interfaces::store::{Batch, BoxError, Epoch, InboxRow, Incarnation, NewMessage, Op, ShardId, Write};
use stable_interfaces::{Posted, StoreError, Timestamp};

use super::failure::Failure;
use super::reply::{Texts, list};
use super::script::{COMMIT, COMMIT_REMOVALS, Call, POST};
use super::watermarks::Shard;
use super::{Inner, key, keys_of};
use crate::codec;
use crate::ordered::{TIME, time_bytes};

/// The first byte of a stored alarm; the revision and the due time follow, then the row. The commit script reads all three.
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

/// The number of arguments that an operation of each kind has.
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

    /// Tells that the operations only take memory away, so that they are to be done when memory is full.
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

/// The answer of a script to a batch.
enum Answer {
    Of(Result<(), StoreError>),
    /// The store has lost something that it had acknowledged.
    Lost(String),
}

impl Inner {
    /// Each batch is a script of its own, and is answered for itself: what one server does not say holds up no other's shards.
    pub(super) async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Write { incarnation, lane, seq, ref batches } = *write;
        self.watermarks.check(incarnation)?;
        let mut answers: Vec<Option<Result<(), StoreError>>> = Vec::with_capacity(batches.len());
        let (mut calls, mut sent) = (Vec::with_capacity(batches.len()), Vec::with_capacity(batches.len()));
        for (index, batch) in batches.iter().enumerate() {
            // What a store must hold is what it held before it was asked.
            let known = self.watermarks.shard(incarnation, batch.shard).filter(|known| known.epoch == batch.epoch);
            match self.commit_call(write, batch, known.as_ref()) {
                Ok(call) => {
                    answers.push(None);
                    calls.push(call);
                    sent.push((index, batch, known));
                }
                Err(error) => answers.push(Some(Err(StoreError::Rejected(error)))),
            }
        }
        let mut lost = None;
        for ((index, batch, known), answer) in sent.into_iter().zip(self.writes.run(&calls).await) {
            let answer = match answer.and_then(|answer| read_commit(answer, write, batch, known.as_ref())) {
                Ok(Answer::Of(answer)) => answer,
                Ok(Answer::Lost(what)) => {
                    lost.get_or_insert(what);
                    continue;
                }
                Err(failure) => Err(failure.into_store_error()),
            };
            if answer.is_ok() {
                self.watermarks.acknowledge(incarnation, batch.shard, batch.epoch, lane, seq);
            }
            answers[index] = Some(answer);
        }
        if let Some(what) = lost {
            return Err(self.watermarks.lose(incarnation, &what));
        }
        Ok(answers.into_iter().flatten().collect())
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
            Some(StoreError::NotApplied(error) | StoreError::Rejected(error) | StoreError::Full(error)) if any_done => {
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

fn read_commit(answer: Value, write: &Write, batch: &Batch, known: Option<&Shard>) -> Result<Answer, Failure> {
    let mut answer = Texts::new(Value::Array(list(answer)?))?;
    let (me, lane, seq, shard) = (write.incarnation, write.lane, write.seq, batch.shard);
    Ok(match answer.text()?.as_str() {
        "done" => Answer::Of(Ok(())),
        "fenced" => {
            let newest = Epoch(answer.number()?);
            let owner = Some(answer.text()?).filter(|owner| !owner.is_empty()).and_then(|owner| owner.parse().ok());
            // An end by a start of the same name leaves owner and writes as they were.
            let taken = known.map(|known| known.acknowledged.clone()).unwrap_or_default();
            match known.and_then(|known| known.lost(me, newest, owner.map(Incarnation), &taken)) {
                Some(what) => Answer::Lost(format!("shard {shard}: {what}")),
                None => Answer::Of(Err(StoreError::Fenced { shard, held: batch.epoch, newest })),
            }
        }
        "stale" => Answer::Of(Err(StoreError::Stale { lane, seq, newest: answer.number()? })),
        "lost" => {
            let stored = answer.text()?;
            let stored = if stored.is_empty() { "none" } else { &stored };
            Answer::Lost(format!("shard {shard}: of the writes it had taken, {stored} is the last"))
        }
        "wrongtype" => {
            let (key, found) = (answer.text()?, answer.text()?);
            Answer::Of(Err(StoreError::Rejected(format!("the key {key} holds a {found}, which is not ours").into())))
        }
        "newer" => {
            let id = super::reply::bytes(answer.item()?)?.unwrap_or_default();
            let text = format!("alarm {} is stored in the format of a newer version", id.escape_ascii());
            Answer::Of(Err(StoreError::Rejected(text.into())))
        }
        other => return Err(Failure::unexpected(&other)),
    })
}
