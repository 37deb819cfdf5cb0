//! Streams and waits through one door, while the flow that they are about changes hosts.

use std::sync::Arc;
use std::time::Duration;

use callback_flows::{Flow, Started};
use futures_util::future::join;
use parking_lot::Mutex;
use serde_json::{Value, json};
use stable_interfaces::{ContextError, Fleet, FleetClient, Host, StableInterface};

use crate::app::{App, Door, SECOND, Seen, Telling, World};

/// So soon there is word of what happens on another host; no look by the clock is so soon.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A host of a live fleet.
async fn start(world: &World, name: &str) -> App {
    world.start(world.live(name).settle(2 * SECOND), world.builder()).await
}

/// An ID under which this host owns the flow of that name.
fn id_at(host: &Host, flow: &str) -> String {
    (0..).map(|n: u32| n.to_string()).find(|id| host.owns(&format!("{flow}/{id}")).unwrap()).unwrap()
}

async fn cordon(world: &World, host: &str, is_cordoned: bool) {
    let client = FleetClient::new(Arc::new(world.store.clone()), Fleet::live(64).unwrap());
    assert!(client.clock(Arc::new(world.clock.clone())).cordon(host, is_cordoned).await.unwrap());
}

/// Steps as they were begun, each with its host.
type Begun = Arc<Mutex<Vec<String>>>;

/// A host of a live fleet with a flow of two steps, of 10 s and of 1 s, which hands shards over after so long.
async fn start_stepping(world: &World, name: &str, begun: &Begun, handoff_timeout: Duration) -> App {
    let (begun, host) = (begun.clone(), name.to_owned());
    let flows = world.builder().flow("steps", 1, move |flow: Flow, _: Value| {
        let (begun, host) = (begun.clone(), host.clone());
        async move {
            for (name, seconds) in [("first", 10), ("second", 1)] {
                let (begun, host) = (begun.clone(), host.clone());
                let step = flow.step(name).run(move |_| {
                    begun.lock().push(format!("{name} on {host}"));
                    async move {
                        tokio::time::sleep(seconds * SECOND).await;
                        Ok::<_, std::io::Error>(())
                    }
                });
                step.await?;
            }
            Ok(())
        }
    });
    world.start(world.live(name).settle(2 * SECOND).handoff_timeout(handoff_timeout), flows).await
}

/// Two such hosts, `a` and `b`, with the ID of a flow that `a` owns and that was begun through `b`.
async fn begin_stepping(seen: &Seen, world: &World, begun: &Begun, handoff_timeout: Duration) -> (App, App, String) {
    let start = |name| start_stepping(world, name, begun, handoff_timeout);
    let (a, b) = join(start("a"), start("b")).await;
    tokio::time::sleep(3 * SECOND).await;
    let id = id_at(&a.host, "steps");
    b.ask(seen, "PUT", &format!("/flows/steps/{id}")).json(Value::Null).await.is(202);
    (a, b, id)
}

