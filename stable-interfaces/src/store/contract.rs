//! The [`Store`] trait with its questions and answers.

use std::any::Any;
use std::fmt::{self, Debug};
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    AlarmKey, AlarmRow, Batch, DeadKey, DeadLetter, Hints, InboxKey, InboxRow, InstanceName, Members, NewMessage,
    Placement, Presence,
};
use crate::clock::Timestamp;
use crate::sync::Arc;

/// An error of whatever a store is made on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The number of a shard, from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of an ownership of a shard: raised by one at each change of owner, from 1. Sent along with a write, it is the fencing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A life of a host process: a random number from 1 to `i64::MAX`, drawn when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// One of a host's streams of writes. A lane has one write under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

/// The store of alarms, inboxes and instance storage: an ordered store with one writer per shard.
///
/// Times are whole milliseconds since the Unix epoch. Text (IDs, keys) is UTF-8 without NUL, ordered by its bytes.
/// Every method may be called from many tasks at once and must not block the thread it is polled on. A call whose future is
/// dropped may still take effect.
#[async_trait]
pub trait Store: Any + Debug + Send + Sync + 'static {
    /// Makes `claim.incarnation` the owner of each shard that is free to take, atomically with the lease that covers them.
    ///
    /// A shard is free if it was never owned, was released, has an owner whose lease has run out by the store's own clock, or
    /// belongs already to this incarnation. With [`ClaimKind::Start`] shards of *other incarnations of the same host name* are
    /// free too, and all those incarnations are ended: they fail at their next [`renew`](Self::renew) and write nothing more.
    /// Each newly granted shard's epoch rises by one. A shard this incarnation owns already keeps its epoch and its `clean`
    /// mark, so that repeating a claim is safe; unless [`Claim::given_up`] names just that epoch: then it is granted anew, and is not
    /// clean. The lease starts anew at the time of this call, for `claim.lease`.
    ///
    /// The first claim of a store records shard count and hash version.
    ///
    /// The claimer is a [member](Members) of the fleet from here on, as its [`Presence`] says.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if shard count or hash version differ from what is recorded. [`StoreError::OtherPlacement`] if any other member,
    /// those aside that this claim ends, goes by the other [`Placement`]. [`StoreError::Replaced`] if this incarnation was ended.
    /// In all cases nothing was granted or changed.
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError>;

    /// Extends the lease of an incarnation to `renewal.lease` from now, notes what it says of itself, and tells which of its shards have rows in
    /// their inbox, and who else holds a lease.
    ///
    /// A lease that ran out is extended all the same: only a claim by another host takes a shard away. Whoever has said that it leaves is
    /// leaving to its end, also if a renewal that says otherwise comes late. A store that is spread over
    /// machines answers for those it can reach, and names the shards of the others in [`Renewed::unknown`]: their lease may not have
    /// been extended, and they may still be owned.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if the incarnation was ended by a newer one of the same name, or is not known.
    /// [`StoreError::Lost`] as in [`commit`](Self::commit).
    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError>;

    /// Gives up the shards that `incarnation` still owns under the epoch named with each: anyone may claim them at once and is told that they
    /// are clean. Without an epoch it is given up under whichever it is owned.
    ///
    /// Epochs stay; writes of the old owner under them are refused from here on. Shards it does not own, or owns under another epoch, are left
    /// alone: so repeating is safe, and a release that the network holds back undoes no later claim. One that is
    /// [leaving](Presence::is_leaving) and owns nothing after this has left: its life is over, as if it had been replaced, so that no claim
    /// or renewal that comes late brings it back.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::NotApplied`]; repeating the call is safe.
    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError>;

    /// Marks a member as [cordoned](super::MemberState::Cordoned), or takes the mark away, if the number of the last change of
    /// [members](Members::version) is still the one that was `seen`, and tells whether it has: where not, this life is no member, or the number is
    /// another. For anyone. The number rises with each mark that is set or taken away, also where nothing else changes by it. So a mark that comes late
    /// undoes no later one; it belongs to a life of the host and ends with it, so it marks no later life either.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::NotApplied`]; repeating the call is safe.
    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError>;

    /// All who hold a lease. For anyone, and nothing is changed by it: a lease that has run out since a host has claimed or renewed is left
    /// out, and need not have changed the number yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; repeating the call is safe.
    async fn members(&self) -> Result<Members, StoreError>;

    /// Applies each batch atomically if its shard is owned by `write.incarnation` under the batch's epoch, and answers for each
    /// in the same order. On `Ok(())` a batch survives the end of this process.
    ///
    /// The store keeps the greatest `seq` it has taken per incarnation and lane, with [`Sequence::OfShard`] for each shard, and
    /// changes it in the same atomic step as what it is kept for. A write with *that* number is a repeat: it is answered
    /// without being applied, `Ok` for each batch whose epoch is still the shard's. A smaller number is refused.
    ///
    /// The caller promises: batches name different shards, no two operations of a batch have the same target, and
    /// at most one write of a lane, with [`Sequence::OfShard`] one for each shard of a lane, is under way, apart from repeats of it.
    /// A repeat has batches of the write that it repeats, unchanged, and perhaps not all: what was answered, or whose shard was given up,
    /// is left out.
    ///
    /// # Errors
    /// Per batch: [`StoreError::Fenced`] if the shard has another owner or epoch; [`StoreError::Rejected`] if its content cannot
    /// be stored, or it would change an alarm whose row is of a newer version; [`StoreError::Full`] if there is no room for it. Nothing
    /// of that batch was written, the others are not affected. With [`Sequence::OfShard`] alone also: [`StoreError::Unavailable`]
    /// if the outcome of this batch is unknown, [`StoreError::NotApplied`] if this call wrote nothing of it, and [`StoreError::Stale`];
    /// what such a store knows of the other batches it says.
    /// For the whole call: [`StoreError::Rejected`] as above where the store cannot tell which batch it was: nothing was
    /// written and `seq` was not taken. [`StoreError::Stale`] for a smaller `seq`. [`StoreError::Unavailable`] if the outcome
    /// is unknown, [`StoreError::NotApplied`] if this call wrote nothing (an earlier one of the same write that was not answered may
    /// have): repeating the same write is safe after both.
    /// [`StoreError::Stopped`] if the store takes no more writes. [`StoreError::Lost`] if it is found to have lost an earlier write
    /// that it had acknowledged; and then to every later call that names this incarnation.
    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError>;

    /// Inserts each message into the inbox of its instance unless one with the same ID is there, durably, and says which.
    ///
    /// For anyone: it needs no epoch and no lease. The store stamps `arrived` with its own clock, and nudges the owner's
    /// [`watch`](Self::watch). Shards are not checked against an owner.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] if a message cannot be stored: none was. [`StoreError::Unavailable`] if the outcome is unknown:
    /// repeating is safe, what was inserted is then reported as a duplicate.
    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError>;

    /// Hints that a shard has inbox rows, from now on and for all shards, and that members or owners have changed. They may be lost, doubled
    /// or early: they only save waiting for the next [`renew`](Self::renew), which comes within seconds, whatever the lease.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the store cannot be reached; call again.
    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError>;

    /// Reads, for each page in the same order, the rows of its shard strictly after its key, ascending by key, at most `page.limit`, and
    /// with no more than `page.bytes` together unless the first one alone has more: where there are rows, a page has one at least.
    /// [`Loaded::is_last`] says whether the store has none after them.
    ///
    /// Every committed row is seen; pages are not a snapshot of one moment. Rows that cannot be decoded or come from a newer
    /// version do not count towards the limit, do not end a page, and are reported in [`Loaded::damaged`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; repeating the call is safe.
    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError>;

    /// One instance's storage or alarms within a range of keys, ascending by key, at most `read.limit`, and with no more than `read.bytes`
    /// together unless the first one alone has more: where there are rows, at least one comes. For anyone. [`Found::is_last`] says whether
    /// the range has none after them.
    ///
    /// Alarms that cannot be decoded are left out (as in [`load`](Self::load), where they are reported).
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a storage value in the range cannot be decoded. [`StoreError::Unavailable`]; repeating is safe.
    async fn read(&self, read: &Read) -> Result<Found, StoreError>;
}

