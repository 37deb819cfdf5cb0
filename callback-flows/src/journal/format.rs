//! The format of a page: as it is written, and as it is read.
//!
//! It has a version, and every version that was ever written can be read. The numbers of what is written are for ever; a new kind of event takes the next one.

mod apart;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;

pub(crate) use self::apart::Written;
use super::{Begun, Carried, ChildOutcome, Detail, Ended, Entry, Event, Message, Page, Settled, StepOutcome};

/// The version of a page that has all within itself.
const WHOLE: u8 = 1;
/// The version of a page with large bodies, which are beside it.
const APART: u8 = 2;
/// The version of a page that goes on with what the one before it has begun to tell, and the newest that is read.
pub(super) const FORMAT: u8 = 3;

/// The reason why a page cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A page of a newer version of this crate.
    Newer(u8),
    /// A page that is not what was written.
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
