//! Effects enlisted in a transaction of the application: all of it or nothing, whatever becomes of the answer
//! and of the handler.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use stable_interfaces::store::{Batch, ExternalTransaction, Incarnation, Lane, Write};
use stable_interfaces::{Context, ContextError, NewPost, RequestError, Store, StoreError};
use system_tests::{Failed, Site, World, act, get, life, on_each_store, put, spawn};

const SECOND: Duration = Duration::from_secs(1);

/// The fate of a transaction's commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Lands,
    Refused,
    /// No answer comes; whether it lands.
    Unanswered(bool),
    /// It takes this long, without an answer; then it lands or not.
    Hangs(Duration, bool),
}

/// The place among a handler's commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Last,
    Interim,
}

/// A transaction on the world's store, with nothing but the effects in it.
struct Bare {
    world: Arc<Shared>,
    course: Course,
    seq: u64,
    write: Option<Write>,
}

/// The state that the transactions of a world share.
struct Shared {
    store: stable_interfaces::testing::FaultStore,
    clock: stable_interfaces::testing::SimClock,
    seq: AtomicU64,
    /// From when on an outcome can be asked for; nobody knows before.
    known_from: Mutex<i64>,
}

impl Shared {
    fn of(world: &World) -> Arc<Shared> {
        let (store, clock) = (world.store.clone(), world.clock.clone());
        Arc::new(Shared { store, clock, seq: AtomicU64::new(0), known_from: Mutex::new(0) })
    }

    fn transaction(self: &Arc<Shared>, course: Course) -> Box<dyn ExternalTransaction> {
        let seq = self.seq.fetch_add(1, Ordering::SeqCst) + 1;
        Box::new(Bare { world: self.clone(), course, seq, write: None })
    }
}

impl Bare {
    async fn land(&self) -> Result<(), StoreError> {
        let write = self.write.clone().unwrap();
        self.world.store.commit(&write).await?.remove(0)
    }
}

#[async_trait]
impl ExternalTransaction for Bare {
    async fn commit(&mut self, incarnation: Incarnation, batch: &Batch) -> Result<(), StoreError> {
        self.write = Some(Write { incarnation, lane: Lane(9_999), seq: self.seq, batches: vec![batch.clone()] });
        match self.course {
            Course::Lands => self.land().await,
            Course::Refused => Err(StoreError::Rejected("a constraint".into())),
            Course::Unanswered(lands) => {
                if lands {
                    self.land().await?;
                }
                Err(StoreError::Unavailable("the answer was lost".into()))
            }
            Course::Hangs(..) => std::future::pending().await,
        }
    }

    async fn was_committed(&mut self) -> Result<bool, StoreError> {
        let now = stable_interfaces::clock::Clock::now(&self.world.clock).as_millis() - system_tests::START.as_millis();
        if now < *self.world.known_from.lock() {
            return Err(StoreError::NotApplied("nobody knows yet".into()));
        }
        match self.course {
            Course::Unanswered(lands) => Ok(lands),
            Course::Hangs(_, true) => self.land().await.map(|()| true),
            _ => Ok(false),
        }
    }
}

/// Records something before and in the enlistment.
async fn enlist(cx: &mut Context, shared: &Arc<Shared>, course: Course, part: Part) -> Result<(), ContextError> {
    cx.put("before", &1)?;
    let mut enlistment = cx.enlist().await?;
    enlistment.context().put("inside", &1)?;
    match part {
        Part::Last => enlistment.commit_last(shared.transaction(course)).await,
        Part::Interim => enlistment.commit_interim(shared.transaction(course)).await,
    }
}

async fn ask(site: &Site, shared: &Arc<Shared>, course: Course) -> Result<i64, RequestError<Failed>> {
    let shared = shared.clone();
    let handler = act(move |_, cx| {
        Box::pin(async move {
            enlist(cx, &shared, course, Part::Last).await?;
            cx.put("after", &1)?;
            Ok(7)
        })
    });
    site.probes.request("a", handler).await
}

async fn stored(site: &Site) -> (bool, bool, bool) {
    let is_there = async |key| site.probes.request("a", get(key)).await.unwrap().is_some();
    (is_there("before").await, is_there("inside").await, is_there("after").await)
}

