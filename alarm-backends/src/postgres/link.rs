//! Connections, one per purpose, each with a deadline on everything that is done with it.
//!
//! A [`Link`] is the place of one connection; it is opened when first used, on the runtime that uses it, and anew after a
//! failure. A connection on which a call passed its deadline is never used again, because what it is doing is unknown.
//! Deadlines are the client's own: a `statement_timeout` does not bound a COMMIT, and a stopped server answers nothing.

use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::{HintSender, ShardId, StoreError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Socket, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::{DeadlinePassed, DoubtfulCommit, NoConnection, casts_doubt, judge, judge_open};
use super::known::Known;
use super::schema::{MakeError, Query, Schema};

/// How a connection is made, and what is true of each.
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) schema: Schema,
    /// How long one operation may take, with getting its connection.
    pub(super) limit: Duration,
    pub(super) known: Known,
    /// Until the first connection has been made.
    pub(super) is_new: AtomicBool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("schema", &self.schema)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// One connection that fits: UTF-8, writable, new enough.
pub(super) struct Conn {
    pub(super) client: Client,
    schema: Schema,
    /// Prepared when first needed, by [`Query`].
    statements: [OnceCell<Statement>; Query::COUNT],
    /// How many notices have cast doubt on a commit. They are counted before the answer they belong to is handed on.
    doubts: Arc<AtomicU64>,
    /// A call failed in a way that leaves its state unknown.
    spent: AtomicBool,
    /// The task that reads and writes the socket.
    driver: JoinHandle<()>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Left alone it would wait for a server that may never answer.
        self.driver.abort();
    }
}

impl Conn {
    /// The prepared statement of a query.
    pub(super) async fn prepared(&self, query: Query) -> Result<&Statement, tokio_postgres::Error> {
        self.statements[query as usize]
            .get_or_try_init(async || self.client.prepare(&self.schema.text(query)).await)
            .await
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.client.is_closed() && !self.spent.load(Ordering::Relaxed)
    }

    /// It is never used again.
    pub(super) fn retire(&self) {
        self.spent.store(true, Ordering::Relaxed);
    }

    /// How many notices have cast doubt on a commit, by the answer that was read last.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a socket and a server live in real time, also where a host's clock is a simulated one"
)]
pub(super) mod real_time {
    use super::{Duration, Future, Instant};

    pub(in super::super) fn after(limit: Duration) -> Instant {
        let now = Instant::now();
        now.checked_add(limit).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365))
    }

    pub(in super::super) async fn until<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(deadline, work).await.ok()
    }

    /// Sleeps, unless that would pass the deadline.
    pub(super) async fn pause(pause: Duration, deadline: Instant) -> bool {
        let end = after(pause);
        if end < deadline {
            tokio::time::sleep_until(end).await;
        }
        end < deadline
    }
}

impl Server {
    /// A connection by the deadline, waiting for a server that is away or has no connection free.
    async fn open_by(&self, deadline: Instant) -> Result<Conn, StoreError> {
        self.open_for_by(|| Purpose::Store, deadline).await
    }

    /// As [`open_by`](Self::open_by), with the server's own settings.
    ///
    /// # Errors
    /// [`StoreError::NotApplied`], with whatever was in the way.
    pub(super) async fn open_for_application_by(&self, deadline: Instant) -> Result<Conn, StoreError> {
        self.open_for_by(|| Purpose::Application, deadline).await.map_err(as_not_applied)
    }

    async fn open_for_by(&self, purpose: fn() -> Purpose, deadline: Instant) -> Result<Conn, StoreError> {
        let jitter = RandomState::new();
        let mut attempt = 0_u32;
        loop {
            let error = match real_time::until(deadline, self.open(purpose())).await {
                Some(Err(StoreError::NotApplied(error))) => error,
                Some(done) => return done,
                None => return Err(StoreError::NotApplied(NoConnection(self.limit).into())),
            };
            let pause = Duration::from_millis(20 << attempt.min(5));
            let share = u32::try_from(jitter.hash_one(attempt) % 100).unwrap_or(0);
            if !real_time::pause(pause / 2 + pause * share / 100, deadline).await {
                return Err(StoreError::NotApplied(error));
            }
            attempt += 1;
        }
    }

