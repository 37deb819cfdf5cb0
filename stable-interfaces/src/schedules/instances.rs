//! Instances, whole: requests that meet, callers that leave, instances that leave memory.

use shuttle::future::{self, block_on, yield_now};

use super::{Log, ScenarioClock, ScenarioRandom, SlowStore, ask, below, explore, pause, step};
use crate::error::{ContextError, RequestError};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::instance::context::Context;
use crate::instance::{Handle, StableInterface};
use crate::interface::Interface;
use crate::shared::AnyInterface;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU32, Ordering};

/// The events of the instances, in order. A life is one incarnation of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A request is about to be made, and has been submitted.
    Asking(u32),
    Asked(u32),
    /// An instance was built, with the number of events of writes by then.
    Built {
        id: String,
        life: u32,
        writes: usize,
    },
    Entered {
        life: u32,
        request: u32,
    },
    Left {
        life: u32,
    },
    Stopped {
        life: u32,
    },
    Dropped {
        life: u32,
    },
}

/// Counts what it was asked for.
pub(super) struct Counter {
    life: u32,
    log: Log<Event>,
    count: u32,
    /// The count that is stored, or will be.
    stored: Option<u32>,
}

/// Adds one to the count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Add {
    /// The number of the request.
    pub(super) request: u32,
    /// The number of times its handler waits.
    pub(super) waits: u32,
    /// Tells whether the count is stored.
    pub(super) durable: bool,
    /// Tells whether the stored count is read first. It is to be the last.
    pub(super) reads: bool,
    /// Tells whether the instance is to leave memory after it.
    pub(super) passivate: bool,
}

/// Notes that a handler has ended, however it did.
struct Inside<'a>(&'a Log<Event>, u32);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.note(Event::Left { life: self.1 });
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.log.note(Event::Dropped { life: self.life });
    }
}

impl StableInterface for Counter {
    const NAME: &'static str = "counter";
    type Error = ContextError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
        let stored: Option<(u32, u32)> = cx.get("count").await?;
        self.stored = stored.map(|(_, count)| count);
        self.count = self.stored.unwrap_or(0);
        Ok(())
    }

    async fn on_stop(&mut self) {
        yield_now().await;
        self.log.note(Event::Stopped { life: self.life });
    }
}

impl Handle<Add> for Counter {
    type Reply = u32;

    async fn handle(&mut self, cx: &mut Context, add: Add) -> Result<u32, ContextError> {
        let (log, life) = (self.log.clone(), self.life);
        log.note(Event::Entered { life, request: add.request });
        let _inside = Inside(&log, life);
        if add.reads {
            let stored: Option<(u32, u32)> = cx.get("count").await?;
            assert_eq!(stored.map(|(_, count)| count), self.stored, "another count was read than the last");
        }
        let count = self.count + 1;
        step();
        for _ in 0..add.waits {
            yield_now().await;
        }
        self.count = count;
        if add.durable {
            cx.put("count", &(life, count))?;
            self.stored = Some(count);
        }
        if add.passivate {
            cx.passivate();
        }
        Ok(count)
    }
}

/// A host with counters, and what is to be known of it.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) counters: Interface<Counter>,
    pub(super) store: Arc<SlowStore>,
    pub(super) log: Log<Event>,
}

pub(super) struct Options {
    pub(super) faults: u32,
    pub(super) commit_timeout: std::time::Duration,
    pub(super) max_instances: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { faults: 0, commit_timeout: std::time::Duration::from_secs(3_600), max_instances: 10 }
    }
}

impl Scene {
    pub(super) async fn new(options: Options) -> Scene {
        let (clock, log) = (ScenarioClock::default(), Log::new());
        let store = SlowStore::new(&clock, options.faults);
        let fleet = Fleet::new(["host"], 1).expect("one host and one shard make a fleet");
        let mut host = Host::builder("host", fleet)
            .shared_store(store.clone())
            .clock(Arc::new(clock.clone()))
            .random(Arc::new(ScenarioRandom))
            .lanes(1)
            .commit_timeout(options.commit_timeout);
        let (lives, noted, writes) = (AtomicU32::new(0), log.clone(), store.writes.clone());
        let counters = host
            .interface(move |id| {
                let life = lives.fetch_add(1, Ordering::SeqCst);
                noted.note(Event::Built { id: id.to_owned(), life, writes: writes.all().len() });
                Counter { life, log: noted.clone(), count: 0, stored: None }
            })
            .max_instances(options.max_instances)
            .register()
            .expect("its name is one");
        let host = host.start().await.expect("a host alone starts");
        Scene { host, counters, store, log }
    }

