//! Steps that are a transaction of the application on Postgres.
//!
//! The attempt of such a step asks for a turn of its flow's instance, which runs its statements and commits them together with the
//! entry of the journal that says that they are done ([`Asked`]): one transaction of the database, so that both are there, or
//! neither. If it is certain that nothing was committed, that is an attempt that failed. If nobody knows, the instance is built
//! anew, and its journal tells.

use std::error::Error;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use alarm_backends::postgres::tokio_postgres::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::journal::{Key, StepOutcome};
use crate::step::{Fatal, Step, StepCx, StepError};

/// The time that the statements of a step may take, for they hold up everything else that the flow is given.
const LIMIT: Duration = Duration::from_secs(10);

type BoxError = Box<dyn Error + Send + Sync>;
type Borrowing<'c, T> = Pin<Box<dyn Future<Output = T> + Send + 'c>>;
/// Runs a step's statements, and says how it has ended.
pub(crate) type Statements = Box<dyn for<'c> FnOnce(&'c Client) -> Borrowing<'c, Result<StepOutcome, BoxError>> + Send>;

/// An attempt that waits for its transaction.
pub(crate) struct Asked {
    pub(crate) step: Key,
    pub(crate) limit: Duration,
    pub(crate) statements: Statements,
    /// A channel that is told why, if nothing was committed. It is closed if nobody waits for the step.
    pub(crate) failed: oneshot::Sender<BoxError>,
}

impl Step<'_> {
    /// Begins it as a transaction of the application on the Postgres of the flow's store: its statements and the entry of the journal
    /// that holds its value are committed together. They happen exactly once, whoever dies in between.
    ///
    /// ```
    /// use alarm_backends::postgres::tokio_postgres;
    /// use callback_flows::{Flow, FlowResult};
    ///
    /// async fn book(flow: Flow, (account, cents): (String, i64)) -> FlowResult<i64> {
    ///     let booked = flow.step("book").in_transaction(move |tx| {
    ///         let account = account.clone();
    ///         Box::pin(async move {
    ///             tx.execute("INSERT INTO bookings (account, cents) VALUES ($1, $2)", &[&account, &cents]).await?;
    ///             let row = tx.query_one("SELECT sum(cents)::int8 FROM bookings WHERE account = $1", &[&account]).await?;
    ///             row.try_get::<_, i64>(0)
    ///         })
    ///     });
    ///     Ok(booked.await?)
    /// }
    /// ```
    ///
    /// `statements` is called once for each attempt, with a client inside a `READ COMMITTED` transaction. Beginning and ending that is
    /// the library's; `SAVEPOINT`s are fine. They are not to do anything outside of it, since they may be rolled back. They run in
    /// a turn of the flow, which is given nothing else meanwhile: an attempt has failed after its
    /// [`timeout`](Self::timeout), here 10 s by default, which has to be shorter than the host's limit for handlers.
    ///
    /// On a host with another store, or none, the flow is blocked.
    ///
    /// # Errors
    /// [`StepError`] when it has failed for good: nothing of it has happened then, unless that is [`StepError::TooLarge`].
    pub fn in_transaction<T, E, F>(
        mut self,
        statements: F,
    ) -> impl Future<Output = Result<T, StepError>> + Send + use<T, E, F>
    where
        F: for<'c> Fn(&'c Client) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send + Sync + 'static,
        T: Serialize + DeserializeOwned + 'static,
        E: Into<BoxError> + 'static,
    {
        let limit = self.take_timeout().unwrap_or(LIMIT);
        let statements = Arc::new(statements);
        self.run(move |cx: StepCx| {
            let statements = statements.clone();
            let shared = cx.shared().clone();
            let largest = shared.limits.value_bytes;
            let statements: Statements = Box::new(move |client| {
                Box::pin(async move {
                    let value = statements(client).await.map_err(Into::into)?;
                    let json = serde_json::to_vec(&value);
                    let json = json.map_err(|error| Fatal::new(format!("its value cannot be JSON: {error}")))?;
                    Ok(StepOutcome::of(json, largest))
                })
            });
            let (failed, told) = oneshot::channel();
            shared.ask_for_transaction(Asked { step: cx.key().clone(), limit, statements, failed });
            async move {
                match told.await {
                    Ok(error) => Err::<T, BoxError>(error),
                    // It was committed, and the journal says so next; or the instance is built anew.
                    Err(_) => pending().await,
                }
            }
        })
    }
}
