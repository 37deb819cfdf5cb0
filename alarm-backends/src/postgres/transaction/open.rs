//! The connections of transactions, and a transaction from BEGIN to the answer to COMMIT.
//!
//! A connection belongs to one [`State`] of one transaction, or to none and waits for the next. Only the answer to COMMIT leaves something
//! to find out, and by then the fence row is locked: asking the row waits until the transaction is over, and its number says how that
//! ended.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use stable_interfaces::StoreError;
use stable_interfaces::store::{Batch, ExternalTransaction, Incarnation, Lane, Write};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::super::committed;
use super::super::errors::{DoubtfulCommit, judge};
use super::super::link::{Conn, Link, Server, real_time};
use super::super::schema::Query;
use super::super::wire::{self, Place, WireWrite};

/// The time that a transaction may stay open without a statement. For when its host is gone without a word: a handler that runs out
/// of time ends its own.
const IDLE_MILLIS: u32 = 300_000;

/// The statements that make a connection as new.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); \
    DISCARD TEMP; DISCARD SEQUENCES";

/// The connections for transactions.
pub(in super::super) struct Transactions {
    server: Arc<Server>,
    /// One permit for each of `idle` that may be taken.
    free: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// The connection on which is asked what became of a transaction.
    asking: Link,
}

/// The place of a connection between two transactions.
struct Idle {
    numbers: Numbers,
    /// `None` before the first transaction, and after one that took its connection along.
    conn: Option<Conn>,
}

/// The numbers under which the transactions of one place write.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    /// The lane, in which no other place writes, and no group commit.
    lane: u16,
    /// The number of the last transaction.
    seq: u64,
    /// The incarnation for which the lane's fence row is known to be there.
    lane_of: Option<Incarnation>,
}

impl Transactions {
    pub(in super::super) fn new(server: Arc<Server>, most: u16) -> Transactions {
        // From the other end than a host's own lanes.
        let place = |n| Idle { numbers: Numbers { lane: u16::MAX - n, seq: 0, lane_of: None }, conn: None };
        Transactions {
            server,
            free: Arc::new(Semaphore::new(most.into())),
            idle: Mutex::new((0..most).map(place).rev().collect()),
            asking: Link::default(),
        }
    }

    /// Begins a transaction.
    pub(super) async fn begin(self: &Arc<Transactions>, incarnation: Incarnation) -> Result<Open, StoreError> {
        let deadline = real_time::after(self.server.timeout);
        let late = || self.server.no_connection(None);
        let permit = real_time::until(deadline, self.free.clone().acquire_owned()).await.ok_or_else(late)?;
        let permit = permit.map_err(|closed| StoreError::NotApplied(closed.into()))?;
        let (mut seat, conn) = Seat::take(self, permit);
        let conn = match conn.filter(Conn::is_usable) {
            Some(conn) => conn,
            None => self.server.open_for_application_by(deadline).await?,
        };
        seat.numbers.seq += 1;
        let Numbers { lane, seq, lane_of } = seat.numbers;
        let mut open = Open { state: State::Begun(conn, seat), runtime: Handle::current() };
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT set_config('stable_interfaces.mark', '{}', true), \
             set_config('idle_in_transaction_session_timeout', '{IDLE_MILLIS}', true)",
            mark(lane, seq)
        );
        let number = wire::number("incarnation", incarnation.0)?;
        let State::Begun(conn, seat) = &mut open.state else { return Err(over()) };
        let work = async {
            if lane_of != Some(incarnation) {
                conn.execute(Query::OpenLane, &[&number, &i32::from(lane)]).await?;
            }
            conn.client.batch_execute(&begin).await
        };
        match real_time::until(deadline, work).await {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(not_applied(judge(error).error)),
            None => return Err(StoreError::NotApplied(self.server.no_answer())),
        }
        seat.numbers.lane_of = Some(incarnation);
        Ok(open)
    }

    /// The number of the last transaction of a lane that was committed; waits until none is under way.
    async fn ask(&self, incarnation: i64, lane: u16) -> Result<i64, StoreError> {
        let mut turn = self.asking.alone(&self.server).await?;
        let rows = turn.all(Query::AskLane, &[&incarnation, &i32::from(lane)]).await;
        // It is rare: better a free place in the server until the next.
        turn.retire();
        // Without its row, nobody can tell: a claim has ended the incarnation, before or after.
        rows?.first().map(|row| row.get(0)).ok_or(StoreError::Replaced)
    }
}

fn mark(lane: u16, seq: u64) -> String {
    format!("{lane}-{seq}")
}

/// The error of using a transaction that has ended.
fn over() -> StoreError {
    StoreError::NotApplied("the transaction is over".into())
}

/// The same error, of what was not done: the server was asked for nothing that could have stayed.
fn not_applied(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(error) => StoreError::NotApplied(error),
        error => error,
    }
}

/// A place that is taken; given back when dropped, with the connection that it then has.
struct Seat {
    transactions: Arc<Transactions>,
    numbers: Numbers,
    /// A connection that is as new.
    back: Option<Conn>,
    /// The permit for the place, given back after it.
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    fn take(transactions: &Arc<Transactions>, permit: OwnedSemaphorePermit) -> (Seat, Option<Conn>) {
        let idle = transactions.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Idle { numbers, conn } = idle.expect("there is a place for each permit");
        (Seat { transactions: transactions.clone(), numbers, back: None, _permit: permit }, conn)
    }

    /// Does `first`, makes the connection as new, and gives both back; the connection is given up where that fails.
    async fn reset(mut self, conn: Conn, first: &str) {
        let deadline = real_time::after(self.transactions.server.timeout);
        let sql = format!("{first}{RESET}");
        if matches!(real_time::until(deadline, conn.client.batch_execute(&sql)).await, Some(Ok(()))) {
            self.back = Some(conn);
        }
    }