    /// Opens a connection and checks that it fits.
    async fn open(&self, purpose: Purpose) -> Result<Conn, StoreError> {
        let (is_ours, hints) = match purpose {
            Purpose::Store => (true, None),
            Purpose::Hints(hints) => (true, Some(hints)),
            Purpose::Application => (false, None),
        };
        let (client, connection) = self.config.connect(self.tls.clone()).await.map_err(judge_open)?;
        let doubts = Arc::new(AtomicU64::new(0));
        let driver = tokio::spawn(drive(connection, doubts.clone(), hints));
        let conn = Conn {
            client,
            schema: self.schema.clone(),
            statements: std::array::from_fn(|_| OnceCell::new()),
            doubts,
            spent: AtomicBool::new(false),
            driver,
        };
        self.settle(&conn, is_ours).await?;
        Ok(conn)
    }

    /// Checks what the server is and, on a connection of the store's own, sets what every query here takes for granted.
    async fn settle(&self, conn: &Conn, is_ours: bool) -> Result<(), StoreError> {
        let row = conn
            .client
            .query_one(
                "SELECT current_setting('server_version_num')::integer, current_setting('server_encoding'), \
                 current_setting('synchronous_commit'), current_setting('fsync')",
                &[],
            )
            .await
            .map_err(judge_open)?;
        let (version, encoding) = (row.get::<_, i32>(0), row.get::<_, &str>(1));
        if version < 130_000 {
            return Err(StoreError::Open(format!("Postgres 13 or newer is needed, this is {version}"), None));
        }
        if encoding != "UTF8" {
            let text =
                format!("the database's encoding is {encoding}, and IDs need UTF8: create one with ENCODING 'UTF8'");
            return Err(StoreError::Open(text, None));
        }
        // Twice the client's deadline, so that what a client gave up does not stay for ever in the server.
        let stale = (self.limit * 2).as_millis().clamp(1, 2_000_000_000);
        // Each query here walks an index. A plan made while the tables were empty would say otherwise, and stay.
        let settings = format!(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET statement_timeout = {stale}; SET idle_in_transaction_session_timeout = {stale}; \
             SET client_min_messages = warning; SET jit = off; SET plan_cache_mode = force_generic_plan; \
             SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
             SET enable_mergejoin = off"
        );
        if is_ours {
            conn.client.batch_execute(&settings).await.map_err(judge_open)?;
        }
        if self.is_new.swap(false, Ordering::Relaxed)
            && (row.get::<_, &str>(2) == "off" || row.get::<_, &str>(3) == "off")
        {
            tracing::warn!("Postgres runs with synchronous_commit or fsync off: acknowledged alarms may be lost");
        }
        Ok(())
    }

    /// Makes the schema where it is missing. Once, before anything else.
    pub(super) async fn prepare(&self) -> Result<(), StoreError> {
        let deadline = real_time::after(self.limit);
        let conn = self.open_by(deadline).await?;
        let work = async {
            self.schema.make(&conn.client).await.map_err(|error| match error {
                MakeError::Sql(error) => judge_open(error),
                MakeError::Version(_) => StoreError::Open(error.to_string(), None),
            })
        };
        let late = || StoreError::NotApplied(DeadlinePassed(self.limit).into());
        real_time::until(deadline, work).await.ok_or_else(late)?
    }

    /// A stream of hints on a connection of its own, which ends with it or with the receiver.
    pub(super) async fn listen(&self, hints: HintSender) -> Result<(), StoreError> {
        let work = async {
            let conn = self.open(Purpose::Hints(hints.clone())).await?;
            let sql = format!("LISTEN \"{}\"", self.schema.channel());
            conn.client.batch_execute(&sql).await.map_err(|error| judge(error).error)?;
            Ok::<_, StoreError>(conn)
        };
        let mut conn = match real_time::until(real_time::after(self.limit), work).await {
            Some(Ok(conn)) => conn,
            Some(Err(error)) => return Err(StoreError::Unavailable(error.into())),
            None => return Err(StoreError::Unavailable(DeadlinePassed(self.limit).into())),
        };
        // Ends with the listener or with the connection, and takes the other one along.
        tokio::spawn(async move {
            tokio::select! { biased;
                () = hints.closed() => {}
                _ = &mut conn.driver => {}
            }
        });
        Ok(())
    }

    /// Asks the server to stop what it is doing on a connection that is given up, so that it holds no locks there.
    fn cancel(&self, conn: &Conn) {
        let (token, tls, deadline) = (conn.client.cancel_token(), self.tls.clone(), real_time::after(self.limit));
        // Nobody waits for it: it ends by its deadline, and failing it changes nothing.
        tokio::spawn(async move { real_time::until(deadline, token.cancel_query(tls)).await });
    }

