//! The children of a flow: which there are, and what is to be posted to them.
//!
//! A post goes out when the commit with its intent is durable. A replay asks for it again until the journal has an entry that says
//! that it has gone out ([`Event::Posted`]); that entry goes along with the next commit there is, for a second post does nothing.
//! The cancellation of a child follows its start, so that it finds somebody. A flow does not end before all is posted.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;

use super::names::{Kind, has_begun};
use super::state::{Item, State};
use super::{Engine, Phase, Shared, Ticket};
use crate::journal::{Detail, Event, Key};

/// The names of the operations in which a flow waits for its posts to go out: at its end, and when it was cancelled there.
const ALL_POSTED: [&str; 2] = ["posts:children#0", "posts:children#1"];

/// A message that is to be posted to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Post {
    /// The operation that it is for.
    pub(crate) child: Key,
    /// The name of the child's code, and the ID it is to be known by.
    pub(crate) name: Arc<str>,
    pub(crate) id: Arc<str>,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// The child is to begin with this input as JSON; or the reason why there is none.
    Start(Result<Bytes, Arc<str>>),
    Cancel,
}

impl What {
    fn is_cancel(&self) -> bool {
        matches!(self, What::Cancel)
    }
}

/// A child that has not ended, as far as is known.
#[derive(Debug)]
struct Known {
    name: Arc<str>,
    id: Arc<str>,
    /// The start of the child has been posted.
    is_posted: bool,
}

/// The children of a flow.
#[derive(Debug, Default)]
pub(super) struct Children {
    known: BTreeMap<Key, Known>,
    /// Posts that the journal does not have as gone out: the child, and `true` for its cancellation.
    unposted: BTreeSet<(Key, bool)>,
    /// Posts that the code has asked for because of the entry that is being taken in.
    asked: Vec<Post>,
    /// Posts to be made as soon as what is known now is durable.
    ready: Vec<Post>,
    /// Posts that have gone out, which is not in the journal.
    gone: BTreeSet<(Key, bool)>,
    /// The children are to be cancelled.
    is_cancelled: bool,
}

impl Children {
    pub(super) const NONE: Children = Children {
        known: BTreeMap::new(),
        unposted: BTreeSet::new(),
        asked: Vec::new(),
        ready: Vec::new(),
        gone: BTreeSet::new(),
        is_cancelled: false,
    };

    pub(super) fn are_known(&self) -> bool {
        !self.known.is_empty()
    }

    /// Forgets what was asked for because of an entry that was not taken in.
    pub(super) fn forget(&mut self) {
        for post in self.asked.drain(..) {
            self.known.remove(&post.child);
            self.unposted.remove(&(post.child, false));
        }
    }

    /// An entry has been taken in: what was asked for because of it is to be posted.
    pub(super) fn settle(&mut self) {
        self.ready.append(&mut self.asked);
    }

    /// All that has begun is to be cancelled, and all that is about to.
    pub(super) fn cancel(&mut self) {
        self.is_cancelled = true;
        let posted: Vec<_> =
            self.known.iter().filter(|(_, child)| child.is_posted).map(|(key, _)| key.clone()).collect();
        for child in posted {
            self.cancel_one(&child);
        }
    }

    fn cancel_one(&mut self, child: &Key) {
        let Some(known) = self.known.get(child) else { return };
        let post = Post { child: child.clone(), name: known.name.clone(), id: known.id.clone(), what: What::Cancel };
        self.unposted.insert((child.clone(), true));
        self.ready.push(post);
    }

    fn posted(&mut self, child: &Key, is_cancel: bool) {
        let post = (child.clone(), is_cancel);
        self.unposted.remove(&post);
        self.gone.remove(&post);
        self.ready.retain(|one| one.child != *child || one.what.is_cancel() != is_cancel);
        if !is_cancel && let Some(known) = self.known.get_mut(child) {
            known.is_posted = true;
            if self.is_cancelled {
                self.cancel_one(child);
            }
        }
    }

    fn ended(&mut self, child: &Key) {
        self.known.remove(child);
        for is_cancel in [false, true] {
            self.posted(child, is_cancel);
        }
    }
}

impl State {
    fn posts_wait(&self) -> Option<usize> {
        ALL_POSTED.iter().find_map(|key| self.by_key.get(key).copied())
    }

