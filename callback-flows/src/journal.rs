//! The journal of a flow: all that has happened to it, in order, and all that its code began because of that.
//!
//! An [`Entry`] is something from outside: the start, a step's result, a message, a timer that fired. The code of a flow sees
//! entries one at a time, and what it begins between one and the next is noted beside the first ([`Begun`]), so that a replay can
//! tell where other code differs. Both are written in [`Page`]s, one a commit. The format has a version, and every version that
//! was ever written can be read; a page of a newer one is left alone.

mod apart;
mod text;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;

pub(crate) use self::apart::Written;
pub use self::text::Journal;

/// The version of a page that has all within itself.
const WHOLE: u8 = 1;
/// The version of a page with large bodies, which are beside it.
const APART: u8 = 2;
/// The version of a page that goes on with what the one before it has begun to tell, and the newest that is read.
const FORMAT: u8 = 3;

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
    /// With this result, as JSON.
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
    /// With this value, as JSON.
    Done(Bytes),
    /// The step failed so often.
    Failed { error: Arc<str>, attempts: u32 },
    /// The step may run once at most, and its process died while it ran.
    Interrupted,
    /// The value of the step has so many bytes, which are too many.
    TooLarge(u64),
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
    /// With this result, as JSON.
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
    /// Of entries that made the code begin something.
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

/// The reason why a page cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Written by a newer version of this crate.
    Newer(u8),
    /// Not what was written.
    Corrupt,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Newer(format) => {
                write!(f, "its journal has format {format}, and this program reads formats up to {FORMAT}")
            }
            Unreadable::Corrupt => f.write_str("a page of its journal is damaged"),
        }
    }
}

