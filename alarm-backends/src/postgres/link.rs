//! Connections, one per purpose, each with a deadline on everything that is done with it.
//!
//! A [`Link`] is the place of one connection; it is opened when first used, on the runtime that uses it, and anew after a
//! failure. A connection on which a call passed its deadline, or was given up by its caller, is never used again, because what it
//! is doing is unknown, and perhaps nobody is at its other end. Deadlines are the client's own: a `statement_timeout` does not
//! bound a COMMIT, and a stopped server answers nothing.

use std::collections::HashSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::StoreError;
use stable_interfaces::store::{BoxError, HintSender};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::config::Host;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Row, SimpleQueryMessage, Socket, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::{DoubtfulCommit, NoAnswer, NoConnection, casts_doubt, judge, judge_open, pooled};
use super::schema::{MakeError, Query, Schema};
use super::watermarks::Watermarks;
use crate::hint::hint;

/// The settings that every query of the store takes for granted. Each walks an index: a plan made while the tables were empty would say otherwise,
/// and stay.
const SETTINGS: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
    SET client_min_messages = warning; SET jit = off; SET plan_cache_mode = force_generic_plan; \
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// No post waits for a row for longer than it takes to see that it is held.
const WAIT_FOR_NO_ROW: &str = "SET lock_timeout = 20";

/// The interval at which a connection that listens is seen to be alive.
const LISTENER_PING: Duration = Duration::from_secs(3);

/// The settings with which connections are made, and what is true of each.
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) schema: Schema,
    /// The time that one operation may take, with getting its connection.
    pub(super) timeout: Duration,
    pub(super) watermarks: Watermarks,
    /// No connection has been made.
    pub(super) is_new: AtomicBool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("schema", &self.schema)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// One connection that fits: UTF-8, writable, new enough.
pub(super) struct Conn {
    pub(super) client: Client,
    schema: Schema,
    /// Prepared when first needed, by [`Query`].
    statements: [OnceCell<Statement>; Query::COUNT],
    /// The number of notices that have cast doubt on a commit. Each is counted before the answer it belongs to is handed on.
    doubts: Arc<AtomicU64>,
    /// A call failed in a way that leaves its state unknown.
    spent: AtomicBool,
    /// The number of calls that have been answered, as far as their callers waited: as long as it rises, somebody is at the other end.
    answered: AtomicU64,
    /// The task that reads and writes the socket.
    driver: JoinHandle<()>,
}

/// The parameters of a query.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Drop for Conn {
    fn drop(&mut self) {
        // Left alone it would wait for a server that may never answer.
        self.driver.abort();
    }
}

impl Conn {
    /// The prepared statement of a query.
    async fn prepared(&self, query: Query) -> Result<&Statement, tokio_postgres::Error> {
        self.statements[query as usize]
            .get_or_try_init(async || self.client.prepare(&self.schema.text(query)).await)
            .await
    }

    /// Asks a query that answers with one row.
    pub(super) async fn one(&self, query: Query, params: Params<'_>) -> Result<Row, tokio_postgres::Error> {
        self.client.query_one(self.prepared(query).await?, params).await
    }

    /// Asks a query for all its rows.
    pub(super) async fn all(&self, query: Query, params: Params<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.client.query(self.prepared(query).await?, params).await
    }

    /// Does what a query says; its rows, if it has any, are not read.
    pub(super) async fn execute(&self, query: Query, params: Params<'_>) -> Result<u64, tokio_postgres::Error> {
        self.client.execute(self.prepared(query).await?, params).await
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.client.is_closed() && !self.spent.load(Ordering::Relaxed)
    }

    /// Lets the connection never be used again.
    pub(super) fn retire(&self) {
        self.spent.store(true, Ordering::Relaxed);
    }

    /// The number of notices that have cast doubt on a commit, by the answer that was read last.
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

    pub(super) async fn wait(time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Sleeps, unless that would pass the deadline.
    pub(in super::super) async fn pause(pause: Duration, deadline: Instant) -> bool {
        let end = after(pause);
        if end < deadline {
            tokio::time::sleep_until(end).await;
        }
        end < deadline
    }
}

impl Server {
    /// A connection for the application's statements by the deadline, with the server's own settings, waiting for a server that is away or
    /// has no connection free.
    ///
    /// # Errors
    /// [`StoreError::NotApplied`], with whatever was in the way.
    pub(super) async fn open_for_application_by(&self, deadline: Instant) -> Result<Conn, StoreError> {
        self.open_for_by(|| Purpose::Application, deadline).await.map_err(as_not_applied)
    }

