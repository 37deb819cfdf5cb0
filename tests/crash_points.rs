//! Twenty scenarios, each cut at every call of its store: before it, between the call and its answer, and with the answer lost
//! while the process goes on. Whatever the cut, the next process finds nothing lost, doubled or half done.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "crash_points/keys.rs"]
mod keys;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stable_interfaces::clock::Clock;
use stable_interfaces::store::{After, DeadRow, InstanceName, Page, Read, ReadRange, ReadRows, Rows};
use stable_interfaces::testing::{Began, End, Fault, History, Outcome, Pending, Setting, Violation, What};
use stable_interfaces::{
    Context, ContextError, DeadKind, Fleet, Health, Interface, NewPost, RetryPolicy, Store, Timestamp,
};
use system_tests::{Answer, BoxFuture, Do, Failed, Probe, Site, World, act, in_time};

const SECOND: Duration = Duration::from_secs(1);
const INSTANCES: [&str; 3] = ["a", "b", "c"];

/// The stage on which a scenario is played: a host, its clock, and who writes down what happens.
#[derive(Clone)]
struct Stage {
    probes: Interface<Probe>,
    clock: Arc<dyn Clock>,
    history: History,
    effects: Arc<AtomicU64>,
    /// Tells whether handlers that are told to fail still do.
    is_healed: Arc<AtomicBool>,
}

fn outcome<R>(answer: &Answer<R>) -> Outcome {
    Outcome::of(answer, |error| matches!(error, Failed::Context(ContextError::Unknown)))
}

async fn raise(cx: &mut Context, effect: &str) -> Result<i64, ContextError> {
    let key = format!("e/{effect}");
    let times = cx.get::<i64>(&key).await?.unwrap_or(0) + 1;
    cx.put(&key, &times)?;
    Ok(times)
}

impl Stage {
    fn of(world: &World, site: &Site, history: &History, is_healed: &Arc<AtomicBool>) -> Stage {
        Stage {
            probes: site.probes.clone(),
            clock: Arc::new(world.clock.clone()),
            history: history.clone(),
            effects: Arc::default(),
            is_healed: is_healed.clone(),
        }
    }

    fn after(&self, millis: u64) -> Timestamp {
        self.clock.now() + Duration::from_millis(millis)
    }

    async fn pass(&self, millis: u64) {
        self.clock.sleep(Duration::from_millis(millis)).await;
    }

    fn effect(&self) -> String {
        self.effects.fetch_add(1, Ordering::SeqCst).to_string()
    }

    fn ask(&self, instance: &str, effect: &str) -> Pending {
        self.history.ask(What::Effect(format!("{instance}/{effect}")))
    }

    fn ask_set(&self, instance: &str, alarm: &str, effect: &str, due: Timestamp) -> Pending {
        let times = match alarm {
            "again" => (3, 3),
            "holds" => (1, i64::MAX),
            _ => (1, 1),
        };
        let (alarm, effect) = (format!("{instance}/{alarm}"), format!("{instance}/{effect}"));
        self.history.ask(What::Set(Setting { alarm, effect, due, times, alone: None }))
    }

    /// A request that counts and sets an alarm, both or none.
    async fn place(&self, instance: &str, alarm: &'static str, millis: u64) {
        let (counted, effect, due) = (self.effect(), self.effect(), self.after(millis));
        let (asked, set) = (self.ask(instance, &counted), self.ask_set(instance, alarm, &effect, due));
        let place: Do<()> = act(move |_, cx| {
            Box::pin(async move {
                raise(cx, &counted).await?;
                Ok(cx.set_alarm(alarm, due, &effect)?)
            })
        });
        let outcome = outcome(&self.probes.request(instance, place).await);
        asked.told(outcome);
        set.told(outcome);
    }

