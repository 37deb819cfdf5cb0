//! Waiting for time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use stable_interfaces::Timestamp;

use crate::engine::Ticket;

/// A wait for a moment: [`Flow::sleep`](crate::Flow::sleep). Its deadline is fixed when it is made, also over a restart.
#[derive(Debug)]
#[must_use = "a sleep does nothing until it is awaited"]
pub struct Sleep {
    ticket: Ticket,
    is_over: bool,
}

impl Sleep {
    pub(crate) fn new(ticket: Ticket) -> Sleep {
        Sleep { ticket, is_over: false }
    }

    /// The moment that the sleep waits for.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.ticket.due().unwrap_or_default()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        if self.is_over || self.ticket.poll(task).is_ready() {
            self.is_over = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// The time of a [`Flow::timeout`](crate::Flow::timeout) was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed(pub(crate) Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it did not happen within {:?}", self.0)
    }
}

impl std::error::Error for Elapsed {}
