//! Transactions of the application that a handler's effects are part of.
//!
//! The application's statements run on a connection of a small set of their own, with the server's settings and not the
//! store's, so that no group commit waits for them. Last in the transaction comes the library's own write, which takes the
//! fence row of the connection's lane as any write does, and then nothing but COMMIT: so a claim waits at most for the one round
//! trip in between, whatever the application does, and what a claim came before does not land.
//!
//! Only the answer to COMMIT leaves something to find out, and by then the fence row is locked: asking the row waits until the
//! transaction is over, and its number says how that ended.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use stable_interfaces::store::{Batch, Carrier, Incarnation, Lane, Part, Ride, Write};
use stable_interfaces::{Context, ContextError, StoreError};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::errors::{DoubtfulCommit, judge};
use super::link::{Conn, Link, Server, real_time};
use super::schema::Query;
use super::wire::{self, Place, WireWrite};
use super::{PostgresStore, committed};

/// How long a transaction may stay open without a statement. For when its host is gone without a word: a handler that runs out
/// of time ends its own.
const IDLE_MILLIS: u32 = 300_000;

/// What makes a connection as new.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); \
    DISCARD TEMP; DISCARD SEQUENCES";

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
    /// store's deadline.
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
        transact(self, Part::Last, work).await
    }

    async fn interim_transaction<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<ContextError>,
    {
        transact(self, Part::Interim, work).await
    }
}

async fn transact<T, E, F>(cx: &mut Context, part: Part, work: F) -> Result<T, E>
where
    F: AsyncFnOnce(&mut Transaction<'_>) -> Result<T, E>,
    E: From<ContextError>,
{
    let store = cx.store().ok_or(ContextError::NoStore)? as &dyn Any;
    let store = store.downcast_ref::<PostgresStore>();
    let transactions = store.ok_or(ContextError::NotHere("the host's store is not Postgres"))?.transactions.clone();
    let ride = cx.ride().await?;
    let open = transactions.begin(ride.incarnation()).await.map_err(|error| ContextError::Store(Arc::new(error)))?;
    let mut transaction = Transaction { open, ride };
    let done = work(&mut transaction).await;
    let Transaction { open, ride } = transaction;
    match done {
        Ok(value) => {
            ride.commit(Box::new(open), part).await?;
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
    ride: Ride<'c>,
}

impl Transaction<'_> {
    /// The handler's context. What is recorded on it is part of the transaction.
    pub fn context(&mut self) -> &mut Context {
        self.ride.context()
    }
}

impl Deref for Transaction<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.open.conn().client
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("open", &self.open).field("ride", &self.ride).finish()
    }
}

/// The connections for transactions.
pub(super) struct Transactions {
    server: Arc<Server>,
    free: Arc<Semaphore>,
    /// As many as `free` has permits.
    seats: Mutex<Vec<Seat>>,
    /// For asking what became of one.
    asking: Link,
}

/// The place of one connection.
struct Seat {
    /// No other seat writes in it, and no group commit.
    lane: u16,
    /// The number of its last transaction.
    seq: u64,
    /// For which incarnation the lane's fence row is known to be there.
    lane_of: Option<Incarnation>,
    conn: Option<Conn>,
}

impl Transactions {
    pub(super) fn new(server: Arc<Server>, most: u16) -> Transactions {
        // From the other end than a host's own lanes.
        let seat = |n| Seat { lane: u16::MAX - n, seq: 0, lane_of: None, conn: None };
        Transactions {
            server,
            free: Arc::new(Semaphore::new(most.into())),
            seats: Mutex::new((0..most).map(seat).rev().collect()),
            asking: Link::default(),
        }
    }

