//! The contract between the library and whatever keeps its data: an ordered store with one writer per shard.
//!
//! Everything a store must know stands in this module; the core relies on nothing else. A store is correct when it passes
//! [`conformance`](crate::testing::conformance), and the comments here are what that suite tests.
//!
//! Ownership is by *epoch*: [`Store::claim`] gives a shard a higher one, and each [`Batch`] carries the epoch it was made
//! under and is refused in the same atomic step when the shard has a newer one, whatever anyone's clock says (the
//! sequencers of Burrows, "The Chubby lock service", 2006). Repeats are by *sequence*: each [`Write`] carries a number
//! that rises per incarnation and lane, so a repeated write is recognised and a late one changes nothing. A store keeps the last
//! number for a lane or for each shard, as [`Sequence`] has it; an unknown outcome holds up what shares that number, and nothing else.

//!
//! Where things stand: the trait and its questions and answers in `store/contract.rs`, rows and operations in `store/row.rs`.

mod address;
pub(crate) mod client;
mod contract;
pub(crate) mod deadlines;
mod external;
mod hints;
mod members;
mod memory;
pub(crate) mod paging;
pub(crate) mod portion;
mod row;

pub use crate::fleet::HASH_VERSION;
pub use crate::id::{MAX_ID_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, check_id, check_key};
pub use crate::instance::enlist::Enlistment;
pub use address::Addressed;
pub use contract::{
    After, BoxError, Claim, ClaimKind, Claimed, DamageReason, Damaged, Epoch, Found, Grant, Held, Incarnation, Lane,
    Loaded, Page, Posted, Read, ReadRange, ReadRows, Renewal, Renewed, Rows, Sequence, ShardId, Store, StoreError,
    Write,
};
pub use external::ExternalTransaction;
pub use hints::{Hint, HintSender, Hints};
pub use members::{Member, MemberState, Members, Placement, Presence, Roster};
pub use memory::MemoryStore;
pub use row::{
    AlarmKey, AlarmRow, Attempts, Batch, DeadKey, DeadLetter, DeadRow, InboxKey, InboxRow, InstanceName,
    MessageHeaders, NewMessage, Op, Revision,
};
