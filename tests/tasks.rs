//! Tasks of an instance: started when durable, turns like any message, gone before the next incarnation.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{Context, ContextError, Fleet, Handle, InstanceRef, RequestError, StableInterface};
use system_tests::{Do, Failed, Probe, World, act, count, get, in_time, now_or_never, on_each_store, put, spawn};
use tokio::sync::{Notify, oneshot};

const SECOND: Duration = Duration::from_secs(1);

/// Notes when it is dropped, which is when the task that owns it is gone.
struct Gone(Arc<Mutex<Vec<String>>>, &'static str);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.lock().push(self.1.to_owned());
    }
}

/// A message that spawns a task which never ends by itself.
fn spawn_forever(gone: &Arc<Mutex<Vec<String>>>, name: &'static str, is_parked: bool) -> Do<()> {
    let gone = gone.clone();
    act(move |_, cx: &mut Context| {
        Box::pin(async move {
            cx.spawn(move |me: InstanceRef<Probe>| async move {
                let _gone = Gone(gone, name);
                let _parked = is_parked.then(|| me.park());
                std::future::pending::<()>().await;
            })?;
            Ok(())
        })
    })
}

/// A message that takes the handle of a task out of it; the task then waits for ever.
fn take_me() -> (Do<()>, oneshot::Receiver<InstanceRef<Probe>>) {
    let (send, receive) = oneshot::channel();
    let message = act(move |_, cx: &mut Context| {
        Box::pin(async move {
            cx.spawn(move |me: InstanceRef<Probe>| async move {
                drop(send.send(me));
                std::future::pending::<()>().await;
            })?;
            Ok(())
        })
    });
    (message, receive)
}

#[tokio::test(start_paused = true)]
async fn a_task_starts_when_its_handlers_effects_are_durable_and_never_if_they_are_not() {
    let world = World::in_memory();
    let site = world.start().await;
    let start = |how: &'static str| {
        act(move |me: &mut Probe, cx: &mut Context| {
            let script = me.script.clone();
            Box::pin(async move {
                cx.put("k", &1)?;
                let built = script.clone();
                cx.spawn(move |me: InstanceRef<Probe>| {
                    built.note(format!("built after {how}"));
                    async move { script.note(format!("{} runs after {how}", me.id())) }
                })?;
                if how == "an error" { Err(Failed::Told("no")) } else { Ok(()) }
            })
        })
    };
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let request = spawn(&site.probes, "a", start("a commit"));
    world.pass(Duration::from_millis(100)).await;
    assert_eq!(world.script.notes(), [""; 0], "nothing of it, not even the application's code that builds it");
    world.store.release_hanging();
    request.await.unwrap().unwrap();
    world.settle().await;
    assert_eq!(world.script.notes(), ["built after a commit", "a runs after a commit"]);

    assert!(site.probes.request("a", start("an error")).await.is_err());
    world.store.set_down(true);
    assert!(site.probes.request("b", start("a failed commit")).await.is_err());
    world.store.set_down(false);
    world.pass(SECOND).await;
    assert_eq!(world.script.notes().len(), 2, "{:?}", world.script.notes());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_task_or_in_what_builds_it_harms_nobody() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND)).await;
    for builds in [true, false] {
        let boom = act(move |_, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |_: InstanceRef<Probe>| {
                    if builds {
                        std::panic::panic_any("boom");
                    }
                    async { std::panic::panic_any("boom") }
                })?;
                Ok(())
            })
        });
        site.probes.request("a", boom).await.unwrap();
        world.settle().await;
        assert_eq!(site.probes.request("a", count("n")).await.unwrap(), if builds { 1 } else { 2 });
    }
    assert_eq!(world.script.lives(), 1);
    world.pass(76 * SECOND).await;
    assert!(!site.probes.is_running("a"), "a task that has ended keeps nothing in memory");
}

