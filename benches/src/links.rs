//! Ways to have another process do something: ours (a request at a host that does not own the instance), frames written by hand, which is the
//! limit, and what others are built on.
//!
//! The message is the same for all, as JSON of about a hundred bytes, and so is what is done with it: it is counted. A side of ours counts in the
//! instance that the message is for, with all that this takes; the others in one number.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

pub mod by_hand;
#[cfg(feature = "rpc")]
pub mod grpc;
#[cfg(feature = "rpc")]
pub mod http2;
pub mod ours;

/// The message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Add {
    by: u64,
    account: String,
    note: String,
}

/// The reply.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Counted {
    count: u64,
}

impl Add {
    /// The message of one of many callers.
    #[must_use]
    pub fn of(caller: usize) -> Add {
        Add { by: 1, account: account(caller), note: "as was agreed upon on the phone this morning".into() }
    }
}

/// As many instances are asked, by as many callers as there are.
const ACCOUNTS: usize = 64;

fn account(caller: usize) -> String {
    format!("account-{:08}", caller % ACCOUNTS)
}

/// The count of a side that has nothing else.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    fn add(&self, add: &Add) -> Counted {
        Counted { count: self.0.fetch_add(add.by, Ordering::Relaxed) + add.by }
    }

    /// The same from JSON to JSON.
    fn add_json(&self, add: &[u8]) -> Vec<u8> {
        let add = serde_json::from_slice(add).expect("the message is one");
        serde_json::to_vec(&self.add(&add)).expect("numbers can be written")
    }
}

/// One way to ask.
pub trait Link: Clone + Debug + Send + Sync + 'static {
    /// Asks once, as one of many callers, and returns the count.
    fn ask(&self, caller: usize) -> impl Future<Output = u64> + Send;
}