    async fn set(&self, instance: &str, alarm: &str, millis: u64) {
        let (effect, due) = (self.effect(), self.after(millis));
        let asked = self.ask_set(instance, alarm, &effect, due);
        asked.told(outcome(&self.probes.set_alarm(instance, alarm, due, &effect).await));
    }

    async fn set_if_absent(&self, instance: &str, alarm: &str, millis: u64) {
        let (effect, due) = (self.effect(), self.after(millis));
        let asked = self.ask_set(instance, alarm, &effect, due);
        let answer = self.probes.set_alarm_if_absent(instance, alarm, due, &effect).await;
        asked.told(if matches!(answer, Ok(false)) { Outcome::Not } else { outcome(&answer) });
    }

    async fn cancel(&self, instance: &str, alarm: &str) {
        let asked = self.history.ask(What::Cancel(format!("{instance}/{alarm}")));
        asked.told(outcome(&self.probes.cancel_alarm(instance, alarm).await));
    }

    async fn cancel_inside(&self, instance: &str, alarm: &'static str) {
        let asked = self.history.ask(What::Cancel(format!("{instance}/{alarm}")));
        let cancel: Do<()> = act(move |_, cx| Box::pin(async move { Ok(cx.cancel_alarm(alarm)?) }));
        asked.told(outcome(&self.probes.request(instance, cancel).await));
    }

    async fn fire_now(&self, instance: &str, alarm: &str) {
        let asked = self.history.ask(What::FireNow(format!("{instance}/{alarm}")));
        let answer = self.probes.fire_now(instance, alarm).await;
        asked.told(if matches!(answer, Ok(false)) { Outcome::Not } else { outcome(&answer) });
    }

    async fn count(&self, instance: &str) {
        let effect = self.effect();
        let asked = self.ask(instance, &effect);
        let count: Do<()> = act(move |_, cx| Box::pin(async move { Ok(raise(cx, &effect).await.map(|_| ())?) }));
        asked.told(outcome(&self.probes.request(instance, count).await));
    }

    /// A request that commits in the middle.
    async fn count_halves(&self, instance: &str) {
        let (first, last) = (self.effect(), self.effect());
        let (early, late) = (self.ask(instance, &first), self.ask(instance, &last));
        let whole = format!("{instance}/{first}");
        let halves: Do<()> = act(move |me, cx| {
            let sleep = me.sleep(Duration::from_millis(20));
            Box::pin(async move {
                raise(cx, &first).await?;
                let result = cx.commit().await;
                early.told(match &result {
                    Ok(()) => Outcome::Done,
                    Err(ContextError::Unknown) => Outcome::Unknown,
                    Err(_) => Outcome::Not,
                });
                result?;
                sleep.await;
                raise(cx, &last).await?;
                Ok(())
            })
        });
        let answer = self.probes.request(instance, halves).await;
        if outcome(&answer) == Outcome::Not {
            self.history.denied(&whole);
        }
        late.told(Outcome::of_rest(&answer));
    }

    async fn post(&self, instance: &str, kind: &str) {
        let effect = self.effect();
        let message = format!("{kind}-{effect}");
        let what = What::Post { message: format!("{instance}/{message}"), effect: format!("{instance}/{effect}") };
        let asked = self.history.ask(what);
        let answer = self.probes.post(instance, NewPost::json(&effect).unwrap().id(message)).await;
        asked.told(outcome(&answer));
    }

    /// Starts a task of the instance that counts twice, in turns of its own.
    async fn start_task(&self, instance: &'static str) {
        let effects = [self.effect(), self.effect()];
        let (history, clock) = (self.history.clone(), self.clock.clone());
        let start: Do<()> = act(move |_, cx| {
            let task = cx.spawn::<Probe, _>(move |me| async move {
                for effect in effects {
                    clock.sleep(Duration::from_millis(100)).await;
                    let asked = history.ask(What::Effect(format!("{instance}/{effect}")));
                    let turn = me.turn(move |_, cx| Ok(cx.put(&format!("e/{effect}"), &1)?));
                    asked.told(outcome(&turn.await));
                }
            });
            Box::pin(std::future::ready(task.map_err(Failed::from)))
        });
        let _started = self.probes.request(instance, start).await;
    }

