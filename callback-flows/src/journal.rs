//! The journal of a flow: all that has happened to it, in order, and all that its code began because of that.
//!
//! An [`Entry`] is something from outside: the start, a step's result, a message, a timer that fired. The code of a flow sees
//! entries one at a time, and what it begins between one and the next is noted beside the first ([`Begun`]), so that a replay can
//! tell where other code differs. Both are written in [`Page`]s, one a commit, in a [`format`]
//! of which every version is read; a page of a newer one is left alone.

mod format;
#[cfg(test)]
pub(crate) mod tests;
mod text;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;

pub(crate) use self::format::{Reader, Unreadable, Writer, Written};
pub use self::text::Journal;

/// The full name of an operation: `scope/kind:name[key]#ordinal`.
pub(crate) type Key = Arc<str>;

/// Something that has happened to a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The place of the entry in the journal, from 0.
    pub(crate) seq: u64,
    /// The moment that counts for it: a message's arrival, a timer's firing.
    pub(crate) at: Timestamp,
    pub(crate) event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first entry, and the only one of its kind.
    Start { version: u32, run: u32, seed: u64, input: Bytes },
    /// A step has ended for good.
    Result { step: Key, outcome: StepOutcome },
    /// An attempt of a step has failed, and the next one is so far away that it may be made by another process.
    Attempt { step: Key, attempt: u32, error: Arc<str>, again_at: Timestamp },
    /// A step that may run once at most is about to.
    Intent { step: Key },
    /// A message for a callback, which the code may not have begun yet.
    Message { callback: Key, message: Message },
    /// A timer's deadline has come.
    Fired { timer: Key },
    /// The flow is to end now.
    Cancel,
    /// A child has ended, or could not be begun.
    ChildEnded { child: Key, outcome: ChildOutcome },
    /// The first entry of a run that goes on where another one has ended, in the place of a start.
    Continued { version: u32, run: u32, seed: u64, input: Bytes, carried: Vec<Carried> },
    /// Posts have gone out: those that begin these children, and those that cancel these.
    Posted { starts: Vec<Key>, cancels: Vec<Key> },
}

/// A callback, or a signal, that a run has taken over from the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The operation that it is in this run.
    pub(crate) key: Key,
    /// The address of a callback, which is that of the run that opened it: its number, 0 for a signal, and the operation that it was there.
    pub(crate) run: u32,
    pub(crate) callback: Key,
    /// The entries with its messages that were not taken. They stay where they are.
    pub(crate) unread: Vec<u64>,
}

/// The end of a child, as its parent is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChildOutcome {
    /// The child has this result, as JSON.
    Done(Bytes),
    Failed(Arc<str>),
    Cancelled,
    /// The child ended so long ago that its result is gone.
    Purged,
    /// The result of the child has so many bytes, which are too many to be told.
    TooLarge(u64),
    /// A flow of this ID was begun with another input.
    Conflict,
    /// The host of the parent knew no flow of this name.
    Unknown(Arc<str>),
    /// The ID or the input of the child cannot be one, for this reason.
    Refused(Arc<str>),
}

/// The end of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepOutcome {
    /// The step has this value, as JSON.
    Done(Bytes),
    /// The step failed so often.
    Failed { error: Arc<str>, attempts: u32 },
    /// The step may run once at most, and its process died while it ran.
    Interrupted,
    /// The value of the step has so many bytes, which are too many.
    TooLarge(u64),
}

impl StepOutcome {
    /// The end of a step with this value, as JSON, which may have at most so many bytes.
    pub(crate) fn of(json: Vec<u8>, largest: usize) -> StepOutcome {
        match json.len() {
            bytes if bytes > largest => StepOutcome::TooLarge(bytes as u64),
            _ => StepOutcome::Done(json.into()),
        }
    }
}

/// A message for a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The sender's ID for the message: the second of two with the same is dropped.
    pub(crate) id: Arc<str>,
    pub(crate) headers: Vec<(Arc<str>, Arc<str>)>,
    pub(crate) body: Bytes,
}

/// An operation that the code has begun.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Begun {
    pub(crate) key: Key,
    pub(crate) detail: Detail,
}

/// Something of an operation that a replay compares, or takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Detail {
    None,
    /// A hash of a step's input.
    Input(u64),
    /// A timer's deadline.
    Due(Timestamp),
}

/// The end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The flow has this result, as JSON.
    Done(Bytes),
    Failed(Arc<str>),
    Cancelled,
}

/// All that the code began between an entry and the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) seq: u64,
    pub(crate) begun: Vec<Begun>,
}

