//! Calls and signals for flows: what is taken, what is refused at the door and by which words, and what is left unread.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use callback_flows::{
    BlockedKind, Call, CallbackError, CallbackPolicy, Delivered, Flow, FlowResult, Flows, FlowsBuilder, FlowsError,
    Outcome, Started, State, Unverified, UrlKeys, Verify,
};
use parking_lot::Mutex;
use stable_interfaces::store::{Op, ReadRows};
use stable_interfaces::testing::Method;
use stable_interfaces::{Fleet, FleetClient, Host, HostBuilder, KeyRange};
use system_tests::{World, in_time, on_each_store};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

/// The URLs that a flow of a test has handed out.
type Urls = Arc<Mutex<Vec<String>>>;

fn builder() -> FlowsBuilder {
    Flows::builder().callbacks("https://broker.example/callbacks", UrlKeys::new("k1", [7; 32]).unwrap())
}

/// A flow of one test, which takes no input.
fn one<F, Fut>(code: F) -> FlowsBuilder
where
    F: Fn(Flow) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = FlowResult<String>> + Send + 'static,
{
    builder().flow("one", 1, move |flow, ()| code(flow))
}

async fn start(flows: FlowsBuilder, mut host: HostBuilder) -> (Host, Flows) {
    let flows = flows.register(&mut host).unwrap();
    (host.start().await.unwrap(), flows)
}

async fn result(flows: &Flows, id: &str) -> String {
    match in_time(flows.ended("one", id)).await.unwrap() {
        Outcome::Done(value) => serde_json::from_str(value.get()).unwrap(),
        other => panic!("{other:?}, {:?}", flows.get("one", id).await),
    }
}

async fn unread(flows: &Flows, id: &str) -> u64 {
    flows.get("one", id).await.unwrap().unwrap().unread
}

fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

fn owned_by(host: &str, salt: u32) -> String {
    let mut ids = (0..).map(|n| format!("{salt}-{n}"));
    ids.find(|id| fleet().locate(&format!("one/{id}")).unwrap().host == host).unwrap()
}