/// The request of a host in [`Store::claim`].
#[derive(Debug, Clone)]
pub struct Claim {
    /// The incarnation that asks.
    pub incarnation: Incarnation,
    /// The name of its host.
    pub host: Arc<str>,
    /// The shards it wants; each at most once.
    pub shards: Vec<ShardId>,
    /// The wanted shards that this incarnation has owned and acts as an owner of no more, each with its last epoch: they are granted
    /// under a greater epoch only, so that nothing sent before can land after the shards have been read again.
    pub given_up: Vec<(ShardId, Epoch)>,
    /// The number of shards that its fleet has; recorded by the first claim and compared by all others.
    pub shard_count: u32,
    /// The version of the function that maps IDs to shards; recorded and compared likewise.
    pub hash_version: u32,
    /// The time that the lease is to last, by the store's clock.
    pub lease: Duration,
    /// Tells whether shards of the same host name may be taken from a living lease.
    pub kind: ClaimKind,
    /// The host's words about itself.
    pub presence: Presence,
}

/// The right of a claim to take shards from an earlier life of its own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimKind {
    /// The host is starting: earlier incarnations of the same name are ended at once, whatever their lease says.
    Start,
    /// The host is running and asks for shards that others held.
    Running,
}

/// The answer of [`Store::claim`].
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The shards that are now the claimer's, in the order asked for.
    pub granted: Vec<Grant>,
    /// The shards that belong to somebody else with a living lease.
    pub held: Vec<Held>,
    /// The scope of the numbers that the store keeps of writes; the same in each answer of a store.
    pub sequence: Sequence,
    /// The most writes of one host that the store works on at the same time. A host has no more [lanes](crate::HostBuilder::lanes): one more would
    /// wait where another is under way, and what has come for it meanwhile would be in a write of its own. The same in each answer of a store.
    pub overlap: NonZeroU16,
    /// The store's wall clock at the claim.
    pub now: Timestamp,
    /// The name that the store has given itself with its first claim, at random and for good: hosts that were told different ones are not of one fleet.
    /// `None` from a store that only one process can open.
    pub store: Option<Arc<str>>,
    /// All who hold a lease, the claimer among them.
    pub members: Members,
}

