//! Inboxes: durable messages for an instance, from any host.
//!
//! Anyone may post; only the owner reads, and the order in which it takes messages is their order. [`InboxWindow`] is what a
//! shard's owner has taken into memory.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::{Clock, Moment, Random, Timestamp, within};
use crate::committer::{CommitOptions, backoff};
use crate::crowds::Crowds;
use crate::directive::Directive;
use crate::error::{ContextError, RequestError, beginning};
use crate::fleet::{Fleet, hash_id};
use crate::id::{MAX_VALUE_BYTES, check_id, check_interface_name, inbox_of, own_bytes};
use crate::json;
use crate::shared::{Health, HostCore};
use crate::store::{
    InboxKey, InboxRow, InstanceName, Loaded, MessageHeaders, NewMessage, Page, Posted, Read, ReadRows, Store,
    StoreError,
};
use crate::sync::Arc;

/// A message to post to an instance's inbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewPost {
    pub(crate) id: Option<String>,
    pub(crate) headers: MessageHeaders,
    pub(crate) body: Bytes,
}

impl NewPost {
    /// A message with this body, opaque to the library, at most [`MAX_VALUE_BYTES`](crate::store::MAX_VALUE_BYTES) long.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> NewPost {
        NewPost { body: body.into(), ..NewPost::default() }
    }

    /// A message with a value as JSON for its body.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it cannot be JSON that is read again: a number that is not finite, nested too deep.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<NewPost, ContextError> {
        Ok(NewPost::new(json::to_vec(value)?))
    }

    /// Its ID: while a message with the same one waits in the instance's inbox, a second is dropped as a duplicate, so a sender
    /// that does not know whether it got through can repeat. Default: a random one.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> NewPost {
        self.id = Some(id.into());
        self
    }

    /// Adds a header: text that travels beside the body.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> NewPost {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A message from an instance's inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Arc<InboxRow>);

impl Message {
    pub(crate) fn new(row: Arc<InboxRow>) -> Message {
        Message(row)
    }

    /// The ID it was posted under.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The instance it was posted to.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.name.instance
    }

    /// When the store took it, by the store's clock.
    #[must_use]
    pub fn arrived(&self) -> Timestamp {
        self.0.arrived
    }

    /// How many attempts to handle it have failed: 0 the first time.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The first header of this name, letter case ignored.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All headers, in the order they were posted.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.0.headers
    }

    /// The body, as it was posted.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.0.body
    }

    /// The body, from JSON.
    ///
    /// # Errors
    /// [`ContextError::Json`] if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ContextError> {
        let what = || format!("the body of message {:?} to {}", self.0.id, self.0.name);
        serde_json::from_slice(&self.0.body).map_err(|error| ContextError::not_a::<T>(what(), error))
    }
}

/// A message with its address, checked: what a store's own entrance for messages takes, such as one that posts within a
/// transaction of the application. [`Interface::post`](crate::Interface::post) and [`FleetClient`](crate::FleetClient) do it all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addressed {
    /// Whose inbox it is for.
    pub name: InstanceName,
    /// What [`Fleet::shard_of`](crate::Fleet::shard_of) scales onto the shards, by the hash of [`HASH_VERSION`](crate::store::HASH_VERSION).
    pub hash: u64,
    /// Its ID, if the sender gave it one; else it is to get a random one.
    pub id: Option<Arc<str>>,
    /// What goes beside the body.
    pub headers: MessageHeaders,
    /// The body.
    pub body: Bytes,
}

impl Addressed {
    /// A message for the instance `id` of the interface called `interface`.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for a name or ID that cannot be one, [`ContextError::TooLarge`] for a body and headers of more
    /// than [`MAX_VALUE_BYTES`](crate::store::MAX_VALUE_BYTES).
    pub fn post(interface: &str, id: &str, message: NewPost) -> Result<Addressed, ContextError> {
        let bytes =
            message.body.len() + message.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > MAX_VALUE_BYTES {
            let what = format!("the body and headers of a message to {interface}/{}", beginning(id));
            return Err(ContextError::too_large(what, bytes));
        }
        let message = NewPost { body: own_bytes(message.body), ..message };
        Addressed::new(interface, interface.into(), id, message)
    }

    /// A directive for the instance `id` of the interface called `interface`.
    ///
    /// # Errors
    /// [`ContextError::InvalidId`] for a name or ID that cannot be one.
    pub fn directive(interface: &str, id: &str, directive: Directive) -> Result<Addressed, ContextError> {
        Addressed::new(interface, inbox_of(interface), id, directive.into_post())
    }

    fn new(interface: &str, inbox: Arc<str>, id: &str, message: NewPost) -> Result<Addressed, ContextError> {
        check_interface_name(interface).map_err(|reason| ContextError::invalid("interface name", interface, reason))?;
        check_id(id).map_err(|reason| ContextError::invalid("instance ID", id, reason))?;
        let NewPost { id: message_id, headers, body } = message;
        if let Some(id) = &message_id {
            check_id(id).map_err(|reason| ContextError::invalid("message ID", id, reason))?;
        }
        let name = InstanceName { interface: inbox, instance: id.into() };
        Ok(Addressed { name, hash: hash_id(id), id: message_id.map(Arc::from), headers, body })
    }

    pub(crate) fn into_message(self, fleet: &Fleet, random: &dyn Random) -> NewMessage {
        let Addressed { name, hash, id, headers, body } = self;
        let id = id.unwrap_or_else(|| format!("{:016x}{:016x}", random.next_u64(), random.next_u64()).into());
        NewMessage { shard: fleet.shard_of_hash(hash), name, id, headers, body }
    }
}

/// Posts a message to an inbox, wherever that lives.
pub(crate) async fn post<E>(host: &Arc<HostCore>, message: Addressed) -> Result<Posted, RequestError<E>> {
    match host.health() {
        Health::NotStarted => return Err(RequestError::NotStarted),
        Health::Running | Health::Draining => {}
        _ => return Err(host.ended().unwrap_or(RequestError::Draining)),
    }
    Ok(post_to_store(host, message.into_message(&host.fleet, &*host.random)).await?)
}