on_each_store! {
    async fn a_ride_that_lands_is_durable_with_what_was_recorded_before_it(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        assert_eq!(ask(&site, &shared, Course::Lands).await.unwrap(), 7);
        assert_eq!(ask(&site, &shared, Course::Unanswered(true)).await.unwrap(), 7);
        assert_eq!(stored(&site).await, (true, true, true));
        assert_eq!(world.script.lives(), 1);
    }
}

on_each_store! {
    async fn a_ride_that_surely_did_not_happen_leaves_the_handler_where_it_was(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        for course in [Course::Refused, Course::Unanswered(false)] {
            let shared = shared.clone();
            let handler = act(move |_, cx| {
                Box::pin(async move {
                    let refused = enlist(cx, &shared, course, Part::Last).await;
                    assert!(matches!(refused, Err(ContextError::Store(_))), "{refused:?}");
                    cx.put("after", &1)?;
                    Ok(7)
                })
            });
            assert_eq!(site.probes.request("a", handler).await.unwrap(), 7);
            assert_eq!(stored(&site).await, (true, false, true));
        }
        assert_eq!(world.script.lives(), 1, "it was nobody's reset");
    }
}

on_each_store! {
    async fn what_a_ride_that_did_not_happen_has_let_out_is_taken_back_and_nothing_else(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        let courses = [None, Some(Course::Refused), Some(Course::Unanswered(false)), Some(Course::Lands)];
        for (course, expected) in courses.into_iter().zip([101, 101, 101, 111]) {
            let (sum, its) = (Arc::new(AtomicU64::new(0)), shared.clone());
            let adds = |n| {
                let sum = sum.clone();
                move || _ = sum.fetch_add(n, Ordering::SeqCst)
            };
            let (before, inside, after) = (adds(1), adds(10), adds(100));
            let handler = act(move |_, cx| {
                Box::pin(async move {
                    cx.after_commit(before);
                    let mut enlistment = cx.enlist().await?;
                    enlistment.context().after_commit(inside);
                    match course {
                        Some(course) => drop(enlistment.commit_last(its.transaction(course)).await),
                        None => drop(enlistment),
                    }
                    cx.after_commit(after);
                    Ok(7)
                })
            });
            assert_eq!(site.probes.request("a", handler).await.unwrap(), 7);
            world.settle().await;
            assert_eq!(sum.load(Ordering::SeqCst), expected, "{course:?}");
        }
    }
}

on_each_store! {
    async fn a_ride_nobody_knows_about_is_unknown_to_its_caller_and_holds_the_next_life_back(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        let first = site.probes.request("a", life()).await.unwrap();
        for (n, lands) in (1..).zip([false, true]) {
            *shared.known_from.lock() = world.now() + 25_000;
            let answer = ask(&site, &shared, Course::Unanswered(lands)).await;
            assert!(matches!(answer, Err(RequestError::Unknown(_))), "{answer:?}");
            assert!(world.now() < *shared.known_from.lock(), "it was told before anybody knew");
            let next = spawn(&site.probes, "a", life());
            world.pass(5 * SECOND).await;
            assert!(!next.is_finished());
            world.pass(20 * SECOND).await;
            assert_eq!(next.await.unwrap().unwrap(), first + n);
            assert_eq!(stored(&site).await, (lands, lands, false));
        }
    }
}

on_each_store! {
    async fn a_handler_that_does_not_wait_for_its_ride_cannot_succeed(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        site.probes.request("a", put("k", 1)).await.unwrap();
        for lands in [false, true] {
            let hangs = Course::Hangs(SECOND, lands);
            let its = shared.clone();
            let handler = act(move |me, cx| {
                let soon = me.sleep(SECOND);
                Box::pin(async move {
                    tokio::select! { biased;
                        done = enlist(cx, &its, hangs, Part::Last) => done?,
                        () = soon => {}
                    }
                    assert!(matches!(cx.put("after", &1), Err(ContextError::Unknown)));
                    Ok(7)
                })
            });
            let answer = site.probes.request("a", handler).await;
            // What did not happen is known by the time its reply is let out.
            assert!(answer.as_ref().is_err_and(|error| error.may_have_happened() == lands), "{answer:?}");
            world.pass(60 * SECOND).await;
            assert_eq!(stored(&site).await, (lands, lands, false));
        }
        // One that is left before its commit is just not made.
        let its = shared.clone();
        let handler = act(move |_, cx| {
            Box::pin(async move {
                cx.put("before", &2)?;
                let mut enlistment = cx.enlist().await?;
                enlistment.context().put("inside", &2)?;
                drop(enlistment);
                drop(its);
                Ok(7)
            })
        });
        assert_eq!(site.probes.request("a", handler).await.unwrap(), 7);
        assert_eq!(site.probes.request("a", get("before")).await.unwrap(), Some(2));
        assert_eq!(site.probes.request("a", get("inside")).await.unwrap(), Some(1));
    }
}

