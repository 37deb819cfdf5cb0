//! `commit` and `post`.

use std::iter;

use redis::{Cmd, Value};
use stable_interfaces::store::{Batch, BoxError, Epoch, InboxRow, Incarnation, Lane, NewMessage, Op, ShardId, Write};
use stable_interfaces::{Posted, StoreError, Timestamp};

use super::failure::Failure;
use super::key::Keys;
use super::reply::{Texts, list};
use super::script::{COMMIT, COMMIT_REMOVALS, Call, POST, Script};
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
/// Operations in one script of several batches: the server does nothing else meanwhile.
const OPS_PER_CALL: usize = 1_000;

/// The number of kinds of operations: each kind of rows is put or removed.
const KINDS: usize = 2 * keys_of::OF_ROWS.len();

/// An operation, as it is stored.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Twice the place of its rows in [`keys_of::OF_ROWS`], and one more if it removes.
    kind: usize,
    /// Identity or member.
    pub(super) name: Vec<u8>,
    /// The row that is put; the revision of an alarm that is removed, and empty for any other removal.
    pub(super) value: Vec<u8>,
}

pub(super) fn encoded(op: &Op) -> Result<Encoded, BoxError> {
    let (kind, name, value) = match op {
        Op::PutAlarm(alarm) => {
            let row = codec::encode_alarm(alarm);
            let mut value = Vec::with_capacity(ALARM_HEADER + row.len());
            value.push(LAYOUT);
            value.extend_from_slice(&alarm.revision.epoch.0.to_be_bytes());
            value.extend_from_slice(&alarm.revision.counter.to_be_bytes());
            value.extend_from_slice(&time_bytes(alarm.due));
            value.extend_from_slice(&row);
            (0, key::identity(&alarm.name, &alarm.id)?, value)
        }
        Op::RemoveAlarm { name, id, revision } => {
            let revision = [revision.epoch.0.to_be_bytes(), revision.counter.to_be_bytes()].concat();
            (1, key::identity(name, id)?, revision)
        }
        Op::PutMessage(message) => {
            let member = key::timed(message.arrived, &key::identity(&message.name, &message.id)?);
            // Headers and body stay where they are.
            let progress = InboxRow { headers: Vec::new(), body: bytes::Bytes::new(), ..message.clone() };
            (2, member, codec::encode_message(&progress))
        }
        Op::RemoveMessage(at) => (3, key::timed(at.arrived, &key::identity(&at.name, &at.id)?), Vec::new()),
        Op::PutDead(letter) => (4, key::dead(&letter.key())?, codec::encode_dead(letter)),
        Op::RemoveDead(at) => (5, key::dead(at)?, Vec::new()),
        Op::Put { name, key, value } => (6, key::identity(name, key)?, codec::encode_stored(value)),
        Op::Delete { name, key } => (7, key::identity(name, key)?, Vec::new()),
    };
    Ok(Encoded { kind, name, value })
}

/// A batch of a write, as it is sent.
#[derive(Debug)]
struct Part<'a> {
    /// The place of the batch in the write.
    index: usize,
    batch: &'a Batch,
    /// The least that the store must hold of the shard, as it was known before it is asked.
    known: Option<Shard>,
    /// Sorted by kind.
    ops: Vec<Encoded>,
    /// The number of operations of each kind.
    counts: [usize; KINDS],
}