/// Posts by a host, and tells its own window.
pub(crate) async fn post_to_store(host: &Arc<HostCore>, message: NewMessage) -> Result<Posted, ContextError> {
    let shard = message.shard;
    let answer = Way::of(host)?.post(message).await;
    // The store's own hint may get lost; this one does not. After a failure the message may be there all the same.
    host.shards.hint(shard);
    answer
}

/// The way to a store, for who asks for no ownership.
pub(crate) struct Way<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) random: &'a dyn Random,
    pub(crate) options: &'a CommitOptions,
}

impl<'a> Way<'a> {
    /// That of a host.
    pub(crate) fn of(host: &'a HostCore) -> Result<Way<'a>, ContextError> {
        host.way().ok_or(ContextError::NoStore)
    }

    /// Loads pages, within the deadline of one call. There are as many as were asked for.
    pub(crate) async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        let loaded = self.in_time(self.store.load(pages)).await?;
        if loaded.len() != pages.len() {
            return Err(StoreError::NotApplied("a page is missing in the store's answer".into()));
        }
        Ok(loaded)
    }

    /// Reads of one instance, within the deadline of one call.
    pub(crate) async fn read(&self, read: &Read) -> Result<ReadRows, StoreError> {
        self.in_time(self.store.read(read)).await
    }

    /// Waits for the store to answer a question, within the deadline of one call.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = self.options.store_timeout;
        let late = || Err(StoreError::NotApplied(format!("no answer within {limit:?}").into()));
        within(self.clock, limit, work).await.unwrap_or_else(late)
    }

    /// Posts to an inbox of `fleet`.
    pub(crate) async fn send(&self, fleet: &Fleet, message: Addressed) -> Result<Posted, ContextError> {
        self.post(message.into_message(fleet, self.random)).await
    }

    /// Posts, and repeats while the store cannot be reached, up to the commit timeout.
    ///
    /// What may have been inserted is not repeated: by the time the store answers again its owner may have handled the message
    /// and taken it out, and then a second one would not be recognised.
    async fn post(&self, message: NewMessage) -> Result<Posted, ContextError> {
        let Way { store, clock, random, options } = *self;
        let messages = [message];
        let began = clock.elapsed();
        let mut failures = 0;
        loop {
            let error = match within(clock, options.store_timeout, store.post(&messages)).await {
                Some(Ok(posted)) => return Ok(posted.first().copied().unwrap_or(Posted::Inserted)),
                Some(Err(error)) => error,
                None => return Err(ContextError::Unknown),
            };
            if error.may_have_happened() {
                return Err(ContextError::Unknown);
            }
            if !error.is_retryable() || clock.elapsed().saturating_sub(began) >= options.commit_timeout {
                return Err(ContextError::store(error));
            }
            clock.sleep(backoff(random, failures)).await;
            failures += 1;
        }
    }
}

/// The messages of one shard's inbox that its owner has taken into memory.
///
/// `taken` names every message in memory: waiting, postponed or being handled; a page skips those, so none is handled twice
/// beside itself. Pages are read from the start of the inbox to its end, as a *pass*; a hint during a pass starts another after
/// it, because messages may become visible in another order than they arrived. An ID may be posted again once its message has
/// left the store, which may be before this window hears of it, and within the same millisecond: nothing in a row says which of
/// the two it is. So what a page shows while its namesake is being handled, or has just gone, is skipped, and looked for again
/// once that has left.
///
/// A message that waits is read with its body once. Where some are in memory, a pass reads keys, and then whole rows only where it
/// does not know the key. No clock, no I/O.
#[derive(Debug)]
pub(crate) struct InboxWindow {
    taken: HashMap<Identity, Taken>,
    /// Waiting to be handled, in the order they were taken, each with the moment since when.
    ready: VecDeque<(Moment, Arc<InboxRow>)>,
    /// The bytes of those in `ready`, and of those in `postponed` and `resting`.
    ready_bytes: usize,
    postponed_bytes: usize,
    /// Waiting until they are due, after a failure. The number keeps keys apart.
    postponed: BTreeMap<(Timestamp, u64), Arc<InboxRow>>,
    /// Waiting until a time of the lease clock, because their instance could not take them: nothing stored says until when.
    resting: BTreeMap<(Duration, u64), Arc<InboxRow>>,
    next_number: u64,
    /// Those that failed and were left to the store, as far as there is room for their names, and until when.
    left: HashMap<Identity, Timestamp>,
    /// When the first of those is due that failed and were left to the store.
    left_until: Option<Timestamp>,
    /// When the first of those that rested and were left to the store is to be looked for, by the lease clock.
    left_resting_until: Option<Duration>,
    /// Waiting behind another message of their instance, which is busy; and how many bytes they have.
    crowds: Crowds<InCrowd>,
    crowd_bytes: usize,
    /// The time up to which the first pass has seen what arrived.
    first_until: Timestamp,
    /// Those that were to wait there and were left to the store, because so many do, as far as there is room for their names.
    left_behind: HashSet<Identity>,
    /// How many of `taken` nobody here can handle.
    aside: usize,
    pass: Pass,
    /// Whether messages may have come that the pass under way does not see.
    is_hinted: bool,
    /// Whether all that a first pass found has been handed out: until then the shard's alarms wait.
    lets_alarms_fire: bool,
    cap: usize,
}

type Identity = (InstanceName, Arc<str>);

/// What is known of a message in memory.
#[derive(Debug, Default)]
struct Taken {
    /// Says whether it has been handed out: then it may have left the store already.
    is_out: bool,
    /// Says whether a page has shown its ID since: it may have been another message.
    is_shown_again: bool,
}

