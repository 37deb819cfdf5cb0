//! Rules that hold for every instance: one message at a time, in the order they came, whatever its handlers and callers do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::{Future as _, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use stable_interfaces::testing::{Fault, Method, SimClock};
use stable_interfaces::{
    Context, ContextError, Fleet, Handle, Health, Host, Interface, RequestError, StableInterface, StartError,
    outside_of_handlers,
};
use system_tests::{Failed, Probe, START, World, act, count, get, in_time, life, now_or_never, put, spawn, wait};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_concurrent_first_requests_make_one_instance_and_never_two_handlers_at_once() {
    for round in 0..20 {
        let world = World::in_memory();
        let site = world.start().await;
        let begin = Arc::new(tokio::sync::Barrier::new(1_000));
        let requests: Vec<_> = (0..1_000)
            .map(|i| {
                let (probes, begin) = (site.probes.clone(), begin.clone());
                tokio::spawn(async move {
                    begin.wait().await;
                    let add = act(move |me: &mut Probe, _| {
                        Box::pin(async move {
                            let before = me.memory.len();
                            if i % 3 == 0 {
                                tokio::task::yield_now().await;
                            }
                            me.memory.push(String::new());
                            assert_eq!(me.memory.len(), before + 1, "another handler ran meanwhile");
                            Ok(me.memory.len())
                        })
                    });
                    probes.request("one", add).await
                })
            })
            .collect();
        let mut seen = Vec::new();
        for request in requests {
            seen.push(request.await.unwrap().unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=1_000).collect::<Vec<_>>(), "round {round}");
        assert_eq!(world.script.lives(), 1, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_instance_are_handled_in_the_order_they_came() {
    let world = World::in_memory();
    let site = world.start().await;
    let first = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    let mut others = Vec::new();
    for i in 0..500_usize {
        let step = act(move |me: &mut Probe, _| {
            Box::pin(async move {
                // Some are done in their first poll and some are not, which must not matter.
                if i % 7 == 0 {
                    tokio::task::yield_now().await;
                }
                me.memory.push(i.to_string());
                Ok(())
            })
        });
        let probes = site.probes.clone();
        let mut request = Box::pin(async move { probes.request("a", step).await });
        // Its place in the queue is taken by its first poll.
        assert!(now_or_never(&mut request).await.is_none());
        others.push(tokio::spawn(request));
    }
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    let order = site.probes.request("a", act(|me, _| Box::pin(async { Ok(me.memory.clone()) }))).await.unwrap();
    assert_eq!(order, (0..500).map(|i: u32| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn messages_to_different_instances_are_handled_at_the_same_time() {
    let world = World::in_memory();
    let site = world.start().await;
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let waiting: Vec<_> = ids.into_iter().map(|id| spawn(&site.probes, id, wait(SECOND))).collect();
    for request in waiting {
        request.await.unwrap().unwrap();
    }
    assert_eq!(world.now(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_fails_its_request_and_resets_its_instance_and_nobody_else_notices() {
    let world = World::in_memory();
    let site = world.start().await;
    let (mine, other) = (life(), life());
    assert_eq!(site.probes.request("a", mine).await.unwrap(), 1);
    assert_eq!(site.probes.request("b", other).await.unwrap(), 2);
    for at_once in [true, false] {
        let boom = act(move |_, cx: &mut Context| {
            Box::pin(async move {
                cx.put("k", &1)?;
                if !at_once {
                    tokio::task::yield_now().await;
                }
                std::panic::panic_any("boom")
            })
        });
        let error: RequestError<Failed> = site.probes.request::<system_tests::Do<()>>("a", boom).await.unwrap_err();
        assert!(matches!(&error, RequestError::Panicked(text) if text == "boom"), "{error}");
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None, "what it recorded did not happen");
    }
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 4, "built anew after each panic");
    assert_eq!(site.probes.request("b", life()).await.unwrap(), 2, "not touched");
}

#[tokio::test(start_paused = true)]
async fn a_handler_past_its_deadline_fails_its_request_and_those_behind_it_go_on_with_a_new_instance() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    site.probes.request("a", put("k", 1)).await.unwrap();
    let stuck = spawn(
        &site.probes,
        "a",
        act(|_, cx: &mut Context| {
            Box::pin(async move {
                cx.put("k", &2)?;
                std::future::pending::<()>().await;
                Ok(())
            })
        }),
    );
    world.pass(5 * SECOND).await;
    let behind = spawn(&site.probes, "a", get("k"));
    let error = stuck.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, RequestError::TimedOut { after, waited_for } if *after == 10 * SECOND && waited_for == "probe/a")
    );
    assert!(error.is_retryable() && !error.may_have_happened());
    assert_eq!(world.now(), 10_000);
    assert_eq!(behind.await.unwrap().unwrap(), Some(1), "the recorded effect did not happen");
    assert_eq!(world.script.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_too_long_in_the_queue_fails_at_its_own_deadline_and_does_not_happen() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let busy = spawn(&site.probes, "a", wait(Duration::from_millis(9_800)));
    let to_a = site.probes.clone();
    let hurried = act(move |me: &mut Probe, _| {
        let sleep = me.sleep(5 * SECOND);
        Box::pin(async move {
            sleep.await;
            // Five of this handler's ten seconds are left; its request gets that less a tenth.
            Ok(to_a.request("a", put("k", 2)).await.map_err(|error| error.to_string()))
        })
    });
    let refused = site.probes.request("b", hurried).await.unwrap();
    assert_eq!((refused, world.now()), (Err("timed out after 4.5s waiting for probe/a".to_owned()), 9_500));
    busy.await.unwrap().expect("the handler it waited for is not disturbed");
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
    assert_eq!(world.script.lives(), 2, "nobody was reset");
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_handler_fails_is_rebuilt_from_what_is_stored_whether_anything_was_recorded_or_not() {
    let world = World::in_memory();
    let site = world.start().await;
    let change_and_fail = |records: bool| {
        act::<()>(move |me, cx| {
            Box::pin(async move {
                me.memory.push("ahead of the store".into());
                if records {
                    cx.put("k", &1)?;
                }
                Err(Failed::Told("no"))
            })
        })
    };
    let memory = || act(|me: &mut Probe, _| Box::pin(async move { Ok((me.life, me.memory.len())) }));
    assert_eq!(site.probes.request("a", memory()).await.unwrap(), (1, 0));
    for (records, life) in [(false, 2), (true, 3)] {
        let error = site.probes.request("a", change_and_fail(records)).await.unwrap_err();
        assert!(matches!(error, RequestError::Handler(Failed::Told("no"), _)), "{error}");
        assert_eq!(site.probes.request("a", memory()).await.unwrap(), (life, 0), "memory is what is stored");
    }
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
    // The operation that fails may be the one that was to record what memory shows already.
    let too_large = act::<()>(|me, cx| {
        Box::pin(async move {
            me.memory.push("999".into());
            Ok(cx.put("big", &"x".repeat(300_000))?)
        })
    });
    site.probes.request("a", too_large).await.unwrap_err();
    assert_eq!(site.probes.request("a", memory()).await.unwrap(), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn an_error_that_says_it_changed_nothing_is_an_ordinary_answer_and_keeps_the_instance_with_all_it_has() {
    let world = World::in_memory();
    let site = world.start().await;
    let connection = site.probes.connect("a", "").await.unwrap();
    let hold =
        act(move |_: &mut Probe, cx| Box::pin(async move { Ok(cx.spawn::<Probe, _>(|_| std::future::pending())?) }));
    site.probes.request("a", hold).await.unwrap();
    // What it recorded does not happen, nor is anything let out.
    let refuse = act::<()>(|me: &mut Probe, cx| {
        Box::pin(async move {
            cx.put("k", &1)?;
            for peer in me.peers.all() {
                peer.try_send(cx, 7).unwrap();
                peer.close(cx, "a change of mind");
            }
            Err(Failed::Refused("no"))
        })
    });
    let error = site.probes.request("a", refuse).await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Refused("no"), _)), "{error}");
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 1, "kept");
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
    connection.send(1).await.unwrap();
    assert_eq!(in_time(connection.recv()).await.unwrap(), 1, "open, and nothing was sent that did not happen");

    // To ask that of an error is to run the application's code: a panic in it is one of the handler.
    let panics = act::<()>(|_, _| Box::pin(async { Err(Failed::Refused("and panics over it")) }));
    let error = site.probes.request("a", panics).await.unwrap_err();
    assert!(matches!(&error, RequestError::Panicked(text) if text == "keeps_memory"), "{error}");
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2, "and resets its instance");
    assert!(in_time(connection.recv()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_store_an_instance_keeps_its_memory_when_its_handler_fails() {
    let world = World::in_memory();
    let site = world.launch(world.equip(Host::builder("h", Fleet::new(["h"], 16).unwrap())), |probes| probes).await;
    let change_and_fail = act::<()>(|me, _| {
        Box::pin(async move {
            me.memory.push("all there is".into());
            Err(Failed::Told("no"))
        })
    });
    site.probes.request("a", change_and_fail).await.unwrap_err();
    let memory = act(|me: &mut Probe, _| Box::pin(async move { Ok((me.life, me.memory.len())) }));
    assert_eq!(site.probes.request("a", memory).await.unwrap(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn on_start_ends_before_the_first_message_and_its_effects_are_committed_with_that_messages() {
    let world = World::in_memory();
    world.script.on_start(|me, cx| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            me.memory.push("started".into());
            cx.put("from start", &1)?;
            Ok(())
        })
    });
    let site = world.start().await;
    let commits = world.store.calls(Method::Commit);
    let seen = act(|me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            cx.put("from message", &2)?;
            Ok((me.memory.clone(), cx.get::<i64>("from start").await?))
        })
    });
    let (memory, value) = site.probes.request("a", seen).await.unwrap();
    assert_eq!((memory, value), (vec!["started".to_owned()], Some(1)));
    assert_eq!(world.store.calls(Method::Commit) - commits, 1, "one commit for both");

    // A message that fails takes the effects of on_start with it.
    let fail = act::<()>(|_, _| Box::pin(async { Err(Failed::Told("no")) }));
    site.probes.request("b", fail).await.unwrap_err();
    assert_eq!(world.dump().shards.values().map(|shard| shard.storage.len()).sum::<usize>(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_on_start_fails_every_waiting_request_and_the_instance_is_not_kept() {
    let world = World::in_memory();
    let fails = Arc::new(AtomicU64::new(1));
    let flag = fails.clone();
    world.script.on_start(move |me, _| {
        let sleep = me.sleep(SECOND);
        let fail = flag.load(Ordering::SeqCst) == 1;
        Box::pin(async move {
            sleep.await;
            if fail { Err(Failed::Told("not today")) } else { Ok(()) }
        })
    });
    let site = world.start().await;
    let requests: Vec<_> = (0..5).map(|_| spawn(&site.probes, "a", life())).collect();
    for (i, request) in requests.into_iter().enumerate() {
        let error = request.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("not today"), "{error}");
        match error {
            RequestError::Handler(Failed::Told(_), _) => assert_eq!(i, 0),
            RequestError::Rejected(_) => assert_ne!(i, 0),
            other => panic!("{other}"),
        }
    }
    assert_eq!(world.now(), 1_000, "they failed together, after one attempt");
    assert!(!site.probes.is_running("a"));
    assert_eq!(site.probes.running(), 0);
    fails.store(0, Ordering::SeqCst);
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_an_instance_that_cannot_read_its_state_hear_that_it_was_the_store() {
    let world = World::in_memory();
    world.script.on_start(|_, cx| {
        Box::pin(async move {
            cx.get::<i64>("k").await?;
            Ok(())
        })
    });
    let site = world.start().await;
    world.store.hang_from(world.store.begun());
    let requests: Vec<_> = (0..5).map(|_| spawn(&site.probes, "a", life())).collect();
    for request in requests {
        let error = request.await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Store(_)) && error.is_retryable(), "{error}");
    }
    assert!(!site.probes.is_running("a"));
    world.store.release_hanging();
    site.probes.request("a", life()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_makes_nothing_of_the_stores_failure_answers_with_its_own_error() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.request("a", life()).await.unwrap();
    world.store.hang_from(world.store.begun());
    let own = act::<()>(|_, cx| {
        Box::pin(async move {
            drop(cx.get::<i64>("k").await.unwrap_err());
            Err(Failed::Told("no"))
        })
    });
    let error = site.probes.request("a", own).await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Told("no"), _)), "{error}");
    world.store.release_hanging();

    // What it has made durable before that has happened: to repeat it would do it twice.
    let store = world.store.clone();
    let partly = act::<()>(move |_, cx| {
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.commit().await?;
            store.hang_from(store.begun());
            cx.get::<i64>("other").await?;
            Ok(())
        })
    });
    let error = site.probes.request("a", partly).await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Context(ContextError::Store(_)), _)), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_caller_disappears_finishes_and_its_effects_are_committed() {
    let world = World::in_memory();
    let site = world.start().await;
    let slow_put = act(|me: &mut Probe, cx: &mut Context| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            Ok(cx.put("k", &7)?)
        })
    });
    let mut request = Box::pin(site.probes.request("a", slow_put));
    assert!(now_or_never(&mut request).await.is_none());
    drop(request);
    // And one that is dropped while it waits for its turn.
    let mut request = Box::pin(site.probes.request("a", put("queued", 8)));
    assert!(now_or_never(&mut request).await.is_none());
    drop(request);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(7));
    assert_eq!(site.probes.request("a", get("queued")).await.unwrap(), Some(8));
    assert_eq!(world.script.lives(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_polled_holds_nothing_and_does_nothing() {
    let world = World::in_memory();
    let site = world.start().await;
    let never = site.probes.request("a", put("k", 1));
    assert!(!site.probes.is_running("a"));
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None, "it is not in the way");
    drop(never);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_call_cycle_is_refused_at_once_and_named() {
    let world = World::in_memory();
    let site = world.start().await;
    let (to_b, to_a) = (site.probes.clone(), site.probes.clone());
    let outer = act(move |_: &mut Probe, _| {
        Box::pin(async move {
            // The innermost request is the one that closes the cycle; it is made after a wait, on another task.
            let inner = act(move |me: &mut Probe, _| {
                let sleep = me.sleep(SECOND);
                Box::pin(async move {
                    sleep.await;
                    to_a.request("a", life()).await.map_err(|error| Failed::Nested(error.to_string()))
                })
            });
            let error = to_b.request("b", inner).await.unwrap_err();
            Ok(error.to_string())
        })
    });
    let error = site.probes.request("a", outer).await.unwrap();
    assert_eq!(error, "call cycle: probe/a -> probe/b -> probe/a");
    assert_eq!(world.now(), 1_000, "it did not wait for a deadline");

    let probes = site.probes.clone();
    let to_itself = act(move |_: &mut Probe, _| {
        Box::pin(async move { Ok(probes.request("a", life()).await.unwrap_err().to_string()) })
    });
    assert_eq!(site.probes.request("a", to_itself).await.unwrap(), "call cycle: probe/a -> probe/a");
}

#[tokio::test(start_paused = true)]
async fn what_is_polled_outside_of_handlers_may_ask_the_instance_that_polls_it() {
    let world = World::in_memory();
    let site = world.start().await;
    let probes = site.probes.clone();
    let polls = act(move |_: &mut Probe, cx| {
        Box::pin(async move {
            assert!(cx.is_settled());
            cx.put("k", &1)?;
            let mut work = Box::pin(outside_of_handlers(async move { probes.request("a", get("k")).await }));
            // It waits for its turn behind this handler, which does not wait for it.
            assert!(poll_fn(|task| Poll::Ready(work.as_mut().poll(task))).await.is_pending());
            Ok(work)
        })
    });
    let work = site.probes.request("a", polls).await.unwrap();
    assert_eq!(work.await.unwrap(), Some(1));
    let clocks = act(|_: &mut Probe, cx: &mut Context| {
        let (clock, random) = (cx.clock(), cx.random());
        Box::pin(async move {
            clock.sleep(SECOND).await;
            Ok((clock.now(), random.next_u64() != random.next_u64()))
        })
    });
    assert_eq!(site.probes.request("a", clocks).await.unwrap(), (world.at(1_000), true));
}

#[tokio::test(start_paused = true)]
async fn crossing_calls_end_by_the_inner_deadline_which_names_whom_it_waited_for() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let cross = |to: &'static str| {
        let probes = site.probes.clone();
        act(move |me: &mut Probe, _| {
            let sleep = me.sleep(SECOND);
            Box::pin(async move {
                sleep.await;
                // Both have their own instance by now, so each waits for the other.
                Ok(probes.request(to, life()).await.map_err(|error| (error.to_string(), error.is_retryable())))
            })
        })
    };
    let (a, b) = (spawn(&site.probes, "a", cross("b")), spawn(&site.probes, "b", cross("a")));
    let first = a.await.unwrap().expect("the outer handler had time left to answer");
    let second = b.await.unwrap().expect("the outer handler had time left to answer");
    // 9 s were left, less a tenth.
    assert_eq!(world.now(), 9_100);
    let failed: Vec<_> = [first, second].into_iter().filter_map(Result::err).collect();
    assert!(!failed.is_empty());
    for (text, is_retryable) in failed {
        assert!(
            text == "timed out after 8.1s waiting for probe/b" || text == "timed out after 8.1s waiting for probe/a",
            "{text}"
        );
        assert!(is_retryable);
    }
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 1, "nobody was reset");
}