on_each_store! {
    async fn a_handler_that_runs_out_of_time_while_its_ride_is_under_way_does_not_know(world: World) {
        let shared = Shared::of(&world);
        let site = world.launch(world.local(), |probes| probes.handler_timeout(2 * SECOND)).await;
        for lands in [false, true] {
            let answer = ask(&site, &shared, Course::Hangs(SECOND, lands)).await;
            assert!(matches!(answer, Err(RequestError::Unknown(_) | RequestError::Store(_))), "{answer:?}");
            world.pass(60 * SECOND).await;
            assert_eq!(stored(&site).await, (lands, lands, false));
        }
    }
}

on_each_store! {
    async fn what_woke_a_handler_is_completed_by_its_last_ride_and_by_no_other(world: World) {
        let (site, shared) = (world.start().await, Shared::of(&world));
        for (part, fails, times) in [(Part::Last, true, 1), (Part::Last, false, 1), (Part::Interim, true, 2)] {
            for is_alarm in [true, false] {
                let (before, its) = (world.script.fired_ids().len() + world.script.taken_ids().len(), shared.clone());
                let failures = Arc::new(AtomicU64::new(0));
                let run = {
                    let (its, failures) = (its.clone(), failures.clone());
                    move || (its.clone(), failures.clone())
                };
                if is_alarm {
                    world.script.on_alarm(move |_, cx, _| {
                        let (its, failures) = run();
                        Box::pin(async move {
                            enlist(cx, &its, Course::Lands, part).await?;
                            if fails && failures.fetch_add(1, Ordering::SeqCst) == 0 {
                                return Err(Failed::Told("after it"));
                            }
                            Ok(())
                        })
                    });
                    site.probes.set_alarm("a", "alarm", world.at(world.now()), &()).await.unwrap();
                } else {
                    world.script.on_message(move |_, cx, _| {
                        let (its, failures) = run();
                        Box::pin(async move {
                            enlist(cx, &its, Course::Lands, part).await?;
                            if fails && failures.fetch_add(1, Ordering::SeqCst) == 0 {
                                return Err(Failed::Told("after it"));
                            }
                            Ok(())
                        })
                    });
                    site.probes.post("a", NewPost::new("x").id("m")).await.unwrap();
                }
                world.pass(600 * SECOND).await;
                let ran = world.script.fired_ids().len() + world.script.taken_ids().len() - before;
                assert_eq!(ran, times, "{part:?}, fails {fails}, alarm {is_alarm}");
                assert_eq!(site.probes.alarms("a").await.unwrap(), []);
            }
        }
    }
}

on_each_store! {
    async fn a_handler_whose_time_is_over_is_not_run_again_if_its_ride_lands(world: World) {
        let shared = Shared::of(&world);
        let site = world.launch(world.local(), |probes| probes.handler_timeout(2 * SECOND)).await;
        let its = shared.clone();
        let courses = Arc::new(Mutex::new(vec![Course::Hangs(SECOND, true), Course::Lands, Course::Hangs(SECOND, false)]));
        world.script.on_alarm(move |_, cx, _| {
            let (its, course) = (its.clone(), courses.lock().pop().unwrap());
            Box::pin(async move { Ok(enlist(cx, &its, course, Part::Last).await?) })
        });
        // The first try does not land and the second does.
        site.probes.set_alarm("a", "alarm", world.at(0), &()).await.unwrap();
        world.pass(600 * SECOND).await;
        assert_eq!(world.script.fired_ids().len(), 2);
        // This one lands when its handler is gone.
        site.probes.set_alarm("a", "alarm", world.at(0), &()).await.unwrap();
        world.pass(600 * SECOND).await;
        assert_eq!(world.script.fired_ids().len(), 3);
        assert_eq!(site.probes.alarms("a").await.unwrap(), []);
        assert_eq!(site.probes.dead_letters(None, 9).await.unwrap(), []);
    }
}
