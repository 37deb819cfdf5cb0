//! Two builds of the program of a host, as a deployment has them side by side: fields were added to what hosts say to each other, one message is
//! new, and one is gone. What they store is the same, so that each goes on with what the other has left.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::{Context, Handle, Interface, InterfaceBuilder, RegisterError, RequestError};

use super::door::{Answer, request};
use super::ledger::{Cancel, Ledger, LedgerError, Tally};

/// A build of the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// The one before. It takes operations by fax too.
    #[default]
    Old,
    /// The one after. It takes them by wire instead, and wraps some.
    New,
}

/// The words of the old build.
mod old {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct Book {
        pub(super) op: String,
        pub(super) after: Duration,
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Fax(pub(super) Book);

    #[derive(Serialize, Deserialize)]
    pub(super) struct Booked {
        pub(super) count: u64,
        pub(super) by: String,
    }
}

/// The words of the new build.
mod new {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(super) struct Book {
        pub(super) op: String,
        pub(super) after: Duration,
        // Left out where it is the default, it is to a key the same message as that of the old build.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub(super) is_gift: bool,
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Wire(pub(super) Book);

    #[derive(Serialize, Deserialize)]
    pub(super) struct Booked {
        pub(super) count: u64,
        pub(super) by: String,
        #[serde(default)]
        pub(super) is_wrapped: Option<bool>,
    }
}

impl Handle<old::Book> for Ledger {
    type Reply = old::Booked;

    async fn handle(&mut self, cx: &mut Context, book: old::Book) -> Result<old::Booked, LedgerError> {
        Ok(old::Booked { count: self.book(cx, &book.op, book.after)?, by: self.host().to_owned() })
    }
}

impl Handle<old::Fax> for Ledger {
    type Reply = old::Booked;

    async fn handle(&mut self, cx: &mut Context, old::Fax(book): old::Fax) -> Result<old::Booked, LedgerError> {
        self.handle(cx, book).await
    }
}

impl Handle<new::Book> for Ledger {
    type Reply = new::Booked;

    async fn handle(&mut self, cx: &mut Context, book: new::Book) -> Result<new::Booked, LedgerError> {
        let (count, by) = (self.book(cx, &book.op, book.after)?, self.host().to_owned());
        Ok(new::Booked { count, by, is_wrapped: Some(book.is_gift) })
    }
}

impl Handle<new::Wire> for Ledger {
    type Reply = new::Booked;

    async fn handle(&mut self, cx: &mut Context, new::Wire(book): new::Wire) -> Result<new::Booked, LedgerError> {
        self.handle(cx, book).await
    }
}

impl Build {
    /// The name that a host gives itself, and others are told.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Build::Old => "2026.1",
            Build::New => "2026.2",
        }
    }

    /// The one with this name.
    pub(super) fn named(name: &str) -> Option<Build> {
        [Build::Old, Build::New].into_iter().find(|build| build.name() == name)
    }

    /// The build of the host that says in these words that it does not know a message.
    pub(super) fn of_refusal(text: &str) -> Option<Build> {
        [Build::Old, Build::New].into_iter().find(|build| text.contains(&format!("build {},", build.name())))
    }

    /// Registers what a host of this build is asked by others.
    pub(super) fn register(self, ledgers: InterfaceBuilder<'_, Ledger>) -> Result<Interface<Ledger>, RegisterError> {
        let ledgers = ledgers.forward_with_text_errors::<Cancel>("cancel").forward_with_text_errors::<Tally>("tally");
        match self {
            Build::Old => ledgers
                .forward_with_text_errors::<old::Book>("book")
                .forward_with_text_errors::<old::Fax>("fax")
                .register(),
            Build::New => ledgers
                .forward_with_text_errors::<new::Book>("book")
                .forward_with_text_errors::<new::Wire>("wire")
                .register(),
        }
    }

    /// Has an operation noted, by the message that both builds have or by the one that only this one has.
    pub(super) async fn book(
        self,
        of: &Interface<Ledger>,
        id: &str,
        key: Option<&str>,
        (op, after): (String, Duration),
        is_by_own_message: bool,
    ) -> Result<Answer, RequestError<LedgerError>> {
        match self {
            Build::Old => {
                let book = old::Book { op, after };
                let old::Booked { count, by } = match is_by_own_message {
                    false => request(of, id, key, book).await?,
                    true => request(of, id, key, old::Fax(book)).await?,
                };
                Ok(Answer::Booked { count, by, is_across: false })
            }
            Build::New => {
                let is_gift = op.len() % 2 == 1;
                let book = new::Book { op, after, is_gift };
                let new::Booked { count, by, is_wrapped } = match is_by_own_message {
                    false => request(of, id, key, book).await?,
                    true => request(of, id, key, new::Wire(book)).await?,
                };
                match is_wrapped {
                    Some(is_wrapped) if is_wrapped != is_gift => Ok(Answer::Wrong(format!("{by} lost a field"))),
                    // The old build knows nothing of it.
                    is_wrapped => Ok(Answer::Booked { count, by, is_across: is_wrapped.is_none() }),
                }
            }
        }
    }
}
