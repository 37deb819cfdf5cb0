//! Transactions of the application in handlers: the application's rows, the effects and the completion of what woke the
//! handler are there together, or none of them is, whatever happens in between.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alarm_backends::postgres::{PostgresContext, PostgresStore};
use stable_interfaces::store::ClaimKind;
use stable_interfaces::{
    Alarm, Context, ContextError, Fleet, Handle, Host, Interface, MemoryStore, Message, NewPost, OnAlarm, OnMessage,
    RequestError, RetryPolicy, StableInterface, Store, StoreError,
};
use tokio::sync::Notify;
use tokio_postgres::Client;

use super::SERVER;
use super::faults::{hold_up_commits, set};
use super::given::*;
use super::proxy::{self, Verdict};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("{0}")]
    Told(&'static str),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("sql: {0:?}")]
    Sql(#[from] tokio_postgres::Error),
}

type Hook = Arc<dyn for<'a> Fn(&'a mut Context) -> BoxFuture<'a, Result<(), Failed>> + Send + Sync>;

/// The work of accounts that are woken, and how often they were.
#[derive(Clone, Default)]
pub(crate) struct Script {
    on_wake: Arc<Mutex<Option<Hook>>>,
    wakes: Arc<AtomicUsize>,
    lives: Arc<AtomicU64>,
}

impl Script {
    pub(crate) fn on_wake(
        &self,
        hook: impl for<'a> Fn(&'a mut Context) -> BoxFuture<'a, Result<(), Failed>> + Send + Sync + 'static,
    ) {
        *self.on_wake.lock().expect("no test panics with it") = Some(Arc::new(hook));
    }

    pub(crate) fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }

    async fn wake(&self, cx: &mut Context) -> Result<(), Failed> {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        let hook = self.on_wake.lock().expect("no test panics with it").clone();
        match hook {
            Some(hook) => hook(cx).await,
            None => Ok(()),
        }
    }
}

pub(crate) struct Account {
    script: Script,
    life: u64,
}

impl StableInterface for Account {
    const NAME: &'static str = "account";
    type Error = Failed;
}

type Act = Box<dyn for<'a> FnOnce(&'a mut Account, &'a mut Context) -> BoxFuture<'a, Result<i64, Failed>> + Send>;

/// A message that tells an account what to do.
pub(crate) struct Do(Act);

pub(crate) fn act(
    handler: impl for<'a> FnOnce(&'a mut Account, &'a mut Context) -> BoxFuture<'a, Result<i64, Failed>> + Send + 'static,
) -> Do {
    Do(Box::new(handler))
}

impl Handle<Do> for Account {
    type Reply = i64;

    async fn handle(&mut self, cx: &mut Context, Do(act): Do) -> Result<i64, Failed> {
        act(self, cx).await
    }
}

impl OnAlarm for Account {
    async fn on_alarm(&mut self, cx: &mut Context, _: &Alarm) -> Result<(), Failed> {
        self.script.wake(cx).await
    }
}

impl OnMessage for Account {
    async fn on_message(&mut self, cx: &mut Context, _: &Message) -> Result<(), Failed> {
        self.script.wake(cx).await
    }
}

/// A host on a database of its own, and a connection beside it.
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) accounts: Interface<Account>,
    pub(crate) script: Script,
    pub(crate) raw: Client,
    pub(crate) url: String,
}

const TABLES: &str = "CREATE TABLE ledger (id serial, account text, note text); \
    CREATE TABLE total (account text PRIMARY KEY, n bigint); \
    CREATE TABLE pair (a integer UNIQUE DEFERRABLE INITIALLY DEFERRED)";

pub(crate) async fn database() -> (String, Client) {
    let url = tokio::task::spawn_blocking(|| SERVER.fresh_database()).await.expect("a database is made");
    let raw = raw(&url).await;
    raw.batch_execute(TABLES).await.expect("the application's tables are made");
    (url, raw)
}

pub(crate) async fn site() -> Site {
    let (url, raw) = database().await;
    // Nothing is waited for in vain: a handler that is woken again is one too many.
    site_by(&url, url.clone(), raw, (PATIENCE, Duration::from_secs(60)), 2).await
}

