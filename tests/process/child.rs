//! A child process: it runs one host with its ledgers, works on them, and does what its parent writes to it.
//!
//! It ends when its standard input ends, so it does not outlive its parent. What it says of an operation it says after that was
//! acknowledged, never before.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alarm_backends::{FjallStore, PostgresStore, RedisStore};
use serde::{Deserialize, Serialize};
use stable_interfaces::transport::TcpTransport;
use stable_interfaces::{
    Drained, Ended, Fleet, Health, Host, HostBuilder, Interface, NewPost, RequestError, Store, StoreError,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::builds::Build;
use super::door::{self, ASK};
use super::ledger::{Cancel, Counts, Ledger, LedgerError, Rows, Tally};
use super::voice::Voice;
use super::wall::Wall;

/// The time that a caller waits after an error before it goes on.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// The time after which a child says again that it is there.
const HERE_EVERY: Duration = Duration::from_millis(200);

/// The time for which a child tries to open its store, and a host its claim: a store that was killed comes back.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The job of a child process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The place of its rows, and the host that it is.
    pub place: Place,
    /// The number of ledgers on all hosts together.
    pub ledgers: u64,
    /// The number of callers that work on them until they are told to be quiet.
    pub callers: u64,
    /// The build of its program.
    pub build: Build,
    /// The milliseconds by which its wall clock is ahead of the machine's.
    pub ahead: i64,
    /// A number that no other process of the run has, for the names of operations.
    pub life: u64,
}

/// The place of rows, and the host that works on them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Place {
    /// In a directory, with one host alone.
    Fjall(PathBuf),
    /// In the database with this URL, with the hosts of a fleet.
    Postgres(String, Seat),
    /// In the server with this URL, with the hosts of a fleet.
    Redis(String, Seat),
}

/// A host's part in a fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// The way in which it gets to know the others.
    pub roster: Roster,
    /// The number of shards.
    pub shards: u32,
    /// Its lease.
    pub lease: Duration,
}

/// The way in which hosts get to know each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Roster {
    /// By a list, whose pattern this is. A request for another's instance is refused.
    List(String),
    /// By the store. Each answers for every instance, and listens for the others at an address.
    Live {
        /// The address, whose port may be 0.
        listen: String,
        /// Another one, which it tells the others.
        advertise: Option<String>,
        /// The time after which another is handed its part.
        settle: Duration,
    },
}