/// Why a message is not to be taken from the page that is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// It has left the inbox. Another may be there under its ID.
    Removed,
    /// It failed, and was left to the store.
    Left,
}

/// A message that waits behind another of its instance, in the order of their arrival; with the time since when.
#[derive(Debug, Clone)]
struct InCrowd {
    key: InboxKey,
    since: Moment,
    row: Arc<InboxRow>,
}

impl Ord for InCrowd {
    fn cmp(&self, other: &InCrowd) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl PartialOrd for InCrowd {
    fn partial_cmp(&self, other: &InCrowd) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InCrowd {
    fn eq(&self, other: &InCrowd) -> bool {
        self.key == other.key
    }
}

impl Eq for InCrowd {}

/// How many messages may be postponed in memory for each that may be there to be handled.
const POSTPONED_PER_CAP: usize = 16;
/// The most messages behind others of their instances, for each that may be there to be handled.
const CROWD_PER_CAP: usize = 16;

/// While messages that are there to be handled have so many bytes no more are read, and past so many the last that are postponed are left
/// to the store.
const MAX_BYTES: usize = 256 * 1024;
/// The most messages left to the store whose names are known.
const MAX_LEFT: usize = 16_384;
/// The most keys of one page.
const KEYS_PER_PAGE: usize = 1_000;
/// With so many messages in memory a hint has keys read first, not all their rows again.
const MANY: usize = 16;

#[derive(Debug, PartialEq, Eq)]
enum Pass {
    /// No pass is under way.
    None,
    /// The next page is this one.
    At(Next),
    /// This page is being loaded; with what left the inbox since it was begun.
    Loading(Next, HashMap<Identity, Gone>),
}

/// A page of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Next {
    after: Option<InboxKey>,
    part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Whole rows.
    Rows,
    /// Keys, to see which rows are not in memory.
    Keys,
    /// So many whole rows that are not, up to this key; and whether there are keys after it.
    Unknown { rows: usize, until: InboxKey, is_last: bool },
}

impl Next {
    fn first(part: Part) -> Next {
        Next { after: None, part }
    }
}

impl InboxWindow {
    /// Nothing is known yet: a pass is wanted.
    pub(crate) fn new(cap: usize) -> InboxWindow {
        InboxWindow {
            taken: HashMap::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            postponed_bytes: 0,
            postponed: BTreeMap::new(),
            resting: BTreeMap::new(),
            next_number: 0,
            left: HashMap::new(),
            left_until: None,
            left_resting_until: None,
            crowds: Crowds::default(),
            crowd_bytes: 0,
            first_until: Timestamp::MIN,
            left_behind: HashSet::new(),
            aside: 0,
            pass: Pass::At(Next::first(Part::Rows)),
            is_hinted: false,
            lets_alarms_fire: false,
            cap,
        }
    }

    /// There may be messages that have not been seen.
    pub(crate) fn hint(&mut self) {
        match self.pass {
            Pass::None => self.pass = self.first_page(MANY),
            _ => self.is_hinted = true,
        }
    }

    /// There are messages, and all may be known.
    pub(crate) fn look(&mut self) {
        match self.pass {
            Pass::None => self.pass = self.first_page(1),
            _ => self.is_hinted = true,
        }
    }

    /// Where a pass begins; with keys if so many messages are known.
    fn first_page(&self, many: usize) -> Pass {
        let is_known = self.taken.len() + self.left.len() + self.left_behind.len() >= many;
        Pass::At(Next::first(if is_known { Part::Keys } else { Part::Rows }))
    }

    /// Whether a first pass is over and all it found has been handed out.
    pub(crate) fn lets_alarms_fire(&self) -> bool {
        self.lets_alarms_fire
    }

    /// Says whether there may be messages in the store that could be handled and are not in memory.
    pub(crate) fn is_behind(&self) -> bool {
        self.pass != Pass::None
    }

    pub(crate) fn wants_page(&self) -> bool {
        // Messages that keep failing, whose instance is busy, or that nobody here can handle, must not keep the others out.
        let aside = self.postponed.len() + self.resting.len() + self.crowds.waiting() + self.aside;
        let busy = self.taken.len() - aside;
        matches!(self.pass, Pass::At(_)) && busy < self.cap && self.ready_bytes < MAX_BYTES
    }

    /// Begins a page: after which key, how many rows, and whether only their keys.
    pub(crate) fn begin_page(&mut self) -> Option<(Option<InboxKey>, usize, bool)> {
        if !self.wants_page() {
            return None;
        }
        let Pass::At(next) = std::mem::replace(&mut self.pass, Pass::None) else { return None };
        let (after, limit) = (
            next.after.clone(),
            match &next.part {
                Part::Rows => self.cap,
                Part::Keys => KEYS_PER_PAGE,
                Part::Unknown { rows, .. } => self.cap.min(*rows),
            },
        );
        let keys_only = next.part == Part::Keys;
        self.pass = Pass::Loading(next, HashMap::new());
        Some((after, limit, keys_only))
    }

    /// Takes what a page found. What is there to be handled counts as waiting since `now` at the latest.
    pub(crate) fn merge_page(&mut self, rows: Vec<InboxRow>, is_last: bool, now: Moment) {
        let Pass::Loading(Next { after, part }, gone) = std::mem::replace(&mut self.pass, Pass::None) else { return };
        if !self.lets_alarms_fire {
            self.first_until = now.wall;
        }
        let next = match part {
            Part::Keys => self.find_unknown(after, &rows, is_last, &gone),
            Part::Rows => {
                let last = rows.last().map(InboxRow::key).filter(|_| !is_last);
                self.take_rows(rows, &gone, now);
                last.map(|last| Next { after: Some(last), part: Part::Rows })
            }
            Part::Unknown { until, is_last: are_all_known, .. } => {
                let last = rows.last().map(InboxRow::key);
                self.take_rows(rows, &gone, now);
                // Fewer rows may have come than there were keys, for their bytes or because some have left.
                let is_through = last.as_ref().is_some_and(|last| *last >= until);
                let is_end = is_last || (is_through && are_all_known);
                (!is_end).then(|| Next { after: last.or(Some(until)), part: Part::Keys })
            }
        };
        self.pass = match next {
            Some(next) => Pass::At(next),
            None => {
                self.lets_alarms_fire |= self.ready.is_empty();
                if std::mem::take(&mut self.is_hinted) { self.first_page(MANY) } else { Pass::None }
            }
        };
    }

