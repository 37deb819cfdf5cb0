//! A request and an answer as bytes.
//!
//! The head is a list of fields, each with its kind and its length, so that a reader steps over those it does not know: hosts of
//! different releases understand each other. What nobody can read (no fields, another version) is an error that says what it is,
//! and nothing here takes more memory than the bytes it reads.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::told::Told;

/// The version of the form below. A reader of another one answers so, and the link stays.
const VERSION: u8 = 1;

/// The most links of a call chain that cross.
pub(crate) const MAX_CHAIN: usize = 256;

/// The kinds of fields. The last one ends the head; behind it is the body.
mod field {
    pub(super) const END: u8 = 0;
    pub(super) const INTERFACE: u8 = 1;
    pub(super) const MESSAGE: u8 = 2;
    pub(super) const ID: u8 = 3;
    pub(super) const GIVEN: u8 = 4;
    pub(super) const WAITS: u8 = 5;
    pub(super) const CALLER: u8 = 6;
    /// In place of [`MESSAGE`], where there is a key: a host that knows no keys then finds no message, and does not handle it as one without.
    pub(super) const KEYED_MESSAGE: u8 = 7;
    pub(super) const KEY: u8 = 8;
    pub(super) const SENT_BY: u8 = 9;
    pub(super) const SINCE: u8 = 10;
    pub(super) const TRACE: u8 = 11;
}

/// A request of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) interface: &'a str,
    /// The name under which the message is registered.
    pub(crate) message: &'a str,
    pub(crate) id: &'a str,
    /// The key under which its reply is kept, if it is.
    pub(crate) key: Option<&'a str>,
    /// The time for which that has been asked, with an outcome that is not known.
    pub(crate) since: Option<Duration>,
    /// The time that is left for it to wait for its turn.
    pub(crate) given: Duration,
    /// The time for which a handler waits for the answer; `None` if it is not a handler that asks.
    pub(crate) waits: Option<Duration>,
    /// The instances whose handlers wait for it, innermost first, each as `interface/id`.
    pub(crate) callers: Vec<&'a str>,
    /// The host that has named the one that is asked, if one has: it does not own the shard any more.
    pub(crate) sent_by: Option<&'a str>,
    /// The context of the trace that it is part of, as `traceparent` has it (W3C Trace Context).
    pub(crate) trace: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// The reason why bytes are no request, or no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("it is cut off")]
    CutOff,
    #[error("it is of version {0}, and this host reads {VERSION}")]
    Version(u8),
    #[error("a field is not UTF-8")]
    NotText,
    #[error("a field has the wrong length")]
    Length,
    #[error("the field {0} is missing")]
    Missing(&'static str),
    #[error("its call chain has more than {MAX_CHAIN} links")]
    Chain,
    #[error("it is an answer of kind {0}")]
    Kind(u8),
    #[error("the error in it is none")]
    Error,
}

/// Takes bytes off the front of what is left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Unreadable::CutOff)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        Ok(self.take(1)?[0])
    }

    fn version(&mut self) -> Result<(), Unreadable> {
        match self.byte()? {
            VERSION => Ok(()),
            other => Err(Unreadable::Version(other)),
        }
    }

    /// The next field of a head; `None` at its end.
    fn field(&mut self) -> Result<Option<(u8, &'a [u8])>, Unreadable> {
        let kind = self.byte()?;
        if kind == field::END {
            return Ok(None);
        }
        let length = self.take(2)?;
        let length = u16::from_be_bytes([length[0], length[1]]);
        Ok(Some((kind, self.take(usize::from(length))?)))
    }
}

fn text(value: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(value).map_err(|_| Unreadable::NotText)
}

fn millis(value: &[u8]) -> Result<Duration, Unreadable> {
    let value = value.try_into().map_err(|_| Unreadable::Length)?;
    Ok(Duration::from_millis(u64::from_be_bytes(value)))
}