    async fn open_for_by(&self, purpose: impl Fn() -> Purpose, deadline: Instant) -> Result<Conn, StoreError> {
        let jitter = RandomState::new();
        let (mut attempt, mut last) = (0_u32, None);
        loop {
            let error = match real_time::until(deadline, self.open(purpose())).await {
                Some(Err(StoreError::NotApplied(error))) => error,
                Some(done) => return done,
                None => return Err(self.no_connection(last)),
            };
            let pause = Duration::from_millis(20 << attempt.min(5));
            let share = u32::try_from(jitter.hash_one(attempt) % 100).unwrap_or(0);
            if !real_time::pause(pause / 2 + pause * share / 100, deadline).await {
                return Err(self.no_connection(Some(error)));
            }
            last = Some(error);
            attempt += 1;
        }
    }

    /// The servers that were named.
    fn address(&self) -> String {
        let ports = self.config.get_ports();
        // One port may be for all.
        let port_of = |place: usize| ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        let shown = |(place, host): (usize, &Host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port_of(place)),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        };
        let named = self.config.get_hosts().iter().enumerate().map(shown).collect::<Vec<_>>();
        if !named.is_empty() {
            return named.join(", ");
        }
        let addresses = self.config.get_hostaddrs().iter().enumerate();
        addresses.map(|(place, address)| format!("{address}:{}", port_of(place))).collect::<Vec<_>>().join(", ")
    }

    /// The error where there was no connection by the deadline, nor was anything sent.
    pub(super) fn no_connection(&self, source: Option<BoxError>) -> StoreError {
        StoreError::NotApplied(NoConnection { address: self.address(), timeout: self.timeout, source }.into())
    }

    /// The error of a call that the deadline cut off.
    pub(super) fn no_answer(&self) -> BoxError {
        NoAnswer { address: self.address(), timeout: self.timeout }.into()
    }

    /// Opens a connection and checks that it fits.
    async fn open(&self, purpose: Purpose) -> Result<Conn, StoreError> {
        let (settings, hints) = match purpose {
            Purpose::Store => (Some(&[SETTINGS][..]), None),
            Purpose::Posts => (Some(&[SETTINGS, WAIT_FOR_NO_ROW][..]), None),
            Purpose::Hints(hints) => (Some(&[SETTINGS][..]), Some(hints)),
            Purpose::Application => (Some(&[][..]), None),
            Purpose::Probe => (None, None),
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
            answered: AtomicU64::new(0),
            driver,
        };
        if let Some(settings) = settings {
            self.settle(&conn, settings).await?;
        }
        Ok(conn)
    }

    /// Checks what the server is and, where there are settings, sets these and the limits of time.
    async fn settle(&self, conn: &Conn, settings: &[&str]) -> Result<(), StoreError> {
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
        if !settings.is_empty() {
            // Twice the client's deadline, so that what a client gave up does not stay for ever in the server.
            let stale = self.timeout.saturating_mul(2).as_millis().clamp(1, 2_000_000_000);
            let limits =
                format!("; SET statement_timeout = {stale}; SET idle_in_transaction_session_timeout = {stale}");
            // A lane or a listener with nothing to do is not given up.
            let stays = if version < 140_000 { "" } else { "; SET idle_session_timeout = 0" };
            let settings = settings.join("; ") + &limits + stays;
            conn.client.batch_execute(&settings).await.map_err(judge_open)?;
        }
        if self.is_new.swap(false, Ordering::Relaxed)
            && (row.get::<_, &str>(2) == "off" || row.get::<_, &str>(3) == "off")
        {
            tracing::warn!("Postgres runs with synchronous_commit or fsync off: acknowledged alarms may be lost");
        }
        Ok(())
    }