    /// A transaction that has begun.
    async fn begin(self: &Arc<Transactions>, incarnation: Incarnation) -> Result<Open, StoreError> {
        let deadline = real_time::after(self.server.limit);
        let late = || self.server.no_connection(None);
        let permit = real_time::until(deadline, self.free.clone().acquire_owned()).await.ok_or_else(late)?;
        let permit = permit.map_err(|closed| StoreError::NotApplied(closed.into()))?;
        let seat = self.seats.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let seat = seat.expect("there is a seat for each permit");
        let mut held = Held { transactions: self.clone(), seat: Some(seat), _permit: permit };
        let seat = held.seat();
        if seat.conn.as_ref().is_none_or(|conn| !conn.is_usable()) {
            seat.conn = None;
            seat.conn = Some(self.server.open_for_application_by(deadline).await?);
        }
        seat.seq += 1;
        let (lane, seq, lane_is_open) = (seat.lane, seat.seq, seat.lane_of == Some(incarnation));
        // From here on, dropping it ends its connection.
        let mut open = Open { held: Some(held), stage: Stage::Begun, runtime: Handle::current() };
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT set_config('stable_interfaces.mark', '{}', true), \
             set_config('idle_in_transaction_session_timeout', '{IDLE_MILLIS}', true)",
            mark(lane, seq)
        );
        let number = wire::number("incarnation", incarnation.0)?;
        let conn = open.conn();
        let work = async {
            if !lane_is_open {
                let statement = conn.prepared(Query::OpenLane).await?;
                conn.client.execute(statement, &[&number, &i32::from(lane)]).await?;
            }
            conn.client.batch_execute(&begin).await
        };
        match real_time::until(deadline, work).await {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(not_applied(judge(error).error)),
            None => return Err(StoreError::NotApplied(self.server.no_answer())),
        }
        open.held_mut().seat().lane_of = Some(incarnation);
        Ok(open)
    }

    /// The number of the last transaction of a lane that was committed; waits until none is under way.
    async fn ask(&self, incarnation: i64, lane: u16) -> Result<i64, StoreError> {
        let mut turn = self.asking.alone(&self.server).await?;
        let conn = turn.conn.clone();
        let lane = i32::from(lane);
        let work = async { conn.client.query_opt(conn.prepared(Query::AskLane).await?, &[&incarnation, &lane]).await };
        let row = turn.run(work).await;
        // It is rare: better a free place in the server until the next.
        turn.retire();
        // Without its row, nobody can tell: a claim has ended the incarnation, before or after.
        row?.map(|row| row.get(0)).ok_or(StoreError::Replaced)
    }
}

fn mark(lane: u16, seq: u64) -> String {
    format!("{lane}-{seq}")
}

/// As what was not done: the server was asked for nothing that could have stayed.
fn not_applied(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(error) => StoreError::NotApplied(error),
        error => error,
    }
}

/// A seat that is taken.
struct Held {
    transactions: Arc<Transactions>,
    /// `None` in its drop alone.
    seat: Option<Seat>,
    /// Given back after the seat.
    _permit: OwnedSemaphorePermit,
}

impl Held {
    fn seat(&mut self) -> &mut Seat {
        self.seat.as_mut().expect("a seat is given back once")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.transactions.seats.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
        }
    }
}

/// How far a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It surely is not committed.
    Begun,
    /// COMMIT may have been sent.
    Committing,
    /// It is committed, and its connection has what the application left there.
    Committed,
    /// Its connection is as new.
    Over,
}

/// An open transaction. Dropped, its connection is ended, and what runs on it with it.
struct Open {
    /// `None` in its drop alone.
    held: Option<Held>,
    stage: Stage,
    runtime: Handle,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        match self.stage {
            Stage::Over => {}
            // The handler need not wait for this.
            Stage::Committed => drop(self.runtime.spawn(async move { held.reset("").await })),
            Stage::Begun => drop(self.runtime.spawn(async move { held.end().await })),
            // Left to the server: to cancel its wait for a replica would be to say that it is over.
            Stage::Committing => held.seat().conn = None,
        }
    }
}

impl Open {
    fn held(&self) -> &Held {
        self.held.as_ref().expect("it is given up in its drop alone")
    }

    fn held_mut(&mut self) -> &mut Held {
        self.held.as_mut().expect("it is given up in its drop alone")
    }

    fn conn(&self) -> &Conn {
        let seat = self.held().seat.as_ref();
        seat.and_then(|seat| seat.conn.as_ref()).expect("until its COMMIT has failed it has a connection")
    }

