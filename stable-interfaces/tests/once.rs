//! Requests with a key: handled once, whoever asks, at whatever door, however often, and whatever ends in between.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stable_interfaces::clock::Clock;
use stable_interfaces::store::{
    Batch, Claim, ClaimKind, HASH_VERSION, Incarnation, InstanceName, Lane, Op, Presence, Read, ReadRange, ReadRows,
    Write,
};
use stable_interfaces::testing::{Fault, FaultStore, MemoryNetwork, Method, SeededRandom, SimClock};
use stable_interfaces::{
    Context, ContextError, Fleet, FleetClient, Handle, Host, Interface, InterfaceBuilder, KeyRange, MemoryStore,
    RequestError, StableInterface, Store, StoreError, Timestamp,
};
use tokio::task::JoinHandle;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LEASE: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(60);
/// The largest value that a store holds.
const MAX_VALUE: usize = 256 * 1024;

type Answer = Result<Receipt, RequestError<TillError>>;

#[derive(Debug, thiserror::Error, Serialize, Deserialize, PartialEq)]
enum TillError {
    #[error("closed")]
    Closed,
    #[error("{0}")]
    Context(String),
}

impl From<ContextError> for TillError {
    fn from(error: ContextError) -> TillError {
        TillError::Context(error.to_string())
    }
}

/// The number of times that handlers ran, whatever became of it.
#[derive(Debug, Clone, Default)]
struct Handled(Arc<AtomicU64>);

