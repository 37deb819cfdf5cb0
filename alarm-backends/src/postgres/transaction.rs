//! Transactions of the application that a handler's effects are part of.
//!
//! The application's statements run on a connection of a small set of their own, with the server's settings and not the
//! store's, so that no group commit waits for them. Last in the transaction comes the library's own write, which takes the
//! fence row of the connection's lane as any write does, and then nothing but COMMIT: so a claim waits at most for the one round
//! trip in between, whatever the application does, and what a claim came before does not land.
//!
//! Here is what an application sees of it; [`open`] has the connections and the commit.

mod open;

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use stable_interfaces::store::Enlistment;
use stable_interfaces::{Context, ContextError};
use tokio_postgres::Client;

use self::open::Open;
pub(super) use self::open::Transactions;
use super::PostgresStore;

/// Transactions of the application in handlers of a host whose store is a [`PostgresStore`].
///
/// ```no_run
/// use alarm_backends::postgres::PostgresContext;
/// use stable_interfaces::{Context, ContextError, Handle, StableInterface};
///
/// struct Account { balance: i64 }
///
/// #[derive(Debug, thiserror::Error)]
/// enum AccountError {
///     #[error("not enough money")]
///     Overdrawn,
///     #[error(transparent)]
///     Context(#[from] ContextError),
///     #[error(transparent)]
///     Sql(#[from] tokio_postgres::Error),
/// }
///
/// impl StableInterface for Account {
///     const NAME: &'static str = "account";
///     type Error = AccountError;
///
///     fn keeps_memory(error: &AccountError) -> bool {
///         matches!(error, AccountError::Overdrawn)
///     }
/// }
///
/// struct Withdraw { cents: i64, reference: String }
///
/// impl Handle<Withdraw> for Account {
///     type Reply = i64;
///
///     async fn handle(&mut self, cx: &mut Context, withdraw: Withdraw) -> Result<i64, AccountError> {
///         let left = self.balance - withdraw.cents;
///         if left < 0 {
///             return Err(AccountError::Overdrawn);
///         }
///         let account = cx.id().to_owned();
///         cx.put("balance", &left)?;
///         // The ledger's row and the balance land together, or neither does.
///         cx.transaction(async |tx| {
///             let sql = "INSERT INTO ledger (account, reference, cents) VALUES ($1, $2, $3)";
///             tx.execute(sql, &[&account, &withdraw.reference, &withdraw.cents]).await?;
///             Ok::<_, AccountError>(())
///         })
///         .await?;
///         self.balance = left;
///         Ok(left)
///     }
/// }
/// ```
///
/// The transaction is `READ COMMITTED`, and beginning and ending it is the library's: an application that says `COMMIT`,
/// `ROLLBACK` or another isolation in it gets an error. `SAVEPOINT`s are fine. What else it sets on the connection is undone.
pub trait PostgresContext {
    /// Runs `work` in a transaction, and commits that together with everything the handler has recorded so far and in `work`, and
    /// with the completion of the alarm or message that woke the handler: all or nothing, and only if this host still owns the
    /// instance. It is the handler's last commit: where an alarm or message woke it, nothing can be recorded afterwards.
    ///
    /// What earlier handlers of the instance committed is durable before `work` begins. If `work` fails, panics, or the handler
    /// runs out of time in it, the transaction is rolled back and what `work` recorded is taken back. The effects and the
    /// connection are the instance's alone meanwhile; a host has four connections for this by default
    /// ([`PostgresStoreBuilder::transactions`](super::PostgresStoreBuilder::transactions)), and a transaction waits for a free one up to the
    /// store's timeout.
    ///
    /// # Errors
    /// What `work` failed with. [`ContextError::Store`] if the transaction surely was not committed, for instance because of a
    /// deferred constraint, or could not begin: the handler may go on as if it had not tried. [`ContextError::Fenced`] and
    /// [`ContextError::Unknown`] as for [`Context::commit`]. [`ContextError::NotHere`] on a host with another store, within
    /// another transaction, and after the last one.
    fn transaction<T, E, F>(&mut self, work: F) -> impl Future<Output = Result<T, E>>
    where
        F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<ContextError>;

    /// As [`transaction`](Self::transaction), in the middle of a handler: the handler may be run again with this part done.
    ///
    /// # Errors
    /// As [`transaction`](Self::transaction).
    fn interim_transaction<T, E, F>(&mut self, work: F) -> impl Future<Output = Result<T, E>>
    where
        F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<ContextError>;
}

impl PostgresContext for Context {
    async fn transaction<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<ContextError>,
    {
        transact(self, true, work).await
    }

    async fn interim_transaction<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<ContextError>,
    {
        transact(self, false, work).await
    }
}

async fn transact<T, E, F>(cx: &mut Context, is_last: bool, work: F) -> Result<T, E>
where
    F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
    E: From<ContextError>,
{
    let store = cx.store().ok_or(ContextError::NoStore)? as &dyn Any;
    let store = store.downcast_ref::<PostgresStore>();
    let transactions =
        store.ok_or(ContextError::NotHere("the host's store is not Postgres".into()))?.transactions.clone();
    let enlistment = cx.enlist().await?;
    let open =
        transactions.begin(enlistment.incarnation()).await.map_err(|error| ContextError::Store(Arc::new(error)))?;
    let mut transaction = Transaction { open, enlistment };
    let done = work(&mut transaction).await;
    let Transaction { open, enlistment } = transaction;
    match done {
        Ok(value) => {
            match is_last {
                true => enlistment.commit_last(Box::new(open)).await?,
                false => enlistment.commit_interim(Box::new(open)).await?,
            }
            Ok(value)
        }
        Err(error) => {
            open.roll_back().await;
            Err(error)
        }
    }
}

/// A transaction under way in a handler: a [`Client`], inside the transaction, and the handler's [`Context`].
pub struct Transaction<'c> {
    // Rolled back before the effects are taken back.
    open: Open,
    enlistment: Enlistment<'c>,
}

impl Transaction<'_> {
    /// The handler's context. What is recorded on it is part of the transaction.
    pub fn context(&mut self) -> &mut Context {
        self.enlistment.context()
    }
}

impl Deref for Transaction<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.open.client()
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("open", &self.open).field("enlistment", &self.enlistment).finish()
    }
}
