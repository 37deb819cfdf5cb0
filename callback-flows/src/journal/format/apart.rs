//! Bodies that are kept apart from their page, so that a page stays small, whatever comes in.
//!
//! A body of more than 8 KiB has rows of its own, in which it is as it came; its page names its length alone. Such a page is of format 2, or of 3 if it
//! goes on with another one, and one without such a body is of format 1, as it has always been. A large result of a flow is in the rows of its result, and nowhere else.

use bytes::Bytes;

use super::{Reader, Unreadable, Writer};
use crate::journal::{ChildOutcome, Ended, Event, Page, StepOutcome};

/// A body of more bytes than these is kept apart.
const APART_FROM: usize = 8 * 1024;

/// A page as it is written, with what is written beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) page: Bytes,
    /// The bodies that are kept apart, in the order of their entries.
    pub(crate) bodies: Vec<Bytes>,
    /// The result of the flow, if that is kept apart.
    pub(crate) result: Option<Bytes>,
}

impl From<Bytes> for Written {
    /// A page without large bodies.
    fn from(page: Bytes) -> Written {
        Written { page, ..Written::default() }
    }
}

fn is_large(body: &Bytes) -> bool {
    body.len() > APART_FROM
}

impl Page {
    pub(super) fn has_large_bodies(&self) -> bool {
        let is_large_end = matches!(&self.ended, Some(Ended::Done(value)) if is_large(value));
        is_large_end || self.entries.iter().filter_map(|entry| entry.event.body()).any(is_large)
    }
}

impl Event {
    /// The part of it that may be large.
    fn body(&self) -> Option<&Bytes> {
        match self {
            Event::Start { input, .. } | Event::Continued { input, .. } => Some(input),
            Event::Result { outcome: StepOutcome::Done(value), .. }
            | Event::ChildEnded { outcome: ChildOutcome::Done(value), .. } => Some(value),
            Event::Message { message, .. } => Some(&message.body),
            _ => None,
        }
    }
}

impl Writer {
    /// A writer that keeps large bodies apart.
    pub(super) fn apart(format: u8) -> Writer {
        Writer(vec![format], Some(Written::default()))
    }

    /// Writes a body: in a page that keeps large ones apart, twice its length and whether it is one of those come first.
    pub(super) fn body(&mut self, body: &Bytes) {
        let Some(apart) = &mut self.1 else { return self.bytes(body) };
        let length = (body.len() as u64) << 1;
        if is_large(body) {
            apart.bodies.push(body.clone());
            self.number(length | 1);
        } else {
            self.number(length);
            self.0.extend(body);
        }
    }

    /// Writes the result of a flow.
    pub(super) fn result(&mut self, result: &Bytes) {
        match &mut self.1 {
            Some(apart) if is_large(result) => {
                apart.result = Some(result.clone());
                self.number((result.len() as u64) << 1 | 1);
            }
            _ => self.body(result),
        }
    }

    /// All that was written.
    pub(super) fn written(self) -> Written {
        // Not larger than it is: it is kept.
        Written { page: self.0.into_boxed_slice().into(), ..self.1.unwrap_or_default() }
    }
}