impl Handled {
    fn times(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Till {
    balance: Option<u64>,
    handled: Handled,
    clock: SimClock,
}

impl StableInterface for Till {
    const NAME: &'static str = "till";
    type Error = TillError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), TillError> {
        self.balance = cx.get("balance").await?;
        Ok(())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum How {
    Plain,
    Slowly(Duration),
    Fail,
    Panic,
    /// Commits in the middle, and fails.
    Halves,
    /// With a reply that has so many bytes as JSON, besides its other fields.
    Long(usize),
    /// With a reply that is none as JSON.
    NotFinite,
}

/// Adds to the balance.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pay {
    cents: u64,
    how: How,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Receipt {
    balance: u64,
    text: String,
    rate: f64,
}

impl Handle<Pay> for Till {
    type Reply = Receipt;

    async fn handle(&mut self, cx: &mut Context, Pay { cents, how }: Pay) -> Result<Receipt, TillError> {
        self.handled.0.fetch_add(1, Ordering::SeqCst);
        let balance = self.balance.unwrap_or(0) + cents;
        let mut receipt = Receipt { balance, text: String::new(), rate: 0.5 };
        cx.put("balance", &balance)?;
        self.balance = Some(balance);
        match how {
            How::Plain => {}
            How::Slowly(time) => self.clock.sleep(time).await,
            How::Fail => return Err(TillError::Closed),
            How::Panic => std::panic::resume_unwind(Box::new("it broke")),
            How::Halves => {
                cx.commit().await?;
                return Err(TillError::Closed);
            }
            How::Long(bytes) => receipt.text = "x".repeat(bytes),
            How::NotFinite => receipt.rate = f64::NAN,
        }
        Ok(receipt)
    }
}

fn pay(cents: u64) -> Pay {
    Pay { cents, how: How::Plain }
}

fn slowly(cents: u64, time: Duration) -> Pay {
    Pay { cents, how: How::Slowly(time) }
}

/// Adds to the balance, and is not registered to cross.
#[derive(Debug, Serialize)]
struct Here(u64);

impl Handle<Here> for Till {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, Here(cents): Here) -> Result<u64, TillError> {
        Ok(self.handle(cx, pay(cents)).await?.balance)
    }
}

/// Does what it is told with the storage, and tells which keys are there then.
enum Look {
    All,
    Put(&'static str),
    DeleteAll,
}

impl Handle<Look> for Till {
    type Reply = Vec<String>;

    async fn handle(&mut self, cx: &mut Context, look: Look) -> Result<Vec<String>, TillError> {
        match look {
            Look::All => {}
            Look::Put(key) => cx.put(key, &"own")?,
            Look::DeleteAll => {
                for (key, _) in cx.list(KeyRange::all()).await? {
                    cx.delete(&key)?;
                }
            }
        }
        Ok(cx.list(KeyRange::all()).await?.into_iter().map(|(key, _)| key.to_string()).collect())
    }
}

/// Hosts on one store and one network.
struct Town {
    clock: SimClock,
    store: FaultStore,
    network: MemoryNetwork,
    fleet: Fleet,
    handled: Handled,
    hosts: AtomicU64,
}

struct Site {
    host: Host,
    tills: Interface<Till>,
}

impl Town {
    fn with(fleet: Fleet) -> Town {
        let clock = SimClock::new(Timestamp::from_millis(1_700_000_000_000));
        let store = MemoryStore::with_clock(Arc::new(clock.clone()));
        let store = FaultStore::seeded(Arc::new(store), Arc::new(clock.clone()), 1);
        let (network, handled) = (MemoryNetwork::new(), Handled::default());
        Town { clock, store, network, fleet, handled, hosts: AtomicU64::new(0) }
    }

    fn alone() -> Town {
        Town::with(Fleet::new(["host-0"], 64).unwrap())
    }

    fn live() -> Town {
        Town::with(Fleet::live(64).unwrap())
    }

    async fn start_with(
        &self,
        name: &str,
        configure: impl for<'a> FnOnce(InterfaceBuilder<'a, Till>) -> InterfaceBuilder<'a, Till>,
    ) -> Site {
        let host = Host::builder(name, self.fleet.clone()).store(self.store.clone()).lease(LEASE);
        let seed = self.hosts.fetch_add(1, Ordering::SeqCst);
        let host = host.clock(Arc::new(self.clock.clone())).random(Arc::new(SeededRandom::new(seed)));
        let mut host = host.transport(self.network.transport());
        let (handled, clock) = (self.handled.clone(), self.clock.clone());
        let build = move |_: &str| Till { balance: None, handled: handled.clone(), clock: clock.clone() };
        let tills = host.interface(build).handler_timeout(TIMEOUT).forward::<Pay>("pay");
        let tills = configure(tills).register().unwrap();
        Site { host: host.start().await.unwrap(), tills }
    }

    async fn start(&self, name: &str) -> Site {
        self.start_with(name, |tills| tills).await
    }

    async fn pass(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    async fn settle(&self) {
        self.pass(MILLI).await;
    }

    /// The rows of the library's own beside an instance: the keys that it knows, and the number of replies.
    async fn kept(&self, id: &str) -> (Vec<String>, usize) {
        let name = InstanceName { interface: "till!".into(), instance: id.into() };
        let shard = self.fleet.shard_of(id).unwrap();
        let read = Read::new(shard, name, ReadRange::Storage("".into(), None), 100_000);
        let ReadRows::Storage(rows) = self.store.read(&read).await.unwrap().rows else { panic!("storage") };
        let key =
            |row: &[u8]| serde_json::from_slice::<serde_json::Value>(row).unwrap()["key"].as_str().unwrap().into();
        let keys: Vec<_> = rows.iter().filter(|row| row.0.starts_with("once/key/")).map(|row| key(&row.1)).collect();
        let replies = rows.len() - keys.len();
        (keys, replies)
    }
}

impl Town {
    /// Writes a row of the library's own, as a host of another release may have.
    async fn write(&self, id: &str, key: &str, value: &'static str) {
        let (incarnation, shard) = (Incarnation(77), self.fleet.shard_of(id).unwrap());
        let claim = Claim {
            incarnation,
            host: "host-0".into(),
            shards: vec![shard],
            given_up: Vec::new(),
            shard_count: 64,
            hash_version: HASH_VERSION,
            lease: LEASE,
            kind: ClaimKind::Start,
            presence: Presence::default(),
        };
        let epoch = self.store.claim(&claim).await.unwrap().granted[0].epoch;
        let name = InstanceName { interface: "till!".into(), instance: id.into() };
        let ops = vec![Op::Put { name, key: key.into(), value: value.into() }];
        let write =
            Write { incarnation, lane: Lane(0), seq: 1, batches: vec![Batch { shard, epoch, ops: ops.into() }] };
        self.store.commit(&write).await.unwrap()[0].as_ref().unwrap();
        self.store.release(incarnation, &[(shard, Some(epoch))]).await.unwrap();
    }
}

impl Site {
    /// An ID whose shard this host owns.
    fn id(&self) -> String {
        (0..).map(|n| n.to_string()).find(|id| self.host.owns(id).unwrap()).unwrap()
    }

    async fn ask(&self, key: &str, pay: Pay) -> Answer {
        self.tills.request_once("ada", key, pay).await
    }

    fn spawn(&self, id: &str, key: &str, pay: Pay) -> JoinHandle<Answer> {
        let (tills, id, key) = (self.tills.clone(), id.to_owned(), key.to_owned());
        tokio::spawn(async move { tills.request_once(&id, &key, pay).await })
    }

    async fn balance(&self, id: &str) -> u64 {
        self.tills.request(id, pay(0)).await.unwrap().balance
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_answered_with_its_reply_and_no_handler_runs_in_this_life_or_another() {
    let town = Town::alone();
    let mut site = town.start("host-0").await;
    let first = site.ask("a", pay(5)).await.unwrap();
    assert_eq!((first.balance, site.ask("b", pay(5)).await.unwrap().balance), (5, 10));
    for life in 0..3 {
        match life {
            0 => {}
            1 => site.tills.stop("ada").await.unwrap(),
            _ => {
                site.host.crash();
                site = town.start("host-0").await;
            }
        }
        let reads = town.store.calls(Method::Read);
        assert_eq!(site.ask("a", pay(5)).await.unwrap(), first);
        assert_eq!(site.ask("b", pay(5)).await.unwrap().balance, 10);
        assert_eq!(town.handled.times(), 2);
        // The reply of each key; in a new life the balance and the keys before.
        assert_eq!(town.store.calls(Method::Read) - reads, if life == 0 { 2 } else { 4 });
    }
    // A new key needs no read, once the keys are in memory.
    let reads = town.store.calls(Method::Read);
    assert_eq!(site.ask("c", pay(1)).await.unwrap().balance, 11);
    assert_eq!(town.store.calls(Method::Read), reads);
    // A key is of one instance.
    assert_eq!(site.tills.request_once("bob", "a", pay(5)).await.unwrap().balance, 5);
}

#[tokio::test(start_paused = true)]
async fn of_two_requests_with_one_key_the_second_waits_and_has_the_reply_of_the_first() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    let asked = [0; 3].map(|_| site.spawn("ada", "a", slowly(5, SECOND)));
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().balance, 5);
    }
    assert_eq!(town.handled.times(), 1);
    // If the first fails the second is handled.
    let failing = site.spawn("ada", "b", Pay { cents: 5, how: How::Fail });
    assert!(matches!(failing.await.unwrap(), Err(RequestError::Handler(TillError::Closed, _))));
    let failing = Pay { cents: 5, how: How::Fail };
    assert!(matches!(site.ask("b", failing).await, Err(RequestError::Handler(TillError::Closed, _))));
    assert_eq!((town.handled.times(), site.balance("ada").await), (3, 5));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_not_durable_is_given_to_nobody() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    site.ask("a", pay(5)).await.unwrap();
    town.store.fail_next(Method::Commit, Fault::Hang);
    let asked = [0; 2].map(|_| site.spawn("ada", "b", pay(5)));
    town.pass(2 * SECOND).await;
    assert!(asked.iter().all(|asked| !asked.is_finished()));
    assert_eq!(town.handled.times(), 2, "the second has found the reply");
    town.store.release_hanging();
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap().balance, 10);
    }
    // One whose commit is refused has not happened, and neither is its reply there.
    town.store.fail_next(Method::Commit, Fault::Hang);
    let asked = [0; 2].map(|_| site.spawn("ada", "c", pay(5)));
    town.settle().await;
    site.host.crash();
    let errors = [asked[0].is_finished(), asked[1].is_finished()];
    town.pass(SECOND).await;
    let site = town.start("host-0").await;
    assert_eq!((errors, town.kept("ada").await.0), ([false; 2], vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(site.ask("c", pay(5)).await.unwrap().balance, 15);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_message_is_refused_and_nothing_happens() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    site.ask("a", pay(5)).await.unwrap();
    let error = site.ask("a", pay(6)).await.unwrap_err();
    assert!(matches!(&error, RequestError::KeyReused { key } if **key == *"a"), "{error}");
    assert_eq!(error.to_string(), "the request key \"a\" has been used for another message");
    assert!(!error.is_retryable() && !error.may_have_happened());
    assert_eq!((town.handled.times(), site.balance("ada").await), (1, 5));
    for bad in ["", "a\0", &"x".repeat(513)] {
        let error = site.ask(bad, pay(1)).await.unwrap_err();
        assert!(matches!(&error, RequestError::InvalidId { what, .. } if what == "request key"), "{error}");
    }
    assert!(site.ask(&"x".repeat(512), pay(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_handled_again_and_leaves_nothing_behind() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    for (how, times) in [(How::Fail, 2), (How::Panic, 4)] {
        for _ in 0..2 {
            let error = site.ask("a", Pay { cents: 5, how: how.clone() }).await.unwrap_err();
            assert!(matches!(error, RequestError::Handler(..) | RequestError::Panicked(_)), "{error}");
            assert!(!error.may_have_happened());
        }
        assert_eq!(town.handled.times(), times);
    }
    assert_eq!(town.kept("ada").await, (vec![], 0));
    assert_eq!(site.ask("a", pay(5)).await.unwrap().balance, 5);
    // What it made durable before that is there.
    let error = site.ask("b", Pay { cents: 5, how: How::Halves }).await.unwrap_err();
    assert!(matches!(&error, RequestError::Handler(..)) && error.may_have_happened(), "{error}");
    assert_eq!((site.balance("ada").await, town.kept("ada").await.1), (10, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_kept_is_an_error_and_nothing_has_happened() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    let others = serde_json::to_string(&Receipt { balance: 5, text: String::new(), rate: 0.5 }).unwrap().len();
    let error = site.ask("a", Pay { cents: 5, how: How::Long(MAX_VALUE - others + 1) }).await.unwrap_err();
    assert!(matches!(&error, RequestError::TooLarge(what) if what.contains("the reply")), "{error}");
    assert_eq!(site.balance("ada").await, 0, "in memory neither");
    let error = site.ask("a", Pay { cents: 5, how: How::NotFinite }).await.unwrap_err();
    assert!(matches!(&error, RequestError::Json(_)), "{error}");
    assert_eq!((site.balance("ada").await, town.kept("ada").await), (0, (vec![], 0)));
    let longest = Pay { cents: 5, how: How::Long(MAX_VALUE - others) };
    let kept = site.ask("a", longest.clone()).await.unwrap();
    site.tills.stop("ada").await.unwrap();
    assert_eq!((site.ask("a", longest).await.unwrap(), site.balance("ada").await), (kept, 5));
}

#[tokio::test(start_paused = true)]
async fn handlers_see_and_touch_none_of_what_is_kept() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    site.ask("a", pay(5)).await.unwrap();
    assert_eq!(site.tills.request("ada", Look::All).await.unwrap(), ["balance"]);
    // The same keys as its own, durable and while they are not.
    for key in ["once/key/0000000000000001", "once/reply/0000000000000001"] {
        town.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let (looking, put) = (site.tills.clone(), Look::Put(key));
        let put = tokio::spawn(async move { looking.request("ada", put).await });
        town.settle().await;
        assert_eq!(site.ask("a", pay(5)).await.unwrap().balance, 5);
        assert!(put.await.unwrap().unwrap().iter().any(|found| found == key));
        assert_eq!(site.ask("a", pay(5)).await.unwrap().balance, 5);
    }
    let listed: Vec<_> = site.tills.stored("ada", KeyRange::all()).await.unwrap();
    assert_eq!(listed.len(), 3);
    // While a reply is on its way to the store it is not seen either.
    town.store.fail_next(Method::Commit, Fault::Delay(SECOND));
    let asked = site.spawn("ada", "b", pay(1));
    town.settle().await;
    assert_eq!(site.tills.request("ada", Look::All).await.unwrap().len(), 3);
    asked.await.unwrap().unwrap();
    assert!(site.tills.request("ada", Look::DeleteAll).await.unwrap().is_empty());
    site.tills.stop("ada").await.unwrap();
    assert_eq!(site.ask("a", pay(5)).await.unwrap().balance, 5);
    assert_eq!((town.handled.times(), town.kept("ada").await.1), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_host_without_a_store_says_so_and_handles_nothing() {
    let town = Town::alone();
    let mut host = Host::builder("host-0", town.fleet.clone()).clock(Arc::new(town.clock.clone()));
    let (handled, clock) = (town.handled.clone(), town.clock.clone());
    let build = move |_: &str| Till { balance: Some(0), handled: handled.clone(), clock: clock.clone() };
    let tills = host.interface(build).register().unwrap();
    let early = tills.request_once("ada", "a", pay(5)).await.unwrap_err();
    assert!(matches!(early, RequestError::NotStarted), "{early}");
    let _host = host.start().await.unwrap();
    let error = tills.request_once("ada", "a", pay(5)).await.unwrap_err();
    assert!(matches!(error, RequestError::NoStore), "{error}");
    assert_eq!(town.handled.times(), 0);
}

#[tokio::test(start_paused = true)]
async fn replies_are_forgotten_when_their_time_is_over_or_there_are_too_many_in_commits_that_happen_anyway() {
    let town = Town::alone();
    let site = town.start_with("host-0", |tills| tills.max_kept_replies(3)).await;
    for key in ["a", "b", "c", "d"] {
        site.ask(key, pay(1)).await.unwrap();
    }
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(town.kept("ada").await, (keys(&["b", "c", "d"]), 3));
    let commits = town.store.calls(Method::Commit);
    town.pass(DAY).await;
    assert_eq!(site.ask("b", pay(1)).await.unwrap().balance, 2, "nothing has come that would have it forgotten");
    assert_eq!(town.store.calls(Method::Commit), commits);
    site.ask("e", pay(1)).await.unwrap();
    assert_eq!((town.kept("ada").await, town.store.calls(Method::Commit)), ((keys(&["e"]), 1), commits + 1));
    assert_eq!(site.ask("b", pay(1)).await.unwrap().balance, 6);
    // In another life with another limit.
    site.host.drain(SECOND).await;
    let site = town.start_with("host-0", |tills| tills.keep_replies(SECOND)).await;
    assert_eq!(site.ask("b", pay(1)).await.unwrap().balance, 6);
    town.pass(SECOND).await;
    site.ask("f", pay(1)).await.unwrap();
    assert_eq!(town.kept("ada").await, (keys(&["f"]), 1));
}

#[tokio::test(start_paused = true)]
async fn a_row_of_a_newer_release_has_the_request_refused_and_not_handled_again() {
    let town = Town::alone();
    let site = town.start("host-0").await;
    site.ask("a", pay(5)).await.unwrap();
    site.host.drain(SECOND).await;
    town.write("ada", "once/key/0000000000000002", r#"{"v":2,"who":"knows"}"#).await;
    let site = town.start("host-0").await;
    for key in ["a", "b"] {
        let error = site.ask(key, pay(5)).await.unwrap_err();
        let RequestError::Store(cause) = &error else { panic!("{error}") };
        assert!(matches!(&**cause, StoreError::Damaged(_)) && cause.to_string().contains("format 2"), "{cause}");
        assert!(!error.is_retryable());
    }
    assert_eq!(town.handled.times(), 1);
    assert_eq!(site.tills.request("ada", pay(1)).await.unwrap().balance, 6, "the instance is as well as ever");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_not_known_is_found_out_and_the_effect_happens_once() {
    for fault in [Fault::FailAfter, Fault::FailBefore] {
        let town = Town::alone();
        let site = town.start("host-0").await;
        site.ask("a", pay(1)).await.unwrap();
        town.store.set_chance(Method::Commit, fault, 1.0);
        let asked = site.spawn("ada", "b", pay(5));
        let tills = site.tills.clone();
        let here = tokio::spawn(async move { tills.request_once("ada", "c", Here(10)).await });
        // Longer than the 10 s for which a commit is waited for.
        town.pass(12 * SECOND).await;
        assert!(!asked.is_finished());
        town.store.heal();
        assert_eq!(asked.await.unwrap().unwrap().balance, 6);
        match (fault, here.await.unwrap()) {
            (Fault::FailAfter, here) => {
                assert_eq!((here.unwrap(), town.handled.times()), (16, 3), "it was found");
                assert_eq!(site.balance("ada").await, 16);
            }
            (_, here) => {
                assert!(matches!(&here, Err(RequestError::Store(_))), "none can be made anew: {here:?}");
                assert_eq!(site.balance("ada").await, 6);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn through_the_wrong_door_a_key_is_the_same_key() {
    let town = Town::with(Fleet::new(["host-0", "host-1"], 64).unwrap());
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = one.id();
    let ask = async |site: &Site, key: &str, pay: Pay| site.tills.request_once(&id, key, pay).await;
    let first = ask(&zero, "a", pay(5)).await.unwrap();
    assert_eq!((ask(&one, "a", pay(5)).await.unwrap(), ask(&zero, "a", pay(5)).await.unwrap()), (first.clone(), first));
    assert_eq!(
        (ask(&one, "b", pay(5)).await.unwrap().balance, ask(&zero, "b", pay(5)).await.unwrap().balance),
        (10, 10)
    );
    assert_eq!(town.handled.times(), 2);
    // Each error comes through it as the owner has it.
    for (key, pay) in [
        ("a", pay(6)),
        ("c", Pay { cents: 5, how: How::Fail }),
        ("d", Pay { cents: 5, how: How::Long(MAX_VALUE) }),
        ("e", Pay { cents: 5, how: How::Panic }),
        ("f", Pay { cents: 0, how: How::Halves }),
        ("", pay(1)),
    ] {
        let (there, through) =
            (ask(&one, key, pay.clone()).await.unwrap_err(), ask(&zero, key, pay).await.unwrap_err());
        assert_eq!(through.to_string(), there.to_string());
        assert_eq!(std::mem::discriminant(&through), std::mem::discriminant(&there));
        assert_eq!(through.may_have_happened(), there.may_have_happened());
    }
    // One that is not registered names the owner, at once.
    let began = town.clock.elapsed();
    let error = zero.tills.request_once(&id, "g", Here(1)).await.unwrap_err();
    assert!(matches!(&error, RequestError::NotOwner { holder } if **holder == *"host-1"), "{error}");
    assert_eq!(town.clock.elapsed(), began);
    assert_eq!(one.balance(&id).await, 10);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_on_the_way_is_asked_again_and_happens_once() {
    let town = Town::with(Fleet::new(["host-0", "host-1"], 64).unwrap());
    let (zero, one) = (town.start("host-0").await, town.start("host-1").await);
    let id = one.id();
    town.network.lose_requests("host-0", "host-1", 2);
    assert_eq!(zero.tills.request_once(&id, "a", pay(5)).await.unwrap().balance, 5);
    town.network.lose_answers("host-1", "host-0", 2);
    assert_eq!(zero.tills.request_once(&id, "b", pay(5)).await.unwrap().balance, 10);
    assert_eq!(town.handled.times(), 2);
    // Cut off for longer than what may wait for a host that cannot be reached.
    town.network.cut("host-0", "host-1", true);
    let asked = zero.spawn(&id, "c", pay(5));
    town.pass(2 * LEASE).await;
    town.network.cut("host-0", "host-1", false);
    assert_eq!(asked.await.unwrap().unwrap().balance, 15);
    // When its time is up, and an answer was lost, nothing is said that is not known.
    town.network.lose_answers("host-1", "host-0", u32::MAX);
    let began = town.clock.elapsed();
    let error = zero.tills.request_once(&id, "d", pay(5)).await.unwrap_err();
    assert!(error.may_have_happened(), "{error}");
    let waited = town.clock.elapsed() - began;
    assert!((TIMEOUT..TIMEOUT + SECOND).contains(&waited), "{waited:?}");
    town.network.lose_answers("host-1", "host-0", 0);
    // Nor of a handler that failed after one that may not have.
    town.network.lose_requests("host-0", "host-1", 1);
    let error = zero.tills.request_once(&id, "e", Pay { cents: 5, how: How::Fail }).await.unwrap_err();
    assert!(matches!(&error, RequestError::Handler(TillError::Closed, _)) && error.may_have_happened(), "{error}");
    assert_eq!(zero.tills.request_once(&id, "d", pay(5)).await.unwrap().balance, 20);
    assert_eq!(one.balance(&id).await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_whose_reply_may_have_been_forgotten_meanwhile_is_not_handled_again() {
    let town = Town::with(Fleet::new(["host-0", "host-1"], 64).unwrap());
    let zero = town.start("host-0").await;
    let one = town.start_with("host-1", |tills| tills.max_kept_replies(2)).await;
    let id = one.id();
    town.network.lose_answers("host-1", "host-0", 1);
    let asked = zero.spawn(&id, "a", pay(5));
    town.pass(SECOND).await;
    // The link counts as gone after three seconds.
    for key in ["b", "c"] {
        one.tills.request_once(&id, key, pay(5)).await.unwrap();
    }
    let began = town.clock.elapsed();
    let error = asked.await.unwrap().unwrap_err();
    let RequestError::Unknown(cause) = &error else { panic!("{error}") };
    assert!(cause.to_string().contains("may be forgotten"), "{cause}");
    assert!(town.clock.elapsed() - began < 5 * SECOND, "no further try helps");
    assert_eq!(one.balance(&id).await, 15);
}

#[tokio::test(start_paused = true)]
async fn a_limit_for_hosts_that_cannot_be_reached_is_one_for_requests_with_keys_too() {
    let town = Town::with(Fleet::new(["host-0", "host-1"], 64).unwrap());
    let zero = town.start_with("host-0", |tills| tills.reach_timeout(Duration::ZERO)).await;
    let one = town.start("host-1").await;
    let id = one.id();
    town.network.cut("host-0", "host-1", true);
    let began = town.clock.elapsed();
    let error = zero.tills.request_once(&id, "a", pay(5)).await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable { .. }), "{error}");
    assert!(town.clock.elapsed() - began < SECOND);
    // Of one that was sent it is found out what became of it.
    town.network.cut("host-0", "host-1", false);
    town.network.lose_answers("host-1", "host-0", 1);
    let asked = zero.spawn(&id, "a", pay(5));
    town.settle().await;
    town.network.cut("host-0", "host-1", true);
    town.pass(20 * SECOND).await;
    town.network.cut("host-0", "host-1", false);
    assert_eq!(asked.await.unwrap().unwrap().balance, 5);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_dies_before_its_commit_or_between_that_and_its_answer_is_outlived() {
    for has_committed in [false, true] {
        let town = Town::live();
        let (zero, one) = tokio::join!(town.start("host-0"), town.start("host-1"));
        let id = one.id();
        let asked = if has_committed {
            town.network.delay("host-1", "host-0", 2 * SECOND);
            zero.spawn(&id, "a", pay(5))
        } else {
            zero.spawn(&id, "a", slowly(5, 2 * SECOND))
        };
        town.pass(SECOND).await;
        assert_eq!(town.kept(&id).await.1, usize::from(has_committed));
        one.host.crash();
        let receipt = asked.await.unwrap().unwrap();
        assert_eq!((receipt.balance, zero.balance(&id).await), (5, 5));
        assert_eq!(town.handled.times(), if has_committed { 1 } else { 2 } + 1);
        assert!(zero.host.owns(&id).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn keys_asked_through_any_door_while_shards_move_and_hosts_join_and_leave_have_one_effect_each() {
    let town = Town::live();
    let (zero, one) = tokio::join!(town.start("host-0"), town.start("host-1"));
    town.pass(2 * LEASE).await;
    let mut asked = Vec::new();
    let mut ask = |door: &Site, count: u64| {
        let (id, key) = (format!("id-{}", count % 12), format!("key-{}", count / 12 / 2));
        asked.push((id.clone(), key.clone(), door.spawn(&id, &key, slowly(1, 10 * MILLI))));
    };
    let mut sites = vec![zero, one];
    for count in 0..3_000 {
        match count {
            500 => sites.push(town.start("host-2").await),
            1_500 => {
                let client = FleetClient::new(Arc::new(town.store.clone()), town.fleet.clone());
                assert!(client.cordon("host-0", true).await.unwrap());
            }
            2_300 => {
                let two = sites.pop().unwrap();
                assert!(two.host.drain(10 * SECOND).await.released);
            }
            _ => {}
        }
        let door = &sites[usize::try_from(count).unwrap() % sites.len()];
        ask(door, count);
        town.pass(20 * MILLI).await;
    }
    let mut keys = BTreeSet::new();
    for (id, key, asked) in asked {
        asked.await.unwrap().unwrap();
        keys.insert((id, key));
    }
    let mut sum = 0;
    for n in 0..12 {
        sum += sites[1].balance(&format!("id-{n}")).await;
    }
    assert_eq!(sum, keys.len() as u64);
    assert!(keys.len() >= 1_500 && sites[0].host.shards().is_empty(), "{} keys", keys.len());
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_effect_whatever_is_lost_cut_or_killed() {
    let seeds = if std::env::var_os("QUICK").is_some() { 2 } else { 12 };
    let message = |key: u64| slowly(1, u32::try_from(key % 30).unwrap() * MILLI);
    let mut answered = 0;
    for seed in 0..seeds {
        let town = Town::live();
        let names = ["host-0", "host-1", "host-2"];
        let mut sites = Vec::new();
        for name in names {
            sites.push(Some(town.start(name).await));
        }
        let (random, mut asked) = (SeededRandom::new(seed), Vec::new());
        for turn in 0..400_u64 {
            let (from, to) = (*random.pick(&names).unwrap(), *random.pick(&names).unwrap());
            match random.below(24) {
                0 => town.network.lose_requests(from, to, 2),
                1 => town.network.lose_answers(from, to, 2),
                2 => town.network.cut(from, to, random.chance(0.4)),
                3 => town.network.delay(from, to, random.up_to(200 * MILLI)),
                4 => town.store.fail_next(Method::Commit, Fault::FailAfter),
                5 => town.store.fail_next(Method::Commit, Fault::FailBefore),
                6 if turn % 3 == 0 => {
                    let at = usize::try_from(random.below(3)).unwrap();
                    if let Some(site) = sites[at].take() {
                        site.host.crash();
                    } else {
                        sites[at] = Some(town.start(names[at]).await);
                    }
                }
                _ => {}
            }
            let (id, key) = (format!("id-{}", random.below(8)), random.below(60));
            let door = usize::try_from(random.below(3)).unwrap();
            if let Some(door) = &sites[door] {
                asked.push((id.clone(), key, door.spawn(&id, &key.to_string(), message(key))));
            }
            town.pass(random.up_to(100 * MILLI)).await;
        }
        for (from, to) in names.iter().flat_map(|from| names.iter().map(move |to| (from, to))) {
            town.network.cut(from, to, false);
            town.network.lose_requests(from, to, 0);
            town.network.lose_answers(from, to, 0);
        }
        town.store.heal();
        for (at, name) in names.iter().enumerate() {
            if sites[at].is_none() {
                sites[at] = Some(town.start(name).await);
            }
        }
        // Of those whose door has died nobody heard. All are asked once more, at one door.
        let mut keys = BTreeMap::<String, BTreeSet<u64>>::new();
        for (id, key, asked) in asked {
            match asked.await.unwrap() {
                Ok(_) => answered += 1,
                Err(error) => assert!(!matches!(error, RequestError::KeyReused { .. }), "{error}"),
            }
            keys.entry(id).or_default().insert(key);
        }
        town.pass(2 * LEASE).await;
        let door = sites[0].as_ref().unwrap();
        for (id, keys) in keys {
            for key in &keys {
                door.tills.request_once(&id, &key.to_string(), message(*key)).await.unwrap();
            }
            let (known, replies) = town.kept(&id).await;
            assert_eq!((known.len(), replies), (keys.len(), keys.len()), "seed {seed}, {id}");
            assert_eq!(door.balance(&id).await, keys.len() as u64, "seed {seed}, {id}: one effect of each key");
        }
    }
    assert!(answered > 100 * seeds, "{answered} were answered");
}