    /// The page with the first rows, among those that have these keys, that are not in memory; or the next keys.
    fn find_unknown(
        &mut self,
        after: Option<InboxKey>,
        keys: &[InboxRow],
        is_last: bool,
        gone: &HashMap<Identity, Gone>,
    ) -> Option<Next> {
        let mut before = after;
        let mut unknown: Option<(Option<InboxKey>, usize, InboxKey)> = None;
        for row in keys {
            let is_new = self.is_new(row, gone);
            match &mut unknown {
                None if is_new => unknown = Some((before.clone(), 1, row.key())),
                Some((_, rows, until)) if is_new => (*rows, *until) = (*rows + 1, row.key()),
                // The rest is looked at again after them.
                Some(_) => break,
                None => {}
            }
            before = Some(row.key());
        }
        match unknown {
            Some((after, rows, until)) => {
                let is_last = is_last && keys.last().is_some_and(|last| last.key() == until);
                Some(Next { after, part: Part::Unknown { rows, until, is_last } })
            }
            None => {
                before.filter(|_| !is_last && !keys.is_empty()).map(|last| Next { after: Some(last), part: Part::Keys })
            }
        }
    }

    /// Says whether a row that a page shows is not in memory; and notes what the page says of one that is.
    fn is_new(&mut self, row: &InboxRow, gone: &HashMap<Identity, Gone>) -> bool {
        let identity = (row.name.clone(), row.id.clone());
        if let Some(gone) = gone.get(&identity) {
            self.is_hinted |= *gone == Gone::Removed;
            return false;
        }
        match self.taken.get_mut(&identity) {
            Some(taken) => {
                taken.is_shown_again |= taken.is_out;
                false
            }
            None => !self.left.contains_key(&identity) && !self.left_behind.contains(&identity),
        }
    }

    fn take_rows(&mut self, rows: Vec<InboxRow>, gone: &HashMap<Identity, Gone>, now: Moment) {
        for row in rows {
            if !self.is_new(&row, gone) {
                continue;
            }
            self.taken.insert((row.name.clone(), row.id.clone()), Taken::default());
            if row.attempt > 0 || row.due > row.arrived {
                self.postpone(row.due, Arc::new(row));
            } else {
                let elapsed = now.elapsed.saturating_sub(now.wall.since(row.arrived));
                let since = Moment { wall: row.arrived.min(now.wall), elapsed };
                self.ready_bytes += row.bytes();
                self.ready.push_back((since, Arc::new(row)));
            }
        }
    }

    pub(crate) fn abandon_page(&mut self) {
        if let Pass::Loading(next, _) = std::mem::replace(&mut self.pass, Pass::None) {
            self.pass = Pass::At(next);
        }
    }

    /// When the next failed message is due.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let postponed = self.postponed.keys().next().map(|(due, _)| *due);
        postponed.into_iter().chain(self.left_until).min()
    }

    /// Since when the next message could be handled, or when it is to be tried again, by the lease clock.
    pub(crate) fn next_wait(&self) -> Option<Duration> {
        let resting = self.resting.keys().next().map(|(at, _)| *at);
        let ready = self.ready.front().map(|(since, _)| since.elapsed);
        let crowd = self.crowds.first().map(|first| first.since.elapsed);
        resting.into_iter().chain(ready).chain(crowd).chain(self.left_resting_until).min()
    }

    /// Looks again for what was left to the store and is due.
    pub(crate) fn end_waits(&mut self, now: Moment) {
        let is_due = self.left_until.is_some_and(|due| due <= now.wall);
        if is_due {
            self.left.retain(|_, due| *due > now.wall);
            self.left_until = self.left.values().min().copied();
        }
        let is_rested = self.left_resting_until.take_if(|at| *at <= now.elapsed).is_some();
        if is_due || is_rested {
            self.look();
        }
    }

    /// Since when the message that [`pop_due`](Self::pop_due) gives could be handled; `None` if there is none.
    pub(crate) fn due_since(&self, now: Moment) -> Option<Timestamp> {
        let resting = self.resting.first_key_value().filter(|((at, _), _)| *at <= now.elapsed);
        let failed = || self.postponed.keys().next().map(|(due, _)| *due).filter(|due| *due <= now.wall);
        let crowd = || self.crowds.first().map(|first| first.since.wall);
        let ready = || self.ready.front().map(|(since, _)| since.wall);
        resting.map(|(_, row)| row.due).or_else(failed).or_else(crowd).or_else(ready)
    }

    /// The next message to handle. It stays taken. One whose instance is busy with another waits behind that.
    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<Arc<InboxRow>> {
        loop {
            let rested = self.resting.first_entry().filter(|entry| entry.key().0 <= now.elapsed);
            let failed = self.postponed.first_entry().filter(|entry| entry.key().0 <= now.wall);
            let (since, row) = match (rested, failed) {
                (Some(entry), _) => {
                    let row = entry.remove();
                    self.postponed_bytes -= row.bytes();
                    (now, row)
                }
                (None, Some(entry)) => {
                    let row = entry.remove();
                    self.postponed_bytes -= row.bytes();
                    (now, row)
                }
                // They were taken before those that are ready.
                (None, None) => match self.crowds.pop_first() {
                    Some(first) => {
                        self.crowd_bytes -= first.row.bytes();
                        return Some(self.hand_out(first.row));
                    }
                    None => {
                        let (since, row) = self.ready.pop_front()?;
                        self.ready_bytes -= row.bytes();
                        self.lets_alarms_fire |= self.ready.is_empty() && self.pass == Pass::None;
                        (since, row)
                    }
                },
            };
            if self.crowds.has(&row.name) && !self.crowds.lead(&row.name) {
                self.join_crowd(since, row);
            } else {
                return Some(self.hand_out(row));
            }
        }
    }