/// The scope for which a store keeps the number of the last write of an incarnation and lane. A write whose outcome is unknown holds up whatever
/// shares it: what comes later would take a greater number, and the repeat would be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The lane: all batches of a write are one step. An unknown outcome holds up the lane.
    OfLane,
    /// The shard, in a store that spreads shards over machines: each batch of a write is a step of its own. An unknown
    /// outcome holds up its shard.
    OfShard,
}

/// One shard granted by [`Store::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The shard.
    pub shard: ShardId,
    /// The epoch under which to write.
    pub epoch: Epoch,
    /// Tells whether the last owner released it, or there never was one. If not, handlers may have been running when it ended.
    pub clean: bool,
}

/// One shard that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The shard.
    pub shard: ShardId,
    /// The name of the host that holds it.
    pub holder: Arc<str>,
    /// The time that its lease still runs, unless renewed.
    pub remaining: Duration,
}

/// The request of a host in [`Store::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The incarnation that asks.
    pub incarnation: Incarnation,
    /// The time that its lease is to last from now, by the store's clock.
    pub lease: Duration,
    /// The host's words about itself.
    pub presence: Presence,
}

impl Renewal {
    /// A renewal of a host that says nothing of itself.
    #[must_use]
    pub fn new(incarnation: Incarnation, lease: Duration) -> Renewal {
        Renewal { incarnation, lease, presence: Presence::default() }
    }
}

/// The answer of [`Store::renew`].
#[derive(Debug, Clone)]
pub struct Renewed {
    /// The shards the incarnation owns, ascending. Whatever it thought to own beside these and the unknown was taken.
    pub owned: Vec<ShardId>,
    /// The shards that did not answer and that it may own, ascending: their lease lasts for as long as it did before this call.
    pub unknown: Vec<ShardId>,
    /// The owned shards that have rows in their inbox, ascending.
    pub inbox: Vec<ShardId>,
    /// The store's wall clock at the renewal.
    pub now: Timestamp,
    /// All who hold a lease, the one that asked among them; an empty list if the store cannot say now.
    pub members: Members,
}