    /// Ends the connection, and has the server end what it is doing there, so that it holds no locks.
    async fn end(self, conn: Conn) {
        self.transactions.server.cancel_query(&conn).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let idle = Idle { numbers: self.numbers, conn: self.back.take() };
        self.transactions.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
    }
}

/// A transaction, with its connection and its place.
///
/// ```text
/// Begun ─► Committing ─► Committed
///   ▲          │  └────► Unknown      its connection is given up: what has not reached the server by now need not
///   └──────────┘ the server refused
/// any ─► Over
/// ```
enum State {
    /// Surely not committed.
    Begun(Conn, Seat),
    /// COMMIT may have been sent.
    Committing(Conn, Seat),
    /// Committed; the connection has what the application left there.
    Committed(Conn, Seat),
    /// COMMIT was sent and not answered.
    Unknown(Seat),
    /// Rolled back, or being dropped.
    Over,
}

/// A transaction under way. Dropped, its connection is made as new, or ended with what runs on it.
pub(super) struct Open {
    state: State,
    runtime: Handle,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Begun(..) => "begun",
            State::Committing(..) => "committing",
            State::Committed(..) => "committed",
            State::Unknown(_) => "unknown",
            State::Over => "over",
        };
        f.debug_struct("Open").field("state", &state).finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        match self.take() {
            // The handler need not wait for these.
            State::Committed(conn, seat) => drop(self.runtime.spawn(async move { seat.reset(conn, "").await })),
            State::Begun(conn, seat) => drop(self.runtime.spawn(async move { seat.end(conn).await })),
            // Left to the server: to cancel its wait for a replica would be to say that it is over.
            State::Committing(..) | State::Unknown(_) | State::Over => {}
        }
    }
}

impl Open {
    fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Over)
    }

    /// Moves on to another state with a connection.
    fn advance(&mut self, next: fn(Conn, Seat) -> State) {
        self.state = match self.take() {
            State::Begun(conn, seat) | State::Committing(conn, seat) | State::Committed(conn, seat) => next(conn, seat),
            state @ (State::Unknown(_) | State::Over) => state,
        };
    }

    /// The client, inside the transaction.
    pub(super) fn client(&self) -> &Client {
        let begun = if let State::Begun(conn, _) = &self.state { Some(&conn.client) } else { None };
        begun.expect("a handler has its transaction before COMMIT only")
    }

    /// Takes it back, and makes its connection as new.
    pub(super) async fn roll_back(mut self) {
        if let State::Begun(conn, seat) = self.take() {
            seat.reset(conn, "ROLLBACK; ").await;
        }
    }
}

#[async_trait]
impl ExternalTransaction for Open {
    async fn commit(&mut self, incarnation: Incarnation, batch: &Batch) -> Result<(), StoreError> {
        let State::Begun(conn, seat) = &self.state else { return Err(over()) };
        let (server, Numbers { lane, seq, .. }) = (seat.transactions.server.clone(), seat.numbers);
        let deadline = real_time::after(server.timeout);
        let write = Write { incarnation, lane: Lane(lane), seq, batches: vec![batch.clone()] };
        let acknowledged = server.watermarks.acknowledged(incarnation, write.lane)?;
        let (wire, place) = (WireWrite::new(&write)?, Place::new(&write, acknowledged)?);
        let (mark, limit) = (mark(lane, seq), i64::try_from(server.timeout.as_millis()).unwrap_or(i64::MAX));
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&mark, &limit];
        params.extend_from_slice(&wire.params(&place));
        let row = match real_time::until(deadline, conn.one(Query::WriteLast, &params)).await {
            Some(Ok(row)) => row,
            // Without a COMMIT it does not stay, whatever became of it.
            Some(Err(error)) => return Err(not_applied(judge(error).error)),
            None => return Err(StoreError::NotApplied(server.no_answer())),
        };
        committed(&server.watermarks, &write, acknowledged, &row)?.pop().unwrap_or(Ok(()))?;
        self.advance(State::Committing);
        let State::Committing(conn, _) = &self.state else { return Err(over()) };
        let doubts = conn.doubts();
        match real_time::until(deadline, conn.client.batch_execute("COMMIT")).await {
            Some(Ok(())) if conn.doubts() == doubts => {
                self.advance(State::Committed);
                server.watermarks.acknowledge(incarnation, write.lane, seq);
                Ok(())
            }
            Some(Ok(())) => Err(StoreError::Unavailable(DoubtfulCommit.into())),
            Some(Err(error)) => {
                let error = judge(error).error;
                if !error.may_have_happened() {
                    self.advance(State::Begun);
                }
                Err(error)
            }
            None => Err(StoreError::Unavailable(server.no_answer())),
        }
    }

    async fn was_committed(&mut self) -> Result<bool, StoreError> {
        match &self.state {
            State::Begun(..) | State::Over => return Ok(false),
            State::Committed(..) => return Ok(true),
            State::Committing(..) | State::Unknown(_) => {}
        }
        self.advance(|_, seat| State::Unknown(seat));
        let State::Unknown(seat) = &self.state else { return Err(over()) };
        let Numbers { lane, seq, lane_of } = seat.numbers;
        let incarnation = lane_of.ok_or(StoreError::Replaced)?;
        let (number, seq) = (wire::number("incarnation", incarnation.0)?, wire::number("sequence number", seq)?);
        let found = seat.transactions.ask(number, lane).await?;
        if found == seq {
            seat.transactions.server.watermarks.acknowledge(incarnation, Lane(lane), seq.unsigned_abs());
        }
        Ok(found == seq)
    }
}