/// Does what the first line of its input says, until the parent is gone.
pub async fn child() {
    let voice = Voice::start();
    voice.say_errors();
    let mut orders = orders();
    // Nobody had something to do for it.
    let Some(job) = orders.recv().await else { return };
    let job: Job = serde_json::from_str(&job).expect("the parent writes jobs");
    let began = Instant::now();
    let wall = Arc::new(Wall::default());
    wall.set_ahead(job.ahead);
    let (mut builder, store) = match equip(&job.place).await {
        Ok((builder, store)) => (builder.start_timeout(PATIENCE).build(job.build.name()).clock(wall.clone()), store),
        Err(error) => return voice.say_last(format!("refused {}", in_one_line(&error))),
    };
    let opened = began.elapsed();
    let (own, name) = (voice.clone(), job.place.host().to_owned());
    let ledgers = builder.interface(move |_| Ledger::new(own.clone(), name.clone())).with_alarms().with_inbox();
    let ledgers = job.build.register(ledgers).expect("it is the only interface");
    let host = match builder.start().await {
        Ok(host) => host,
        Err(error) => return voice.say_last(format!("refused {}", in_one_line(&error))),
    };
    let (quiet, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let site = Arc::new(Site { job, store, wall, host, ledgers, voice, quiet, next });
    let (end, ended) = oneshot::channel();
    let drained = site.clone().until_told(ended);
    let build = site.job.build.name();
    site.voice.say(format!("ready {} {} {build}", opened.as_micros(), began.elapsed().as_micros()));
    site.run(orders, end, drained).await;
}

/// A builder with an open store, which comes along if others may have it too. A server that cannot be reached yet is tried again.
pub(super) async fn equip(place: &Place) -> Result<(HostBuilder, Option<Arc<dyn Store>>), StoreError> {
    let (seat, store): (&Seat, Arc<dyn Store>) = match place {
        Place::Fjall(dir) => return Ok((Host::local(FjallStore::open(dir)?), None)),
        Place::Postgres(url, seat) => (seat, Arc::new(patiently(|| PostgresStore::connect(url)).await?)),
        Place::Redis(url, seat) => (seat, Arc::new(patiently(|| RedisStore::connect(url)).await?)),
    };
    let fleet = match &seat.roster {
        Roster::List(pattern) => Fleet::expand(pattern, seat.shards),
        Roster::Live { .. } => Fleet::live(seat.shards),
    };
    let fleet = fleet.expect("the parent names a fleet");
    let builder = Host::builder(&seat.name, fleet).shared_store(store.clone()).lease(seat.lease);
    let builder = match &seat.roster {
        Roster::List(_) => builder,
        Roster::Live { listen, advertise, settle } => {
            // The network is this machine's own, whatever the address.
            let transport = TcpTransport::listen(listen).plaintext();
            let transport = match advertise {
                Some(address) => transport.advertise(address.as_str()),
                None => transport,
            };
            builder.transport(transport).settle(*settle)
        }
    };
    Ok((builder, Some(store)))
}

impl Place {
    /// That of a host of a live fleet on the server with this URL, whose hosts are all on this machine.
    #[must_use]
    pub fn live(url: &str, host: &str, lease: Duration, settle: Duration) -> Place {
        Place::live_at(url, host, "127.0.0.1:0", lease, settle)
    }

    /// The same of a host that listens for the others at this address.
    #[must_use]
    pub fn live_at(url: &str, host: &str, listen: &str, lease: Duration, settle: Duration) -> Place {
        let seat = Seat {
            name: host.to_owned(),
            roster: Roster::Live { listen: listen.to_owned(), advertise: None, settle },
            shards: 64,
            lease,
        };
        if url.starts_with("postgres") {
            Place::Postgres(url.to_owned(), seat)
        } else {
            Place::Redis(url.to_owned(), seat)
        }
    }

    /// The same, whose host tells the others that it is at this address.
    ///
    /// # Panics
    /// If it is none of a live fleet.
    #[must_use]
    pub fn advertising(mut self, address: &str) -> Place {
        match &mut self {
            Place::Postgres(_, Seat { roster: Roster::Live { advertise, .. }, .. })
            | Place::Redis(_, Seat { roster: Roster::Live { advertise, .. }, .. }) => {
                *advertise = Some(address.to_owned());
            }
            _ => unreachable!("only hosts of a live fleet tell an address"),
        }
        self
    }

    /// The name of its host.
    fn host(&self) -> &str {
        match self {
            Place::Fjall(_) => "local",
            Place::Postgres(_, seat) | Place::Redis(_, seat) => &seat.name,
        }
    }
}

async fn patiently<T, F>(mut open: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match open().await {
            Err(error) if error.is_retryable() && Instant::now() < end => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
}

/// The orders that the parent writes, a line each; it ends with the parent.
pub(super) fn orders() -> mpsc::UnboundedReceiver<String> {
    let (send, orders) = mpsc::unbounded_channel();
    // A thread of its own: a task that waits for input would keep the runtime from ending.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    orders
}

/// A host that runs, with what its callers share.
struct Site {
    job: Job,
    store: Option<Arc<dyn Store>>,
    wall: Arc<Wall>,
    host: Host,
    ledgers: Interface<Ledger>,
    voice: Voice,
    /// Tells whether the callers are to end.
    quiet: AtomicBool,
    /// The number of the next operation.
    next: AtomicU64,
}

/// Comes with the end of a drain.
type DrainEnd = oneshot::Receiver<Result<Drained, Ended>>;

impl Site {
    async fn run(
        self: Arc<Site>,
        mut orders: mpsc::UnboundedReceiver<String>,
        end: oneshot::Sender<()>,
        drained: DrainEnd,
    ) {
        let (mut callers, mut asked) = (JoinSet::new(), JoinSet::new());
        for _ in 0..self.job.callers {
            callers.spawn(self.clone().work());
        }
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let (mut health, mut said) = (Health::Running, Instant::now());
        loop {
            let order = tokio::select! { biased;
                _ = looks.tick() => {
                    if self.host.health() != health {
                        health = self.host.health();
                        self.voice.say(format!("health {health:?}"));
                    }
                    if said.elapsed() >= HERE_EVERY {
                        said = Instant::now();
                        self.voice.say("here");
                    }
                    continue;
                }
                Some(done) = asked.join_next() => {
                    self.say_answer(done.expect("an answer does not panic"));
                    continue;
                }
                order = orders.recv() => order,
            };
            match order.as_deref() {
                Some(ask) if ask.starts_with(ASK) => {
                    asked.spawn(door::answer(self.job.build, self.ledgers.clone(), ask.to_owned()));
                }
                Some("quiet") => {
                    self.quiet.store(true, Ordering::Relaxed);
                    while callers.join_next().await.is_some() {}
                    self.voice.say("quiet");
                }
                Some("tally") => self.tally().await,
                Some("rows") => self.rows().await,
                Some("owned") => self.owned(),
                Some("members") => self.members().await,
                Some("ready?") => self.voice.say(format!("ready? {}", self.host.is_ready(Duration::MAX))),
                // Nobody asks it any more: it ends when all are answered, as a server does.
                Some("end") => {
                    while let Some(done) = asked.join_next().await {
                        self.say_answer(done.expect("an answer does not panic"));
                    }
                    drop(end);
                    return match drained.await.expect("the drain comes to its end") {
                        Ok(Drained { unfinished, released, .. }) => {
                            self.voice.say_last(format!("drained {unfinished} {released}"));
                        }
                        Err(error) => self.voice.say_last(format!("wrong {error}")),
                    };
                }
                Some(book) if book.starts_with("book ") => self.book(book).await,
                Some(ahead) if ahead.starts_with("ahead ") => {
                    self.wall.set_ahead(ahead["ahead ".len()..].parse().expect("the parent writes numbers"));
                }
                Some(other) => self.voice.say(format!("wrong order {other:?}")),
                None => return,
            }
        }
    }

    fn say_answer(&self, answer: Option<String>) {
        self.voice.say(answer.unwrap_or_else(|| "wrong question".to_owned()));
    }

    /// Drains when the process is told to end, and sends on what is still asked until nothing is, which is `ended`.
    fn until_told(self: Arc<Site>, ended: oneshot::Receiver<()>) -> DrainEnd {
        let (send, drained) = oneshot::channel();
        let mut term = signal(SignalKind::terminate()).expect("a process can listen for signals");
        tokio::spawn(async move {
            let told = async {
                term.recv().await;
                self.voice.say("leaving");
            };
            let (_, ended) = tokio::join!(self.host.serving(ended), self.host.run_until(told));
            let _ = send.send(ended);
        });
        drained
    }

    /// Books, cancels and posts until it is told to be quiet, and says what was acknowledged.
    async fn work(self: Arc<Site>) {
        let pause = || tokio::time::sleep(PAUSE);
        while !self.quiet.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (id, op) = (ledger(number % self.job.ledgers), format!("{}-{number}", self.job.life));
            if number % 5 == 4 {
                // To any of them: messages go through the store, whoever the owner is.
                match self.ledgers.post(&id, NewPost::new("").id(op.clone())).await {
                    Ok(_) => self.voice.say(format!("posted {id} {op}")),
                    Err(error) => {
                        self.failed(&error);
                        pause().await;
                    }
                }
                continue;
            }
            let id = match self.nearest_own(number) {
                Some(id) => id,
                None => {
                    pause().await;
                    continue;
                }
            };
            let after = Duration::from_millis(number.wrapping_mul(0x9E37_79B9) % 300);
            match self.job.build.book(&self.ledgers, &id, None, (op.clone(), after), false).await {
                Ok(_) => self.voice.say(format!("booked {id} {op}")),
                Err(error) => {
                    self.failed(&error);
                    pause().await;
                    continue;
                }
            }
            if number % 8 == 3 {
                match self.ledgers.request(&id, Cancel(op.clone())).await {
                    Ok(true) => self.voice.say(format!("cancelled {id} {op}")),
                    Ok(false) => {}
                    Err(error) => {
                        self.failed(&error);
                        pause().await;
                    }
                }
            }
        }
    }

    /// The first ledger from `number` on, round and round, that this host owns.
    fn nearest_own(&self, number: u64) -> Option<String> {
        let ids = (0..self.job.ledgers).map(|n| ledger((number + n) % self.job.ledgers));
        ids.into_iter().find(|id| self.host.owns(id).expect("it can be an ID"))
    }

    /// Faults of the store and changes of owners are what the tests make; nothing else may fail, and nothing at all on a store that
    /// nobody disturbs.
    fn failed(&self, error: &RequestError<LedgerError>) {
        let expected = error.is_retryable() || error.may_have_happened();
        if !expected || matches!(self.job.place, Place::Fjall(_)) {
            self.voice.say(format!("wrong {}", in_one_line(error)));
        }
    }

    /// Books an operation whose alarm is due after some milliseconds: `book LEDGER OPERATION MILLIS`.
    async fn book(&self, order: &str) {
        let words: Vec<_> = order.split(' ').collect();
        let [_, id, op, after] = words[..] else { return self.voice.say(format!("wrong order {order:?}")) };
        let after = Duration::from_millis(after.parse().expect("the parent writes numbers"));
        match self.job.build.book(&self.ledgers, id, None, (op.to_owned(), after), false).await {
            Ok(_) => self.voice.say(format!("booked {id} {op}")),
            Err(error) => self.voice.say(format!("unbooked {id} {op} {}", in_one_line(&error))),
        }
    }

    /// Says the sum of the counts of its ledgers, once it can be had.
    async fn tally(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.sum().await {
                Ok((requeued, sum)) => {
                    let sum = serde_json::to_string(&sum).expect("counts can be written");
                    return self.voice.say(format!("tally {requeued} {sum}"));
                }
                Err(error) if Instant::now() < end => {
                    self.failed(&error);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return self.voice.say(format!("wrong {}", in_one_line(&error))),
            }
        }
    }

    async fn sum(&self) -> Result<(usize, Counts), RequestError<LedgerError>> {
        // What was being handled in three processes that were killed is suspected of killing them, and waits for somebody to say
        // that it did not.
        let dead = self.ledgers.dead_letters(None, 10_000).await?;
        for letter in &dead {
            self.ledgers.requeue(letter).await?;
        }
        let mut sum = Counts::default();
        for id in self.own_ledgers() {
            sum.add(self.ledgers.request(&id, Tally).await?.0);
        }
        Ok((dead.len(), sum))
    }

    /// Says what is stored.
    async fn rows(&self) {
        for id in self.own_ledgers() {
            match self.ledgers.request(&id, Rows).await {
                Ok((counts, rows)) => {
                    let counts = serde_json::to_string(&counts).expect("counts can be written");
                    self.voice.say(format!("counts {id} {counts}"));
                    for (key, number) in rows {
                        self.voice.say(format!("row {id} {key} {number}"));
                    }
                }
                Err(error) => self.voice.say(format!("wrong {id}: {}", in_one_line(&error))),
            }
        }
        self.voice.say("end");
    }

    fn owned(&self) {
        self.voice.say(format!("owned {}", self.own_ledgers().join(" ")));
    }

    /// Says who holds a lease, as the store has it now: names, addresses, and the time that is left in microseconds.
    async fn members(&self) {
        let Some(store) = &self.store else { return self.voice.say("wrong it has no others") };
        match store.members().await {
            Ok(members) => {
                let said: Vec<_> = members
                    .list
                    .iter()
                    .map(|member| {
                        let address = member.address.as_deref().unwrap_or("-");
                        format!("{}={address}={}", member.name, member.remaining.as_micros())
                    })
                    .collect();
                self.voice.say(format!("members {}", said.join(" ")));
            }
            Err(error) => self.voice.say(format!("wrong {}", in_one_line(&error))),
        }
    }

    fn own_ledgers(&self) -> Vec<String> {
        let ids = (0..self.job.ledgers).map(ledger);
        ids.filter(|id| self.host.owns(id).expect("it can be an ID")).collect()
    }
}

/// The ID of a ledger.
pub(super) fn ledger(number: u64) -> String {
    format!("ledger-{number}")
}

pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line.replace('\n', " ")
}
