//! A host as a door: callers in the parent write their requests to it, a line each, and it says the answers.
//!
//! Whatever the door is asked, it asks through its own handle of the interface, whoever the owner is.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Handle, Interface, RequestError};

use super::builds::Build;
use super::child::in_one_line;
use super::ledger::{Cancel, Ledger, LedgerError, Tally};

/// The words before a question and its number.
pub(super) const ASK: &str = "ask ";
/// The words before an answer and the number of its question.
pub(super) const ANSWER: &str = "answer ";

/// A request of a caller.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) ledger: String,
    pub(super) ask: Ask,
    /// Tells whether it is to be done once, by a key that is made of it.
    pub(super) is_once: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// To note the operation of this name, and set an alarm that is due after so many milliseconds.
    Book(String, u64),
    /// The same, by the message that only the build of the door has.
    BookByOwn(String, u64),
    /// To cancel the alarm of the operation, unless it has fired.
    Cancel(String),
    /// To tell the number of operations that it has noted.
    Tally,
}

/// An answer: the ledger's, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// So many operations are noted now.
    Booked {
        count: u64,
        /// The host that says so.
        by: String,
        /// Tells whether it is known to be of another build than the door.
        is_across: bool,
    },
    /// Tells whether an alarm was cancelled.
    Cancelled(bool),
    /// Nothing happened: the name of the error, and what it says.
    Refused(String, String),
    /// It may have happened.
    Unknown(String, String),
    /// Nothing happened: the host that owns the ledger does not know the message, and says so.
    Unhandled(String),
    /// An error that nothing explains which is done to a fleet.
    Wrong(String),
}

impl Answer {
    fn of(error: &RequestError<LedgerError>) -> Answer {
        let (shown, text) = (format!("{error:?}"), in_one_line(error));
        let name = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
        match error {
            RequestError::Unhandled(_) => Answer::Unhandled(text),
            error if error.may_have_happened() => Answer::Unknown(name, text),
            error if error.is_retryable() => Answer::Refused(name, text),
            _ => Answer::Wrong(text),
        }
    }
}

/// Asks an instance, and has it done once where there is a key.
pub(super) async fn request<I, M>(
    of: &Interface<I>,
    id: &str,
    key: Option<&str>,
    message: M,
) -> Result<I::Reply, RequestError<I::Error>>
where
    I: Handle<M>,
    I::Reply: Serialize + DeserializeOwned,
    M: Serialize + Send + 'static,
{
    match key {
        Some(key) => of.request_once(id, key, message).await,
        None => of.request(id, message).await,
    }
}

/// Asks the ledger; the line that is to be said, but for an order that cannot be read.
pub(super) async fn answer(build: Build, ledgers: Interface<Ledger>, order: String) -> Option<String> {
    let (number, question) = order.strip_prefix(ASK)?.split_once(' ')?;
    let Question { ledger: id, ask, is_once } = serde_json::from_str(question).ok()?;
    let is_by_own_message = matches!(ask, Ask::BookByOwn(..));
    let answered = match ask {
        Ask::Book(op, after) | Ask::BookByOwn(op, after) => {
            let (key, book) = (format!("book {op}"), (op, Duration::from_millis(after)));
            build.book(&ledgers, &id, is_once.then_some(&*key), book, is_by_own_message).await
        }
        Ask::Cancel(op) => {
            let (key, cancel) = (format!("cancel {op}"), Cancel(op));
            request(&ledgers, &id, is_once.then_some(&*key), cancel).await.map(Answer::Cancelled)
        }
        Ask::Tally => {
            let tally = ledgers.request(&id, Tally).await;
            tally.map(|(counts, by)| Answer::Booked { count: counts.booked, by, is_across: false })
        }
    };
    let answer = answered.unwrap_or_else(|error| Answer::of(&error));
    Some(format!("{ANSWER}{number} {}", serde_json::to_string(&answer).expect("an answer can be written")))
}