impl Page {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.settled.is_empty() && self.ended.is_none()
    }

    pub(crate) fn encode(&self) -> Written {
        let mut out = match self.continues {
            true => Writer::apart(FORMAT),
            false if self.has_large_bodies() => Writer::apart(APART),
            false => Writer::new(WHOLE),
        };
        // An event with a name and one or two beginnings has room from the start.
        out.0.reserve(48 * self.entries.len().saturating_sub(1));
        out.number(self.settled_to);
        out.number(self.entries.len() as u64);
        for entry in &self.entries {
            out.number(entry.seq);
            out.time(entry.at);
            out.event(&entry.event);
        }
        out.number(self.settled.len() as u64);
        for settled in &self.settled {
            out.number(settled.seq);
            out.number(settled.begun.len() as u64);
            for begun in &settled.begun {
                out.text(&begun.key);
                match begun.detail {
                    Detail::None => out.0.push(0),
                    Detail::Input(hash) => {
                        out.0.push(1);
                        out.0.extend(hash.to_le_bytes());
                    }
                    Detail::Due(due) => {
                        out.0.push(2);
                        out.time(due);
                    }
                }
            }
        }
        match &self.ended {
            None => out.0.push(0),
            Some(Ended::Done(value)) => {
                out.0.push(1);
                out.result(value);
            }
            Some(Ended::Failed(error)) => {
                out.0.push(2);
                out.text(error);
            }
            Some(Ended::Cancelled) => out.0.push(3),
        }
        out.written()
    }

    pub(crate) fn decode(written: &Written) -> Result<Page, Unreadable> {
        let mut reader = Reader::new(&written.page);
        let format = reader.byte()?;
        match format {
            WHOLE => {}
            APART | FORMAT => reader.apart = Some(written),
            newer if newer > FORMAT => return Err(Unreadable::Newer(newer)),
            _ => return Err(Unreadable::Corrupt),
        }
        let settled_to = reader.number()?;
        let entries =
            reader.list(|reader| Ok(Entry { seq: reader.number()?, at: reader.time()?, event: reader.event()? }))?;
        let settled = reader.list(|reader| {
            let seq = reader.number()?;
            let begun = reader.list(|reader| {
                let key = reader.text()?;
                let detail = match reader.byte()? {
                    0 => Detail::None,
                    1 => Detail::Input(reader.fixed()?),
                    2 => Detail::Due(reader.time()?),
                    _ => return Err(Unreadable::Corrupt),
                };
                Ok(Begun { key, detail })
            })?;
            Ok(Settled { seq, begun })
        })?;
        let ended = match reader.byte()? {
            0 => None,
            1 => Some(Ended::Done(reader.result()?)),
            2 => Some(Ended::Failed(reader.text()?)),
            3 => Some(Ended::Cancelled),
            _ => return Err(Unreadable::Corrupt),
        };
        if !reader.is_at_end() {
            return Err(Unreadable::Corrupt);
        }
        Ok(Page { entries, settled, settled_to, ended, continues: format == FORMAT })
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

/// Writes what [`Reader`] reads. The second part has what is kept apart, where that is done.
pub(crate) struct Writer(pub(crate) Vec<u8>, Option<Written>);

impl Writer {
    /// A writer of something of this version.
    pub(crate) fn new(format: u8) -> Writer {
        let mut bytes = Vec::with_capacity(128);
        bytes.push(format);
        Writer(bytes, None)
    }

    #[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn time(&mut self, time: Timestamp) {
        self.0.extend(time.as_millis().to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Start { version, run, seed, input } => {
                self.0.push(0);
                self.number(u64::from(*version));
                self.number(u64::from(*run));
                self.0.extend(seed.to_le_bytes());
                self.body(input);
            }
            Event::Result { step, outcome } => {
                self.0.push(1);
                self.text(step);
                match outcome {
                    StepOutcome::Done(value) => {
                        self.0.push(0);
                        self.body(value);
                    }
                    StepOutcome::Failed { error, attempts } => {
                        self.0.push(1);
                        self.text(error);
                        self.number(u64::from(*attempts));
                    }
                    StepOutcome::Interrupted => self.0.push(2),
                    StepOutcome::TooLarge(bytes) => {
                        self.0.push(3);
                        self.number(*bytes);
                    }
                }
            }
            Event::Attempt { step, attempt, error, again_at } => {
                self.0.push(2);
                self.text(step);
                self.number(u64::from(*attempt));
                self.text(error);
                self.time(*again_at);
            }
            Event::Intent { step } => {
                self.0.push(3);
                self.text(step);
            }
            Event::Message { callback, message } => {
                self.0.push(4);
                self.text(callback);
                self.text(&message.id);
                self.number(message.headers.len() as u64);
                for (name, value) in &message.headers {
                    self.text(name);
                    self.text(value);
                }
                self.body(&message.body);
            }
            Event::Fired { timer } => {
                self.0.push(5);
                self.text(timer);
            }
            Event::Cancel => self.0.push(6),
            Event::ChildEnded { child, outcome } => {
                self.0.push(7);
                self.text(child);
                self.child_outcome(outcome);
            }
            Event::Posted { starts, cancels } => {
                self.0.push(8);
                for list in [starts, cancels] {
                    self.number(list.len() as u64);
                    list.iter().for_each(|key| self.text(key));
                }
            }
            Event::Continued { version, run, seed, input, carried } => {
                self.0.push(9);
                self.number(u64::from(*version));
                self.number(u64::from(*run));
                self.0.extend(seed.to_le_bytes());
                self.body(input);
                self.number(carried.len() as u64);
                for Carried { key, run, callback, unread } in carried {
                    self.text(key);
                    self.number(u64::from(*run));
                    self.text(callback);
                    self.number(unread.len() as u64);
                    unread.iter().for_each(|seq| self.number(*seq));
                }
            }
        }
    }

    pub(crate) fn child_outcome(&mut self, outcome: &ChildOutcome) {
        match outcome {
            ChildOutcome::Done(value) => {
                self.0.push(0);
                self.body(value);
            }
            ChildOutcome::Failed(error) => {
                self.0.push(1);
                self.text(error);
            }
            ChildOutcome::Cancelled => self.0.push(2),
            ChildOutcome::Purged => self.0.push(3),
            ChildOutcome::TooLarge(bytes) => {
                self.0.push(4);
                self.number(*bytes);
            }
            ChildOutcome::Conflict => self.0.push(5),
            ChildOutcome::Unknown(name) => {
                self.0.push(6);
                self.text(name);
            }
            ChildOutcome::Refused(reason) => {
                self.0.push(7);
                self.text(reason);
            }
        }
    }
}