#[tokio::test(start_paused = true)]
async fn a_call_to_itself_from_a_spawned_task_ends_by_deadline() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.handler_timeout(10 * SECOND)).await;
    let probes = site.probes.clone();
    let through_a_task = act(move |_: &mut Probe, _| {
        Box::pin(async move {
            let inner = tokio::spawn(async move { probes.request("a", life()).await.map_err(|e| e.to_string()) });
            Ok(inner.await.expect("the task does not panic"))
        })
    });
    let error = in_time(site.probes.request("a", through_a_task)).await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut { .. }), "{error}");
    assert!(world.now() < 11_000);
    site.probes.request("a", life()).await.expect("the instance is free again");
}

/// Calls itself down a chain of instances.
struct Link {
    next: Interface<Link>,
    depth: u64,
}

struct Down(u64);

impl StableInterface for Link {
    const NAME: &'static str = "link";
    type Error = ContextError;
}

impl Handle<Down> for Link {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, Down(left): Down) -> Result<u64, ContextError> {
        if left == 0 {
            return Ok(self.depth);
        }
        let next = (self.depth + 1).to_string();
        let below = self.next.request(&next, Down(left - 1));
        // The future of a request to the same interface contains itself, so it has to be boxed.
        let below: system_tests::BoxFuture<'_, _> = Box::pin(below);
        below.await.map_err(|_| ContextError::Unknown)
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_chain_of_calls_does_not_use_up_the_stack() {
    let mut builder = Host::builder("h", Fleet::new(["h"], 16).unwrap()).clock(Arc::new(SimClock::new(START)));
    let own = Arc::new(std::sync::OnceLock::<Interface<Link>>::new());
    let handle = own.clone();
    let links = builder
        .interface(move |id| Link {
            next: handle.get().expect("set before the first request").clone(),
            depth: id.parse().unwrap(),
        })
        .register()
        .unwrap();
    own.set(links.clone()).unwrap();
    let host = builder.start().await.unwrap();
    // Each call has nine tenths of its caller's time, so no chain is much longer than this.
    assert_eq!(links.request("0", Down(150)).await.unwrap(), 150);
    drop(host);
}

#[tokio::test(start_paused = true)]
async fn past_the_queues_limit_requests_are_refused_at_once() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_waiting(3)).await;
    let running = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    let waiting: Vec<_> = (0..3).map(|_| spawn(&site.probes, "a", life())).collect();
    world.settle().await;
    let before = world.now();
    let error = site.probes.request("a", put("k", 1)).await.unwrap_err();
    assert!(matches!(error, RequestError::Overloaded(_)) && error.is_retryable(), "{error}");
    assert_eq!(world.now(), before);
    site.probes.request("b", life()).await.expect("another instance has a queue of its own");
    running.await.unwrap().unwrap();
    for request in waiting {
        request.await.unwrap().unwrap();
    }
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None, "the refused one did not happen");
}