    /// Asks as a task of its own; the reply is none if the caller gave up after so many polls.
    pub(super) fn ask(
        &self,
        id: &'static str,
        add: Add,
        polls: Option<u32>,
    ) -> future::JoinHandle<Option<Result<u32, RequestError<ContextError>>>> {
        let (counters, log) = (self.counters.clone(), self.log.clone());
        future::spawn(async move {
            pause().await;
            log.note(Event::Asking(add.request));
            let asked = || log.note(Event::Asked(add.request));
            ask(counters.request(id, add), polls, asked).await
        })
    }

    /// Ends the host, and checks what holds of every scenario.
    pub(super) async fn end(self) -> (Vec<Event>, Arc<SlowStore>) {
        let drained = self.host.drain(std::time::Duration::from_secs(3_600)).await;
        assert_eq!((drained.unfinished, drained.instances), (0, 0), "not all came to its end");
        drop(self.host);
        let log = self.log.all();
        check(&log);
        (log, self.store)
    }
}

/// Handlers run alone, and so do incarnations; nobody overtakes; nothing is left.
fn check(log: &[Event]) {
    let mut living = std::collections::BTreeMap::new();
    let mut inside = std::collections::BTreeSet::new();
    for event in log {
        match event {
            Event::Built { id, life, .. } => {
                assert!(!living.values().any(|of| of == id), "two incarnations of {id} at once: {log:#?}");
                living.insert(*life, id.clone());
            }
            Event::Dropped { life } => assert!(living.remove(life).is_some(), "{life} ended twice: {log:#?}"),
            Event::Entered { life, .. } => {
                assert!(living.contains_key(life), "a handler of what is gone: {log:#?}");
                assert!(inside.insert(*life), "two handlers at once: {log:#?}");
            }
            Event::Left { life } => assert!(inside.remove(life), "a handler ended twice: {log:#?}"),
            Event::Stopped { life } => {
                assert!(living.contains_key(life) && !inside.contains(life), "stopped beside a handler: {log:#?}");
                assert_eq!(log.iter().filter(|other| *other == event).count(), 1, "stopped twice: {log:#?}");
            }
            Event::Asking(_) | Event::Asked(_) => {}
        }
    }
    assert!(living.is_empty() && inside.is_empty(), "something is left: {log:#?}");
}

/// Checks that of two requests to one instance the one that was submitted before the other was made has its turn first.
fn check_order(log: &[Event]) {
    let at = |event: &Event| log.iter().position(|other| other == event);
    let entered =
        |of: u32| log.iter().position(|other| matches!(other, Event::Entered { request, .. } if *request == of));
    for event in log {
        let Event::Asked(first) = event else { continue };
        for other in log {
            let Event::Asking(second) = other else { continue };
            if let (Some(first), Some(second)) = (entered(*first), entered(*second))
                && at(event) < at(other)
            {
                assert!(first < second, "a request was overtaken: {log:#?}");
            }
        }
    }
}

fn times_entered(log: &[Event], of: u32) -> usize {
    log.iter().filter(|event| matches!(event, Event::Entered { request, .. } if *request == of)).count()
}

#[test]
fn requests_that_meet_at_an_instance_run_alone_in_order_and_each_is_answered_once() {
    explore(|| {
        block_on(async {
            let scene = Scene::new(Options::default()).await;
            let count = 2 + below(3);
            let durable = below(2) == 0;
            let asked: Vec<_> = (0..count)
                .map(|request| scene.ask("a", Add { request, waits: below(3), durable, ..Add::default() }, None))
                .collect();
            let mut replies = Vec::new();
            for reply in asked {
                let reply = reply.await.expect("it is not cancelled").expect("it is waited for");
                replies.push(reply.expect("nothing fails"));
            }
            replies.sort_unstable();
            assert_eq!(replies, (1..=count).collect::<Vec<_>>());
            let (log, _) = scene.end().await;
            check_order(&log);
        });
    });
}