    async fn decide_about_dead(&self, requeue: bool) {
        let Ok(dead) = self.probes.dead_letters(None, 100).await else { return };
        for dead in dead {
            let effect: String = match dead.kind() {
                DeadKind::Alarm(alarm) => alarm.meta().unwrap(),
                DeadKind::Message(message) => message.json().unwrap(),
                _ => continue,
            };
            let effect = format!("{}/{effect}", dead.instance());
            let (asked, answer) = if requeue {
                (self.history.ask(What::Requeue(effect)), self.probes.requeue(&dead).await)
            } else {
                (self.history.ask(What::Discard(effect)), self.probes.discard(&dead).await)
            };
            asked.told(if matches!(answer, Ok(false)) { Outcome::Not } else { outcome(&answer) });
        }
    }
}

type Scenario = fn(Stage) -> BoxFuture<'static, ()>;

const SCENARIOS: [(&str, Scenario); 20] = [
    ("an alarm set by a request", |stage| {
        Box::pin(async move {
            stage.place("a", "plain", 200).await;
            stage.pass(400).await;
        })
    }),
    ("an alarm set from outside", |stage| {
        Box::pin(async move {
            stage.set("a", "plain", 200).await;
            stage.pass(400).await;
        })
    }),
    ("an alarm moved later", |stage| {
        Box::pin(async move {
            stage.place("a", "plain", 200).await;
            stage.place("a", "plain", 500).await;
            stage.pass(700).await;
        })
    }),
    ("an alarm moved earlier", |stage| {
        Box::pin(async move {
            stage.set("a", "plain", 900).await;
            stage.set("a", "plain", 100).await;
            stage.pass(300).await;
        })
    }),
    ("an alarm cancelled by a request", |stage| {
        Box::pin(async move {
            stage.place("a", "plain", 300).await;
            stage.cancel_inside("a", "plain").await;
            stage.pass(500).await;
        })
    }),
    ("an alarm cancelled from outside", |stage| {
        Box::pin(async move {
            stage.set("a", "plain", 300).await;
            stage.cancel("a", "plain").await;
            stage.pass(500).await;
        })
    }),
    ("an alarm cancelled while its handler runs", |stage| {
        Box::pin(async move {
            stage.place("a", "slow", 100).await;
            stage.pass(150).await;
            stage.cancel("a", "slow").await;
            stage.pass(500).await;
        })
    }),
    ("an alarm fired now", |stage| {
        Box::pin(async move {
            stage.set("a", "plain", 60_000).await;
            stage.fire_now("a", "plain").await;
            stage.pass(300).await;
        })
    }),
    ("an alarm set only if it is absent", |stage| {
        Box::pin(async move {
            stage.set_if_absent("a", "plain", 300).await;
            stage.set_if_absent("a", "plain", 100).await;
            stage.pass(400).await;
            stage.set_if_absent("a", "plain", 100).await;
            stage.pass(300).await;
        })
    }),
    ("an alarm that sets itself again", |stage| {
        Box::pin(async move {
            stage.place("a", "again", 100).await;
            stage.pass(1_200).await;
        })
    }),
    ("an alarm whose handler fails twice", |stage| {
        Box::pin(async move {
            stage.place("a", "fails", 100).await;
            stage.pass(1_500).await;
        })
    }),
    ("an alarm given up and requeued", |stage| {
        Box::pin(async move {
            stage.place("a", "doomed", 100).await;
            stage.pass(2_500).await;
            stage.is_healed.store(true, Ordering::SeqCst);
            stage.decide_about_dead(true).await;
            stage.pass(500).await;
        })
    }),
    ("an alarm given up and discarded", |stage| {
        Box::pin(async move {
            stage.place("a", "doomed", 100).await;
            stage.pass(2_500).await;
            stage.decide_about_dead(false).await;
        })
    }),
    ("a handler that commits in the middle", |stage| {
        Box::pin(async move {
            stage.count_halves("a").await;
            stage.set("a", "halves", 100).await;
            stage.pass(400).await;
        })
    }),
    ("an alarm that its handler holds", |stage| {
        Box::pin(async move {
            stage.set("a", "holds", 100).await;
            stage.pass(300).await;
            let _stopped = stage.probes.stop("a").await;
            stage.pass(300).await;
            stage.cancel("a", "holds").await;
        })
    }),
    ("messages to an inbox", |stage| {
        Box::pin(async move {
            stage.post("a", "plain").await;
            stage.post("b", "plain").await;
            stage.pass(300).await;
        })
    }),
    ("a message whose handler fails twice", |stage| {
        Box::pin(async move {
            stage.post("a", "fails").await;
            stage.pass(1_500).await;
        })
    }),
    ("a message given up and requeued", |stage| {
        Box::pin(async move {
            stage.post("a", "doomed").await;
            stage.pass(2_500).await;
            stage.is_healed.store(true, Ordering::SeqCst);
            stage.decide_about_dead(true).await;
            stage.pass(500).await;
        })
    }),
    ("three clients whose commits go together", |stage| {
        Box::pin(async move {
            let one = |instance: &'static str| {
                let stage = stage.clone();
                async move {
                    for _ in 0..3 {
                        stage.count("a").await;
                        stage.place(instance, "plain", 100).await;
                        stage.pass(50).await;
                    }
                }
            };
            tokio::join!(one("a"), one("b"), one("c"));
            stage.pass(300).await;
        })
    }),
    ("a task, a passivation and another life", |stage| {
        Box::pin(async move {
            stage.count("a").await;
            stage.start_task("a").await;
            stage.pass(150).await;
            let passivate: Do<()> = act(|_, cx| {
                cx.passivate();
                Box::pin(std::future::ready(Ok(())))
            });
            let _passivated = stage.probes.request("a", passivate).await;
            stage.count("a").await;
            stage.start_task("a").await;
            stage.pass(400).await;
        })
    }),
];