impl Reader<'_> {
    pub(super) fn body(&mut self) -> Result<Bytes, Unreadable> {
        let Some(apart) = self.apart else { return self.bytes() };
        let number = self.bodies;
        self.within_or(|| apart.bodies.get(number)).inspect(|body| self.bodies += usize::from(is_large(body)))
    }

    pub(super) fn result(&mut self) -> Result<Bytes, Unreadable> {
        let Some(apart) = self.apart else { return self.bytes() };
        self.within_or(|| apart.result.as_ref())
    }

    /// A body that is here, or the one that is apart.
    fn within_or<'b>(&mut self, apart: impl FnOnce() -> Option<&'b Bytes>) -> Result<Bytes, Unreadable> {
        let number = self.number()?;
        let length = usize::try_from(number >> 1).map_err(|_| Unreadable::Corrupt)?;
        if number & 1 == 0 {
            return self.slice(length);
        }
        apart().filter(|body| body.len() == length && is_large(body)).cloned().ok_or(Unreadable::Corrupt)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stable_interfaces::Timestamp;

    use super::*;
    use crate::hash::hex;
    use crate::journal::tests::{bytes_of, full_page};
    use crate::journal::{Carried, Entry, Message};

    /// A body of so many bytes.
    fn body(bytes: usize, of: u8) -> Bytes {
        vec![of; bytes].into()
    }

    /// A page with a large and a small one of each kind of body.
    fn page_of_large_bodies() -> Page {
        let text = |text: &str| Arc::<str>::from(text);
        let message = |id: &str, body| Message { id: text(id), headers: Vec::new(), body };
        let carried = Carried { key: text("callback:c#0"), run: 1, callback: text("callback:c#1"), unread: vec![3] };
        let events = [
            Event::Start { version: 2, run: 1, seed: 7, input: body(APART_FROM + 1, b'a') },
            Event::Result { step: text("step:a#0"), outcome: StepOutcome::Done(body(3, b'b')) },
            Event::Result { step: text("step:b#0"), outcome: StepOutcome::Done(body(300_000, b'c')) },
            Event::Message { callback: text("callback:c#1"), message: message("m-1", body(1024 * 1024, b'd')) },
            Event::Message { callback: text("callback:c#1"), message: message("m-2", body(APART_FROM, b'e')) },
            Event::ChildEnded { child: text("child:x[1]#0"), outcome: ChildOutcome::Done(body(9_000, b'f')) },
            Event::Continued { version: 2, run: 2, seed: 8, input: body(9_000, b'g'), carried: vec![carried] },
            Event::Fired { timer: text("timer:5s#0") },
        ];
        let entries = events.into_iter().enumerate().map(|(n, event)| {
            let at = Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
            Entry { seq: n as u64, at, event }
        });
        let ended = Some(Ended::Done(body(20_000, b'h')));
        Page { entries: entries.collect(), settled_to: 8, ended, ..full_page() }
    }

    #[test]
    fn a_page_with_large_bodies_is_small_and_is_read_and_written_as_ever() {
        let mut written = page_of_large_bodies().encode();
        let sizes: Vec<_> = written.bodies.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [APART_FROM + 1, 300_000, 1024 * 1024, 9_000, 9_000]);
        assert_eq!(written.result.as_ref().map(Bytes::len), Some(20_000));
        // The one that is just small enough is within.
        assert!(written.page.len() < APART_FROM + 512, "{}", written.page.len());
        assert_eq!(Page::decode(&written), Ok(page_of_large_bodies()));

        // Without that one.
        let mut page = page_of_large_bodies();
        page.entries.remove(4);
        written = page.encode();
        let golden = bytes_of(include_str!("../format-2.hex"));
        let hex = hex(&written.page);
        assert_eq!(bytes_of(&hex), golden, "written as {hex}");
        written.page = golden;
        assert_eq!(Page::decode(&written), Ok(page));
    }

    #[test]
    fn a_page_is_of_the_first_format_for_as_long_as_no_body_is_large() {
        for (bytes, format) in [(0, 1), (APART_FROM, 1), (APART_FROM + 1, 2)] {
            let page = Page { ended: Some(Ended::Done(body(bytes, b'h'))), ..full_page() };
            let written = page.encode();
            assert_eq!(written.page[0], format, "{bytes}");
            assert_eq!(written.result.is_some(), format == 2, "{bytes}");
            assert_eq!(Page::decode(&written), Ok(page), "{bytes}");
        }
    }

    #[test]
    fn a_page_whose_bodies_are_missing_or_are_others_is_damaged() {
        let whole = page_of_large_bodies().encode();
        for n in 0..whole.bodies.len() {
            let mut fewer = whole.clone();
            fewer.bodies.truncate(n);
            assert_eq!(Page::decode(&fewer), Err(Unreadable::Corrupt), "only {n}");
            let mut cut = whole.clone();
            cut.bodies[n].truncate(APART_FROM + n);
            assert_eq!(Page::decode(&cut), Err(Unreadable::Corrupt), "{n} is cut");
        }
        assert_eq!(Page::decode(&Written { result: None, ..whole.clone() }), Err(Unreadable::Corrupt));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let mut page = whole.page.to_vec();
            let at = random.usize(1..page.len());
            page[at] = random.u8(..);
            let _ = Page::decode(&Written { page: page.into(), ..whole.clone() });
        }
    }
}