#[test]
fn handlers_read_what_the_last_one_has_put_whatever_settles_meanwhile() {
    explore(|| {
        block_on(async {
            let scene = Scene::new(Options::default()).await;
            let add = |request| Add { request, durable: true, reads: true, ..Add::default() };
            let asked: Vec<_> = (0..6).map(|request| scene.ask("a", add(request), None)).collect();
            for reply in asked {
                let reply = reply.await.expect("it is not cancelled").expect("it is waited for");
                reply.expect("nothing fails");
            }
            scene.end().await;
        });
    });
}

#[test]
fn a_caller_that_leaves_at_any_time_leaves_its_handler_to_finish_and_nobody_waiting() {
    explore(|| {
        block_on(async {
            let scene = Scene::new(Options::default()).await;
            let polls = below(3);
            let leaving =
                scene.ask("a", Add { request: 0, waits: 1 + below(2), durable: true, ..Add::default() }, Some(polls));
            let staying: Vec<_> = (1..3)
                .map(|request| scene.ask("a", Add { request, waits: below(2), durable: true, ..Add::default() }, None))
                .collect();
            for reply in staying {
                let reply = reply.await.expect("it is not cancelled").expect("it is waited for");
                reply.expect("nothing fails");
            }
            leaving.await.expect("it is not cancelled");
            // Behind everything that was asked before.
            let last = scene.ask("a", Add { request: 3, ..Add::default() }, None).await.expect("it is not cancelled");
            let began = u32::from(polls > 0);
            assert_eq!(last.expect("it is waited for").expect("nothing fails"), 3 + began);
            let (log, _) = scene.end().await;
            check_order(&log);
            assert_eq!(times_entered(&log, 0), began as usize, "it began once, if it was polled at all: {log:#?}");
        });
    });
}

#[test]
fn a_request_that_meets_a_passivation_is_served_by_the_old_or_the_new_incarnation_and_never_lost() {
    explore(|| {
        block_on(async {
            let way = below(4);
            let max_instances = if way == 0 { 1 } else { 10 };
            let scene = Scene::new(Options { max_instances, ..Options::default() }).await;
            let asked: Vec<_> = (0..3)
                .map(|request| {
                    let passivate = way == 1 && request < 2;
                    let add = Add { request, waits: below(2), durable: true, passivate, ..Add::default() };
                    scene.ask("a", add, None)
                })
                .collect();
            pause().await;
            match way {
                0 => {
                    // It needs the only place. While the other is busy there is no room.
                    let other = scene.counters.request("b", Add { request: 100, ..Add::default() }).await;
                    assert!(matches!(other, Ok(1) | Err(RequestError::Overloaded(_))), "{other:?}");
                }
                1 => {}
                2 => scene.counters.stop("a").await.expect("nothing fails"),
                _ => {
                    for _ in 0..6 {
                        scene.counters.core.clone().sweep();
                        pause().await;
                    }
                }
            }
            let (mut replies, mut refused) = (Vec::new(), 0);
            for reply in asked {
                match reply.await.expect("it is not cancelled").expect("it is waited for") {
                    Ok(count) => replies.push(count),
                    // The place that it needs is taken by the other.
                    Err(RequestError::Overloaded(_)) if way == 0 => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            replies.sort_unstable();
            assert_eq!(replies, (1..=3 - refused).collect::<Vec<_>>());
            let (log, _) = scene.end().await;
            let of_a: Vec<_> = log
                .iter()
                .filter_map(|event| match event {
                    Event::Built { id, life, .. } if id == "a" => Some(*life),
                    _ => None,
                })
                .collect();
            for life in of_a {
                assert!(log.contains(&Event::Stopped { life }), "{life} left without being stopped: {log:#?}");
            }
        });
    });
}