    /// Refuses a pooler that gives the session of one client to another between its transactions: what a connection sets or prepares would be
    /// another's, and what it listens to nobody's. Before anything is set that would stay with the pooler.
    async fn refuse_pooler_by(&self, deadline: Instant) -> Result<(), StoreError> {
        let first = self.open_for_by(|| Purpose::Probe, deadline).await?;
        let second = self.open_for_by(|| Purpose::Probe, deadline).await?;
        let work = async {
            // A pooler gives the session that was free last to whoever comes next, or each in turn. With the one in a transaction and with the
            // other, these come apart for any number of sessions. Somebody else may come in between, so not once only.
            let (mut ours, mut others) = (HashSet::new(), HashSet::new());
            for _ in 0..3 {
                ours.insert(backend(&first, "").await?);
                others.insert(backend(&second, "BEGIN; ").await?);
                ours.insert(backend(&first, "").await?);
                second.client.batch_execute("ROLLBACK").await?;
                ours.insert(backend(&first, "BEGIN; ").await?);
                others.insert(backend(&second, "").await?);
                first.client.batch_execute("ROLLBACK").await?;
                ours.insert(backend(&first, "").await?);
                if ours.len() > 1 || others.len() > 1 || ours == others {
                    return Ok::<_, tokio_postgres::Error>(true);
                }
            }
            Ok(false)
        };
        match real_time::until(deadline, work).await {
            Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => Err(pooled(&self.address())),
            // So says PgBouncer of a transaction where it pools statements.
            Some(Err(error)) if error.as_db_error().is_some_and(|error| error.message().contains("pooling mode")) => {
                Err(pooled(&self.address()))
            }
            Some(Err(error)) => Err(judge_open(error)),
            None => Err(StoreError::NotApplied(self.no_answer())),
        }
    }

    /// Makes the schema where it is missing, unless it `must_exist`. Once, before anything else.
    pub(super) async fn prepare(&self, must_exist: bool) -> Result<(), StoreError> {
        let deadline = real_time::after(self.timeout);
        self.refuse_pooler_by(deadline).await?;
        let conn = self.open_for_by(|| Purpose::Store, deadline).await?;
        let work = async {
            self.schema.make(&conn.client, must_exist).await.map_err(|error| match error {
                MakeError::Sql(error) => judge_open(error),
                MakeError::Refused(_) | MakeError::Missing(_) => StoreError::Open(error.to_string(), None),
                MakeError::NotOurs(..) => StoreError::Open(error.to_string(), Some(error.into())),
            })
        };
        let late = || StoreError::NotApplied(self.no_answer());
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
        let mut conn = match real_time::until(real_time::after(self.timeout), work).await {
            Some(Ok(conn)) => conn,
            Some(Err(error)) => return Err(StoreError::Unavailable(error.into())),
            None => return Err(StoreError::Unavailable(self.no_answer())),
        };
        // Ends with the listener or with the connection, and takes the other one along.
        let timeout = self.timeout;
        tokio::spawn(async move {
            loop {
                tokio::select! { biased;
                    () = hints.closed() => return,
                    _ = &mut conn.driver => return,
                    () = real_time::wait(LISTENER_PING) => {}
                }
                // A listener sends nothing, so a connection that has died without a word looks like one on which nobody posts.
                let ping = conn.client.simple_query("");
                if !matches!(real_time::until(real_time::after(timeout), ping).await, Some(Ok(_))) {
                    tracing::warn!(
                        "the connection to Postgres that listens for messages has fallen silent; it is made anew"
                    );
                    return;
                }
            }
        });
        Ok(())
    }

    /// Asks the server to stop what it is doing on a connection that is given up, so that it holds no locks there.
    fn cancel(&self, conn: &Conn) {
        let (token, tls, deadline) = (conn.client.cancel_token(), self.tls.clone(), real_time::after(self.timeout));
        // A call may be dropped where no runtime is left: the server then gives up by itself.
        let Ok(runtime) = Handle::try_current() else { return };
        // Nobody waits for it: it ends by its deadline, and failing it changes nothing.
        runtime.spawn(async move { real_time::until(deadline, token.cancel_query(tls)).await });
    }

    /// Asks the server to stop what it is doing on a connection, and waits until it was told.
    pub(super) async fn cancel_query(&self, conn: &Conn) {
        let token = conn.client.cancel_token();
        // Failing it changes nothing: the connection is ended all the same.
        let _ = real_time::until(real_time::after(self.timeout), token.cancel_query(self.tls.clone())).await;
    }
}

/// The purpose of a connection.
enum Purpose {
    Store,
    /// A connection for posts, which wait for no row.
    Posts,
    /// A connection that listens: hints go here.
    Hints(HintSender),
    /// A connection for statements of the application, which know nothing of this store's settings.
    Application,
    /// A look at who is at the other end. Nothing has been asked or set.
    Probe,
}

