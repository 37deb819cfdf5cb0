//! From effects to what is durable: folding, the gate of an incarnation, the lanes that write.
//!
//! Nothing here knows an instance or its host. A commit comes in with its ticket, and the ticket learns what became of it.

pub(crate) mod committer;
pub(crate) mod effects;
pub(crate) mod gate;
pub(crate) mod in_doubt;