    /// Takes in what an entry says of children, beside what it has for an operation.
    pub(super) fn take_in(&mut self, seq: u64, at: Timestamp, event: &Event) {
        match event {
            Event::Posted { starts, cancels } => {
                let children = &mut self.cold.made().children;
                starts.iter().for_each(|child| children.posted(child, false));
                cancels.iter().for_each(|child| children.posted(child, true));
            }
            Event::ChildEnded { child, .. } => self.cold.made().children.ended(child),
            _ => return,
        }
        if self.cold.children.unposted.is_empty()
            && let Some(index) = self.posts_wait()
        {
            self.push(index, Item { seq, at, event: Event::Posted { starts: Vec::new(), cancels: Vec::new() } });
        }
    }
}

impl Shared {
    /// Begins a child. It is posted when that is durable.
    pub(crate) fn spawn(
        self: &Arc<Shared>,
        scope: &str,
        (name, id): (&str, &str),
        input: Result<Bytes, Arc<str>>,
        detail: Detail,
    ) -> Ticket {
        let ticket = self.claim(scope, Kind::Child, name, Some(id), detail);
        let child = ticket.key().clone();
        let mut state = self.state.lock();
        if state.by_key.get(&child).is_some() {
            let (name, id): (Arc<str>, Arc<str>) = (name.into(), id.into());
            let known = Known { name: name.clone(), id: id.clone(), is_posted: false };
            let children = &mut state.cold.made().children;
            children.known.insert(child.clone(), known);
            children.unposted.insert((child.clone(), false));
            children.asked.push(Post { child, name, id, what: What::Start(input) });
        }
        drop(state);
        ticket
    }

    /// Tells whether there is something for children that has not gone out.
    pub(super) fn has_unposted(&self) -> bool {
        !self.state.lock().cold.children.unposted.is_empty()
    }

    /// Waits until everything for children has gone out: nobody would repeat it for a flow that is over.
    pub(super) async fn all_posted(self: &Arc<Shared>) {
        if !self.has_unposted() {
            return;
        }
        let posted = self.claim("", Kind::Posts, "children", None, Detail::None);
        poll_fn(|task| posted.poll(task).map(drop)).await;
    }
}

impl Engine {
    /// Takes the posts that are to be made when what [`take_page`](Self::take_page) has is durable.
    pub(crate) fn take_posts(&mut self) -> Vec<Post> {
        if !matches!(self.phase, Phase::Going) {
            return Vec::new();
        }
        let mut state = self.shared.state.lock();
        state.cold.there().map_or_else(Vec::new, |cold| std::mem::take(&mut cold.children.ready))
    }

    /// Tells whether the code may have begun this child: if it is blocked, nobody can tell.
    pub(crate) fn may_have_begun(&self, child: &str) -> bool {
        matches!(self.phase, Phase::Blocked(_)) || has_begun(&self.shared.state.lock().named, child)
    }

    /// Tells whether there are posts that the journal does not have as gone out.
    pub(crate) fn has_posts(&self) -> bool {
        self.shared.has_unposted()
    }

    /// Notes that a post has gone out. It goes into the journal along with the next entry.
    pub(crate) fn note_posted(&mut self, post: &Post) {
        let post = (post.child.clone(), post.what.is_cancel());
        let mut state = self.shared.state.lock();
        if state.cold.children.unposted.contains(&post) {
            state.cold.made().children.gone.insert(post);
        }
    }

    /// Adds the posts that have gone out to the journal, if there are any.
    pub(crate) fn record_posted(&mut self, now: Timestamp) {
        let mut state = self.shared.state.lock();
        let Some(cold) = state.cold.there() else { return };
        let gone = std::mem::take(&mut cold.children.gone);
        drop(state);
        if gone.is_empty() {
            return;
        }
        let (mut starts, mut cancels) = (Vec::new(), Vec::new());
        for (child, is_cancel) in gone {
            if is_cancel { cancels.push(child) } else { starts.push(child) }
        }
        self.append(now, Event::Posted { starts, cancels });
    }

    /// Tells whether the code goes on, or ends, when its posts are in the journal.
    pub(crate) fn waits_for_posts(&self) -> bool {
        let state = self.shared.state.lock();
        state.posts_wait().is_some() || state.cold.children.is_cancelled
    }
}