on_each_store! {
    async fn a_signal_is_kept_before_it_is_waited_for_and_a_lost_race_does_not_eat_it(world: World) {
        let code = || one(|flow| async move {
            let mut open = flow.callback::<()>("never");
            let mut pause = flow.signal::<u32>("pause");
            let mut total = 0;
            for _ in 0..3 {
                tokio::select! {
                    n = pause.next() => total += n?,
                    () = flow.sleep(SECOND) => {}
                    _ = open.next() => {}
                }
            }
            drop(pause);
            flow.sleep(10 * SECOND).await;
            // What nobody has taken is for whoever asks next.
            let mut again = flow.signal::<u32>("pause");
            let branch = flow.branch("inner").signal::<String>("pause").next().await?;
            Ok(format!("{total} then {} in {branch}", again.next().await?))
        });
        let (host, flows) = start(code(), world.local()).await;
        assert!(matches!(flows.signal("one", "a", "pause", &1).await, Err(FlowsError::NotFound)));
        flows.start("one", "a", &()).await.unwrap();
        let call = |body: &'static str, id: &str| Call::new(body).id(id);
        assert_eq!(flows.signal_call("one", "a", "pause", call("1", "x")).await.unwrap(), Delivered::Taken);
        world.pass(2 * SECOND).await;
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(flows.signal_call("one", "a", "pause", call("1", "x")).await.unwrap(), Delivered::Already);
        world.pass(SECOND).await;
        flows.signal("one", "a", "pause", &20).await.unwrap();
        flows.signal("one", "a", "inner/pause", "a branch").await.unwrap();
        assert_eq!(unread(&flows, "a").await, 2);
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(result(&flows, "a").await, "1 then 20 in a branch");
        assert!(matches!(flows.signal("one", "a", "pause", &1).await, Err(FlowsError::Gone)));
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn messages_for_a_flow_that_was_never_started_create_nothing(world: World) {
        let code = || one(async |flow| Ok(flow.signal::<String>("go").next().await?));
        let member = |name: &str| start(code(), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (host, at_one)) = (member("zero").await, member("one").await);
        let id = owned_by("one", 1);
        assert_eq!(at_zero.signal("one", &id, "go", "x").await.unwrap(), Delivered::Posted);
        assert!(matches!(at_one.signal("one", &id, "go", "x").await, Err(FlowsError::NotFound)));
        assert!(matches!(at_one.cancel("one", &id).await, Err(FlowsError::NotFound)));
        world.pass(10 * SECOND).await;
        assert_eq!(at_one.get("one", &id).await.unwrap(), None);
        assert!(at_one.list(None, 10).await.unwrap().is_empty());
        assert_eq!(world.dump().inbox().count(), 0, "it was dropped");
        assert_eq!(at_one.start("one", &id, &()).await.unwrap(), Started::New);
        assert_eq!(unread(&at_one, &id).await, 0);
        at_zero.signal("one", &id, "go", "now").await.unwrap();
        assert_eq!(result(&at_zero, &id).await, "now");
        // One that is known to be over is not even stored for.
        assert!(matches!(at_zero.signal("one", &id, "go", "x").await, Err(FlowsError::Gone)));
        assert!(matches!(at_zero.cancel("one", &id).await, Err(FlowsError::Gone)));
        assert!(matches!(at_zero.resume("one", &id).await, Err(FlowsError::Gone)));
        host.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

/// Takes two calls of `accept`, and shows all of them.
async fn shower(urls: Urls, flow: Flow) -> FlowResult<String> {
    let mut accept = flow.callback::<u32>("accept");
    urls.lock().push(accept.url());
    let mut shown = Vec::new();
    for _ in 0..2 {
        let received = accept.next_raw().await;
        let headers: Vec<_> = received.headers().map(|(name, value)| format!("{name}={value}")).collect();
        shown.push(format!("{} {} {}", received.id(), String::from_utf8_lossy(received.body()), headers.join(" ")));
    }
    Ok(shown.join("; "))
}

fn shown(urls: &Urls, policy: CallbackPolicy) -> FlowsBuilder {
    let urls = urls.clone();
    one(move |flow| shower(urls.clone(), flow)).callback_policy("one", "accept", policy)
}

on_each_store! {
    async fn a_policy_holds_on_every_host_before_the_code_runs(world: World) {
        let urls = Urls::default();
        let strict = || {
            let verify = Verify::custom(|call, _| match call.header_value("X-Key") {
                Some("right") => Ok(call.header_value("x-id").map(str::to_owned)),
                _ => Err(Unverified::Refused("the key is wrong".into())),
            });
            CallbackPolicy::new().verify(verify).body_is::<u32>().keep_header("X-Trace").or_put().reply(200, "thanks")
        };
        let member = |name: &str| start(shown(&urls, strict()), world.member(name, &fleet()).lease(LEASE));
        let ((zero, at_zero), (host, at_one)) = (member("zero").await, member("one").await);
        let id = owned_by("one", 2);
        at_one.start("one", &id, &()).await.unwrap();
        let url = urls.lock()[0].clone();
        let call = |body: &'static str, key: &str, id: &str| {
            Call::new(body).header("x-key", key).header("x-id", id).header("x-trace", "t").header("cookie", "secret")
        };
        for flows in [&at_zero, &at_one] {
            let refused = flows.deliver(&url, call("1", "wrong", "a")).await.unwrap_err();
            assert!(matches!(&refused, FlowsError::Unverified(why) if why.to_string() == "the key is wrong"), "{refused:?}");
            let refused = flows.deliver(&url, call("one", "right", "a")).await.unwrap_err();
            assert_eq!(refused.to_string(), "the body is not what `callback:accept#0` takes");
            assert!(!refused.is_retryable());
            let policy = flows.policy(&url).unwrap();
            assert_eq!((policy.reply_status(), &**policy.reply_body()), (200, &b"thanks"[..]));
            assert!(flows.policy("k1.1.abc.def").is_none());
            assert!(policy.takes_method("POST") && policy.takes_method("PUT") && !policy.takes_method("GET"));
        }
        assert_eq!(unread(&at_one, &id).await, 0);
        assert_eq!(at_zero.deliver(&url, call("1", "right", "a")).await.unwrap(), Delivered::Posted);
        world.pass(SECOND).await;
        assert_eq!(at_one.deliver(&url, call("1", "right", "a")).await.unwrap(), Delivered::Already);
        assert_eq!(at_one.deliver(&url, call("2", "right", "b")).await.unwrap(), Delivered::Taken);
        assert_eq!(result(&at_zero, &id).await, "a 1 x-trace=t; b 2 x-trace=t");
        host.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_takes_the_id_of_a_call_from_a_header_or_from_its_body() {
    let by_header = CallbackPolicy::new().id_from_header("X-Event").keep_header("x-event");
    for (policy, expected) in [(by_header, "e-1 7 X-EVENT=e-1; "), (CallbackPolicy::new().id_from_body(), "7902699b")] {
        let world = World::in_memory();
        let urls = Urls::default();
        let (host, flows) = start(shown(&urls, policy), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let url = urls.lock()[0].clone();
        let first = Call::new("7").header("X-EVENT", "e-1");
        assert_eq!(flows.deliver(&url, first.clone()).await.unwrap(), Delivered::Taken);
        assert_eq!(flows.deliver(&url, first).await.unwrap(), Delivered::Already);
        assert_eq!(flows.deliver(&url, Call::new("8")).await.unwrap(), Delivered::Taken, "without one it counts");
        let shown = result(&flows, "a").await;
        assert!(shown.starts_with(expected), "{shown}");
        host.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_for_a_callback_in_whatever_branch_and_for_no_other() {
    let world = World::in_memory();
    let urls = Urls::default();
    let told = urls.clone();
    let code = one(move |flow| {
        let urls = told.clone();
        async move {
            let branch = flow.branch("a/b#0").branch(&"long".repeat(100));
            let (mut strict, mut other) = (branch.callback::<u32>("strict"), flow.callback::<u32>("strict one"));
            urls.lock().extend([strict.url(), other.url()]);
            let (a, b) = tokio::join!(strict.next_raw(), other.next_raw());
            Ok(format!("{} {}", a.body().len(), b.body().len()))
        }
    });
    let never = CallbackPolicy::new().verify(Verify::custom(|_, _| Err(Unverified::Refused("never".into()))));
    let (host, flows) = start(code.callback_policy("one", "strict", never), world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    let urls = urls.lock().clone();
    assert!(matches!(flows.deliver(&urls[0], Call::new("1")).await, Err(FlowsError::Unverified(_))));
    assert_eq!(flows.deliver(&urls[1], Call::new("1")).await.unwrap(), Delivered::Taken);
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_could_not_hold_is_refused_by_name() {
    let world = World::in_memory();
    let refused = |flow: &str, callbacks: &[&str]| {
        let policy = |code: FlowsBuilder, name: &&str| code.callback_policy(flow, name, CallbackPolicy::new());
        let code = callbacks.iter().fold(one(async |_| Ok(String::new())), policy);
        code.register(&mut world.local()).unwrap_err().to_string()
    };
    assert_eq!(refused("two", &["x"]), "the callback \"x\" has a policy, and its flow \"two\" is not registered");
    assert_eq!(refused("one", &["x", "x"]), "the callback \"x\" of the flow \"one\" has two policies");
    assert_eq!(refused("one", &[""]), "\"\" cannot be the name of a callback with a policy");
    assert!(refused("one", &[&"x".repeat(65)]).ends_with("cannot be the name of a callback with a policy"));
}

on_each_store! {
    async fn a_callback_that_the_code_has_let_go_of_is_gone_and_one_that_left_memory_is_not(world: World) {
        let urls = Urls::default();
        let code = || {
            let urls = urls.clone();
            one(move |flow| {
                let urls = urls.clone();
                async move {
                    let first = flow.callback::<u32>("first");
                    let mut second = flow.callback::<u32>("second");
                    *urls.lock() = vec![first.url(), second.url()];
                    second.next().await?;
                    drop(first);
                    Ok(second.next().await?.to_string())
                }
            })
        };
        let (host, flows) = start(code(), world.local()).await;
        flows.start("one", "a", &()).await.unwrap();
        let at = urls.lock().clone();
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert_eq!(flows.deliver(&at[0], Call::new("1")).await.unwrap(), Delivered::Taken, "it is held");
        flows.deliver(&at[1], Call::new("2")).await.unwrap();
        assert!(matches!(flows.deliver(&at[0], Call::new("3")).await, Err(FlowsError::Gone)));
        host.crash();
        let (host, flows) = start(code(), world.local()).await;
        assert!(matches!(flows.deliver(&at[0], Call::new("3")).await, Err(FlowsError::Gone)));
        flows.deliver(&at[1], Call::new("4")).await.unwrap();
        assert_eq!(result(&flows, "a").await, "4");
        assert!(matches!(flows.deliver(&at[1], Call::new("5")).await, Err(FlowsError::Gone)));
        host.drain(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_type_is_the_codes_to_judge_and_it_sees_all_of_it() {
    use futures_util::StreamExt as _;
    let world = World::in_memory();
    let urls = Urls::default();
    let told = urls.clone();
    let code = one(move |flow| {
        let urls = told.clone();
        async move {
            let mut accept = flow.callback::<u32>("accept");
            urls.lock().push(accept.url());
            let Err(CallbackError::Decode { received, .. }) = accept.next().await else { panic!("it is a number") };
            let mut raw = std::pin::pin!(accept.raw());
            let second = raw.next().await.ok_or(std::io::Error::other("no stream ends"))?;
            Ok(format!("{:?} {:?}", received.body(), second.headers().next()))
        }
    });
    let (host, flows) = start(code, world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    let url = urls.lock()[0].clone();
    flows.deliver(&url, Call::new(&b"\xff no"[..])).await.unwrap();
    flows.deliver(&url, Call::new("7").header("content-type", "application/json")).await.unwrap();
    assert_eq!(result(&flows, "a").await, "b\"\\xff no\" Some((\"content-type\", \"application/json\"))");
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_messages_may_be_unread_and_two_thousand_callbacks_open() {
    let world = World::in_memory();
    let code = one(|flow| async move {
        let mut opened = Vec::new();
        let count = flow.signal::<usize>("open").next().await?;
        for n in 0..count {
            opened.push(flow.callback::<()>(&format!("{n}")));
        }
        Ok(flow.signal::<String>("go").next().await?)
    })
    .max_journal(20_000, 16 << 20);
    let (host, flows) = start(code, world.local()).await;
    for (id, count) in [("a", 0), ("b", 2_000), ("c", 1_999)] {
        flows.start("one", id, &()).await.unwrap();
        flows.signal("one", id, "open", &count).await.unwrap();
    }
    assert_eq!(flows.get("one", "c").await.unwrap().unwrap().state, State::Going);
    let State::Blocked { why } = flows.get("one", "b").await.unwrap().unwrap().state else {
        panic!("it is not blocked")
    };
    assert_eq!(why.kind(), BlockedKind::TooMany);
    assert!(why.message().starts_with("its code holds more than 2000 callbacks"), "{why}");
    for n in 0..10_000 {
        flows.signal("one", "a", "early", &n).await.unwrap();
    }
    let refused = flows.signal("one", "a", "go", "now").await.unwrap_err();
    assert!(matches!(refused, FlowsError::TooManyUnread) && refused.is_retryable(), "{refused}");
    assert_eq!(unread(&flows, "a").await, 10_000);
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_of_nobody_is_refused_without_a_look_at_the_store() {
    let world = World::in_memory();
    let urls = Urls::default();
    let (host, flows) = start(shown(&urls, CallbackPolicy::new()), world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    world.settle().await;
    let good = urls.lock()[0].clone();
    let before = [Method::Read, Method::Load, Method::Commit, Method::Post].map(|method| world.store.calls(method));
    for bad in ["", "k1", "k1.1.abc.def", "k2.1..", &good[..good.len() - 1], &format!("{good}A")] {
        assert!(matches!(flows.deliver(bad, Call::new("1")).await, Err(FlowsError::NotFound)), "{bad}");
    }
    let after = [Method::Read, Method::Load, Method::Commit, Method::Post].map(|method| world.store.calls(method));
    assert_eq!(before, after);
    let large = flows.deliver(&good, Call::new("1".repeat(300_000))).await.unwrap_err();
    assert_eq!(large.to_string(), "the call has 300000 bytes, and may have 262144");
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn no_debug_output_has_a_url_a_body_or_a_headers_value() {
    let world = World::in_memory();
    let shown = Arc::<Mutex<String>>::default();
    let told = shown.clone();
    let code = one(move |flow| {
        let shown = told.clone();
        async move {
            let mut accept = flow.callback::<u32>("accept");
            let debug = format!("{accept:?} {flow:?}");
            assert!(!debug.contains(&accept.url()) && !debug.contains("broker.example"), "{debug}");
            *shown.lock() = accept.url();
            let received = accept.next_raw().await;
            Ok(format!("{received:?}"))
        }
    });
    let (host, flows) = start(code, world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    let url = shown.lock().clone();
    let call = Call::new("\"a body\"").id("x").header("authorization", "a secret");
    assert_eq!(format!("{call:?}"), "Call { id: Some(\"x\"), headers: [\"authorization\"], bytes: 8 }");
    flows.deliver(&url, call).await.unwrap();
    let received = result(&flows, "a").await;
    assert!(received.contains("authorization") && !received.contains("secret"), "{received}");
    assert!(!format!("{flows:?}").contains("broker.example"));
    host.drain(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ready_whatever_flows_are_blocked() {
    let world = World::in_memory();
    let mends = Arc::new(AtomicBool::new(false));
    let lives = Arc::new(AtomicU32::new(0));
    let code = || {
        let (mends, lives) = (mends.clone(), lives.clone());
        one(move |flow| {
            lives.fetch_add(1, Ordering::Relaxed);
            let mends = mends.clone();
            async move {
                flow.sleep(SECOND).await;
                assert!(mends.load(Ordering::SeqCst), "not yet");
                Ok("mended".into())
            }
        })
    };
    let (host, flows) = start(code(), world.local()).await;
    for id in ["a", "b", "c"] {
        flows.start("one", id, &()).await.unwrap();
    }
    world.pass(3_600 * SECOND).await;
    let seen = flows.get("one", "a").await.unwrap().unwrap();
    assert!(matches!(&seen.state, State::Blocked { why } if why.kind() == BlockedKind::Panicked), "{seen:?}");
    assert!(host.is_ready(Duration::ZERO) && host.overdue() == Duration::ZERO, "{:?}", host.overdue());
    host.crash();
    // With code that fits they go on by themselves.
    mends.store(true, Ordering::SeqCst);
    let (host, flows) = start(code(), world.local()).await;
    world.pass(2 * SECOND).await;
    assert!(host.is_ready(Duration::ZERO));
    assert_eq!(result(&flows, "a").await, "mended");
    host.drain(SECOND).await;
}

/// The first row of a flow's journal.
async fn first_page(tool: &FleetClient, id: &str) -> (Arc<str>, Bytes) {
    tool.stored("flow", &format!("one/{id}"), KeyRange::prefix("page/")).await.unwrap().remove(0)
}

on_each_store! {
    async fn a_journal_that_cannot_be_read_blocks_its_flow_and_is_left_as_it_is(world: World) {
        let newer = "its journal has format 200, and this program reads formats up to 3";
        for (id, format, kind, words) in [
            ("a", 200, BlockedKind::UnknownVersion, newer),
            ("b", 0, BlockedKind::Unreadable, "a page of its journal is damaged"),
        ] {
            let code = || one(async |flow| {
                let by = flow.signal::<String>("go").next().await?;
                flow.sleep(60 * SECOND).await;
                Ok(by)
            });
            // A program whose journals have another format.
            let host = world.local_behind(|between| between.on_write(move |write| {
                for op in write.batches.iter_mut().flat_map(|batch| Arc::make_mut(&mut batch.ops)) {
                    if let Op::Put { key, value, .. } = op
                        && key.starts_with("page/")
                    {
                        *value = [&[format], &value[1..]].concat().into();
                    }
                }
            }));
            let (host, flows) = start(code(), host).await;
            flows.start("one", id, &()).await.unwrap();
            host.crash();
            let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
                .clock(Arc::new(world.clock.clone()));
            let page = first_page(&tool, id).await;
            let (host, flows) = start(code(), world.local()).await;
            assert_eq!(flows.start("one", id, &()).await.unwrap(), Started::Already);
            let go = || Call::new("\"ada\"").id("x");
            let refused = flows.signal_call("one", id, "go", go()).await.unwrap_err();
            assert!(refused.is_retryable(), "{refused:?}");
            assert!(flows.cancel("one", id).await.unwrap_err().is_retryable());
            world.pass(120 * SECOND).await;
            let seen = flows.get("one", id).await.unwrap().unwrap();
            let State::Blocked { why } = &seen.state else { panic!("{seen:?}") };
            assert_eq!((why.kind(), why.message()), (kind, words));
            assert!(host.is_ready(Duration::ZERO));
            flows.resume("one", id).await.unwrap();
            assert_eq!(first_page(&tool, id).await, page, "it is untouched");
            host.crash();
            // And one that can read it.
            let (key, value) = page;
            let readable: Bytes = [&[1], &value[1..]].concat().into();
            let host = world.local_behind(|between| between.on_read(move |_, mut found| {
                if let ReadRows::Storage(rows) = &mut found.rows {
                    for row in rows.iter_mut().filter(|row| row.0 == key && row.1 == value) {
                        row.1 = readable.clone();
                    }
                }
                Ok(found)
            }));
            let (host, flows) = start(code(), host).await;
            world.pass(2 * SECOND).await;
            assert_eq!(flows.get("one", id).await.unwrap().unwrap().state, State::Going, "it goes on by itself");
            flows.signal_call("one", id, "go", go()).await.unwrap();
            assert_eq!(result(&flows, id).await, "ada");
            host.drain(SECOND).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn messages_for_a_flow_that_is_blocked_are_counted_as_unread() {
    let world = World::in_memory();
    let mends = Arc::new(AtomicBool::new(false));
    let asked = mends.clone();
    let code = one(move |flow| {
        let mends = asked.clone();
        async move {
            let mut go = flow.signal::<u32>("go");
            let first = go.next().await?;
            assert!(mends.load(Ordering::SeqCst), "not yet");
            Ok(format!("{first} {}", go.next().await?))
        }
    });
    let (host, flows) = start(code, world.local()).await;
    flows.start("one", "a", &()).await.unwrap();
    for n in 1..=3 {
        flows.signal("one", "a", "go", &n).await.unwrap();
    }
    let seen = flows.get("one", "a").await.unwrap().unwrap();
    assert!(matches!(seen.state, State::Blocked { .. }) && seen.unread == 2, "{seen:?}");
    mends.store(true, Ordering::SeqCst);
    flows.resume("one", "a").await.unwrap();
    assert_eq!(result(&flows, "a").await, "1 2");
    host.drain(SECOND).await;
}
