//! Pages of what is not in the journal yet: one for all of it, or several if it is too much for one commit.
//!
//! Entries come first, and then what the code has begun because of them, in order. It counts when all of it is there: only the last page says that the
//! entries were taken in, and comes with a mark. Before that no step is opened, nothing is posted, and no event stored.

use super::Engine;
#[cfg(test)]
use super::Sabotage;
use crate::journal::{Begun, Entry, Page, Settled};

/// The amount that is still to be written.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// About how many bytes are still to be written.
    pub(super) bytes: usize,
    /// A page was taken that is not all of it.
    is_rest: bool,
    /// A part of the first that was begun is in a page that was taken.
    is_cut: bool,
    /// The journal has parts of what an earlier life wanted to begin because of entries below this one: they are to be replaced.
    pub(super) stale_to: u64,
}

/// About how many bytes all of these take in a page.
pub(super) fn size_of(begun: &[Begun]) -> usize {
    begun.iter().map(Begun::size).sum()
}

impl Engine {
    /// Notes what the code began because of an entry, which it has taken in.
    pub(super) fn settle_with(&mut self, seq: u64, begun: Vec<Begun>) {
        self.fresh.settled_to = seq + 1;
        if !begun.is_empty() || seq < self.unwritten.stale_to {
            let bytes = size_of(&begun);
            self.bytes += bytes;
            self.unwritten.bytes += bytes;
            self.fresh.settled.push(Settled { seq, begun });
        }
    }

    /// Takes what is to be written in one commit, and the mark to [`open`](Self::open) steps with once that is durable. There is none while the rest is
    /// to be written by further commits: until then nothing is to be posted or stored of what the code has come to.
    pub(crate) fn take_page(&mut self) -> (Page, Option<u64>) {
        if self.unwritten.bytes <= self.shared.limits.page_bytes {
            let (page, mark) = self.take_all();
            return (page, Some(mark));
        }
        let page = self.take_part();
        if self.unwritten.bytes == 0 {
            // An entry that is larger by itself.
            let (rest, mark) = self.take_all();
            return (Page { ended: rest.ended, settled_to: rest.settled_to, ..page }, Some(mark));
        }
        #[cfg(test)]
        if self.sabotage == Some(Sabotage::OpensStepsBeforeAllIsWritten) {
            return (page, Some(self.shared.state.lock().numbers));
        }
        self.unwritten.is_rest = true;
        (page, None)
    }

    /// Takes all that is to be written, however much it is, and the mark.
    pub(crate) fn take_all(&mut self) -> (Page, u64) {
        let mark = self.shared.state.lock().numbers;
        let settled_to = self.fresh.settled_to;
        let mut page = std::mem::take(&mut self.fresh);
        page.continues = self.unwritten.is_cut;
        self.fresh.settled_to = settled_to;
        self.unwritten = Unwritten { stale_to: self.unwritten.stale_to, ..Unwritten::default() };
        (page, mark)
    }

    /// Tells whether a page was taken that was not all of it.
    pub(crate) fn has_rest(&self) -> bool {
        self.unwritten.is_rest
    }

    /// Tells whether there is nothing to be written.
    #[cfg(test)]
    pub(crate) fn is_written(&self) -> bool {
        self.unwritten.bytes == 0
    }

    /// Takes as much as fits into a page, and one entry at least.
    fn take_part(&mut self) -> Page {
        let limit = self.shared.limits.page_bytes;
        let mut room = limit;
        let mut fits = |bytes: usize| {
            let fits = bytes <= room || room == limit;
            room = room.saturating_sub(if fits { bytes } else { 0 });
            fits
        };
        let (mut page, continues) = (Page::default(), self.unwritten.is_cut);
        let entries = self.fresh.entries.iter().take_while(|entry| fits(entry.size())).count();
        page.entries.extend(self.fresh.entries.drain(..entries));
        let mut settled = std::mem::take(&mut self.fresh.settled).into_iter();
        if self.fresh.entries.is_empty() {
            for Settled { seq, mut begun } in settled.by_ref() {
                let some = begun.iter().take_while(|begun| fits(begun.size())).count();
                let rest = begun.split_off(some);
                self.unwritten.is_cut = some > 0 || (self.unwritten.is_cut && page.settled.is_empty());
                if some > 0 || rest.is_empty() {
                    page.settled.push(Settled { seq, begun });
                }
                if !rest.is_empty() {
                    self.fresh.settled.push(Settled { seq, begun: rest });
                    break;
                }
                self.unwritten.is_cut = false;
            }
        }
        self.fresh.settled.extend(settled);
        page.continues = continues && !page.settled.is_empty();
        #[cfg(test)]
        if self.sabotage == Some(Sabotage::TakesAPartForTheWhole) {
            page.settled_to = self.fresh.settled_to;
        }
        let entries = page.entries.iter().map(Entry::size).sum::<usize>();
        self.unwritten.bytes -= entries + page.settled.iter().map(|settled| size_of(&settled.begun)).sum::<usize>();
        page
    }
}
