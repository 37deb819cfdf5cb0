//! A host as a door: callers in the parent write their requests to it, a line each, and it says the answers.
//!
//! Whatever the door is asked, it asks through its own handle of the interface, whoever the owner is.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stable_interfaces::{Handle, Interface, RequestError};

use super::child::in_one_line;
use super::ledger::{Book, Cancel, Ledger, LedgerError, Tally};

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
    /// To cancel the alarm of the operation, unless it has fired.
    Cancel(String),
    /// To tell the number of operations that it has noted.
    Tally,
}

/// An answer: the ledger's, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// So many operations are noted now, says this host.
    Booked(u64, String),
    /// Tells whether an alarm was cancelled.
    Cancelled(bool),
    /// Nothing happened: the name of the error, and what it says.
    Refused(String, String),
    /// It may have happened.
    Unknown(String, String),
    /// An error that nothing explains which is done to a fleet.
    Wrong(String),
}

impl Answer {
    fn of(error: &RequestError<LedgerError>) -> Answer {
        let (shown, text) = (format!("{error:?}"), in_one_line(error));
        let name = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
        match error {
            error if error.may_have_happened() => Answer::Unknown(name, text),
            error if error.is_retryable() => Answer::Refused(name, text),
            _ => Answer::Wrong(text),
        }
    }
}

/// Asks an instance, and has it done once where there is a key.
async fn request<I, M>(
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
pub(super) async fn answer(ledgers: Interface<Ledger>, order: String) -> Option<String> {
    let (number, question) = order.strip_prefix(ASK)?.split_once(' ')?;
    let Question { ledger: id, ask, is_once } = serde_json::from_str(question).ok()?;
    let answered = match ask {
        Ask::Book(op, after) => {
            let (key, book) = (format!("book {op}"), Book(op, Duration::from_millis(after)));
            let booked = request(&ledgers, &id, is_once.then_some(&*key), book).await;
            booked.map(|(count, host)| Answer::Booked(count, host))
        }
        Ask::Cancel(op) => {
            let (key, cancel) = (format!("cancel {op}"), Cancel(op));
            request(&ledgers, &id, is_once.then_some(&*key), cancel).await.map(Answer::Cancelled)
        }
        Ask::Tally => ledgers.request(&id, Tally).await.map(|(counts, host)| Answer::Booked(counts.booked, host)),
    };
    let answer = answered.unwrap_or_else(|error| Answer::of(&error));
    Some(format!("{ANSWER}{number} {}", serde_json::to_string(&answer).expect("an answer can be written")))
}