    fn hand_out(&mut self, row: Arc<InboxRow>) -> Arc<InboxRow> {
        self.taken.entry((row.name.clone(), row.id.clone())).or_default().is_out = true;
        row
    }

    /// Makes a message that was handed out the one of its instance behind which the others wait, unless there is one; `false` says
    /// that.
    pub(crate) fn lead(&mut self, name: &InstanceName) -> bool {
        self.crowds.lead(name)
    }

    /// True if a message of the instance was handed out behind which the others wait.
    pub(crate) fn is_led(&self, name: &InstanceName) -> bool {
        self.crowds.has_head(name)
    }

    /// True if messages wait behind others of their instances.
    pub(crate) fn has_crowd(&self) -> bool {
        self.crowds.waiting() > 0 || !self.left_behind.is_empty()
    }

    /// The instance is done with the one behind which the others wait, however that ended.
    pub(crate) fn head_ended(&mut self, name: &InstanceName) {
        self.crowds.head_ended(name);
        if !self.left_behind.is_empty() && self.crowd_has_room(2) {
            self.left_behind.clear();
            self.look();
        }
    }

    /// A message that was handed out has met another of its instance, and waits behind that.
    pub(crate) fn turn_back(&mut self, now: Moment, row: Arc<InboxRow>) {
        let since = Moment { wall: row.due.min(now.wall), ..now };
        self.join_crowd(since, row);
    }

    /// Says whether so many times as many as wait may.
    fn crowd_has_room(&self, times: usize) -> bool {
        self.crowds.waiting() * times < self.cap * CROWD_PER_CAP && self.crowd_bytes * times < MAX_BYTES
    }