/// One group commit of a lane.
#[derive(Debug, Clone)]
pub struct Write {
    /// The incarnation that writes.
    pub incarnation: Incarnation,
    /// The lane of that incarnation.
    pub lane: Lane,
    /// Rises with each write of the lane, from 1; equal for a repeat of the same write or of a part of it.
    pub seq: u64,
    /// The batches to write, ascending by shard, each shard once.
    pub batches: Vec<Batch>,
}

/// The outcome of a message of [`Store::post`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The message is in the inbox.
    Inserted,
    /// A message with its ID was there already, and stays as it is.
    Duplicate,
}

/// One page of one shard, as [`Store::load`] takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The shard.
    pub shard: ShardId,
    /// The kind of rows, and the key after which they start.
    pub after: After,
    /// At most this many rows; at least 1.
    pub limit: usize,
    /// At most about this many bytes, of what the application put into the rows: meta, body, headers. The first row comes whatever it has.
    pub bytes: usize,
    /// Says whether of inbox rows only the keys are wanted: all but name, ID and time of arrival may be left empty, and need not be read.
    pub keys_only: bool,
}

impl Page {
    /// A page of at most `limit` whole rows, however many bytes they have.
    #[must_use]
    pub fn new(shard: ShardId, after: After, limit: usize) -> Page {
        Page { shard, after, limit, bytes: usize::MAX, keys_only: false }
    }
}

/// The key of a shard's rows after which a page starts; `None` starts with the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Alarms, in the order in which they fire.
    Alarms(Option<AlarmKey>),
    /// Inbox rows, in the order of their arrival.
    Inbox(Option<InboxKey>),
    /// Dead letters, oldest first.
    Dead(Option<DeadKey>),
}

/// The answer of [`Store::load`] for one page.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The rows, of the kind that was asked for.
    pub rows: Rows,
    /// Rows met on the way that are not usable. They stay in the store, untouched.
    pub damaged: Vec<Damaged>,
    /// Says whether the store has no row after these. A page that is full may leave that open, and then this is `false`.
    pub is_last: bool,
}

/// Rows of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// Alarms by [`AlarmKey`].
    Alarms(Vec<AlarmRow>),
    /// Inbox rows by [`InboxKey`].
    Inbox(Vec<InboxRow>),
    /// Dead letters by [`DeadKey`].
    Dead(Vec<DeadLetter>),
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The shard of the row.
    pub shard: ShardId,
    /// The place of the row, for a person who looks for it in the store.
    pub place: String,
    /// The fault in the row.
    pub reason: DamageReason,
}

/// The reason why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamageReason {
    /// The bytes are not a row; the text says where that shows.
    Undecodable(String),
    /// A newer version of this library wrote the row, with this row format. The row is to be left alone.
    NewerVersion(u32),
}

impl fmt::Display for DamageReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DamageReason::Undecodable(what) => write!(f, "cannot be decoded: {what}"),
            DamageReason::NewerVersion(version) => write!(f, "has the newer row format {version}"),
        }
    }
}

/// The question of [`Store::read`].
#[derive(Debug, Clone)]
pub struct Read {
    /// The shard of the instance.
    pub shard: ShardId,
    /// The instance.
    pub name: InstanceName,
    /// The part of the instance that is wanted.
    pub range: ReadRange,
    /// At most this many; at least 1.
    pub limit: usize,
    /// At most about this many bytes, of what the application put into the rows: value, meta. The first row comes whatever it has.
    pub bytes: usize,
}

impl Read {
    /// At most `limit` rows of a range, however many bytes they have.
    #[must_use]
    pub fn new(shard: ShardId, name: InstanceName, range: ReadRange, limit: usize) -> Read {
        Read { shard, name, range, limit, bytes: usize::MAX }
    }
}

/// A range of one instance's keys: from the first (included) up to the second (excluded; `None` for no end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadRange {
    /// A range of its storage, by key.
    Storage(Arc<str>, Option<Arc<str>>),
    /// A range of its alarms, by alarm ID.
    Alarms(Arc<str>, Option<Arc<str>>),
}

