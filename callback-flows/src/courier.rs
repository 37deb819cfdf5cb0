//! Posts between flows: to children that begin or are cancelled, and to the parents of flows that are over.
//!
//! A post goes out after the commit that asks for it: a courier is a task of the incarnation, which starts when that is durable. It
//! repeats until the store has taken the post, and then says so to the flow in a turn. What a process took along when it died is
//! posted again by the next one, which the alarm `run` calls: a flow holds it until everything has gone out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use stable_interfaces::clock::Clock;
use stable_interfaces::{Context, InstanceRef, Interface, NewPost, RequestError};

use crate::command::{Command, Parent};
use crate::engine::{Post, What};
use crate::flows::{MAX_POSTED_BYTES, Registry, identity};
use crate::hash::short_hash;
use crate::instance::{FlowInstance, TurnError};
use crate::journal::ChildOutcome;
use crate::step::cut;

/// The beginning of the storage keys of parents that are to be told.
pub(crate) const PARENTS: &str = "parent/";
/// The number of posts of one flow that are under way at once.
const AT_ONCE: usize = 64;
/// The wait before a post is tried again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A post to another flow.
#[derive(Debug)]
pub(crate) struct Letter {
    /// `name/id`.
    to: String,
    /// The second of two that wait with the same ID is dropped.
    id: String,
    body: Bytes,
    receipt: Receipt,
}

/// The thing to be noted when a post has gone out.
#[derive(Debug, Clone)]
pub(crate) enum Receipt {
    Child(Arc<Post>),
    /// A parent has been told; this is the key of its row.
    Parent(String),
}

impl Letter {
    /// The post to a child, or the reason why there can be none.
    pub(crate) fn to_child(
        registry: &Registry,
        flow: &str,
        run: u32,
        post: &Arc<Post>,
    ) -> Result<Letter, ChildOutcome> {
        let (to, command) = address(registry, flow, run, post)?;
        let kind = if matches!(post.what, What::Cancel) { "cancel" } else { "begin" };
        let id = format!("{kind}-{}", hash(&[flow, &run.to_string(), &post.child]));
        Ok(Letter { to, id, body: command.encode(), receipt: Receipt::Child(post.clone()) })
    }

    fn to_parent(child: &str, row: &str, parent: &Parent, outcome: &ChildOutcome) -> Letter {
        let outcome = if parent.is_refused { ChildOutcome::Conflict } else { outcome.clone() };
        let command = Command::ChildEnded { run: parent.run, child: parent.child.clone(), outcome };
        let id = format!("ended-{}", hash(&[child, &parent.run.to_string(), &parent.child]));
        Letter { to: parent.flow.to_string(), id, body: command.encode(), receipt: Receipt::Parent(row.to_owned()) }
    }
}

fn address(registry: &Registry, flow: &str, run: u32, post: &Post) -> Result<(String, Command), ChildOutcome> {
    // Whatever an ID has, there is to be room for it in the journal.
    let refused = |reason: &dyn ToString| ChildOutcome::Refused(cut(reason.to_string()).into());
    let to = identity(&post.name, &post.id).map_err(|error| refused(&error))?;
    let What::Start(input) = &post.what else { return Ok((to, Command::Cancel)) };
    let input = input.as_ref().map_err(|reason| refused(reason))?;
    if to == flow {
        return Err(refused(&"a flow cannot be its own child"));
    }
    let Some(version) = registry.newest(&post.name) else { return Err(ChildOutcome::Unknown(post.name.clone())) };
    if input.len() > MAX_POSTED_BYTES {
        return Err(ChildOutcome::TooLarge(input.len() as u64));
    }
    registry.check(&post.name, version, input).map_err(|error| refused(&format!("its input does not fit: {error}")))?;
    let parent = Parent { flow: flow.into(), run, child: post.child.clone(), is_refused: false };
    Ok((to, Command::Start { version, input: input.clone(), parent: Some(parent) }))
}

/// Parents who are to be told how a flow ends, and who has been.
#[derive(Debug, Default)]
pub(crate) struct Parents {
    /// The parents, by the keys of their rows. One that has been told has no row.
    rows: BTreeMap<String, Parent>,
    /// Parents that a courier of this incarnation is on the way to.
    on_the_way: BTreeSet<String>,
}

