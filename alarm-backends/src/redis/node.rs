//! One server, and at most one connection to it.
//!
//! A connection is made when it is first needed and dropped when it breaks, misses a deadline, or is silent while a caller gives up; a server that cannot be
//! reached is tried again after a pause that grows, and until then refuses at once. A request is written whole or not at all, and
//! whatever was handed to a connection counts as sent.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, Pipeline, RedisResult, Value};
use stable_interfaces::clock::Clock;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Mutex;

use super::driver::Driver;
use super::failure::Failure;
use super::server::Facts;
use super::target::Target;

/// The pause after a connection could not be made, and its greatest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Node {
    /// Host and port, for messages.
    address: String,
    client: Client,
    target: Arc<Target>,
    /// The connection, locked while connecting, so that all callers wait for one attempt.
    state: Mutex<State>,
    /// The number of the last connection that is not to be used any more.
    broken: AtomicU64,
    /// The number of exchanges that have been answered: as long as it rises, somebody is at the other end.
    answered: AtomicU64,
}

/// A connection, for as many calls at once as there are. Clones are of the same one.
#[derive(Clone)]
struct Connection {
    commands: MultiplexedConnection,
    /// `None` if a task of its own drives it.
    driver: Option<Arc<Driver>>,
}

impl Connection {
    async fn open(client: &Client, target: &Target) -> RedisResult<Connection> {
        // Deadlines are ours: those of the connection could not tell what was sent.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(target.timeout)).set_response_timeout(None);
        let info = client.get_connection_info();
        match info.addr() {
            ConnectionAddr::Tcp(host, port) if target.is_driven_by_calls => {
                let addresses: Vec<_> = lookup_host((host.as_str(), *port)).await?.collect();
                if addresses.is_empty() {
                    return Err((ErrorKind::InvalidClientConfig, "No address found for host").into());
                }
                let tries = addresses.into_iter().map(|address| Box::pin(TcpStream::connect(address)));
                let (stream, _) = select_ok(tries).await?;
                stream.set_nodelay(info.tcp_settings().nodelay())?;
                let redis = info.redis_settings();
                let (commands, driver) = MultiplexedConnection::new_with_config(redis, stream, config).await?;
                Ok(Connection { commands, driver: Some(Arc::new(Driver::new(driver))) })
            }
            _ => {
                let commands = client.get_multiplexed_async_connection_with_config(&config).await?;
                Ok(Connection { commands, driver: None })
            }
        }
    }

    /// Sends all commands at once and waits for all answers.
    async fn send(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let answers = self.commands.send_packed_commands(pipeline, 0, pipeline.len());
        match &self.driver {
            Some(driver) => driver.answer(answers).await,
            None => answers.await,
        }
    }
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// The number of connections there have been: it names the present one.
    generation: u64,
    /// Attempts that failed since the last connection, the time of the next, and why the last one failed.
    failures: u32,
    retry_at: Duration,
    last_failure: String,
    /// The life of the server that the last connection was to.
    run_id: Option<String>,
}