impl<'a> Request<'a> {
    /// Writes the request as bytes. Texts longer than a field can be are cut off: those of a request that was checked are not.
    pub(crate) fn encode(&self) -> Bytes {
        let texts = [self.interface, self.message, self.id, self.key.unwrap_or_default()];
        let texts = texts
            .iter()
            .chain(&self.callers)
            .chain(&self.sent_by)
            .chain(&self.trace)
            .map(|text| text.len() + 3)
            .sum::<usize>();
        // Beside those: the version, the end, and three times of 11 bytes.
        let mut bytes = BytesMut::with_capacity(texts + self.body.len() + 35);
        bytes.put_u8(VERSION);
        let mut put = |kind: u8, value: &[u8]| {
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
            bytes.put_u8(kind);
            bytes.put_u16(length);
            bytes.put_slice(&value[..usize::from(length)]);
        };
        put(field::INTERFACE, self.interface.as_bytes());
        match self.key {
            None => put(field::MESSAGE, self.message.as_bytes()),
            Some(key) => {
                put(field::KEYED_MESSAGE, self.message.as_bytes());
                put(field::KEY, key.as_bytes());
            }
        }
        put(field::ID, self.id.as_bytes());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
        put(field::GIVEN, &millis(self.given));
        if let Some(waits) = self.waits {
            put(field::WAITS, &millis(waits));
        }
        if let Some(since) = self.since {
            put(field::SINCE, &millis(since));
        }
        for caller in &self.callers {
            put(field::CALLER, caller.as_bytes());
        }
        if let Some(sent_by) = self.sent_by {
            put(field::SENT_BY, sent_by.as_bytes());
        }
        if let Some(trace) = self.trace {
            put(field::TRACE, trace.as_bytes());
        }
        bytes.put_u8(field::END);
        bytes.put_slice(self.body);
        bytes.freeze()
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Request<'a>, Unreadable> {
        let mut reader = Reader(bytes);
        reader.version()?;
        let (mut interface, mut message, mut id, mut given) = (None, None, None, None);
        let (mut waits, mut callers, mut sent_by, mut trace) = (None, Vec::new(), None, None);
        let (mut keyed_message, mut key, mut since) = (None, None, None);
        while let Some((kind, value)) = reader.field()? {
            match kind {
                field::INTERFACE => interface = Some(text(value)?),
                field::MESSAGE => message = Some(text(value)?),
                field::ID => id = Some(text(value)?),
                field::GIVEN => given = Some(millis(value)?),
                field::WAITS => waits = Some(millis(value)?),
                field::CALLER if callers.len() == MAX_CHAIN => return Err(Unreadable::Chain),
                field::CALLER => callers.push(text(value)?),
                field::KEYED_MESSAGE => keyed_message = Some(text(value)?),
                field::KEY => key = Some(text(value)?),
                field::SENT_BY => sent_by = Some(text(value)?),
                field::SINCE => since = Some(millis(value)?),
                field::TRACE => trace = Some(text(value)?),
                // Of a newer release.
                _ => {}
            }
        }
        Ok(Request {
            interface: interface.ok_or(Unreadable::Missing("interface"))?,
            message: keyed_message.or(message).ok_or(Unreadable::Missing("message"))?,
            key: if keyed_message.is_some() { Some(key.ok_or(Unreadable::Missing("key"))?) } else { None },
            since,
            id: id.ok_or(Unreadable::Missing("id"))?,
            given: given.ok_or(Unreadable::Missing("given"))?,
            waits,
            callers,
            sent_by,
            trace,
            body: reader.0,
        })
    }
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer<B> {
    /// The handler's reply.
    Reply(B),
    /// The handler's own error, and whether a part of its effects was durable, or may have been, when it failed.
    Handler { interim: bool, error: B },
    /// Any other error.
    Failed(Told),
}

mod answer {
    pub(super) const REPLY: u8 = 0;
    pub(super) const HANDLER: u8 = 1;
    pub(super) const HANDLER_INTERIM: u8 = 2;
    pub(super) const FAILED: u8 = 3;
}

impl<B: AsRef<[u8]>> Answer<B> {
    pub(crate) fn encode(&self) -> Bytes {
        let told;
        let (kind, body) = match self {
            Answer::Reply(reply) => (answer::REPLY, reply.as_ref()),
            Answer::Handler { interim: false, error } => (answer::HANDLER, error.as_ref()),
            Answer::Handler { interim: true, error } => (answer::HANDLER_INTERIM, error.as_ref()),
            Answer::Failed(error) => {
                told = error.encode();
                (answer::FAILED, &*told)
            }
        };
        let mut bytes = BytesMut::with_capacity(body.len() + 2);
        bytes.put_u8(VERSION);
        bytes.put_u8(kind);
        bytes.put_slice(body);
        bytes.freeze()
    }
}

impl<'a> Answer<&'a [u8]> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Answer<&'a [u8]>, Unreadable> {
        let mut reader = Reader(bytes);
        reader.version()?;
        match reader.byte()? {
            answer::REPLY => Ok(Answer::Reply(reader.0)),
            answer::HANDLER => Ok(Answer::Handler { interim: false, error: reader.0 }),
            answer::HANDLER_INTERIM => Ok(Answer::Handler { interim: true, error: reader.0 }),
            answer::FAILED => Told::decode(reader.0).map(Answer::Failed).ok_or(Unreadable::Error),
            kind => Err(Unreadable::Kind(kind)),
        }
    }
}