/// A host that reaches its database by another URL, within the first of these limits. The second is for a handler.
async fn site_by(
    by: &str,
    url: String,
    raw: Client,
    (deadline, handler_timeout): (Duration, Duration),
    connections: u16,
) -> Site {
    let store =
        open(|| PostgresStore::builder(by).expect("the URL can be read").timeout(deadline).transactions(connections))
            .await;
    let script = Script::default();
    let fleet = Fleet::new(["host-a"], 16).expect("a good fleet");
    let mut host = Host::builder("host-a", fleet).store(store).commit_timeout(deadline * 4);
    let accounts = accounts(&mut host, &script, handler_timeout);
    let host = host.start().await.expect("the host starts");
    Site { host, accounts, script, raw, url }
}

pub(crate) fn accounts(
    host: &mut stable_interfaces::HostBuilder,
    script: &Script,
    handler_timeout: Duration,
) -> Interface<Account> {
    let script = script.clone();
    let build =
        move |_: &str| Account { script: script.clone(), life: script.lives.fetch_add(1, Ordering::SeqCst) + 1 };
    let accounts = host.interface(build).with_alarms().with_inbox().handler_timeout(handler_timeout);
    accounts.retry(RetryPolicy::default().first(Duration::from_millis(10))).register().expect("accounts register")
}

impl Site {
    pub(crate) async fn ask(
        &self,
        handler: impl for<'a> FnOnce(&'a mut Account, &'a mut Context) -> BoxFuture<'a, Result<i64, Failed>>
        + Send
        + 'static,
    ) -> Result<i64, RequestError<Failed>> {
        self.accounts.request("a-1", act(handler)).await
    }

    /// The application's rows, and what is stored of the account: `ledger/total/n/alarms/inbox`.
    pub(crate) async fn state(&self) -> String {
        state(&self.raw).await
    }

    pub(crate) async fn eventually(&self, wanted: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let state = self.state().await;
            if state == wanted {
                return;
            }
            assert!(Instant::now() < end, "it stays {state:?} and never becomes {wanted:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn state(raw: &Client) -> String {
    raw.query_one_scalar::<String, _>(
        "SELECT concat_ws('/', (SELECT count(*) FROM ledger), coalesce((SELECT sum(n) FROM total), 0), \
         coalesce((SELECT string_agg(key || '=' || convert_from(value, 'UTF8'), ',' ORDER BY key) \
             FROM stable_interfaces.storage), '-'), \
         (SELECT count(*) FROM stable_interfaces.alarm), (SELECT count(*) FROM stable_interfaces.inbox))",
        &[],
    )
    .await
    .expect("the state can be read")
}

/// Enters something, twice, so that there is a moment in between; says how many entries there are.
async fn enter(client: &Client) -> Result<i64, Failed> {
    client.execute("INSERT INTO ledger (account, note) VALUES ($1, 'entered')", &[&"a-1"]).await?;
    client
        .execute("INSERT INTO total VALUES ('a-1', 1) ON CONFLICT (account) DO UPDATE SET n = total.n + 1", &[])
        .await?;
    Ok(client.query_one_scalar("SELECT count(*) FROM ledger", &[]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_storage_and_alarms_land_together_and_then_the_reply_is_released() {
    let site = site().await;
    let entries = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                cx.transaction(async |tx| {
                    let entries = enter(tx).await?;
                    // Read in the transaction, stored with it.
                    tx.context().put("entries", &entries)?;
                    let at = tx.context().now() + Duration::from_secs(3600);
                    tx.context().set_alarm("later", at, &())?;
                    Ok::<_, Failed>(entries)
                })
                .await
            })
        })
        .await
        .expect("it is committed");
    assert_eq!(entries, 1);
    assert_eq!(site.state().await, "1/1/before=1,entries=1/1/0");
    // Memory goes on where the store is.
    let found = site.ask(|_, cx| Box::pin(async move { Ok(cx.get("entries").await?.unwrap_or(0)) })).await;
    assert_eq!(found.expect("a read"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_happens_if_the_work_fails_and_the_handler_may_go_on() {
    let site = site().await;
    let answer = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                let failed = cx
                    .transaction(async |tx| {
                        enter(tx).await?;
                        tx.context().put("inside", &1)?;
                        Err::<(), _>(Failed::Told("no"))
                    })
                    .await;
                assert!(matches!(failed, Err(Failed::Told("no"))), "{failed:?}");
                let failed = cx.transaction(async |tx| Ok(tx.execute("SELECT 1 / 0", &[]).await?)).await;
                assert!(matches!(failed, Err(Failed::Sql(_))), "{failed:?}");
                cx.put("after", &1)?;
                Ok(7)
            })
        })
        .await;
    assert_eq!(answer.expect("the handler went on"), 7);
    assert_eq!(site.state().await, "0/0/after=1,before=1/0/0");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_happens_if_the_handler_fails_with_it_panics_or_runs_out_of_time() {
    let (url, raw) = database().await;
    let site = site_by(&url, url.clone(), raw, (DEADLINE, Duration::from_secs(5)), 2).await;
    let failed = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                cx.transaction(async |tx| {
                    enter(tx).await?;
                    Ok(i64::from(tx.query_one_scalar::<i32, _>("SELECT n FROM nowhere", &[]).await?))
                })
                .await
            })
        })
        .await;
    assert!(matches!(failed, Err(RequestError::Handler(Failed::Sql(_), _))), "{failed:?}");
    let panicked = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                cx.transaction(async |tx| {
                    enter(tx).await?;
                    if tx.client_is_open() {
                        panic!("in the middle");
                    }
                    Ok::<_, Failed>(0)
                })
                .await
            })
        })
        .await;
    assert!(matches!(panicked, Err(RequestError::Panicked(_))), "{panicked:?}");
    let late = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                cx.transaction(async |tx| {
                    enter(tx).await?;
                    // The server is at it when the time is over.
                    tx.execute("SELECT pg_sleep(600)", &[]).await?;
                    Ok::<_, Failed>(0)
                })
                .await
            })
        })
        .await;
    assert!(matches!(late, Err(RequestError::TimedOut { .. })), "{late:?}");
    // Its statement is cancelled and its locks are gone: the same rows can be entered.
    until(&site.raw, "SELECT NOT EXISTS(SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%')").await;
    let entered = site.ask(|_, cx| Box::pin(async move { cx.transaction(async |tx| enter(tx).await).await })).await;
    assert_eq!(entered.expect("the connections are as good as new"), 1);
    assert_eq!(site.state().await, "1/1/-/0/0");
}