impl Node {
    pub(super) fn new(address: String, client: Client, target: Arc<Target>) -> Node {
        Node {
            address,
            client,
            target,
            state: Mutex::default(),
            broken: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Sends all commands at once and waits for all answers; the answer to a command may be an error.
    pub(super) async fn exchange(&self, pipeline: &Pipeline, deadline: Duration) -> Result<Vec<Value>, Failure> {
        let clock = &*self.target.clock;
        let (mut connection, generation) = match within(clock, deadline, self.connection()).await {
            Some(connected) => connected?,
            None => {
                let text = format!("{}: no connection within {:?}", self.address, self.target.timeout);
                return Err(Failure::NotSent(text));
            }
        };
        let mut under_way =
            UnderWay { node: self, generation, answered_before: Some(self.answered.load(Ordering::Relaxed)) };
        let outcome = within(clock, deadline, connection.send(pipeline)).await;
        under_way.answered_before = None;
        if outcome.is_some() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        let failure = match outcome {
            Some(Ok(values)) if values.len() == pipeline.len() => {
                // Perhaps its master is elsewhere by now: a new connection asks the name service again.
                if values.iter().any(|value| matches!(value, Value::ServerError(error) if error.code() == "READONLY")) {
                    self.broken.fetch_max(generation, Ordering::Relaxed);
                }
                return Ok(values);
            }
            Some(Ok(values)) => Failure::unexpected(&values),
            Some(Err(error)) => Failure::Unknown(format!("{}: {error}", self.address)),
            None => Failure::Unknown(format!("{}: no answer within {:?}", self.address, self.target.timeout)),
        };
        self.broken.fetch_max(generation, Ordering::Relaxed);
        Err(failure)
    }

    /// The connection and its number; a new one if there is none.
    async fn connection(&self) -> Result<(Connection, u64), Failure> {
        let mut state = self.state.lock().await;
        if state.generation == self.broken.load(Ordering::Relaxed) {
            state.connection = None;
        }
        if let Some(connection) = &state.connection {
            return Ok((connection.clone(), state.generation));
        }
        let now = self.target.clock.elapsed();
        if now < state.retry_at {
            return Err(Failure::NotSent(state.last_failure.clone()));
        }
        match self.connect(&mut state).await {
            Ok(connection) => {
                state.failures = 0;
                state.generation += 1;
                state.connection = Some(connection.clone());
                Ok((connection, state.generation))
            }
            Err(failure) => {
                let failure = failure.at(&self.address);
                let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(16)).min(MAX_PAUSE);
                state.failures += 1;
                state.retry_at = self.target.clock.elapsed() + pause;
                state.last_failure = failure.text();
                Err(failure)
            }
        }
    }

    async fn connect(&self, state: &mut State) -> Result<Connection, Failure> {
        let mut connection = Connection::open(&self.client, &self.target).await.map_err(Failure::connecting)?;
        let mut questions = redis::pipe();
        questions.cmd("INFO").cmd("CONFIG").arg("GET").arg("appendfsync");
        let answers = connection.send(&questions).await.map_err(Failure::connecting)?;
        let facts = match answers.as_slice() {
            [Value::ServerError(error), ..] => {
                let (code, details) = (error.code(), error.details().unwrap_or_default());
                return match code {
                    "NOPERM" | "NOAUTH" => Err(Failure::Unfit(format!("INFO is refused: {code} {details}"))),
                    _ => Err(Failure::NotSent(format!("{code} {details}"))),
                };
            }
            [info, config] => Facts::new(&text(info), appendfsync(config)),
            other => return Err(Failure::unexpected(&other)),
        };
        if let Some(reason) = facts.unfit(self.target.is_cluster) {
            return Err(Failure::Unfit(reason));
        }
        self.target.warn(&self.address, facts.warnings());
        if let Some(before) = state.run_id.replace(facts.run_id().to_owned())
            && before != facts.run_id()
        {
            tracing::warn!(server = %self.address, "the server has been restarted or replaced by another");
        }
        Ok(connection)
    }
}

/// An exchange that waits for its answers. Dropped meanwhile, it takes along a connection that has answered nobody since.
struct UnderWay<'a> {
    node: &'a Node,
    /// The number of its connection.
    generation: u64,
    /// The number of exchanges that had been answered when it began; `None` once it has ended.
    answered_before: Option<u64>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.answered_before == Some(self.node.answered.load(Ordering::Relaxed)) {
            self.node.broken.fetch_max(self.generation, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The second value of `CONFIG GET`'s answer, which is a list or a map.
fn appendfsync(answer: &Value) -> Option<String> {
    match answer {
        Value::Array(items) => items.get(1).map(text),
        Value::Map(items) => items.first().map(|(_, value)| text(value)),
        _ => None,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

/// Runs `work` until the clock's `elapsed` reaches `deadline`; `None` if it was not done by then, and has been dropped.
pub(super) async fn within<T>(clock: &dyn Clock, deadline: Duration, work: impl Future<Output = T>) -> Option<T> {
    let left = deadline.saturating_sub(clock.elapsed());
    tokio::select! { biased;
        done = work => Some(done),
        () = clock.sleep(left) => None,
    }
}