/// Does with alarms and messages what their name says.
async fn handle(
    cx: &mut Context,
    kind: &str,
    effect: &str,
    attempt: u32,
    is_healed: bool,
    slow: stable_interfaces::clock::Sleep,
) -> Result<i64, Failed> {
    if kind == "slow" {
        slow.await;
    }
    if kind == "halves" {
        // Its handler may run again with this part done.
        if cx.get::<i64>(&format!("e/{effect}")).await?.is_none() {
            raise(cx, effect).await?;
        }
        cx.commit().await?;
        cx.put("after", &effect)?;
        return Ok(1);
    }
    let times = raise(cx, effect).await?;
    let fails = (kind == "fails" && attempt < 2) || kind == "doomed";
    if fails && !is_healed { Err(Failed::Told("not yet")) } else { Ok(times) }
}

fn prepare(world: &World, history: &History, is_healed: &Arc<AtomicBool>, life: &Arc<AtomicU64>) {
    let (of_alarms, healed, life) = (history.clone(), is_healed.clone(), life.clone());
    world.script.on_alarm(move |me, cx, alarm| {
        let effect: String = alarm.meta().unwrap();
        of_alarms.began(Began {
            effect: format!("{}/{effect}", alarm.instance()),
            life: life.load(Ordering::SeqCst),
            at: cx.now(),
            due: alarm.due(),
            attempt: alarm.attempt(),
            is_current: true,
        });
        let (slow, is_healed) = (me.sleep(Duration::from_millis(200)), healed.load(Ordering::SeqCst));
        Box::pin(async move {
            let times = handle(cx, alarm.id(), &effect, alarm.attempt(), is_healed, slow).await?;
            if alarm.id() == "again" && times < 3 {
                cx.set_alarm("again", alarm.due() + Duration::from_millis(300), &effect)?;
            }
            if alarm.id() == "holds" && !is_healed {
                cx.hold_alarm();
            }
            Ok(())
        })
    });
    let healed = is_healed.clone();
    world.script.on_message(move |me, cx, message| {
        let (slow, is_healed) = (me.sleep(Duration::ZERO), healed.load(Ordering::SeqCst));
        Box::pin(async move {
            let effect: String = message.json()?;
            let kind = message.id().split('-').next().unwrap_or_default();
            handle(cx, kind, &effect, message.attempt(), is_healed, slow).await?;
            Ok(())
        })
    });
}