/// So that what follows a panic is not dead code.
trait ClientIsOpen {
    fn client_is_open(&self) -> bool;
}

impl ClientIsOpen for Client {
    fn client_is_open(&self) -> bool {
        !self.is_closed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_server_refuses_at_its_end_leaves_the_handler_where_it_was() {
    let site = site().await;
    let answer = site
        .ask(|_, cx| {
            Box::pin(async move {
                cx.put("before", &1)?;
                // A deferred constraint is looked at by COMMIT.
                let refused = cx
                    .transaction(async |tx| {
                        tx.context().put("inside", &1)?;
                        Ok::<_, Failed>(tx.batch_execute("INSERT INTO pair VALUES (1), (1)").await?)
                    })
                    .await;
                let is_refusal = |error: &Failed| matches!(error, Failed::Context(ContextError::Store(error)) if matches!(**error, StoreError::Rejected(_)));
                assert!(refused.as_ref().is_err_and(is_refusal), "{refused:?}");
                // A failure that the work did not pass on.
                let refused = cx
                    .transaction(async |tx| {
                        tx.context().put("inside", &1)?;
                        enter(tx).await?;
                        let _ = tx.execute("SELECT 1 / 0", &[]).await;
                        Ok::<_, Failed>(())
                    })
                    .await;
                assert!(matches!(refused, Err(Failed::Context(ContextError::Store(_)))), "{refused:?}");
                // Ending it is the library's.
                for own in ["COMMIT", "ROLLBACK", "ROLLBACK; BEGIN"] {
                    let refused = cx
                        .transaction(async |tx| {
                            tx.context().put("inside", &1)?;
                            Ok::<_, Failed>(tx.batch_execute(own).await?)
                        })
                        .await;
                    assert!(refused.as_ref().is_err_and(is_refusal), "{own}: {refused:?}");
                }
                let refused = cx
                    .transaction(async |tx| {
                        tx.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
                        enter(tx).await
                    })
                    .await;
                assert!(refused.is_err(), "{refused:?}");
                cx.put("after", &1)?;
                Ok(7)
            })
        })
        .await;
    assert_eq!(answer.expect("the handler went on"), 7);
    assert_eq!(site.state().await, "0/0/after=1,before=1/0/0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_completes_the_alarm_or_message_that_woke_the_handler() {
    let site = site().await;
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    site.script.on_wake(move |cx| {
        let heard = heard.clone();
        Box::pin(async move {
            cx.put("woken", &1)?;
            cx.transaction(async |tx| enter(tx).await).await?;
            let late = cx.put("too-late", &1);
            heard
                .lock()
                .expect("nobody panics")
                .push(late.is_err_and(|error| matches!(error, ContextError::NotHere(_))));
            // It is done, so there is nothing to try again.
            Err(Failed::Told("after the end"))
        })
    });
    site.accounts.set_alarm("a-1", "due", site_now(), &()).await.expect("the alarm is set");
    site.eventually("1/1/woken=1/0/0").await;
    site.accounts.post("a-1", NewPost::new("body").id("m")).await.expect("it is posted");
    site.eventually("2/2/woken=1/0/0").await;
    // Whatever were to come again would come in order before these.
    for n in 0..3 {
        site.accounts.post("a-1", NewPost::new("body").id(format!("m-{n}"))).await.expect("it is posted");
    }
    site.eventually("5/5/woken=1/0/0").await;
    assert_eq!(site.script.wakes(), 5);
    // What a transaction did is seen before its handler goes on, and a host that closes lets its handlers end.
    site.host.drain(Duration::from_secs(10)).await;
    assert_eq!(*said.lock().expect("nobody panics"), [true; 5]);
}

fn site_now() -> stable_interfaces::Timestamp {
    std::time::SystemTime::now().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_may_be_set_again_in_the_transaction_that_completes_it() {
    let site = site().await;
    site.script.on_wake(|cx| {
        Box::pin(async move {
            cx.transaction(async |tx| {
                let entries = enter(tx).await?;
                if entries < 5 {
                    let now = tx.context().now();
                    tx.context().set_alarm("due", now, &())?;
                }
                Ok::<_, Failed>(())
            })
            .await
        })
    });
    site.accounts.set_alarm("a-1", "due", site_now(), &()).await.expect("the alarm is set");
    site.eventually("5/5/-/0/0").await;
    assert_eq!(site.script.wakes(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_interim_transaction_a_handler_that_fails_runs_again() {
    let site = site().await;
    let rounds = Arc::new(AtomicUsize::new(0));
    site.script.on_wake(move |cx| {
        let rounds = rounds.clone();
        Box::pin(async move {
            cx.interim_transaction(async |tx| enter(tx).await).await?;
            cx.put("goes-on", &1)?;
            match rounds.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Failed::Told("the first time")),
                _ => Ok(cx.transaction(async |tx| enter(tx).await.map(drop)).await?),
            }
        })
    });
    site.accounts.set_alarm("a-1", "due", site_now(), &()).await.expect("the alarm is set");
    site.eventually("3/3/goes-on=1/0/0").await;
    assert_eq!(site.script.wakes(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_the_application_run_with_the_servers_settings_and_leave_none_behind() {
    let site = site().await;
    site.raw
        .batch_execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''7MB''', current_database()); END $$",
        )
        .await
        .expect("the database is configured");
    for _ in 0..5 {
        site.ask(|_, cx| {
            Box::pin(async move {
                cx.transaction(async |tx| {
                    for (name, wanted) in [
                        ("enable_seqscan", "on"),
                        ("enable_bitmapscan", "on"),
                        ("enable_hashjoin", "on"),
                        ("enable_mergejoin", "on"),
                        ("jit", "on"),
                        ("plan_cache_mode", "auto"),
                        ("statement_timeout", "0"),
                        ("work_mem", "7MB"),
                        ("search_path", "\"$user\", public"),
                        ("transaction_isolation", "read committed"),
                    ] {
                        let sql = "SELECT current_setting($1)";
                        let found: String = tx.query_one_scalar(sql, &[&name]).await?;
                        assert_eq!(found, wanted, "{name}");
                    }
                    let locks: i64 = tx
                        .query_one_scalar(
                            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
                            &[],
                        )
                        .await?;
                    assert_eq!(locks, 0);
                    tx.batch_execute(
                        "SET search_path = pg_temp; SET work_mem = '9MB'; SET statement_timeout = 77; \
                         SELECT pg_advisory_lock(1); CREATE TEMP TABLE ledger (x integer)",
                    )
                    .await?;
                    Ok::<_, Failed>(0)
                })
                .await
            })
        })
        .await
        .expect("the settings are the server's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn group_commits_do_not_wait_for_open_transactions_and_further_transactions_do() {
    let site = site().await;
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(tokio::sync::Semaphore::new(0)));
    let open: Vec<_> = (0..2)
        .map(|n| {
            let (accounts, begun, go) = (site.accounts.clone(), begun.clone(), go.clone());
            tokio::spawn(async move {
                let hold = act(move |_, cx| {
                    Box::pin(async move {
                        cx.transaction(async |tx| {
                            tx.execute("INSERT INTO ledger (account) VALUES ('x')", &[]).await?;
                            begun.notify_one();
                            go.acquire().await.expect("it stays open").forget();
                            Ok::<_, Failed>(0)
                        })
                        .await
                    })
                });
                accounts.request(&format!("held-{n}"), hold).await
            })
        })
        .collect();
    begun.notified().await;
    for n in 0..20 {
        let put = act(move |_, cx| Box::pin(async move { Ok(cx.put("k", &n).map(|()| n)?) }));
        site.accounts.request(&format!("other-{n}"), put).await.expect("it is committed meanwhile");
    }
    go.add_permits(1);
    // There are two connections, so this one needs that of one of them.
    let third = site.ask(|_, cx| Box::pin(async move { cx.transaction(async |tx| enter(tx).await).await })).await;
    third.expect("a connection became free");
    go.add_permits(1);
    for held in open {
        held.await.expect("it ends").expect("it is committed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_begins_when_what_the_instance_committed_before_is_durable() {
    let site = site().await;
    for n in 1..=20_i64 {
        // Neither waits for the other's reply.
        let first =
            site.accounts.request("a-1", act(move |_, cx| Box::pin(async move { Ok(cx.put("n", &n).map(|()| n)?) })));
        let second = site.accounts.request(
            "a-1",
            act(move |_, cx| {
                Box::pin(async move {
                    cx.transaction(async |tx| {
                        let sql = "SELECT convert_from(value, 'UTF8') FROM stable_interfaces.storage WHERE key = 'n'";
                        let found: String = tx.query_one_scalar(sql, &[]).await?;
                        tx.context().put("n", &(n + 1))?;
                        Ok::<_, Failed>(found.parse().expect("a number"))
                    })
                    .await
                })
            }),
        );
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.expect("put"), second.expect("seen")), (n, n));
        let after = site.ask(|_, cx| Box::pin(async move { Ok(cx.get("n").await?.unwrap_or(0)) })).await;
        assert_eq!(after.expect("read"), n + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_in_or_without_a_transaction_is_refused_with_a_reason() {
    let site = site().await;
    site.ask(|_, cx| {
        Box::pin(async move {
            cx.transaction(async |tx| {
                tx.context().put("k", &1)?;
                let commit = tx.context().commit().await;
                assert!(matches!(commit, Err(ContextError::NotHere(_))), "{commit:?}");
                let nested = tx.context().transaction(async |_| Ok::<_, ContextError>(())).await;
                assert!(matches!(nested, Err(ContextError::NotHere(_))), "{nested:?}");
                Ok::<_, Failed>(0)
            })
            .await?;
            // Nothing woke this handler that could be completed, so it may go on.
            cx.put("k", &2)?;
            cx.transaction(async |tx| enter(tx).await).await
        })
    })
    .await
    .expect("it is committed");
    assert_eq!(site.state().await, "1/1/k=2/0/0");

    let script = Script::default();
    let mut host = Host::local(MemoryStore::new());
    let elsewhere = accounts(&mut host, &script, DEADLINE);
    let _host = host.start().await.expect("the host starts");
    let refused = act(|_, cx| Box::pin(async move { cx.transaction(async |tx| enter(tx).await).await }));
    let refused = elsewhere.request("a-1", refused).await;
    let Err(RequestError::Handler(Failed::Context(error @ ContextError::NotHere(_)), _)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.to_string(), "not possible here: the host's store is not Postgres");
}

/// Says whether this is what a handler's caller is told when another process has taken the host's name: a refusal, or, if the host
/// learns of it before the handler is done and cuts it off, that nobody waited for its outcome.
fn is_replaced(answer: &Result<i64, RequestError<Failed>>) -> bool {
    match answer {
        Err(RequestError::Fenced | RequestError::Replaced) => true,
        Err(RequestError::Unknown(cause)) => matches!(**cause, RequestError::Fenced | RequestError::Replaced),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_does_not_wait_for_an_open_transaction_and_nothing_of_that_lands() {
    let site = site().await;
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (its_begun, its_go, accounts) = (begun.clone(), go.clone(), site.accounts.clone());
    let open = tokio::spawn(async move {
        let held = act(move |_, cx| {
            Box::pin(async move {
                cx.put("k", &1)?;
                cx.transaction(async |tx| {
                    let entries = enter(tx).await?;
                    its_begun.notify_one();
                    its_go.notified().await;
                    Ok::<_, Failed>(entries)
                })
                .await
            })
        });
        accounts.request("a-1", held).await
    });
    begun.notified().await;
    let other = store_on(&site.url).await;
    let mut claim = claim(2, "host-a", &[], ClaimKind::Start);
    claim.shards = site.host.shards();
    claim.shard_count = 16;
    let claimed = other.claim(&claim).await.expect("the claim is answered");
    assert_eq!(claimed.granted.len(), 16);
    go.notify_one();
    let answer = open.await.expect("it ends");
    assert!(is_replaced(&answer), "{answer:?}");
    assert_eq!(site.state().await, "0/0/-/0/0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_waits_while_a_claim_commits_does_not_land() {
    let site = site().await;
    site.ask(|_, cx| Box::pin(async move { cx.transaction(async |tx| enter(tx).await).await })).await.expect("first");
    let incarnation: i64 = site
        .raw
        .query_one_scalar("SELECT incarnation FROM stable_interfaces.host", &[])
        .await
        .expect("there is one host");
    let claim = format!(
        "BEGIN; SELECT stable_interfaces.claim(2, 'host-a', array(SELECT generate_series(0, 15)), 16, 1, 3600000, true, false); \
         SELECT {incarnation}"
    );
    site.raw.batch_execute(&claim).await.expect("the claim runs");
    let accounts = site.accounts.clone();
    let late = tokio::spawn(async move {
        let enter = act(|_, cx| Box::pin(async move { cx.transaction(async |tx| enter(tx).await).await }));
        accounts.request("a-1", enter).await
    });
    until_blocked(&site.raw).await;
    site.raw.batch_execute("COMMIT").await.expect("the claim commits");
    let answer = late.await.expect("it ends");
    assert!(is_replaced(&answer), "{answer:?}");
    assert_eq!(site.state().await, "1/1/-/0/0");
}

fn is_commit(statement: &proxy::Statement) -> bool {
    statement.text.ends_with("COMMIT\0")
}

/// A site behind a proxy that does this to the first COMMIT, and the number of all of them.
async fn site_losing(verdict: Verdict) -> (Site, Arc<AtomicUsize>) {
    let (url, raw) = database().await;
    let commits = Arc::new(AtomicUsize::new(0));
    let seen = commits.clone();
    let judge = move |statement: &proxy::Statement| {
        let is_first = is_commit(statement) && seen.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { verdict } else { Verdict::Forward }
    };
    let port = proxy::start(SERVER.port(), judge).await;
    let by = url.replace(&format!(":{}", SERVER.port()), &format!(":{port}"));
    assert_ne!(by, url);
    (site_by(&by, url, raw, (DEADLINE, Duration::from_secs(60)), 2).await, commits)
}

async fn enter_with_effects(site: &Site) -> Result<i64, RequestError<Failed>> {
    site.ask(|_, cx| {
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.transaction(async |tx| enter(tx).await).await
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_out_to_have_happened() {
    let (site, _) = site_losing(Verdict::LoseAnswer).await;
    assert_eq!(enter_with_effects(&site).await.expect("it was committed"), 1);
    assert_eq!(site.state().await, "1/1/k=1/0/0");
    assert_eq!(enter_with_effects(&site).await.expect("the next one, too"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_lost_is_found_out_not_to_have_happened() {
    for verdict in [Verdict::Lose, Verdict::Swallow] {
        let (site, _) = site_losing(verdict).await;
        let answer = enter_with_effects(&site).await;
        let Err(RequestError::Handler(Failed::Context(ContextError::Store(error)), _)) = &answer else {
            panic!("{answer:?}")
        };
        assert!(matches!(**error, StoreError::NotApplied(_)), "{error:?}");
        assert_eq!(site.state().await, "0/0/-/0/0");
        assert_eq!(enter_with_effects(&site).await.expect("the next one is committed"), 1);
        assert_eq!(site.state().await, "1/1/k=1/0/0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_whose_transactions_outcome_was_lost_is_handled_once_in_effect() {
    for verdict in [Verdict::LoseAnswer, Verdict::Lose, Verdict::Swallow] {
        let (site, commits) = site_losing(verdict).await;
        site.script.on_wake(|cx| {
            Box::pin(async move {
                let n: i64 = cx.get("n").await?.unwrap_or(0);
                cx.put("n", &(n + 1))?;
                cx.transaction(async |tx| enter(tx).await.map(drop)).await
            })
        });
        let began = Instant::now();
        site.accounts.set_alarm("a-1", "due", site_now(), &()).await.expect("the alarm is set");
        site.eventually("1/1/n=1/0/0").await;
        match verdict {
            Verdict::LoseAnswer => {
                assert_eq!(commits.load(Ordering::SeqCst), 1);
                // Where the machine is slow, it may have been woken before in vain.
                assert!(site.script.wakes() == 1 || began.elapsed() > DEADLINE, "{}", site.script.wakes());
            }
            // Once more for each time that the machine is slow.
            _ => assert!(site.script.wakes() >= 2),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_missing_replica_is_unknown_to_its_caller_and_settles_later() {
    let server = Arc::new(tokio::task::spawn_blocking(super::Postgres::start).await.expect("the server starts"));
    let url = server.url("postgres");
    let raw = raw(&url).await;
    raw.batch_execute(TABLES).await.expect("the application's tables are made");
    let site = site_by(&url, url.clone(), raw, (DEADLINE, Duration::from_secs(120)), 1).await;
    let life = |me: &mut Account| i64::try_from(me.life).expect("small");
    let first = site.ask(move |me, _| Box::pin(std::future::ready(Ok(life(me))))).await.expect("a life");
    // The first of a connection prepares it.
    site.ask(|_, cx| Box::pin(async move { cx.transaction(async |_| Ok::<_, Failed>(0)).await })).await.expect("empty");
    hold_up_commits(&server).await;
    let answer = enter_with_effects(&site).await;
    assert!(matches!(answer, Err(RequestError::Unknown(_))), "{answer:?}");
    set(&server, "synchronous_standby_names = ''").await;
    // The next life begins when it is known what became of the last.
    let (found, second) = {
        let found = site.ask(|_, cx| Box::pin(async move { Ok(cx.get("k").await?.unwrap_or(0)) })).await;
        (found.expect("it is read"), site.ask(move |me, _| Box::pin(std::future::ready(Ok(life(me))))).await)
    };
    assert_eq!((found, second.expect("a life")), (1, first + 1));
    assert_eq!(site.state().await, "1/1/k=1/0/0");
}

/// The variable that names the child's database; set for it alone.
const CHILD: &str = "TRANSACTION_CHILD_URL";

/// The work of the child's account, which the next owner does again if it was not done.
fn on_due(script: &Script) {
    script.on_wake(|cx| {
        Box::pin(async move {
            let n: i64 = cx.get("n").await?.unwrap_or(0);
            cx.put("n", &(n + 1))?;
            cx.transaction(async |tx| {
                enter(tx).await?;
                let at = tx.context().now() + Duration::from_secs(86_400);
                tx.context().set_alarm("next", at, &())?;
                Ok::<_, Failed>(())
            })
            .await
        })
    });
}

/// Not a test but the process that dies: without its variable it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn child_with_a_transaction() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let raw = raw(&url).await;
    let store = open(|| PostgresStore::builder(&url).expect("the URL can be read")).await;
    let script = Script::default();
    on_due(&script);
    let fleet = Fleet::new(["host-a"], 16).expect("a good fleet");
    let mut host = Host::builder("host-a", fleet).store(store);
    let accounts = accounts(&mut host, &script, Duration::from_secs(60));
    let _host = host.start().await.expect("the host starts");
    accounts.set_alarm("a-1", "due", site_now(), &()).await.expect("the alarm is set");
    until(&raw, "SELECT count(*) = 1 FROM ledger").await;
    println!("said done");
    std::future::pending::<()>().await;
}

/// Runs the child behind a proxy and kills it at a statement of its transaction: before the server gets that, or when it has
/// answered. Returns the statements that were sent, or `None` if there were fewer.
async fn kill_at(number: usize, is_answered: bool) -> Option<Vec<proxy::Statement>> {
    let (url, raw) = database().await;
    let (died, seen) = (Arc::new(Notify::new()), Arc::new(Mutex::new(BTreeMap::new())));
    let child = Arc::new(Mutex::new(None::<std::process::Child>));
    let (its_child, its_died, its_seen) = (child.clone(), died.clone(), seen.clone());
    let is_met = Arc::new(AtomicBool::new(false));
    let meets = is_met.clone();
    let port = proxy::start(SERVER.port(), move |statement| {
        its_seen.lock().expect("nobody panics").insert(statement.number, statement.clone());
        if statement.number < number {
            return Verdict::Forward;
        }
        meets.store(true, Ordering::SeqCst);
        if is_answered {
            let (child, died) = (its_child.clone(), its_died.clone());
            // When the server has answered what is forwarded now; the child never sees that.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                kill(&child);
                died.notify_one();
            });
            return Verdict::LoseAnswer;
        }
        kill(&its_child);
        its_died.notify_one();
        Verdict::Lose
    })
    .await;
    let by = url.replace(&format!(":{}", SERVER.port()), &format!(":{port}"));
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["transactions::child_with_a_transaction", "--exact", "--nocapture"]).env(CHILD, by);
    command.stdout(std::process::Stdio::null());
    *child.lock().expect("nobody panics") = Some(command.spawn().expect("the child starts"));
    let is_dead = tokio::select! {
        () = died.notified() => true,
        () = until_entered(&raw, &child) => {
            // It may be done, or be killed just after.
            let patience = if is_met.load(Ordering::SeqCst) { PATIENCE } else { Duration::from_secs(1) };
            tokio::time::timeout(patience, died.notified()).await.is_ok()
        }
    };
    kill(&child);
    let seen: Vec<_> = seen.lock().expect("nobody panics").values().cloned().collect();
    if !is_dead {
        assert_eq!(state(&raw).await, "1/1/n=1/1/0", "without a kill");
        return None;
    }
    // The next owner, straight to the server.
    let store = open(|| PostgresStore::builder(&url).expect("the URL can be read")).await;
    let script = Script::default();
    on_due(&script);
    let fleet = Fleet::new(["host-a"], 16).expect("a good fleet");
    let mut host = Host::builder("host-a", fleet).store(store);
    let accounts = accounts(&mut host, &script, Duration::from_secs(60));
    let host = host.start().await.expect("the host starts");
    let site = Site { host, accounts, script, raw, url };
    let text = &seen[seen.len() - 1].text;
    let begun = site.state().await;
    assert!(begun == "0/0/-/1/0" || begun == "1/1/n=1/1/0", "half of it, at {number} {text:?}: {begun}");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        // An alarm `due` beside the one for tomorrow would be a second effect to come.
        let left: i64 = site
            .raw
            .query_one_scalar("SELECT count(*) FROM stable_interfaces.alarm WHERE id = 'due'", &[])
            .await
            .expect("the alarms can be counted");
        if left == 0 {
            break;
        }
        assert!(Instant::now() < end, "the alarm stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(site.state().await, "1/1/n=1/1/0", "once, whatever happened at {number} {text:?}");
    site.host.drain(Duration::from_secs(5)).await;
    Some(seen)
}

/// Waits for the child's row.
async fn until_entered(raw: &Client, child: &Mutex<Option<std::process::Child>>) {
    let end = Instant::now() + Duration::from_secs(120);
    while !raw.query_one_scalar::<bool, _>("SELECT EXISTS(SELECT FROM ledger)", &[]).await.expect("an answer") {
        let ended =
            child.lock().expect("nobody panics").as_mut().and_then(|child| child.try_wait().expect("it is ours"));
        assert!(ended.is_none() && Instant::now() < end, "the child has not entered anything: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill(child: &Mutex<Option<std::process::Child>>) {
    if let Some(mut child) = child.lock().expect("nobody panics").take() {
        child.kill().expect("it is ours to kill");
        child.wait().expect("it is ours to wait for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_statement_of_a_transaction_leaves_all_of_it_or_nothing() {
    // Most are questions about types, which a connection's first transaction asks.
    let step = if std::env::var_os("QUICK").is_some() { 4 } else { 1 };
    for is_answered in [false, true] {
        let mut was_at_commit = false;
        let mut number = 1;
        while let Some(seen) = kill_at(number, is_answered).await {
            was_at_commit |= seen.last().is_some_and(is_commit);
            number += step;
            assert!(number < 200, "a transaction has an end");
        }
        assert!(number > 8, "there were statements to be killed at: {number}");
        assert!(was_at_commit || step > 1, "every statement was tried");
    }
}