    fn join_crowd(&mut self, since: Moment, row: Arc<InboxRow>) {
        if self.crowd_has_room(1) {
            // What a first pass found comes before whatever alarms its instance has.
            let is_of_first_pass = row.arrived <= self.first_until;
            let since = Moment { wall: if is_of_first_pass { Timestamp::MIN } else { since.wall }, ..since };
            self.is_in_store(&row);
            self.crowd_bytes += row.bytes();
            let key = row.key();
            self.crowds.wait(&key.name.clone(), InCrowd { key, since, row });
            return;
        }
        let identity = (row.name.clone(), row.id.clone());
        self.taken.remove(&identity);
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity.clone(), Gone::Left);
        }
        // The first is always noted: it says that there are some.
        if self.left_behind.len() < MAX_LEFT {
            self.left_behind.insert(identity);
        }
    }

    /// The message that was handed out cannot be handled here. It stays in the store, and taken, so that no page brings it back.
    pub(crate) fn set_aside(&mut self) {
        self.aside += 1;
    }

    /// The message has left the inbox, durably.
    pub(crate) fn remove(&mut self, key: &InboxKey) {
        let identity = (key.name.clone(), key.id.clone());
        if self.taken.remove(&identity).is_some_and(|taken| taken.is_shown_again) {
            self.look();
        }
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity, Gone::Removed);
        }
    }

    /// The message that was handed out has failed, durably, and waits until it is due, as `row`.
    pub(crate) fn postpone(&mut self, due: Timestamp, row: Arc<InboxRow>) {
        self.next_number += 1;
        self.is_in_store(&row);
        self.postponed_bytes += row.bytes();
        self.postponed.insert((due, self.next_number), row);
        self.leave_last();
    }

    /// The message that was handed out could not be taken, and waits until the lease clock shows `at`.
    pub(crate) fn wait_again(&mut self, at: Duration, row: Arc<InboxRow>) {
        self.next_number += 1;
        self.is_in_store(&row);
        self.postponed_bytes += row.bytes();
        self.resting.insert((at, self.next_number), row);
        self.leave_last();
    }

    /// The message that was handed out is still in the store: whatever a page has shown under its ID was this one.
    fn is_in_store(&mut self, row: &InboxRow) {
        if let Some(taken) = self.taken.get_mut(&(row.name.clone(), row.id.clone())) {
            *taken = Taken::default();
        }
    }

    /// Past the cap, in messages or in bytes, leaves the last ones to the store until their time.
    fn leave_last(&mut self) {
        loop {
            let count = self.postponed.len() + self.resting.len();
            if count <= self.cap * POSTPONED_PER_CAP && (self.postponed_bytes <= MAX_BYTES || count <= 1) {
                return;
            }
            if let Some(((due, _), row)) = self.postponed.pop_last() {
                self.left_until = Some(self.left_until.map_or(due, |other| other.min(due)));
                if self.left.len() < MAX_LEFT {
                    self.left.insert((row.name.clone(), row.id.clone()), due);
                }
                self.leave(&row);
            } else if let Some(((at, _), row)) = self.resting.pop_last() {
                self.left_resting_until = Some(self.left_resting_until.map_or(at, |other| other.min(at)));
                self.leave(&row);
            }
        }
    }

    fn leave(&mut self, row: &InboxRow) {
        self.postponed_bytes -= row.bytes();
        let identity = (row.name.clone(), row.id.clone());
        self.taken.remove(&identity);
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity, Gone::Left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, arrived: i64) -> InboxRow {
        let arrived = Timestamp::from_millis(arrived);
        InboxRow {
            name: InstanceName { interface: "room".into(), instance: "1".into() },
            id: id.into(),
            arrived,
            due: arrived,
            attempt: 0,
            crashes: 0,
            started: false,
            last_error: None,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    const NOW: Moment = moment(5);

    /// A moment at which both clocks show the same.
    const fn moment(millis: i64) -> Moment {
        Moment { wall: Timestamp::from_millis(millis), elapsed: Duration::from_millis(millis.unsigned_abs()) }
    }

    fn pop(window: &mut InboxWindow, now: i64) -> Option<String> {
        {
            window.end_waits(moment(now));
            window.pop_due(moment(now))
        }
        .map(|row| row.id.to_string())
    }

    #[test]
    fn a_message_in_memory_is_not_taken_again_by_a_later_page() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], true, NOW);
        assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
        window.hint();
        assert_eq!(window.begin_page(), Some((None, 10, false)));
        window.merge_page(vec![row("a", 1), row("b", 2)], true, NOW);
        assert_eq!(pop(&mut window, 5).as_deref(), Some("b"));
        assert_eq!(pop(&mut window, 5), None);
    }

    #[test]
    fn a_message_completed_while_a_page_loads_is_not_taken_from_that_page() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], true, NOW);
        let a = window.pop_due(NOW).expect("it is ready");
        window.hint();
        window.begin_page();
        window.remove(&a.key());
        window.merge_page(vec![row("a", 1)], true, NOW);
        assert_eq!(pop(&mut window, 5), None);
        window.begin_page();
        window.merge_page(Vec::new(), true, NOW);
        assert!(!window.is_behind(), "it was that one, and the next pass is the last");
    }

    #[test]
    fn an_id_posted_again_before_its_first_message_was_seen_to_leave_is_taken_after_that() {
        // The second may bear the same time: it arrived in the same millisecond, or the store's clock was set back.
        for arrived in [1, 3] {
            let mut window = InboxWindow::new(10);
            window.begin_page();
            window.merge_page(vec![row("a", 1)], true, NOW);
            let first = window.pop_due(NOW).expect("it is ready");
            window.hint();
            window.begin_page();
            window.merge_page(vec![row("a", arrived)], true, NOW);
            assert_eq!(pop(&mut window, 5), None);
            assert!(!window.wants_page());
            window.remove(&first.key());
            assert!(window.wants_page());
            window.begin_page();
            window.merge_page(vec![row("a", arrived)], true, NOW);
            assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
        }
    }

    #[test]
    fn an_id_posted_again_while_a_page_loads_in_which_its_first_message_is_seen_to_leave_is_taken_by_the_next() {
        for arrived in [1, 3] {
            let mut window = InboxWindow::new(10);
            window.begin_page();
            window.merge_page(vec![row("a", 1)], true, NOW);
            let first = window.pop_due(NOW).expect("it is ready");
            window.hint();
            window.begin_page();
            window.remove(&first.key());
            window.merge_page(vec![row("a", arrived)], true, NOW);
            assert_eq!(pop(&mut window, 5), None, "the page may have been read before it left");
            window.begin_page();
            window.merge_page(vec![row("a", arrived)], true, NOW);
            assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
        }
    }

    #[test]
    fn a_message_that_waits_and_is_shown_again_and_again_costs_no_further_pass_when_it_leaves() {
        let mut window = InboxWindow::new(10);
        let later = InboxRow { due: Timestamp::from_millis(50), attempt: 1, ..row("a", 1) };
        for _ in 0..3 {
            window.hint();
            window.begin_page();
            window.merge_page(vec![later.clone()], true, NOW);
        }
        while window.is_behind() {
            window.begin_page();
            window.merge_page(vec![later.clone()], true, NOW);
        }
        assert_eq!(pop(&mut window, 50).as_deref(), Some("a"));
        window.remove(&later.key());
        assert!(!window.is_behind());
    }

    #[test]
    fn what_waits_is_listed_under_the_time_since_when_it_could_be_handled() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        // The store's clock may be ahead.
        window.merge_page(vec![row("a", 3), row("b", 9)], true, NOW);
        assert_eq!((window.next_wait(), window.due_since(NOW)), (Some(moment(3).elapsed), Some(moment(3).wall)));
        assert_eq!(pop(&mut window, 5).as_deref(), Some("a"));
        assert_eq!((window.next_wait(), window.due_since(NOW)), (Some(NOW.elapsed), Some(NOW.wall)));
    }

    #[test]
    fn what_is_ready_and_what_waits_for_room_do_not_wait_for_a_wall_that_goes_back() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![row("a", 3), row("b", 4)], true, NOW);
        let a = window.pop_due(NOW).expect("it is ready");
        window.wait_again(Duration::from_millis(9), a);
        let back = |elapsed| Moment { wall: Timestamp::MIN, elapsed: Duration::from_millis(elapsed) };
        assert_eq!(window.pop_due(back(6)).map(|row| row.id.to_string()).as_deref(), Some("b"));
        assert_eq!((window.pop_due(back(8)), window.next_wait()), (None, Some(Duration::from_millis(9))));
        assert_eq!(window.pop_due(back(9)).map(|row| row.id.to_string()).as_deref(), Some("a"));
    }

    #[test]
    fn of_many_that_find_no_room_the_last_are_left_to_the_store_for_a_while() {
        let (mut window, mut all) = (InboxWindow::new(1), Vec::new());
        for n in 0..17_i64 {
            all.push(row(&format!("{n:02}"), n));
            window.hint();
            while window.wants_page() {
                load(&mut window, &all);
            }
            let row = window.pop_due(NOW).expect("it is ready");
            window.wait_again(Duration::from_millis(100 + n.unsigned_abs()), row);
        }
        while window.wants_page() {
            load(&mut window, &all[..16]);
        }
        assert_eq!((window.resting.len(), window.left_resting_until), (16, Some(Duration::from_millis(116))));
        window.end_waits(moment(115));
        assert!(!window.wants_page());
        window.end_waits(moment(116));
        assert!(window.wants_page());
    }

    #[test]
    fn messages_after_the_first_pass_do_not_hold_alarms_back() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(Vec::new(), true, NOW);
        assert!(window.lets_alarms_fire());
        window.hint();
        window.begin_page();
        window.merge_page(vec![row("a", 1)], true, NOW);
        assert!(window.lets_alarms_fire());
    }

    #[test]
    fn a_hint_during_a_pass_starts_another_after_it() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.hint();
        window.merge_page(Vec::new(), true, NOW);
        assert!(window.wants_page());
        window.begin_page();
        window.merge_page(Vec::new(), true, NOW);
        assert!(!window.wants_page());
    }

    #[test]
    fn alarms_wait_until_the_first_pass_is_read_and_handed_out() {
        let mut window = InboxWindow::new(1);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], false, NOW);
        assert!(!window.lets_alarms_fire());
        let a = window.pop_due(NOW).expect("it is ready");
        window.remove(&a.key());
        assert_eq!(window.begin_page(), Some((Some(a.key()), 1, false)));
        window.merge_page(Vec::new(), true, NOW);
        assert!(window.lets_alarms_fire());
    }

    #[test]
    fn messages_that_nobody_can_handle_do_not_keep_the_others_out() {
        let mut window = InboxWindow::new(2);
        window.begin_page();
        window.merge_page(vec![row("a", 1), row("b", 1)], false, NOW);
        assert!(!window.wants_page());
        for _ in 0..2 {
            window.pop_due(NOW).expect("it is ready");
            window.set_aside();
        }
        assert!(window.wants_page());
        window.begin_page();
        window.merge_page(vec![row("c", 2)], true, NOW);
        assert_eq!(pop(&mut window, 5).as_deref(), Some("c"));
        assert!(window.lets_alarms_fire());
        window.hint();
        window.begin_page();
        window.merge_page(vec![row("a", 1), row("b", 1), row("c", 2)], true, NOW);
        assert_eq!(pop(&mut window, 5), None);
    }

    #[test]
    fn of_many_that_fail_the_last_are_left_to_the_store_until_they_are_due() {
        let mut window = InboxWindow::new(1);
        window.begin_page();
        let failed = |n: i64| InboxRow { due: Timestamp::from_millis(100 + n), attempt: 1, ..row(&n.to_string(), n) };
        let all: Vec<_> = (0..20).map(failed).collect();
        window.merge_page(all.clone(), true, NOW);
        assert_eq!(window.postponed.len(), 16);
        assert!(window.lets_alarms_fire() && !window.wants_page());
        let popped: Vec<_> = (0..20).filter_map(|_| pop(&mut window, 115)).collect();
        assert_eq!(popped, (0..16).map(|n: i32| n.to_string()).collect::<Vec<_>>());
        for row in &all[..16] {
            window.remove(&row.key());
        }
        assert_eq!(window.next_deadline(), Some(Timestamp::from_millis(116)));
        assert_eq!(pop(&mut window, 116), None);
        assert!(window.wants_page());
        while window.wants_page() {
            load(&mut window, &all[16..]);
        }
        assert_eq!(pop(&mut window, 116).as_deref(), Some("16"));
    }

    /// The next page of the inbox `all`, as a store would answer it: which rows were read whole.
    fn load(window: &mut InboxWindow, all: &[InboxRow]) -> Vec<String> {
        let (after, limit, keys_only) = window.begin_page().expect("a page is wanted");
        let rows = all.iter().filter(|row| after.as_ref().is_none_or(|after| row.key() > *after));
        let page: Vec<_> = rows.clone().take(limit).cloned().collect();
        let is_last = rows.count() <= limit;
        let read = page.iter().map(|row| row.id.to_string()).collect();
        window.merge_page(page, is_last, NOW);
        if keys_only { Vec::new() } else { read }
    }

    #[test]
    fn messages_that_wait_are_read_once_and_later_only_what_came_between_them() {
        let mut window = InboxWindow::new(2);
        let later = |n: i64| InboxRow { due: Timestamp::from_millis(1_000), attempt: 1, ..row(&format!("{n:02}"), n) };
        let mut all: Vec<_> = (0..12).filter(|n| n % 5 != 3).map(later).collect();
        let mut read = Vec::new();
        while window.is_behind() {
            read.extend(load(&mut window, &all));
        }
        assert_eq!(read.len(), all.len());
        window.look();
        while window.is_behind() {
            assert_eq!(load(&mut window, &all), [""; 0], "all of it is known");
        }
        // They become visible in another order than they arrived.
        all.extend([3, 8, 12, 13, 14].map(|n| row(&format!("{n:02}"), n)));
        all.sort_by_key(InboxRow::key);
        window.look();
        let (mut read, mut popped) = (Vec::new(), Vec::new());
        while window.is_behind() || !window.ready.is_empty() {
            if window.wants_page() {
                read.extend(load(&mut window, &all));
            }
            if let Some(id) = pop(&mut window, 5) {
                all.retain(|row| *row.id != *id);
                window.remove(&row(&id, id.parse().expect("a number")).key());
                popped.push(id);
            }
        }
        let new = ["03", "08", "12", "13", "14"];
        assert_eq!((read, popped), (new.map(str::to_owned).to_vec(), new.map(str::to_owned).to_vec()));
    }

    #[test]
    fn messages_are_bounded_in_bytes_while_they_are_ready_and_while_they_are_postponed() {
        let mut window = InboxWindow::new(64);
        let large = |n: i64, attempt| {
            let due = Timestamp::from_millis(if attempt > 0 { 1_000 + n } else { n });
            InboxRow { body: vec![0; 100_000].into(), attempt, due, ..row(&format!("{n:02}"), n) }
        };
        window.begin_page();
        window.merge_page((0..3).map(|n| large(n, 0)).collect(), false, NOW);
        assert!(!window.wants_page());
        assert_eq!(pop(&mut window, 5).as_deref(), Some("00"));
        assert!(window.wants_page());
        window.begin_page();
        window.merge_page((3..9).map(|n| large(n, 1)).collect(), true, NOW);
        assert_eq!(window.postponed.len(), 2);
        assert_eq!(
            (pop(&mut window, 5), pop(&mut window, 5), pop(&mut window, 5)),
            (Some("01".into()), Some("02".into()), None)
        );
        assert_eq!(pop(&mut window, 2_000).as_deref(), Some("03"), "the first stay");
        assert_eq!(pop(&mut window, 2_000).as_deref(), Some("04"));
        assert!(window.wants_page(), "the rest is due as well");
    }

    #[test]
    fn messages_left_to_the_store_are_not_read_again_before_they_are_due() {
        let mut window = InboxWindow::new(1);
        let all: Vec<_> = (0..40)
            .map(|n| InboxRow { due: Timestamp::from_millis(100 + n), attempt: 1, ..row(&format!("{n:02}"), n) })
            .collect();
        while window.is_behind() {
            load(&mut window, &all);
        }
        for _ in 0..3 {
            window.look();
            while window.is_behind() {
                assert_eq!(load(&mut window, &all), [""; 0]);
            }
        }
        let mut popped = Vec::new();
        for now in 100..140 {
            while let Some(id) = pop(&mut window, now) {
                window.remove(&row(&id, id.parse().expect("a number")).key());
                popped.push(id);
            }
            let left: Vec<_> = all.iter().filter(|row| !popped.contains(&row.id.to_string())).cloned().collect();
            while window.wants_page() {
                load(&mut window, &left);
            }
            while let Some(id) = pop(&mut window, now) {
                window.remove(&row(&id, id.parse().expect("a number")).key());
                popped.push(id);
            }
        }
        assert_eq!(popped, (0..40).map(|n| format!("{n:02}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_message_waits_for_its_time() {
        let mut window = InboxWindow::new(10);
        window.begin_page();
        window.merge_page(vec![InboxRow { due: Timestamp::from_millis(50), attempt: 1, ..row("a", 1) }], true, NOW);
        assert_eq!(window.next_deadline(), Some(Timestamp::from_millis(50)));
        assert_eq!(pop(&mut window, 49), None);
        assert_eq!(pop(&mut window, 50).as_deref(), Some("a"));
    }

    fn of(instance: &str, n: i64) -> InboxRow {
        let name = InstanceName { interface: "order".into(), instance: instance.into() };
        InboxRow { name, ..row(&format!("{n:03}"), n) }
    }

    /// Loads whatever is wanted and hands out whatever may be, except to those who are busy; whom it was handed out.
    fn hand_out_all(window: &mut InboxWindow, all: &[InboxRow]) -> Vec<String> {
        let mut handed = Vec::new();
        loop {
            if let Some(row) = window.pop_due(NOW) {
                if window.is_led(&row.name) || window.lead(&row.name) {
                    handed.push(row.id.to_string());
                } else {
                    window.turn_back(NOW, row);
                }
            } else if window.wants_page() {
                load(window, all);
            } else {
                return handed;
            }
        }
    }

    #[test]
    fn messages_of_a_busy_instance_wait_behind_the_first_and_the_store_keeps_the_rest() {
        let mut window = InboxWindow::new(2);
        let mut all: Vec<_> = (0..100).map(|n| of("slow", n)).chain([of("quick", 100), of("other", 101)]).collect();
        assert_eq!(hand_out_all(&mut window, &all), ["000", "100", "101"]);
        assert_eq!(window.crowds.waiting(), 2 * CROWD_PER_CAP, "and no more are in memory");
        assert!(window.lets_alarms_fire() && window.next_deadline().is_none());
        for done in all.split_off(100) {
            window.remove(&done.key());
            window.head_ended(&done.name);
        }
        let mut handled = vec!["000".to_owned()];
        while handled.len() < 100 {
            let last = handled.last().expect("there is one").clone();
            let row = all.remove(all.iter().position(|row| *row.id == *last).expect("it is stored"));
            window.remove(&row.key());
            window.head_ended(&row.name);
            let next = hand_out_all(&mut window, &all);
            assert_eq!(next.len(), 1, "after {last}: {next:?}");
            handled.extend(next);
        }
        assert_eq!(handled, (0..100).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_message_that_is_handed_out_is_counted_no_more_wherever_it_has_waited() {
        let body = |row: InboxRow| InboxRow { body: vec![0; 1_000].into(), ..row };
        let waits: [fn(&mut InboxWindow, Arc<InboxRow>); 4] = [
            |_, _| {},
            |window, row| window.wait_again(Duration::from_millis(7), row),
            |window, row| window.postpone(Timestamp::from_millis(7), row),
            |window, row| window.turn_back(NOW, row),
        ];
        for wait in waits {
            let mut window = InboxWindow::new(4);
            window.begin_page();
            window.merge_page(vec![body(row("a", 1))], true, NOW);
            let row = window.pop_due(NOW).expect("it is ready");
            wait(&mut window, row.clone());
            pop(&mut window, 9);
            assert_eq!((window.ready_bytes, window.postponed_bytes, window.crowd_bytes), (0, 0, 0));
            window.remove(&row.key());
            assert!(window.taken.is_empty() && window.crowds.waiting() == 0);
        }
    }

    #[test]
    fn a_page_that_could_not_be_loaded_is_wanted_again_from_where_it_began() {
        let mut window = InboxWindow::new(1);
        window.begin_page();
        window.merge_page(vec![row("a", 1)], false, NOW);
        let a = window.pop_due(NOW).expect("it is ready");
        window.remove(&a.key());
        for _ in 0..2 {
            assert_eq!(window.begin_page(), Some((Some(a.key()), 1, false)));
            assert!(!window.wants_page(), "one is under way");
            window.abandon_page();
            assert!(window.wants_page() && !window.lets_alarms_fire());
        }
    }
}