/// The number of the server's process that a connection talks to, after `before`.
async fn backend(conn: &Conn, before: &str) -> Result<Option<String>, tokio_postgres::Error> {
    // Nothing is prepared: a pooler may not know it the next time.
    let answers = conn.client.simple_query(&format!("{before}SELECT pg_backend_pid()")).await?;
    Ok(answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
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
                if let (Some(hints), Some(hint)) = (&hints, hint(note.payload())) {
                    hints.send(hint);
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
    /// The connection. Locked while one is opened, and by [`Link::alone`] until the call is over.
    place: Mutex<Option<Arc<Conn>>>,
    /// No call on it waits for a row.
    is_for_posts: bool,
}

/// A connection in use for one operation.
pub(super) struct Turn<'a> {
    server: &'a Server,
    pub(super) conn: Arc<Conn>,
    /// The lock on it, if nobody else may use the connection meanwhile.
    place: Option<MutexGuard<'a, Option<Arc<Conn>>>>,
    deadline: Instant,
    /// The number of calls that the connection had answered before the one under way.
    under_way: Option<u64>,
}

impl Link {
    /// A link for posts: what has to wait for a row for more than a moment is [refused](super::errors::is_row_locked).
    pub(super) fn for_posts() -> Link {
        Link { is_for_posts: true, ..Link::default() }
    }

    /// The connection, for one operation at a time, in the order of asking.
    ///
    /// # Errors
    /// [`StoreError::NotApplied`] if there is none by the deadline.
    pub(super) async fn alone<'a>(&'a self, server: &'a Server) -> Result<Turn<'a>, StoreError> {
        let deadline = real_time::after(server.timeout);
        let late = || server.no_connection(None);
        let mut place = real_time::until(deadline, self.place.lock()).await.ok_or_else(late)?;
        let conn = match place.as_ref().filter(|conn| conn.is_usable()) {
            Some(conn) => conn.clone(),
            None => {
                // Before the new one is opened: the server may have no room for both.
                *place = None;
                let purpose = || if self.is_for_posts { Purpose::Posts } else { Purpose::Store };
                let opened = server.open_for_by(purpose, deadline).await.map_err(as_not_applied)?;
                place.insert(Arc::new(opened)).clone()
            }
        };
        Ok(Turn { server, conn, place: Some(place), deadline, under_way: None })
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
    /// As [`Conn::one`], by the deadline, and judged.
    pub(super) async fn one(&mut self, query: Query, params: Params<'_>) -> Result<Row, StoreError> {
        let conn = self.conn.clone();
        self.run(conn.one(query, params)).await
    }

    /// As [`Conn::all`], by the deadline, and judged.
    pub(super) async fn all(&mut self, query: Query, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        let conn = self.conn.clone();
        self.run(conn.all(query, params)).await
    }

    /// Does what a text says that has no parameters, by the deadline, and judged.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        let conn = self.conn.clone();
        self.run(conn.client.batch_execute(sql)).await
    }

    /// Does `work` on the connection, by the deadline, and judges how it ended. Dropped before that, it takes the connection along.
    async fn run<T>(&mut self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
        let doubts = self.conn.doubts.load(Ordering::Acquire);
        self.under_way = Some(self.conn.answered.load(Ordering::Relaxed));
        let ended = real_time::until(self.deadline, work).await;
        self.under_way = None;
        if ended.is_some() {
            self.conn.answered.fetch_add(1, Ordering::Relaxed);
        }
        match ended {
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
                self.abandon();
                Err(StoreError::Unavailable(self.server.no_answer()))
            }
        }
    }

    /// Asks whether the schema that everything was in is there no more.
    pub(super) async fn is_schema_gone(&self) -> bool {
        let record = self.conn.schema.record(&self.conn.client);
        matches!(real_time::until(self.deadline, record).await, Some(Ok(None)))
    }

    /// Gives the connection up in the middle of a call.
    fn abandon(&mut self) {
        if self.place.is_some() {
            self.server.cancel(&self.conn);
        }
        self.retire();
    }

    /// Gives the connection up: whoever still uses it ends, and the next operation opens another.
    pub(super) fn retire(&mut self) {
        self.conn.retire();
        if let Some(place) = &mut self.place {
            **place = None;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(answered_before) = self.under_way else { return };
        // Of several that share a connection one may have lost patience with a server that answers the others.
        let is_silent = self.conn.answered.load(Ordering::Relaxed) == answered_before;
        if self.place.is_some() || is_silent {
            self.abandon();
        }
    }
}
