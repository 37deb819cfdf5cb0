//! Requests that another host is to answer: sent on by any host, answered by the owner.
//!
//! A request is sent on only when its shard was found to be elsewhere, so one that is answered here pays nothing for it. There is one hop: who
//! gets a request and does not own its shard says who does, and never sends it on. The one that asks goes there then, for as long as
//! the request may wait for its turn. What was sent and has no answer is [`Unknown`](crate::RequestError::Unknown), and is not sent
//! again, unless it has a key under which it is handled once (`instance/once.rs`).
//!
//! | file | holds |
//! | --- | --- |
//! | `wire.rs` | a request and an answer as bytes |
//! | `told.rs` | an error as another host tells it |
//! | `reach.rs` | the way to other hosts, with its limits |
//! | `door.rs` | the host to which others speak |
//! | `arrival.rs` | callers on other hosts, as links of the call chain |
//! | `traces.rs` | traces that go on at another host |
//! | `table.rs` | the messages of an interface that may cross, and how |
//! | `call.rs` | the operations on an instance that are no messages |
//! | `send.rs`, `serve.rs` | the two ends |
//! | `question.rs` | both ends of a question, which a host answers and no instance |

pub(crate) mod arrival;
pub(crate) mod call;
pub(crate) mod door;
pub(crate) mod question;
pub(crate) mod reach;
pub(crate) mod send;
pub(crate) mod serve;
pub(crate) mod table;
pub(crate) mod told;
pub(crate) mod traces;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