#[tokio::test(start_paused = true)]
async fn turns_take_their_place_among_the_messages_and_are_committed() {
    in_time(async {
        let world = World::in_memory();
        let site = world.start().await;
        let (message, me) = take_me();
        site.probes.request("a", message).await.unwrap();
        let me = me.await.unwrap();
        let busy = spawn(
            &site.probes,
            "a",
            act(|me: &mut Probe, _| {
                let sleep = me.sleep(SECOND);
                Box::pin(async move {
                    sleep.await;
                    Ok(())
                })
            }),
        );
        world.settle().await;
        let mut others = Vec::new();
        for i in 0..100_u32 {
            let step = move |state: &mut Probe| state.memory.push(i.to_string());
            if i % 2 == 0 {
                let me = me.clone();
                let mut turn = Box::pin(async move {
                    let turn = me.turn(move |state: &mut Probe, cx| {
                        step(state);
                        cx.put("last", &i)?;
                        Ok(i)
                    });
                    assert_eq!(turn.await.unwrap(), i);
                });
                assert!(now_or_never(&mut turn).await.is_none());
                others.push(tokio::spawn(turn));
            } else {
                let probes = site.probes.clone();
                let mut request = Box::pin(async move {
                    let message = act(move |me: &mut Probe, _| {
                        Box::pin(async move {
                            step(me);
                            Ok(())
                        })
                    });
                    probes.request("a", message).await.unwrap();
                });
                assert!(now_or_never(&mut request).await.is_none());
                others.push(tokio::spawn(request));
            }
        }
        busy.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap();
        }
        let order = site.probes.request("a", act(|me, _| Box::pin(async { Ok(me.memory.clone()) }))).await.unwrap();
        assert_eq!(order, (0..100).map(|i: i32| i.to_string()).collect::<Vec<_>>());
        assert_eq!(site.probes.request("a", get("last")).await.unwrap(), Some(98));

        // Its result comes when it is durable.
        world.store.fail_next(Method::Commit, Fault::HangAfter);
        let turning = me.clone();
        let turn = tokio::spawn(async move { turning.turn(|_, cx| Ok(cx.put("k", &7)?)).await });
        world.pass(Duration::from_millis(100)).await;
        assert!(!turn.is_finished());
        world.store.release_hanging();
        turn.await.unwrap().unwrap();
        site.crash();
        let site = world.start().await;
        assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(7));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_an_earlier_incarnation_is_refused_and_touches_nothing() {
    let world = World::in_memory();
    let site = world.start().await;
    let (message, me) = take_me();
    site.probes.request("a", message).await.unwrap();
    let me = me.await.unwrap();
    let turn = |me: InstanceRef<Probe>| async move {
        me.turn(|state, cx| {
            state.memory.push("touched".into());
            Ok(cx.put("k", &1)?)
        })
        .await
    };
    // In the queue behind the handler that ends its incarnation, and after that.
    let boom = act(|me: &mut Probe, _| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            std::panic::panic_any("boom")
        })
    });
    let boom: tokio::task::JoinHandle<system_tests::Answer<()>> = spawn(&site.probes, "a", boom);
    world.settle().await;
    let waiting = tokio::spawn(turn(me.clone()));
    world.settle().await;
    assert!(!waiting.is_finished());
    assert!(boom.await.unwrap().is_err());
    assert!(matches!(waiting.await.unwrap(), Err(RequestError::Closed)));
    assert!(matches!(turn(me.clone()).await, Err(RequestError::Closed)));
    let memory = act(|me: &mut Probe, _| Box::pin(async { Ok(me.memory.clone()) }));
    assert_eq!(site.probes.request("a", memory).await.unwrap(), [""; 0]);
    assert!(matches!(turn(me).await, Err(RequestError::Closed)), "nor of the incarnation that is there now");
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_handle_kept_beyond_its_task_ends_with_the_incarnation() {
    let world = World::in_memory();
    let site = world.start().await;
    let (send, me) = oneshot::channel();
    let ends = act(move |_, cx: &mut Context| {
        Box::pin(async move {
            cx.spawn(move |me: InstanceRef<Probe>| async move { drop(send.send(me)) })?;
            Ok(())
        })
    });
    site.probes.request("a", ends).await.unwrap();
    let me = me.await.unwrap();
    world.settle().await;
    // Nothing of the task is left, and nothing else of the instance but its state.
    site.probes.request("a", put("k", 1)).await.unwrap();
    world.settle().await;
    assert_eq!(me.turn(|me, _| Ok(me.life)).await.unwrap(), 1, "its own incarnation");
    let resets: [Do<()>; 2] = [
        act(|_, _| panic!("reset")),
        act(|_, cx| {
            cx.passivate();
            Box::pin(async { Ok(()) })
        }),
    ];
    for (message, life) in resets.into_iter().zip([2, 3]) {
        drop(site.probes.request("a", message).await);
        world.settle().await;
        assert_eq!(site.probes.request("a", system_tests::life()).await.unwrap(), life);
        let turned = me.turn(|me, _| Ok(me.life)).await;
        assert!(matches!(turned, Err(RequestError::Closed)), "life {life}: {turned:?}");
    }
    drop(me);
    site.probes.request("a", put("k", 2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_own_turn_ends_its_incarnation_is_gone_before_the_next_one() {
    in_time(async {
        let world = World::in_memory();
        let site = world.start().await;
        let gone = Arc::<Mutex<Vec<String>>>::default();
        let guard = gone.clone();
        let message = act(move |_, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |me: InstanceRef<Probe>| async move {
                    let _gone = Gone(guard, "task");
                    let failed = me.turn(|_, cx| {
                        cx.put("k", &1)?;
                        Err::<(), _>(Failed::Told("with an effect: this resets"))
                    });
                    assert!(failed.await.is_err());
                    std::future::pending::<()>().await;
                })?;
                Ok(())
            })
        });
        site.probes.request("a", message).await.unwrap();
        world.settle().await;
        assert_eq!(*gone.lock(), ["task"]);
        site.probes.request("a", count("n")).await.unwrap();
        assert_eq!(world.script.lives(), 2);
    })
    .await;
}