/// A part of a journal that is written at once.
///
/// Entries and beginnings that are too much for one commit are written in several: first the entries, then what was begun because of them. Only the last page counts them in
/// [`settled_to`](Self::settled_to), so if the process dies before that, the next one takes them in anew, and writes what it begins then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// The beginnings, by the entries because of which the code began something.
    pub(crate) settled: Vec<Settled>,
    /// The number of entries, from the first one on, that the code has taken in by the end of this page.
    pub(crate) settled_to: u64,
    pub(crate) ended: Option<Ended>,
    /// The first of `settled` goes on where the last one of an earlier page stops.
    pub(crate) continues: bool,
}

/// Everything that the code began because of each entry, out of all pages, and the number of entries that it has taken in for good. What was still being
/// written when its process died is left out, and the third is the number of entries up to which there is some of that.
pub(crate) fn begun_of(pages: &mut [Page]) -> (VecDeque<Settled>, u64, u64) {
    let (mut all, mut settled_to) = (VecDeque::<Settled>::new(), 0);
    for page in pages {
        settled_to = settled_to.max(page.settled_to);
        for (n, mut settled) in std::mem::take(&mut page.settled).into_iter().enumerate() {
            let is_next = all.back().is_none_or(|last| last.seq < settled.seq);
            let at = if is_next { all.len() } else { all.partition_point(|other| other.seq < settled.seq) };
            match all.get_mut(at).filter(|other| other.seq == settled.seq) {
                Some(before) if n == 0 && page.continues => before.begun.append(&mut settled.begun),
                Some(before) => *before = settled,
                None => all.insert(at, settled),
            }
        }
    }
    let stale_to = all.back().map_or(0, |last| last.seq + 1);
    all.truncate(all.partition_point(|settled| settled.seq < settled_to));
    (all, settled_to, if stale_to > settled_to { stale_to } else { 0 })
}

impl Page {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.settled.is_empty() && self.ended.is_none()
    }
}

impl Entry {
    /// About how many bytes it takes in a page, and beside it.
    pub(crate) fn size(&self) -> usize {
        16 + self.event.size()
    }
}

impl Begun {
    /// About how many bytes it takes in a page.
    pub(crate) fn size(&self) -> usize {
        16 + self.key.len()
    }
}

impl Event {
    /// About how many bytes it takes in a journal.
    pub(crate) fn size(&self) -> usize {
        16 + match self {
            Event::Start { input, .. } => input.len(),
            Event::Result { step, outcome } => {
                step.len()
                    + match outcome {
                        StepOutcome::Done(value) => value.len(),
                        StepOutcome::Failed { error, .. } => error.len(),
                        StepOutcome::Interrupted | StepOutcome::TooLarge(_) => 0,
                    }
            }
            Event::Attempt { step, error, .. } => step.len() + error.len(),
            Event::Intent { step } => step.len(),
            Event::Message { callback, message } => {
                let headers = message.headers.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
                callback.len() + message.id.len() + headers + message.body.len()
            }
            Event::Fired { timer } => timer.len(),
            Event::Cancel => 0,
            Event::ChildEnded { child, outcome } => {
                child.len()
                    + match outcome {
                        ChildOutcome::Done(value) => value.len(),
                        ChildOutcome::Failed(text) | ChildOutcome::Unknown(text) | ChildOutcome::Refused(text) => {
                            text.len()
                        }
                        _ => 0,
                    }
            }
            Event::Continued { input, carried, .. } => {
                let each = |one: &Carried| one.key.len() + one.callback.len() + 8 + 4 * one.unread.len();
                input.len() + carried.iter().map(each).sum::<usize>()
            }
            Event::Posted { starts, cancels } => starts.iter().chain(cancels).map(|key| key.len() + 1).sum(),
        }
    }
}

impl fmt::Display for Event {
    /// Names it for a person, without its content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Start { .. } => f.write_str("the start"),
            Event::Result { step, .. } => write!(f, "the result of `{step}`"),
            Event::Attempt { step, .. } => write!(f, "a failed attempt of `{step}`"),
            Event::Intent { step } => write!(f, "the intent of `{step}`"),
            Event::Message { callback, .. } => write!(f, "a message for `{callback}`"),
            Event::Fired { timer } => write!(f, "the firing of `{timer}`"),
            Event::Cancel => f.write_str("the request to cancel"),
            Event::ChildEnded { child, .. } => write!(f, "the end of `{child}`"),
            Event::Continued { .. } => f.write_str("the start of its run"),
            Event::Posted { .. } => f.write_str("the note that posts to children have gone out"),
        }
    }
}