/// Reads a page, or anything else that a [`Writer`] has written.
pub(crate) struct Reader<'a> {
    page: &'a Bytes,
    at: usize,
    /// The bodies beside the page, if it is of the format that has such, and the number of them that were read.
    apart: Option<&'a Written>,
    bodies: usize,
}

impl Reader<'_> {
    pub(crate) fn new(page: &Bytes) -> Reader<'_> {
        Reader { page, at: 0, apart: None, bodies: 0 }
    }

    /// Tells whether all of it has been read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.page.len()
    }

    fn take(&mut self, bytes: usize) -> Result<&[u8], Unreadable> {
        let end = self.at.checked_add(bytes).ok_or(Unreadable::Corrupt)?;
        let taken = self.page.get(self.at..end).ok_or(Unreadable::Corrupt)?;
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Unreadable> {
        Ok(self.take(1)?[0])
    }

    fn fixed(&mut self) -> Result<u64, Unreadable> {
        let bytes = self.take(8)?.try_into().expect("eight bytes were asked for");
        Ok(u64::from_le_bytes(bytes))
    }

    fn time(&mut self) -> Result<Timestamp, Unreadable> {
        Ok(Timestamp::from_millis(self.fixed()?.cast_signed()))
    }

    fn number(&mut self) -> Result<u64, Unreadable> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Unreadable::Corrupt)
    }

    pub(crate) fn small(&mut self) -> Result<u32, Unreadable> {
        u32::try_from(self.number()?).map_err(|_| Unreadable::Corrupt)
    }

    fn length(&mut self) -> Result<usize, Unreadable> {
        usize::try_from(self.number()?).map_err(|_| Unreadable::Corrupt)
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Unreadable> {
        let length = self.length()?;
        self.slice(length)
    }

    fn slice(&mut self, length: usize) -> Result<Bytes, Unreadable> {
        let from = self.at;
        self.take(length)?;
        Ok(self.page.slice(from..self.at))
    }

    pub(crate) fn text(&mut self) -> Result<Arc<str>, Unreadable> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map(Arc::from).map_err(|_| Unreadable::Corrupt)
    }

    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Unreadable>,
    ) -> Result<Vec<T>, Unreadable> {
        let length = self.length()?;
        // Of a damaged page, the length may be anything.
        let mut items = Vec::with_capacity(length.min(1_024));
        for _ in 0..length {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(crate) fn event(&mut self) -> Result<Event, Unreadable> {
        Ok(match self.byte()? {
            0 => {
                let (version, run) = (self.small()?, self.small()?);
                Event::Start { version, run, seed: self.fixed()?, input: self.body()? }
            }
            1 => {
                let step = self.text()?;
                let outcome = match self.byte()? {
                    0 => StepOutcome::Done(self.body()?),
                    1 => StepOutcome::Failed { error: self.text()?, attempts: self.small()? },
                    2 => StepOutcome::Interrupted,
                    3 => StepOutcome::TooLarge(self.number()?),
                    _ => return Err(Unreadable::Corrupt),
                };
                Event::Result { step, outcome }
            }
            2 => {
                let (step, attempt) = (self.text()?, self.small()?);
                Event::Attempt { step, attempt, error: self.text()?, again_at: self.time()? }
            }
            3 => Event::Intent { step: self.text()? },
            4 => {
                let (callback, id) = (self.text()?, self.text()?);
                let headers = self.list(|reader| Ok((reader.text()?, reader.text()?)))?;
                Event::Message { callback, message: Message { id, headers, body: self.body()? } }
            }
            5 => Event::Fired { timer: self.text()? },
            6 => Event::Cancel,
            7 => Event::ChildEnded { child: self.text()?, outcome: self.child_outcome()? },
            8 => Event::Posted { starts: self.list(Reader::text)?, cancels: self.list(Reader::text)? },
            9 => {
                let (version, run, seed, input) = (self.small()?, self.small()?, self.fixed()?, self.body()?);
                let carried = self.list(|reader| {
                    let (key, run, callback) = (reader.text()?, reader.small()?, reader.text()?);
                    Ok(Carried { key, run, callback, unread: reader.list(Reader::number)? })
                })?;
                Event::Continued { version, run, seed, input, carried }
            }
            _ => return Err(Unreadable::Corrupt),
        })
    }

    pub(crate) fn child_outcome(&mut self) -> Result<ChildOutcome, Unreadable> {
        Ok(match self.byte()? {
            0 => ChildOutcome::Done(self.body()?),
            1 => ChildOutcome::Failed(self.text()?),
            2 => ChildOutcome::Cancelled,
            3 => ChildOutcome::Purged,
            4 => ChildOutcome::TooLarge(self.number()?),
            5 => ChildOutcome::Conflict,
            6 => ChildOutcome::Unknown(self.text()?),
            7 => ChildOutcome::Refused(self.text()?),
            _ => return Err(Unreadable::Corrupt),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::hash::hex;

    /// A page with everything that there is.
    pub(crate) fn full_page() -> Page {
        let text = |text: &str| Arc::<str>::from(text);
        let message = Message {
            id: text("m-1"),
            headers: vec![(text("content-type"), text("application/json"))],
            body: Bytes::from_static(b"{\"by\":\"ada\"}"),
        };
        let events = [
            Event::Start { version: 2, run: 1, seed: 0x0123_4567_89ab_cdef, input: Bytes::from_static(b"17") },
            Event::Result { step: text("step:a#0"), outcome: StepOutcome::Done(Bytes::from_static(b"true")) },
            Event::Result {
                step: text("b/step:c[k]#1"),
                outcome: StepOutcome::Failed { error: text("refused"), attempts: 300 },
            },
            Event::Result { step: text("step:once#0"), outcome: StepOutcome::Interrupted },
            Event::Result { step: text("step:big#0"), outcome: StepOutcome::TooLarge(1 << 40) },
            Event::Attempt {
                step: text("step:d#0"),
                attempt: 7,
                error: text("busy"),
                again_at: Timestamp::from_millis(1_700_000_060_000),
            },
            Event::Intent { step: text("step:once#0") },
            Event::Message { callback: text("callback:accept#0"), message },
            Event::Fired { timer: text("timer:5s#0") },
            Event::Cancel,
        ];
        let at = |n: usize| Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
        let entries = events.into_iter().enumerate();
        let entries = entries.map(|(n, event)| Entry { seq: n as u64, at: at(n), event }).collect();
        let begun = |key: &str, detail| Begun { key: key.into(), detail };
        let settled = vec![
            Settled {
                seq: 0,
                begun: vec![begun("step:a#0", Detail::Input(42)), begun("callback:accept#0", Detail::None)],
            },
            Settled { seq: 1, begun: vec![begun("timer:5s#0", Detail::Due(at(5_000)))] },
        ];
        Page { entries, settled, settled_to: 10, ended: Some(Ended::Failed(text("no taker"))), continues: false }
    }

    pub(super) fn bytes_of(hex: &str) -> Bytes {
        let digits: Vec<_> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_page_of_the_first_format_is_read_and_written_as_ever() {
        let golden = bytes_of(include_str!("journal/format-1.hex"));
        let hex = hex(&full_page().encode().page);
        assert_eq!(bytes_of(&hex), golden, "written as {hex}");
        assert_eq!(Page::decode(&golden.into()), Ok(full_page()));
    }

    /// A page with everything about children.
    pub(super) fn page_of_children() -> Page {
        let text = |text: &str| Arc::<str>::from(text);
        let outcomes = [
            ChildOutcome::Done(Bytes::from_static(b"{\"by\":\"ada\"}")),
            ChildOutcome::Failed(text("no taker")),
            ChildOutcome::Cancelled,
            ChildOutcome::Purged,
            ChildOutcome::TooLarge(1 << 40),
            ChildOutcome::Conflict,
            ChildOutcome::Unknown(text("odrer")),
            ChildOutcome::Refused(text("an ID that cannot be one")),
        ];
        let ended = outcomes.into_iter().enumerate();
        let ended =
            ended.map(|(n, outcome)| Event::ChildEnded { child: format!("child:order[{n}]#0").into(), outcome });
        let posted =
            Event::Posted { starts: vec![text("child:order[0]#0"), text("b/child:x[1]#2")], cancels: vec![text("c")] };
        let at = |n: usize| Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
        let events = ended.chain([posted]).enumerate();
        let entries = events.map(|(n, event)| Entry { seq: n as u64, at: at(n), event }).collect();
        Page { entries, ..Page::default() }
    }

    #[test]
    fn a_page_about_children_is_read_and_written_as_ever() {
        let golden = bytes_of(include_str!("journal/format-1-children.hex"));
        let hex = hex(&page_of_children().encode().page);
        assert_eq!(bytes_of(&hex), golden, "written as {hex}");
        assert_eq!(Page::decode(&golden.into()), Ok(page_of_children()));
    }

    /// A page with the start of a run that goes on.
    pub(super) fn page_of_a_continued_run() -> Page {
        let at = |n: i64| Timestamp::from_millis(1_700_000_000_000 + n);
        let message = |seq: u64, body: &'static str| {
            let (id, body) = (format!("m-{seq}").into(), Bytes::from_static(body.as_bytes()));
            let message = Message { id, headers: Vec::new(), body };
            Entry { seq, at: at(seq.cast_signed()), event: Event::Message { callback: "callback:c#1".into(), message } }
        };
        let carried = vec![
            Carried { key: "callback:c#0".into(), run: 1, callback: "callback:c#1".into(), unread: vec![3, 500] },
            Carried { key: "signal:s#0".into(), run: 0, callback: "signal:s#0".into(), unread: Vec::new() },
        ];
        let input = Bytes::from_static(b"{\"sum\":7}");
        let start = Event::Continued { version: 2, run: 3, seed: 0x0123_4567_89ab_cdef, input, carried };
        let begun = vec![Begun { key: "callback:c#0".into(), detail: Detail::None }];
        let entries = vec![message(3, "1"), message(500, "2"), Entry { seq: 2_000, at: at(2_000), event: start }];
        Page { entries, settled: vec![Settled { seq: 2_000, begun }], settled_to: 2_001, ..Page::default() }
    }

    #[test]
    fn a_page_of_a_continued_run_is_read_and_written_as_ever() {
        let golden = bytes_of(include_str!("journal/format-1-continued.hex"));
        let hex = hex(&page_of_a_continued_run().encode().page);
        assert_eq!(bytes_of(&hex), golden, "written as {hex}");
        assert_eq!(Page::decode(&golden.into()), Ok(page_of_a_continued_run()));
    }

    #[test]
    fn a_page_that_goes_on_is_read_and_written_as_ever() {
        let page = Page { continues: true, ..full_page() };
        let golden = bytes_of(include_str!("journal/format-3.hex"));
        let hex = hex(&page.encode().page);
        assert_eq!(bytes_of(&hex), golden, "written as {hex}");
        assert_eq!(Page::decode(&golden.into()), Ok(page));
    }

    #[test]
    fn every_ending_comes_back() {
        for ended in [None, Some(Ended::Done(Bytes::from_static(b"1"))), Some(Ended::Cancelled)] {
            let page = Page { ended, ..Page::default() };
            assert_eq!(Page::decode(&page.encode()), Ok(page));
        }
    }

    #[test]
    fn a_page_of_a_newer_format_is_told_from_a_damaged_one() {
        let mut page = full_page().encode().page.to_vec();
        page[0] = FORMAT + 1;
        assert_eq!(Page::decode(&Bytes::from(page).into()), Err(Unreadable::Newer(FORMAT + 1)));
        assert_eq!(Page::decode(&Bytes::new().into()), Err(Unreadable::Corrupt));
    }

    #[test]
    fn a_page_that_is_cut_short_or_goes_on_is_damaged() {
        let page = full_page().encode().page;
        for length in 0..page.len() {
            assert_eq!(Page::decode(&page.slice(..length).into()), Err(Unreadable::Corrupt), "{length} bytes");
        }
        let mut longer = page.to_vec();
        longer.push(0);
        assert_eq!(Page::decode(&Bytes::from(longer).into()), Err(Unreadable::Corrupt));
    }

    #[test]
    fn a_damaged_page_is_never_more_than_an_error() {
        let page = full_page().encode().page;
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut damaged = page.to_vec();
            let at = random.usize(1..damaged.len());
            damaged[at] = random.u8(..);
            let _ = Page::decode(&Bytes::from(damaged).into());
        }
    }
}