impl Parents {
    /// The parents of these rows. Those of no parent are left out.
    pub(crate) fn read(rows: &[(Arc<str>, Bytes)]) -> Result<Parents, TurnError> {
        let rows = rows.iter().filter(|(key, _)| key.starts_with(PARENTS));
        let rows = rows.map(|(key, row)| Ok((key.to_string(), Parent::decode(row).map_err(TurnError::Unreadable)?)));
        Ok(Parents { rows: rows.collect::<Result<_, TurnError>>()?, on_the_way: BTreeSet::new() })
    }

    /// Notes a parent, for good.
    pub(crate) fn add(&mut self, cx: &mut Context, parent: Parent) -> Result<(), TurnError> {
        let key = format!("{PARENTS}{}", hash(&[&parent.flow, &parent.run.to_string(), &parent.child]));
        cx.put_bytes(&key, parent.encode())?;
        self.rows.insert(key, parent);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tells whether there is somebody to be told before the flow is over.
    pub(crate) fn has_refused(&self) -> bool {
        self.rows.values().any(|parent| parent.is_refused)
    }

    /// Letters to those who can be told now, and are not on the way: all of them if the flow has an outcome.
    pub(crate) fn letters(&mut self, flow: &str, outcome: Option<&ChildOutcome>) -> Vec<Letter> {
        let mut letters = Vec::new();
        for (row, parent) in &self.rows {
            let outcome = if parent.is_refused { Some(&ChildOutcome::Conflict) } else { outcome };
            let Some(outcome) = outcome else { continue };
            if self.on_the_way.insert(row.clone()) {
                letters.push(Letter::to_parent(flow, row, parent, outcome));
            }
        }
        letters
    }

    /// Notes that a courier has told these.
    pub(crate) fn note(&mut self, cx: &mut Context, receipts: &[Receipt]) -> Result<(), TurnError> {
        for receipt in receipts {
            let Receipt::Parent(row) = receipt else { continue };
            self.on_the_way.remove(row);
            if self.rows.remove(row).is_some() {
                cx.delete(row)?;
            }
        }
        Ok(())
    }
}

/// The end of a flow as its parents are told it: what fits into a post.
pub(crate) fn as_told(outcome: ChildOutcome) -> ChildOutcome {
    match outcome {
        ChildOutcome::Done(value) if value.len() > MAX_POSTED_BYTES => ChildOutcome::TooLarge(value.len() as u64),
        told => told,
    }
}

/// Sends a courier with these letters when the commit of this turn is durable.
pub(crate) fn send(cx: &mut Context, letters: Vec<Letter>) -> Result<(), TurnError> {
    if !letters.is_empty() {
        let clock = cx.clock();
        cx.spawn(move |me: InstanceRef<FlowInstance>| carry(me, letters, clock))?;
    }
    Ok(())
}

async fn carry(me: InstanceRef<FlowInstance>, letters: Vec<Letter>, clock: Arc<dyn Clock>) {
    let flows = me.interface();
    for part in letters.chunks(AT_ONCE) {
        join_all(part.iter().map(|letter| post(&flows, letter, &*clock))).await;
        loop {
            let receipts: Vec<_> = part.iter().map(|letter| letter.receipt.clone()).collect();
            match me.turn(move |flow, cx| flow.posted(cx, &receipts)).await {
                Ok(()) => break,
                Err(RequestError::Closed) => return,
                Err(error) => {
                    tracing::debug!(flow = me.id(), %error, "a turn of a flow was refused; asking again");
                    clock.sleep(AGAIN.0).await;
                }
            }
        }
    }
}

/// Posts a letter, as often as it takes.
async fn post(flows: &Interface<FlowInstance>, letter: &Letter, clock: &dyn Clock) {
    let mut wait = AGAIN.0;
    loop {
        let post = NewPost::new(letter.body.clone()).id(letter.id.clone());
        let Err(error) = flows.post(&letter.to, post).await else { return };
        tracing::debug!(to = letter.to, %error, "a post to another flow was refused; trying again");
        clock.sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

fn hash(parts: &[&str]) -> String {
    short_hash(parts.iter().flat_map(|part| [*part, "\0"]).collect::<String>().as_bytes())
}