#[tokio::test(start_paused = true)]
async fn past_the_limit_of_instances_the_least_recently_used_makes_room_and_if_none_can_new_ones_are_refused() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.max_instances(3)).await;
    for id in ["a", "b", "c", "a"] {
        site.probes.request(id, life()).await.unwrap();
        world.pass(SECOND).await;
    }
    site.probes.request("d", life()).await.unwrap();
    world.settle().await;
    assert!(site.probes.is_running("a") && site.probes.is_running("d") && !site.probes.is_running("b"));
    assert_eq!((site.probes.running(), world.script.stops()), (3, 1), "b was stopped in good order");

    let busy: Vec<_> = ["a", "c", "d"].into_iter().map(|id| spawn(&site.probes, id, wait(5 * SECOND))).collect();
    world.settle().await;
    let error = site.probes.request("e", life()).await.unwrap_err();
    assert!(matches!(error, RequestError::Overloaded(_)) && error.is_retryable(), "{error}");
    for request in busy {
        request.await.unwrap().unwrap();
    }
    site.probes.request("e", life()).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn stopping_an_instance_waits_for_its_handler_and_for_its_commits_and_the_next_message_builds_it_anew() {
    let world = World::in_memory();
    let site = world.start().await;
    let slow = spawn(
        &site.probes,
        "a",
        act(|me: &mut Probe, cx: &mut Context| {
            let sleep = me.sleep(SECOND);
            Box::pin(async move {
                sleep.await;
                Ok(cx.put("k", &1)?)
            })
        }),
    );
    world.settle().await;
    assert!(site.probes.is_running("a"));
    world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
    site.probes.stop("a").await.unwrap();
    assert_eq!(world.now(), 2_000, "a second of handler and a second of commit");
    assert!(slow.is_finished());
    assert_eq!((world.script.stops(), site.probes.is_running("a"), site.probes.running()), (1, false, 0));
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 2);
    site.probes.stop("never seen").await.expect("there is nothing to do");
    assert_eq!((world.script.lives(), world.script.stops()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_host_without_a_store_serves_requests_and_refuses_whatever_would_be_durable() {
    let world = World::in_memory();
    let fleet = Fleet::new(["h"], 16).unwrap();
    let site = world.launch(world.equip(Host::builder("h", fleet)), |probes| probes).await;
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 1);
    assert_eq!(site.probes.request("a", life()).await.unwrap(), 1);
    let error = site.probes.request("a", put("k", 1)).await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Context(ContextError::NoStore), _)), "{error}");
    let error = site.probes.request("a", get("k")).await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Context(ContextError::NoStore), _)), "{error}");
    let error = site.probes.set_alarm("a", "x", world.at(5), &()).await.unwrap_err();
    assert!(matches!(error, RequestError::NoStore), "{error}");
    assert!(matches!(site.probes.alarms("a").await.unwrap_err(), RequestError::NoStore));
    assert!(matches!(site.probes.dead_letters(None, 1).await.unwrap_err(), RequestError::NoStore));
    let drained = site.host.drain(SECOND).await;
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert_eq!(world.script.stops(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_host_ends_it_at_once_answers_every_caller_and_loses_nothing() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.request("a", put("k", 1)).await.unwrap();
    site.probes.set_alarm("a", "later", world.at(5_000), &()).await.unwrap();
    let running = spawn(&site.probes, "a", wait(20 * SECOND));
    world.settle().await;
    let queued = spawn(&site.probes, "a", put("k", 2));
    world.settle().await;
    let probes = site.probes.clone();
    drop(site);
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Unknown(_)), "{error}");
    let error = queued.await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Draining), "never started: {error}");
    let error = probes.request("a", life()).await.unwrap_err();
    assert!(matches!(error, RequestError::Draining), "{error}");
    world.pass(30 * SECOND).await;
    assert!(world.script.fired().is_empty(), "a dropped host fires nothing");

    let site = world.start().await;
    world.settle().await;
    assert_eq!(world.script.fired_ids(), ["later"]);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_commit_is_under_way_when_the_host_ends_is_told_that_the_outcome_is_unknown() {
    for drained in [false, true] {
        let world = World::in_memory();
        let site = world.start().await;
        world.store.fail_next(Method::Commit, Fault::Hang);
        let writing = spawn(&site.probes, "a", put("k", 1));
        world.settle().await;
        let behind = spawn(&site.probes, "b", put("k", 1));
        world.settle().await;
        if drained {
            site.host.drain(Duration::ZERO).await;
        }
        drop(site);
        let error = in_time(writing).await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Unknown(_)) && error.may_have_happened(), "{error}");
        let error = in_time(behind).await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Store(_) | RequestError::Unknown(_)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_handlers_serves_what_they_ask_for_and_refuses_everybody_else() {
    let world = World::in_memory();
    let site = world.start().await;
    site.probes.request("idle", life()).await.unwrap();
    let probes = site.probes.clone();
    let nested = spawn(
        &site.probes,
        "a",
        act(move |me: &mut Probe, cx: &mut Context| {
            let sleep = me.sleep(5 * SECOND);
            Box::pin(async move {
                sleep.await;
                cx.put("k", &1)?;
                probes.request("asked while draining", count("n")).await.map_err(|e| Failed::Nested(e.to_string()))
            })
        }),
    );
    world.settle().await;
    let queued = spawn(&site.probes, "a", put("queued", 2));
    world.settle().await;
    let outside = {
        let (probes, clock) = (site.probes.clone(), world.clock.clone());
        tokio::spawn(async move {
            stable_interfaces::clock::Clock::sleep(&clock, SECOND).await;
            probes.request("b", life()).await
        })
    };
    let drained = site.host.drain(60 * SECOND).await;
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert!((5_000..5_100).contains(&world.now()), "{}", world.now());
    assert!(matches!(outside.await.unwrap().unwrap_err(), RequestError::Draining));
    assert_eq!(nested.await.unwrap().unwrap(), 1);
    queued.await.unwrap().expect("it had been taken before the drain");
    assert_eq!((site.host.health(), site.probes.running()), (Health::Stopped, 0));
    assert_eq!(world.script.stops(), world.script.lives(), "every instance was stopped in good order");
    assert!(world.dump().shards.values().all(|shard| shard.owner.is_none()), "released");
    let again = site.host.drain(SECOND).await;
    assert_eq!(again.unfinished, 0);

    let site = world.start().await;
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1));
    assert_eq!(site.probes.request("a", get("queued")).await.unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_drain_past_its_deadline_cuts_handlers_off_and_says_how_many() {
    let world = World::in_memory();
    let site = world.start().await;
    let stuck = act(|_, cx: &mut Context| {
        Box::pin(async move {
            cx.put("k", &1)?;
            std::future::pending::<()>().await;
            Ok(())
        })
    });
    let stuck = spawn(&site.probes, "a", stuck);
    world.settle().await;
    let drained = site.host.drain(3 * SECOND).await;
    assert_eq!((drained.unfinished, drained.released), (1, false));
    assert!((3_000..3_100).contains(&world.now()), "{}", world.now());
    assert!(stuck.await.unwrap().is_err());
    let site = world.start().await;
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn run_until_drains_when_its_signal_comes() {
    let world = World::in_memory();
    let site = world.launch(world.local().drain_timeout(10 * SECOND), |probes| probes).await;
    let running = spawn(&site.probes, "a", wait(4 * SECOND));
    let drained = site.host.run_until(world.pass(2 * SECOND)).await.unwrap();
    assert_eq!((drained.unfinished, drained.released), (0, true));
    assert!((4_000..4_100).contains(&world.now()), "{}", world.now());
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_before_the_start_is_refused_and_an_unknown_host_does_not_start() {
    let world = World::in_memory();
    let mut builder = world.member("nobody", &Fleet::expand("host-{0..2}", 64).unwrap());
    let probes = builder.interface(world.factory()).register().unwrap();
    assert!(matches!(probes.request("a", life()).await.unwrap_err(), RequestError::NotStarted));
    let twice = builder.interface(world.factory()).register().unwrap_err();
    assert_eq!(twice.to_string(), r#"an interface named "probe" is registered already"#);
    let error = builder.start().await.unwrap_err();
    assert!(matches!(error, StartError::UnknownHost { .. }));
    assert_eq!(error.to_string(), r#"the fleet has no host named "nobody"; it has host-0, host-1, host-2"#);
    assert_eq!(world.store.begun(), 0, "nothing was claimed");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_id_is_refused_before_anything_happens() {
    let world = World::in_memory();
    let site = world.start().await;
    for bad in ["", "a\0b", &"x".repeat(513)] {
        let error = site.probes.request(bad, life()).await.unwrap_err();
        assert!(matches!(&error, RequestError::InvalidId { what, .. } if what == "instance"), "{error}");
        let error = site.probes.set_alarm("a", bad, START, &()).await.unwrap_err();
        assert!(matches!(&error, RequestError::InvalidId { what, .. } if what == "alarm"), "{error}");
    }
    assert_eq!(world.script.lives(), 0);
    let longest = "é".repeat(256);
    let seen = act(|me: &mut Probe, _| Box::pin(async { Ok(me.id.clone()) }));
    assert_eq!(site.probes.request(&longest, seen).await.unwrap(), longest, "the ID arrives whole, not as a hash");
}

#[tokio::test]
async fn nothing_of_a_host_is_left_after_its_drop() {
    let clock = SimClock::new(START);
    let alive = Arc::new(());
    let weak = Arc::downgrade(&alive);
    let world = World::in_memory();
    let mut builder = world.local();
    let factory = world.factory();
    let probes = builder
        .interface(move |id| {
            let _held = &alive;
            factory(id)
        })
        .with_alarms()
        .register()
        .unwrap();
    let host = builder.start().await.unwrap();
    probes.request("a", put("k", 1)).await.unwrap();
    let _running = tokio::spawn({
        let probes = probes.clone();
        async move { probes.request("b", wait(Duration::from_secs(3_600))).await }
    });
    tokio::task::yield_now().await;
    drop(host);
    drop(probes);
    drop(clock);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(weak.strong_count(), 0, "a task, an instance or the host itself is still there");
}