impl<'a> Part<'a> {
    /// # Errors
    /// If an operation cannot be stored.
    fn new(index: usize, batch: &'a Batch, known: Option<Shard>) -> Result<Part<'a>, BoxError> {
        let mut ops = batch.ops.iter().map(encoded).collect::<Result<Vec<_>, _>>()?;
        ops.sort_by_key(|op| op.kind);
        let mut counts = [0; KINDS];
        ops.iter().for_each(|op| counts[op.kind] += 1);
        Ok(Part { index, batch, known, ops, counts })
    }

    /// Tells that the operations only take memory away, so that they are to be done when memory is full.
    fn only_removes(&self) -> bool {
        self.counts.iter().step_by(2).all(|put| *put == 0)
    }

    /// The places in [`keys_of::OF_ROWS`] of those kinds of rows that the batch changes, how many are put and how many removed.
    fn kinds(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let both = self.counts.chunks_exact(2).enumerate().map(|(kind, both)| (kind, both[0], both[1]));
        both.filter(|(_, put, removed)| put + removed > 0)
    }

    fn put_keys(&self, keys: &Keys, into: &mut Vec<String>) {
        let tag = keys.tag(self.batch.shard);
        let of_rows = self.kinds().flat_map(|(kind, ..)| keys_of::OF_ROWS[kind]).copied();
        into.extend(iter::once(keys_of::OWN).chain(of_rows).map(|suffix| [&*tag, suffix].concat()));
    }

    /// The numbers of operations as the script reads them: those of alarms are always there.
    fn counts(&self) -> String {
        let [put, removed, ..] = self.counts;
        let mut text = format!("{put} {removed}");
        for (kind, put, removed) in self.kinds().filter(|(kind, ..)| *kind > 0) {
            text.extend([format!(" {} {put} {removed}", kind + 1)]);
        }
        text
    }

    fn put_arguments(&self, lane: Lane, command: &mut Cmd) {
        let acknowledged = self.known.as_ref().and_then(|known| known.acknowledged.get(&lane));
        command.arg(self.batch.epoch.0);
        match acknowledged {
            Some(seq) => command.arg(seq),
            None => command.arg(""),
        };
        command.arg(self.counts());
        for of_rows in self.ops.chunk_by(|one, next| one.kind / 2 == next.kind / 2) {
            for op in of_rows {
                command.arg(&op.name);
            }
            // Nothing that is put has an empty value.
            for op in of_rows.iter().filter(|op| !op.value.is_empty()) {
                command.arg(&op.value);
            }
        }
    }
}

/// Sorts batches by the script that takes them.
///
/// On one server a script takes as many as have [`OPS_PER_CALL`] together, or one that has more. In a cluster it takes one: each shard has a
/// slot of its own.
fn by_script(parts: Vec<Part<'_>>, is_cluster: bool) -> Vec<(&'static Script, Vec<Part<'_>>)> {
    let (removals, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(Part::only_removes);
    let mut groups: Vec<(&'static Script, Vec<Part<'_>>)> = Vec::new();
    for (script, parts) in [(&*COMMIT, others), (&*COMMIT_REMOVALS, removals)] {
        let mut room = None::<usize>;
        for part in parts {
            let ops = part.ops.len();
            match (room.and_then(|room| room.checked_sub(ops)), groups.last_mut()) {
                (Some(left), Some((_, group))) => {
                    room = Some(left);
                    group.push(part);
                }
                _ => {
                    room = OPS_PER_CALL.checked_sub(ops).filter(|_| !is_cluster);
                    groups.push((script, vec![part]));
                }
            }
        }
    }
    groups
}

/// The answer of a script to a batch.
enum Answer {
    Of(Result<(), StoreError>),
    /// The store has lost something that it had acknowledged.
    Lost(String),
}

impl Inner {
    /// Each batch is answered for itself: one that is refused holds up no other, and what one server does not say no other server's shards.
    pub(super) async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let Write { incarnation, lane, seq, ref batches } = *write;
        self.watermarks.check(incarnation)?;
        let mut answers: Vec<Option<Result<(), StoreError>>> = batches.iter().map(|_| None).collect();
        let mut parts = Vec::with_capacity(batches.len());
        for (index, batch) in batches.iter().enumerate() {
            // What a store must hold is what it held before it was asked.
            let known = self.watermarks.shard(incarnation, batch.shard).filter(|known| known.epoch == batch.epoch);
            match Part::new(index, batch, known) {
                Ok(part) => parts.push(part),
                Err(error) => answers[index] = Some(Err(StoreError::Rejected(error))),
            }
        }
        let groups = by_script(parts, self.target.is_cluster);
        let calls: Vec<Call> = groups.iter().map(|(script, parts)| self.commit_call(write, script, parts)).collect();
        let mut lost = None;
        let link = &self.writes[usize::from(lane.0) % self.writes.len()];
        for ((_, parts), answer) in groups.iter().zip(link.run(&calls).await) {
            for (part, answer) in parts.iter().zip(each_of(parts.len(), answer)) {
                let answer = match answer.and_then(|answer| read_commit(answer, write, part)) {
                    Ok(Answer::Of(answer)) => answer,
                    Ok(Answer::Lost(what)) => {
                        lost.get_or_insert(what);
                        continue;
                    }
                    Err(failure) => Err(failure.into_store_error()),
                };
                if answer.is_ok() {
                    self.watermarks.acknowledge(incarnation, part.batch.shard, part.batch.epoch, lane, seq);
                }
                answers[part.index] = Some(answer);
            }
        }
        if let Some(what) = lost {
            return Err(self.watermarks.lose(incarnation, &what));
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn commit_call(&self, write: &Write, script: &'static Script, parts: &[Part<'_>]) -> Call {
        let mut keys = Vec::new();
        parts.iter().for_each(|part| part.put_keys(&self.keys, &mut keys));
        let mut call = Call::new(script, &keys).once().arg(write.incarnation.0).arg(write.lane.0).arg(write.seq);
        for part in parts {
            part.put_arguments(write.lane, &mut call.command);
        }
        call
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
        for (answer, indexes) in self.posts.run(&calls).await.into_iter().zip(places) {
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

/// The answers to so many batches of one script; a failure is all of theirs.
fn each_of(batches: usize, answer: Result<Value, Failure>) -> Vec<Result<Value, Failure>> {
    match answer.and_then(list) {
        Ok(answers) if answers.len() == batches => answers.into_iter().map(Ok).collect(),
        Ok(answers) => vec![Err(Failure::unexpected(&answers)); batches],
        Err(failure) => vec![Err(failure); batches],
    }
}

fn read_commit(answer: Value, write: &Write, part: &Part<'_>) -> Result<Answer, Failure> {
    if answer == Value::Int(1) {
        return Ok(Answer::Of(Ok(())));
    }
    let mut answer = Texts::new(answer)?;
    let (batch, known) = (part.batch, part.known.as_ref());
    let (me, lane, seq, shard) = (write.incarnation, write.lane, write.seq, batch.shard);
    Ok(match answer.text()?.as_str() {
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

#[cfg(test)]
mod tests {
    use stable_interfaces::store::InstanceName;

    use super::*;

    fn batch(shard: u32, puts: usize, deletes: usize) -> Batch {
        let name = InstanceName { interface: "order".into(), instance: "o-1".into() };
        let put = |n| Op::Put { name: name.clone(), key: format!("{n}").into(), value: bytes::Bytes::new() };
        let delete = |n| Op::Delete { name: name.clone(), key: format!("{n}").into() };
        let ops = (0..puts).map(put).chain((puts..puts + deletes).map(delete)).collect();
        Batch { shard: ShardId(shard), epoch: Epoch(1), ops }
    }

    /// The shards of each script, and whether it is the one for removals.
    fn grouped(batches: &[Batch], is_cluster: bool) -> Vec<(bool, Vec<u32>)> {
        let parts = batches.iter().enumerate().map(|(index, batch)| Part::new(index, batch, None).unwrap()).collect();
        let shards = |parts: Vec<Part<'_>>| parts.iter().map(|part| part.batch.shard.0).collect();
        let is_of_removals = |script: &Script| std::ptr::eq(script, &*COMMIT_REMOVALS);
        by_script(parts, is_cluster)
            .into_iter()
            .map(|(script, parts)| (is_of_removals(script), shards(parts)))
            .collect()
    }

    #[test]
    fn a_script_takes_batches_of_up_to_a_thousand_operations_and_a_larger_one_alone() {
        let batches = [(0, 600), (1, 400), (2, 1), (3, 2_000), (4, 0), (5, 1), (6, 999)];
        let batches = batches.map(|(shard, puts)| batch(shard, puts, usize::from(puts == 0)));
        assert_eq!(
            grouped(&batches, false),
            [(false, vec![0, 1]), (false, vec![2]), (false, vec![3]), (false, vec![5, 6]), (true, vec![4])]
        );
    }

    #[test]
    fn what_only_removes_is_apart_so_that_it_is_done_when_memory_is_full() {
        let batches = [batch(0, 1, 1), batch(1, 0, 1), batch(2, 1, 0), batch(3, 0, 2)];
        assert_eq!(grouped(&batches, false), [(false, vec![0, 2]), (true, vec![1, 3])]);
    }

    #[test]
    fn in_a_cluster_each_shard_has_a_script_of_its_own() {
        let batches = [batch(0, 1, 0), batch(1, 1, 0), batch(2, 0, 0), batch(3, 0, 1)];
        let alone = [(false, vec![0]), (false, vec![1]), (true, vec![2]), (true, vec![3])];
        assert_eq!(grouped(&batches, true), alone);
    }
}