#[tokio::test(start_paused = true)]
async fn a_stream_through_another_door_misses_nothing_when_the_flow_moves_and_when_its_owner_dies() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let id = id_at(&a.host, "telling");
    let telling = serde_json::to_value(Telling { events: 120, bytes: 1, fails: false }).unwrap();
    door.ask(&seen, "PUT", &format!("/flows/telling/{id}")).json(telling).await.is(202);
    let mut stream = door.ask(&seen, "GET", &format!("/flows/telling/{id}/events")).listen().await;
    let b = start(&world, "b").await;
    let (mut sequence, mut longest) = (Vec::new(), Duration::ZERO);
    let mut last = tokio::time::Instant::now();
    let mut hosts = vec![a, b];
    while let Some(event) = stream.next().await {
        longest = longest.max(last.elapsed());
        last = tokio::time::Instant::now();
        sequence.push(event.id.parse::<u32>().unwrap());
        match sequence.len() {
            20 => {
                cordon(&world, "door", true).await;
                cordon(&world, "a", true).await;
            }
            60 => {
                assert!(hosts[1].host.owns(&format!("telling/{id}")).unwrap(), "it has moved");
                assert!(longest < SECOND + 2 * AT_ONCE, "the longest silence was {longest:?}");
                hosts.pop().unwrap().host.crash();
            }
            _ => {}
        }
    }
    assert_eq!(sequence, (1..=121).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn who_waits_or_listens_through_another_door_hears_at_once() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let id = id_at(&a.host, "order");
    door.put(&seen, &id).await.is(202);
    let mut stream = door.ask(&seen, "GET", &format!("/flows/order/{id}/events")).listen().await;
    let mut all = door.ask(&seen, "GET", "/flows/events").listen().await;
    let path = format!("/flows/order/{id}");
    let wait = door.ask(&seen, "GET", &path).header("prefer", "wait=30").send();
    let say = async {
        // Between two looks by the clock, and longer than one question waits.
        tokio::time::sleep(25 * SECOND + SECOND / 3).await;
        assert_eq!(a.flows.get("order", &id).await.unwrap().unwrap().entries, 1);
        a.say(&seen, &id, "fine").await.is(202);
        tokio::time::Instant::now()
    };
    let (waited, said, ended, of_all) = tokio::join!(
        async { (wait.await, tokio::time::Instant::now()) },
        say,
        async { (stream.next().await, tokio::time::Instant::now()) },
        async { (all.next().await, tokio::time::Instant::now()) },
    );
    assert_eq!(waited.0.is(200).json()["result"], "fine");
    assert_eq!((ended.0.unwrap().name, of_all.0.unwrap().name), ("succeeded".to_owned(), "succeeded".to_owned()));
    for heard in [waited.1, ended.1, of_all.1] {
        assert!(heard - said < AT_ONCE, "after {:?}", heard - said);
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_just_after_a_long_silence_is_heard_at_once() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let ids = (0..).map(|n: u32| n.to_string()).filter(|id| a.host.owns(&format!("order/{id}")).unwrap());
    let ids: Vec<_> = ids.take(2).collect();
    for id in &ids {
        door.put(&seen, id).await.is(202);
    }
    let mut all = door.ask(&seen, "GET", "/flows/events").listen().await;
    // The first word comes between two looks by the clock, and with it the question that 20 s of silence end.
    for (id, silence) in ids.iter().zip([SECOND / 2, 20 * SECOND + SECOND / 10]) {
        tokio::time::sleep(silence).await;
        let began = tokio::time::Instant::now();
        let (heard, said) = join(all.next(), a.say(&seen, id, "fine")).await;
        said.is(202);
        assert_eq!(heard.unwrap().name, "succeeded");
        assert!(began.elapsed() < AT_ONCE, "after {silence:?} of silence, {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_all_flows_are_heard_once_from_every_host_also_from_one_that_joins_or_starts_anew() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let mut all = door.ask(&seen, "GET", "/flows/events?only=started").listen().await;
    let mut told = async |door: &App, id: &str| {
        door.ask(&seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": id })).await.is(202);
        let event = all.next().await.unwrap();
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(data["id"], id);
    };
    let ids = |app: &App, of: &str| {
        let owned = (0..).map(|n: u32| format!("{of}-{n}")).filter(|id| app.host.owns(&format!("order/{id}")).unwrap());
        owned.take(3).collect::<Vec<_>>()
    };
    for id in [ids(&a, "a"), ids(&door, "door")].concat() {
        told(&door, &id).await;
    }
    // One that joins, and is asked within a second.
    let b = start(&world, "b").await;
    tokio::time::sleep(5 * SECOND).await;
    for id in ids(&b, "b") {
        told(&a, &id).await;
    }
    b.host.crash();
    let b = start(&world, "b").await;
    for id in ids(&b, "again") {
        told(&b, &id).await;
    }
    // Cut off for a while, nothing of it is lost.
    world.cut("door", "b", true);
    tokio::time::sleep(3 * SECOND).await;
    let id = ids(&b, "behind").remove(0);
    b.ask(&seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": id })).await.is(202);
    tokio::time::sleep(3 * SECOND).await;
    world.cut("door", "b", false);
    let event = all.next().await.unwrap();
    assert!(event.data.contains(&id), "{event:?}");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_runs_while_its_flow_is_handed_over_ends_there_and_the_next_one_begins_at_the_next_owner() {
    let seen = Seen::at(Door::Wrong);
    let (world, begun) = (seen.world(), Begun::default());
    let (a, b, id) = begin_stepping(&seen, &world, &begun, 30 * SECOND).await;
    let path = format!("/flows/steps/{id}");
    tokio::time::sleep(3 * SECOND).await;
    cordon(&world, "a", true).await;
    tokio::time::sleep(3 * SECOND).await;
    assert!(a.host.owns(&format!("steps/{id}")).unwrap(), "it waits for the step");
    let ended = b.ask(&seen, "GET", &path).header("prefer", "wait=30").send().await.is(200).json();
    assert_eq!((ended["status"].as_str(), b.host.owns(&format!("steps/{id}")).unwrap()), (Some("succeeded"), true));
    assert_eq!(*begun.lock(), ["first on a", "second on b"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_cut_off_by_handoffs_has_ended_no_process_and_is_recorded_once() {
    let seen = Seen::at(Door::Wrong);
    let (world, begun) = (seen.world(), Begun::default());
    let (a, b, id) = begin_stepping(&seen, &world, &begun, 2 * SECOND).await;
    let path = format!("/flows/steps/{id}");
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")] {
        tokio::time::sleep(2 * SECOND).await;
        cordon(&world, to, false).await;
        cordon(&world, from, true).await;
        tokio::time::sleep(4 * SECOND).await;
        let owner = if to == "a" { &a } else { &b };
        assert!(owner.host.owns(&format!("steps/{id}")).unwrap(), "{to} has it");
    }
    let ended = b.ask(&seen, "GET", &path).header("prefer", "wait=30").send().await.is(200).json();
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(*begun.lock(), ["first on a", "first on b", "first on a", "first on b", "first on a", "second on a"]);
}

/// A host of a release that lets nothing of a flow cross.
struct Older;

impl StableInterface for Older {
    const NAME: &'static str = "flow";
    type Error = ContextError;
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_of_an_older_release_does_not_take_is_stored_for_it() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let mut older = world.live("older").clock(Arc::new(world.clock.clone()));
    drop(older.interface(|_| Older).register().unwrap());
    let (older, door) = join(older.start(), start(&world, "door")).await;
    let older = older.unwrap();
    let id = id_at(&older, "order");
    let began = tokio::time::Instant::now();
    assert_eq!(door.flows.start("order", &id, &json!({ "id": id })).await.unwrap(), Started::Posted);
    assert!(began.elapsed() < AT_ONCE);
    older.crash();
    let ended = door.ask(&seen, "GET", &format!("/flows/order/{id}/events"));
    tokio::time::sleep(20 * SECOND).await;
    door.say(&seen, &id, "fine").await.is(202);
    assert_eq!(ended.listen().await.next().await.unwrap().name, "succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_taken_and_whose_answer_is_lost_counts_once_and_one_that_finds_nobody_counts_when_it_came() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let name =
        (0..).map(|n: u32| format!("any-{n}")).find(|name| a.host.owns(&format!("hook/{name}")).unwrap()).unwrap();
    let url = door.hook(&seen, &name).await;
    let told = async || a.flows.get("hook", &name).await.unwrap().unwrap().progress;
    for (number, lost) in ["request", "answer", "nothing", "all"].into_iter().enumerate() {
        match lost {
            "request" => world.network.lose_requests("door", "a", 1),
            "answer" => world.network.lose_answers("a", "door", 1),
            "all" => world.cut("door", "a", true),
            _ => {}
        }
        let began = tokio::time::Instant::now();
        // Without an ID each call counts.
        door.ask(&seen, "POST", &url).body("\"again\"").send().await.is(202);
        let longest = if matches!(lost, "request" | "answer") { 2 * SECOND } else { Duration::ZERO };
        assert!(began.elapsed() < longest + AT_ONCE, "{lost}: after {:?}", began.elapsed());
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(told().await.unwrap().as_array().unwrap().len(), number + 1, "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_others_listen_to_drains_at_once_and_they_go_on_listening() {
    let seen = Seen::at(Door::Wrong);
    let world = seen.world();
    let (door, a) = join(start(&world, "door"), start(&world, "a")).await;
    let id = id_at(&a.host, "order");
    door.put(&seen, &id).await.is(202);
    let mut stream = door.ask(&seen, "GET", &format!("/flows/order/{id}/events")).listen().await;
    let mut all = door.ask(&seen, "GET", "/flows/events").listen().await;
    let listening = async { (stream.next().await.unwrap(), all.next().await.unwrap()) };
    let (heard, ()) = join(listening, async {
        tokio::time::sleep(3 * SECOND).await;
        let began = tokio::time::Instant::now();
        a.host.drain(20 * SECOND).await;
        assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
        tokio::time::sleep(3 * SECOND).await;
        door.say(&seen, &id, "fine").await.is(202);
    })
    .await;
    assert_eq!((&*heard.0.name, &*heard.1.name), ("succeeded", "succeeded"));
}