/// The event at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The process ends, and the call never reaches the store.
    Before,
    /// The process ends after the store has done it, and nobody hears the answer.
    After,
    /// The process ends; the call reaches the store when the next process is at work already.
    Late,
    /// The store does it, and says that it is unavailable. The process goes on.
    LostAnswer,
}

fn policy() -> RetryPolicy {
    RetryPolicy::new().first(Duration::from_millis(200)).longest(SECOND).attempts(4)
}

/// Reads what is in the store.
async fn read_end(store: &dyn Store) -> End {
    let mut end = End::default();
    let fleet = Fleet::new(["local"], 1_024).unwrap();
    for instance in INSTANCES {
        let shard = fleet.shard_of(instance).unwrap();
        let name = InstanceName { interface: "probe".into(), instance: instance.into() };
        let read = Read::new(shard, name, ReadRange::Storage("e/".into(), Some("e0".into())), 10_000);
        let ReadRows::Storage(rows) = store.read(&read).await.unwrap().rows else { panic!("storage was asked for") };
        for (key, value) in rows {
            end.effects.insert(format!("{instance}/{}", &key[2..]), serde_json::from_slice(&value).unwrap());
        }
        let effect = |json: &[u8]| format!("{instance}/{}", serde_json::from_slice::<String>(json).unwrap());
        for after in [After::Alarms(None), After::Inbox(None), After::Dead(None)] {
            let loaded = store.load(&[Page::new(shard, after, 10_000)]).await.unwrap();
            let waiting = &mut end.waiting;
            match &loaded[0].rows {
                Rows::Alarms(rows) => waiting.extend(rows.iter().map(|row| effect(&row.meta))),
                Rows::Inbox(rows) => waiting.extend(rows.iter().map(|row| effect(&row.body))),
                Rows::Dead(rows) => waiting.extend(rows.iter().map(|dead| match &dead.row {
                    DeadRow::Alarm(row) => effect(&row.meta),
                    DeadRow::Message(row) => effect(&row.body),
                })),
            }
        }
    }
    end
}

/// Lets a process live until store call `k`, and cuts it there. How many calls there were.
async fn first_life(world: &World, k: u64, cut: Cut, life: impl Future<Output = ()>) -> u64 {
    match cut {
        Cut::Before => world.store.hang_from(k),
        Cut::After => {
            world.store.fail_at(k, Fault::HangAfter);
            world.store.hang_from(k + 1);
        }
        Cut::Late => {
            world.store.fail_at(k, Fault::HangLate(3 * SECOND));
            world.store.hang_from(k + 1);
        }
        Cut::LostAnswer => world.store.fail_at(k, Fault::FailAfter),
    }
    let until = match cut {
        Cut::Before => k,
        Cut::After | Cut::Late => k + 1,
        Cut::LostAnswer => u64::MAX,
    };
    tokio::select! { biased;
        () = async {
            world.store.until_begun(until).await;
            world.settle().await;
        } => {}
        // When it is cut its host is dropped, with whatever it was about to do.
        () = life => {}
    }
    world.pass(2 * SECOND).await;
    let calls = world.store.begun();
    world.store.heal();
    calls
}