/// The answer of [`Store::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The rows, of the kind that was asked for.
    pub rows: ReadRows,
    /// Says whether the range has no row after these. An answer that is full may leave that open, and then this is `false`.
    pub is_last: bool,
}

/// Rows of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadRows {
    /// Keys and values.
    Storage(Vec<(Arc<str>, bytes::Bytes)>),
    /// Alarms by ID.
    Alarms(Vec<AlarmRow>),
}

/// The reason why a [`Store`] did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The shard has another owner or epoch. Nothing was written; this host must drop the shard.
    #[error("shard {shard} is fenced: epoch {held} has been replaced by {newest}")]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// The epoch the write carried.
        held: Epoch,
        /// The epoch the store has.
        newest: Epoch,
    },
    /// The incarnation was ended by another one of the same host name. It must stop wholly.
    #[error("this host has been replaced by another process of the same name")]
    Replaced,
    /// A newer write of this lane has been taken. Nothing was written.
    #[error("write {seq} of lane {lane} is stale: write {newest} has been taken", lane = lane.0)]
    Stale {
        /// The lane.
        lane: Lane,
        /// The sequence number the write carried.
        seq: u64,
        /// The one the store has taken.
        newest: u64,
    },
    /// No answer arrived, so the outcome is unknown. The call is safe to repeat.
    #[error("store unavailable, outcome unknown")]
    Unavailable(#[source] BoxError),
    /// The store could not be asked; nothing was written. The call is safe to repeat.
    #[error("store unavailable, nothing written")]
    NotApplied(#[source] BoxError),
    /// The store cannot hold this content. Nothing was written; repeating cannot succeed.
    #[error("refused by the store")]
    Rejected(#[source] BoxError),
    /// The store has no room for it. Nothing was written; what only removes is taken, and the same may succeed later.
    #[error("the store is full, nothing written")]
    Full(#[source] BoxError),
    /// The store takes no more writes (a failed disk, say) until the process is restarted. The outcome of this one is unknown.
    #[error("the store has stopped taking writes; restart when the cause is mended")]
    Stopped(#[source] BoxError),
    /// The store has lost what it had acknowledged to this incarnation: it was emptied, restored from an old copy, or failed over to
    /// a replica that lagged behind. The outcome of this call is unknown, and this incarnation is served no more. Others are: a
    /// [`claim`](Store::claim) by a new one, and [`post`](Store::post), by which the host saves the alarms it still knows.
    #[error("the store has lost what it had acknowledged; this host must start anew")]
    Lost(#[source] BoxError),
    /// A row in the range cannot be decoded, or comes from a newer version.
    #[error("{} {}", .0.place, .0.reason)]
    Damaged(Damaged),
    /// The store belongs to a fleet with another shard count or hash version. Configure this host like the others.
    #[error(
        "this host is configured for {shard_count} shards (hash version {hash_version}), \
         but the store holds {stored_shard_count} (hash version {stored_hash_version})"
    )]
    Mismatch {
        /// The shard count this host is configured for.
        shard_count: u32,
        /// The hash version this host is built with.
        hash_version: u32,
        /// The shard count recorded in the store.
        stored_shard_count: u32,
        /// The hash version recorded in the store.
        stored_hash_version: u32,
    },
    /// Hosts that place shards by the other rule hold a lease. Stop all of them before the first of this kind is started.
    #[error(
        "this host's fleet goes by {placement}, but hosts that go by {stored} hold a lease in the store; stop all of those first, or configure \
         this host like them"
    )]
    OtherPlacement {
        /// The rule that this host is configured for.
        placement: Placement,
        /// The rule of those that hold a lease.
        stored: Placement,
    },
    /// The store cannot be opened as it is configured. The text says what to change.
    #[error("cannot open the store: {0}")]
    Open(String, #[source] Option<BoxError>),
}

impl StoreError {
    /// Tells whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable(_) | StoreError::NotApplied(_) | StoreError::Full(_))
    }

    /// Tells whether the call may have taken effect all the same.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        matches!(self, StoreError::Unavailable(_) | StoreError::Stopped(_) | StoreError::Lost(_))
    }
}