    /// Takes it back, and makes its connection as new.
    async fn roll_back(mut self) {
        if self.held_mut().reset("ROLLBACK; ").await {
            self.stage = Stage::Over;
        }
    }
}

impl Held {
    /// Does `first`, and makes the connection as new, or gives it up. Whether it is as new.
    async fn reset(&mut self, first: &str) -> bool {
        let deadline = real_time::after(self.transactions.server.limit);
        let seat = self.seat();
        let Some(conn) = &seat.conn else { return false };
        let sql = format!("{first}{RESET}");
        let is_new = matches!(real_time::until(deadline, conn.client.batch_execute(&sql)).await, Some(Ok(())));
        if !is_new {
            conn.retire();
        }
        is_new
    }

    /// Ends the connection, and has the server end what it is doing there, so that it holds no locks.
    async fn end(&mut self) {
        let server = self.transactions.server.clone();
        if let Some(conn) = self.seat().conn.take() {
            server.cancel_query(&conn).await;
        }
    }
}

#[async_trait]
impl Carrier for Open {
    async fn commit(&mut self, incarnation: Incarnation, batch: &Batch) -> Result<(), StoreError> {
        let server = self.held().transactions.server.clone();
        let deadline = real_time::after(server.limit);
        let late = || server.no_answer();
        let (lane, seq) = {
            let seat = self.held_mut().seat();
            (seat.lane, seat.seq)
        };
        let write = Write { incarnation, lane: Lane(lane), seq, batches: vec![batch.clone()] };
        let known = server.known.acknowledged(incarnation, write.lane)?;
        let (wire, place) = (WireWrite::new(&write)?, Place::new(&write, known)?);
        let (mark, limit) = (mark(lane, seq), i64::try_from(server.limit.as_millis()).unwrap_or(i64::MAX));
        let conn = self.conn();
        let work = async {
            let statement = conn.prepared(Query::WriteLast).await?;
            let mut params: Vec<&(dyn ToSql + Sync)> = vec![&mark, &limit];
            params.extend_from_slice(&wire.params(&place));
            conn.client.query_one(statement, &params).await
        };
        let row = match real_time::until(deadline, work).await {
            Some(Ok(row)) => row,
            // Without a COMMIT it does not stay, whatever became of it.
            Some(Err(error)) => return Err(not_applied(judge(error).error)),
            None => return Err(StoreError::NotApplied(late())),
        };
        committed(&server.known, &write, known, &row)?.pop().unwrap_or(Ok(()))?;
        self.stage = Stage::Committing;
        let conn = self.conn();
        let doubts = conn.doubts();
        match real_time::until(deadline, conn.client.batch_execute("COMMIT")).await {
            Some(Ok(())) if conn.doubts() == doubts => {
                self.stage = Stage::Committed;
                server.known.acknowledge(incarnation, write.lane, seq);
                Ok(())
            }
            Some(Ok(())) => Err(StoreError::Unavailable(DoubtfulCommit.into())),
            Some(Err(error)) => {
                let error = judge(error).error;
                if !error.may_have_happened() {
                    self.stage = Stage::Begun;
                }
                Err(error)
            }
            None => Err(StoreError::Unavailable(late())),
        }
    }

    async fn was_committed(&mut self) -> Result<bool, StoreError> {
        match self.stage {
            Stage::Begun | Stage::Over => return Ok(false),
            Stage::Committed => return Ok(true),
            Stage::Committing => {}
        }
        let incarnation = self.held_mut().seat().lane_of.ok_or(StoreError::Replaced)?;
        let number = wire::number("incarnation", incarnation.0)?;
        let seat = self.held_mut().seat();
        // What has not reached the server by now need not.
        seat.conn = None;
        let (lane, seq) = (seat.lane, wire::number("sequence number", seat.seq)?);
        let found = self.held().transactions.ask(number, lane).await?;
        if found == seq {
            let server = &self.held().transactions.server;
            server.known.acknowledge(incarnation, Lane(lane), seq.unsigned_abs());
        }
        Ok(found == seq)
    }
}