/// An instance whose task takes its time to go.
struct Slow {
    id: u64,
    log: Arc<Mutex<Vec<String>>>,
}

struct Begin;
struct Fail;

impl StableInterface for Slow {
    const NAME: &'static str = "slow";
    type Error = ContextError;
}

/// Takes a moment of the machine's time to go.
struct Lingering(Arc<Mutex<Vec<String>>>, u64);

impl Drop for Lingering {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        self.0.lock().push(format!("task of {} gone", self.1));
    }
}

impl Handle<Begin> for Slow {
    type Reply = ();
    async fn handle(&mut self, cx: &mut Context, _: Begin) -> Result<(), ContextError> {
        let lingering = Lingering(self.log.clone(), self.id);
        cx.spawn(move |_: InstanceRef<Slow>| async move {
            let _lingering = lingering;
            std::future::pending::<()>().await;
        })
    }
}

impl Handle<Fail> for Slow {
    type Reply = ();
    async fn handle(&mut self, _: &mut Context, _: Fail) -> Result<(), ContextError> {
        std::panic::panic_any("boom")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_cancelled_and_waited_for_before_the_next_incarnation_is_built() {
    let log = Arc::<Mutex<Vec<String>>>::default();
    let world = World::in_memory();
    let mut builder = world.local();
    let (built, lives) = (log.clone(), AtomicU64::new(0));
    let slow = builder.interface(move |_| {
        let id = lives.fetch_add(1, Ordering::SeqCst);
        built.lock().push(format!("{id} built"));
        Slow { id, log: built.clone() }
    });
    let slow = slow.register().unwrap();
    let host = builder.start().await.unwrap();
    for _ in 0..5 {
        slow.request("a", Begin).await.unwrap();
        slow.request("a", Begin).await.unwrap();
        // The next message comes while the tasks are still going.
        let (failed, next) = tokio::join!(slow.request("a", Fail), slow.request("a", Begin));
        assert!(matches!(failed, Err(RequestError::Panicked(_))));
        next.unwrap();
        slow.stop("a").await.unwrap();
    }
    // A drain waits for the last of them.
    assert_eq!(host.drain(10 * SECOND).await.unfinished, 0);
    let log = log.lock();
    let mut alive = Vec::new();
    for line in log.iter() {
        let id = line.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
        if line.ends_with("built") {
            assert!(alive.is_empty(), "{log:?}");
            alive = if id % 2 == 0 { vec![id; 2] } else { vec![id] };
        } else {
            assert_eq!(alive.pop(), Some(id), "{log:?}");
        }
    }
    assert_eq!(log.len(), 10 + 15);
}

on_each_store! {
    async fn stopping_draining_and_losing_the_shard_end_an_instances_tasks(world: World) {
        let gone = Arc::<Mutex<Vec<String>>>::default();
        let site = world.start().await;
        site.probes.request("a", spawn_forever(&gone, "stopped", false)).await.unwrap();
        world.settle().await;
        site.probes.stop("a").await.unwrap();
        world.settle().await;
        assert_eq!(*gone.lock(), ["stopped"]);
        site.probes.request("a", spawn_forever(&gone, "drained", false)).await.unwrap();
        world.settle().await;
        let drained = site.host.drain(10 * SECOND).await;
        assert_eq!((drained.unfinished, drained.instances, drained.released), (0, 0, true));
        assert_eq!(gone.lock().last().unwrap(), "drained", "it is gone when `drain` returns");
        drop(site);
        world.reopen().await;

        let fleet = Fleet::new(["only"], 1_024).unwrap();
        let old = world.launch(world.member("only", &fleet), |probes| probes).await;
        old.probes.request("a", spawn_forever(&gone, "replaced", false)).await.unwrap();
        world.settle().await;
        let new = world.launch(world.member("only", &fleet), |probes| probes).await;
        world.pass(15 * SECOND).await;
        assert_eq!(gone.lock().last().unwrap(), "replaced");
        new.probes.request("a", spawn_forever(&gone, "crashed", false)).await.unwrap();
        world.settle().await;
        new.host.crash();
        world.settle().await;
        assert_eq!(gone.lock().last().unwrap(), "crashed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_ends_an_instances_tasks() {
    let world = World::in_memory();
    let gone = Arc::<Mutex<Vec<String>>>::default();
    let fleet = Fleet::new(["only"], 16).unwrap();
    let site = world.launch(world.member("only", &fleet).lease(15 * SECOND), |probes| probes).await;
    site.probes.request("a", spawn_forever(&gone, "task", false)).await.unwrap();
    world.settle().await;
    world.store.set_down(true);
    world.pass(10 * SECOND).await;
    assert_eq!(*gone.lock(), [""; 0]);
    world.pass(8 * SECOND).await;
    assert_eq!(*gone.lock(), ["task"], "another host may own the instance now");
    world.store.set_down(false);
    world.pass(15 * SECOND).await;
    site.probes.request("a", put("k", 1)).await.unwrap();
    assert_eq!(world.script.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_stays_in_memory_while_a_task_is_not_parked() {
    let world = World::in_memory();
    let gone = Arc::<Mutex<Vec<String>>>::default();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND)).await;
    site.probes.request("busy", spawn_forever(&gone, "busy", false)).await.unwrap();
    site.probes.request("parked", spawn_forever(&gone, "parked", true)).await.unwrap();
    site.probes.request("both", spawn_forever(&gone, "both", true)).await.unwrap();
    site.probes.request("both", spawn_forever(&gone, "both", false)).await.unwrap();
    world.pass(600 * SECOND).await;
    assert!(site.probes.is_running("busy") && site.probes.is_running("both"));
    assert!(!site.probes.is_running("parked"));
    assert_eq!(*gone.lock(), ["parked"], "passivation cancels what is parked");
    assert_eq!(world.script.stops(), 1);
}

#[tokio::test(start_paused = true)]
async fn parking_counts_per_task_however_many_guards_there_are_and_whoever_holds_them() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND)).await;
    // Parked twice by one task, unparked once: still parked. And its handle outlives it.
    let (message, me) = take_me();
    site.probes.request("twice", message).await.unwrap();
    let me = me.await.unwrap();
    let (one, two) = (me.park(), me.park());
    drop(one);
    let woken = Arc::new(Notify::new());
    let wake = woken.clone();
    let (send, handle) = oneshot::channel();
    let short = act(move |_, cx: &mut Context| {
        Box::pin(async move {
            cx.spawn(move |me: InstanceRef<Probe>| async move {
                drop(send.send(me));
                wake.notified().await;
            })?;
            Ok(())
        })
    });
    site.probes.request("ended", short).await.unwrap();
    let ended = handle.await.unwrap();
    let parked = ended.park();
    woken.notify_one();
    world.settle().await;
    drop(parked);
    let _parked_after = ended.park();
    world.pass(300 * SECOND).await;
    assert!(!site.probes.is_running("twice") && !site.probes.is_running("ended"));
    drop(two);
    let (message, me) = take_me();
    site.probes.request("unparked", message).await.unwrap();
    let me = me.await.unwrap();
    drop((me.park(), me.park()));
    world.pass(300 * SECOND).await;
    assert!(site.probes.is_running("unparked"));
}

#[tokio::test(start_paused = true)]
async fn what_runs_after_the_commit_runs_then_and_only_then() {
    let world = World::in_memory();
    let site = world.start().await;
    let notify = |text: &'static str, fails: bool| {
        act(move |me: &mut Probe, cx: &mut Context| {
            let script = me.script.clone();
            Box::pin(async move {
                let first = script.clone();
                cx.after_commit(move || first.note(format!("{text} 1")));
                cx.put("k", &1)?;
                cx.after_commit(move || script.note(format!("{text} 2")));
                if fails { Err(Failed::Told("no")) } else { Ok(()) }
            })
        })
    };
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let request = spawn(&site.probes, "a", notify("durable", false));
    world.pass(Duration::from_millis(100)).await;
    assert_eq!(world.script.notes(), [""; 0]);
    world.store.release_hanging();
    request.await.unwrap().unwrap();
    world.settle().await;
    assert_eq!(world.script.notes(), ["durable 1", "durable 2"]);
    assert!(site.probes.request("a", notify("failed", true)).await.is_err());
    world.store.set_down(true);
    assert!(site.probes.request("a", notify("not durable", false)).await.is_err());
    world.store.set_down(false);
    world.pass(SECOND).await;
    assert_eq!(world.script.notes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_commit_lets_run_runs_when_it_becomes_durable_after_its_caller_was_told_that_it_is_unknown() {
    let world = World::in_memory();
    let site = world.start().await;
    let script = world.script.clone();
    let begin = act(move |_: &mut Probe, cx: &mut Context| {
        let (notes, task) = (script.clone(), script.clone());
        Box::pin(async move {
            cx.put("k", &1)?;
            cx.after_commit(move || notes.note("durable".to_owned()));
            cx.spawn(move |_: InstanceRef<Probe>| async move { task.note("begun".to_owned()) })?;
            Ok(())
        })
    });
    world.store.set_chance(Method::Commit, Fault::FailAfter, 1.0);
    let error = site.probes.request("a", begin).await.unwrap_err();
    assert!(matches!(error, RequestError::Unknown(_)), "{error}");
    world.pass(5 * SECOND).await;
    assert_eq!(world.script.notes(), [""; 0], "nobody knows yet");
    world.store.heal();
    world.pass(5 * SECOND).await;
    let mut notes = world.script.notes();
    notes.sort();
    assert_eq!(notes, ["begun", "durable"]);
    assert!(site.probes.is_running("a"), "it was not built anew");
}

#[tokio::test(start_paused = true)]
async fn a_task_of_another_interface_cannot_be_spawned() {
    let world = World::in_memory();
    let site = world.start().await;
    let wrong =
        act(|_, cx: &mut Context| Box::pin(async move { Ok(cx.spawn(|_: InstanceRef<Slow>| async {}).is_err()) }));
    assert!(site.probes.request("a", wrong).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn many_short_tasks_leave_nothing_behind() {
    let world = World::in_memory();
    let site = world.start().await;
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..10_000 {
        let done = done.clone();
        let short = act(move |_, cx: &mut Context| {
            Box::pin(async move {
                cx.spawn(move |_: InstanceRef<Probe>| async move {
                    done.fetch_add(1, Ordering::SeqCst);
                })?;
                Ok(())
            })
        });
        site.probes.request("a", short).await.unwrap();
        tokio::task::yield_now().await;
    }
    world.settle().await;
    assert_eq!(done.load(Ordering::SeqCst), 10_000);
    let drained = site.host.drain(SECOND).await;
    assert_eq!(drained.unfinished, 0);
}