/// Plays a scenario, cuts it at store call `k`, goes on with another process and checks the whole. How many calls there were
/// until the end of the first process, and what is wrong.
async fn cut_at(world: &mut World, scenario: Scenario, k: u64, cut: Cut) -> (u64, Vec<Violation>) {
    let (history, is_healed, life) = (History::default(), Arc::new(AtomicBool::new(false)), Arc::default());
    prepare(world, &history, &is_healed, &life);
    world.witness(&history);
    let calls = {
        let world: &World = world;
        let life = async {
            let site = world.launch(world.local(), |probes| probes.retry(policy())).await;
            scenario(Stage::of(world, &site, &history, &is_healed)).await;
            site.host.drain(10 * SECOND).await;
        };
        first_life(world, k, cut, life).await
    };
    if cut != Cut::Late {
        world.reopen().await;
        world.witness(&history);
    }
    is_healed.store(true, Ordering::SeqCst);
    life.store(1, Ordering::SeqCst);
    let mut site = world.launch(world.local(), |probes| probes.retry(policy())).await;
    for _ in 0..4 {
        world.pass(20 * SECOND).await;
        if site.host.health() == Health::Replaced {
            // The late call was the claim of the dead process. Its supervisor starts the living one again.
            assert_eq!(cut, Cut::Late);
            drop(site);
            site = world.launch(world.local(), |probes| probes.retry(policy())).await;
        }
        for instance in INSTANCES {
            let _stopped = site.probes.stop(instance).await;
        }
        Stage::of(world, &site, &history, &is_healed).decide_about_dead(true).await;
    }
    let violations = history.check(&read_end(&world.store).await);
    let drained = site.host.drain(SECOND).await;
    assert!(drained.released, "{drained:?}");
    (calls, violations)
}

/// Cuts some of the scenarios at each `step`th call, one run for each. Says how many runs that were.
async fn cut_everywhere(open: impl Fn() -> World, which: Range<usize>, cuts: &[Cut], step: u64) -> u64 {
    let mut points = 0;
    for (name, scenario) in &SCENARIOS[which] {
        for cut in cuts {
            for k in (0..).map(|i| i * step) {
                let mut world = open();
                let (calls, wrong) = in_time(cut_at(&mut world, *scenario, k, *cut)).await;
                assert!(wrong.is_empty(), "{name}, {cut:?} call {k}: {wrong:#?}");
                if calls <= k {
                    break;
                }
                points += 1;
            }
        }
    }
    points
}

const CUTS: [Cut; 3] = [Cut::Before, Cut::After, Cut::LostAnswer];

#[test]
fn a_cut_at_any_store_call_of_twenty_scenarios_leaves_nothing_lost_doubled_or_half_done() {
    // Two threads, each with a runtime and half of the scenarios.
    let half = |which: Range<usize>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(cut_everywhere(World::in_memory, which, &CUTS, 1))
    };
    let points: u64 = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(0..12));
        half(12..SCENARIOS.len()) + other.join().unwrap()
    });
    println!("{points} points in {} scenarios: a crash before, a crash after, a lost answer at each", SCENARIOS.len());
    assert!(points > 500, "there were only {points}");
}

#[tokio::test(start_paused = true)]
async fn any_store_call_that_arrives_when_the_next_process_is_at_work_changes_nothing() {
    let points = cut_everywhere(World::in_memory, 0..SCENARIOS.len(), &[Cut::Late], 1).await;
    println!("{points} points: a call that arrives late at each");
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_store_call_on_fjall_leaves_nothing_lost_doubled_or_half_done() {
    let every = if std::env::var_os("QUICK").is_some() { 97 } else { 17 };
    let points = cut_everywhere(World::on_fjall, 0..SCENARIOS.len(), &CUTS, every).await;
    println!("{points} points on Fjall");
}