    /// Asks the server to stop what it is doing on a connection, and waits until it was told.
    pub(super) async fn cancel_query(&self, conn: &Conn) {
        let token = conn.client.cancel_token();
        // Failing it changes nothing: the connection is ended all the same.
        let _ = real_time::until(real_time::after(self.limit), token.cancel_query(self.tls.clone())).await;
    }
}

/// What a connection is for.
enum Purpose {
    Store,
    /// To listen: hints go here.
    Hints(HintSender),
    /// For statements of the application, which know nothing of this store's settings.
    Application,
}

fn as_not_applied(error: StoreError) -> StoreError {
    match error {
        StoreError::NotApplied(cause) => StoreError::NotApplied(cause),
        refused => StoreError::NotApplied(refused.into()),
    }
}

/// Reads and writes one connection until either side ends it.
async fn drive<S>(mut connection: Connection<Socket, S>, doubts: Arc<AtomicU64>, hints: Option<HintSender>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!(%notice, "notice from Postgres");
                if casts_doubt(&notice) {
                    // The answer it belongs to comes out of this connection later, so whoever reads that sees this.
                    doubts.fetch_add(1, Ordering::Release);
                }
            }
            Ok(AsyncMessage::Notification(note)) => {
                if let (Some(hints), Ok(shard)) = (&hints, note.payload().parse()) {
                    hints.send(ShardId(shard));
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "connection to Postgres lost");
                return;
            }
        }
    }
}

/// The place of one connection.
#[derive(Default)]
pub(super) struct Link {
    /// Held while a connection is opened, and by [`Link::alone`] until the call is over.
    place: Mutex<Option<Arc<Conn>>>,
}

/// A connection in use for one operation.
pub(super) struct Turn<'a> {
    server: &'a Server,
    pub(super) conn: Arc<Conn>,
    /// Present if nobody else may use the connection meanwhile.
    place: Option<MutexGuard<'a, Option<Arc<Conn>>>>,
    deadline: Instant,
}

impl Link {
    /// The connection, for one operation at a time, in the order of asking.
    ///
    /// # Errors
    /// [`StoreError::NotApplied`] if there is none by the deadline.
    pub(super) async fn alone<'a>(&'a self, server: &'a Server) -> Result<Turn<'a>, StoreError> {
        let deadline = real_time::after(server.limit);
        let late = || StoreError::NotApplied(NoConnection(server.limit).into());
        let mut place = real_time::until(deadline, self.place.lock()).await.ok_or_else(late)?;
        let conn = match place.as_ref().filter(|conn| conn.is_usable()) {
            Some(conn) => conn.clone(),
            None => {
                // Before the new one is opened: the server may have no room for both.
                *place = None;
                let opened = server.open_by(deadline).await.map_err(as_not_applied)?;
                place.insert(Arc::new(opened)).clone()
            }
        };
        Ok(Turn { server, conn, place: Some(place), deadline })
    }

    /// The connection, together with others: what is sent on it is answered in order. For reading.
    ///
    /// # Errors
    /// As [`alone`](Self::alone).
    pub(super) async fn shared<'a>(&'a self, server: &'a Server) -> Result<Turn<'a>, StoreError> {
        let mut turn = self.alone(server).await?;
        turn.place = None;
        Ok(turn)
    }
}

impl Turn<'_> {
    /// Does `work` on the connection, by the deadline, and judges how it ended.
    pub(super) async fn run<T>(
        &mut self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let doubts = self.conn.doubts.load(Ordering::Acquire);
        match real_time::until(self.deadline, work).await {
            Some(Ok(_)) if self.conn.doubts.load(Ordering::Acquire) != doubts => {
                self.retire();
                Err(StoreError::Unavailable(DoubtfulCommit.into()))
            }
            Some(Ok(done)) => Ok(done),
            Some(Err(error)) => {
                let verdict = judge(error);
                if !verdict.reusable {
                    self.retire();
                }
                Err(verdict.error)
            }
            None => {
                if self.place.is_some() {
                    self.server.cancel(&self.conn);
                }
                self.retire();
                Err(StoreError::Unavailable(DeadlinePassed(self.server.limit).into()))
            }
        }
    }

    /// Gives the connection up: whoever still uses it ends, and the next operation opens another.
    pub(super) fn retire(&mut self) {
        self.conn.retire();
        if let Some(place) = &mut self.place {
            **place = None;
        }
    }
}
