//! Looking after a fleet without owning anything of it: lists read the store, and changes are directives to the owner.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::store::{Incarnation, InstanceName, NewMessage, Renewal, ShardId};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    ContextError, DeadKind, Directive, Fleet, FleetClient, KeyRange, NewPost, Posted, RequestError, RetryPolicy, Store,
};
use system_tests::{Failed, Site, World, on_each_store, put, wait};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);

fn fleet() -> Fleet {
    Fleet::new(["zero", "one"], 64).unwrap()
}

fn id_of(host: &str) -> String {
    let fleet = fleet();
    (0..).map(|i| format!("id-{i}")).find(|id| fleet.locate(id).unwrap().host == host).unwrap()
}

async fn start(world: &World, host: &str) -> Site {
    let retry = RetryPolicy::new().attempts(1);
    world.launch(world.member(host, &fleet()).lease(LEASE), |probes| probes.retry(retry)).await
}

fn outside(world: &World) -> FleetClient {
    FleetClient::new(Arc::new(world.store.clone()), fleet()).clock(Arc::new(world.clock.clone()))
}

on_each_store! {
    async fn alarms_are_set_moved_fired_and_cancelled_by_who_does_not_own_them(world: World) {
        let (zero, one) = (start(&world, "zero").await, start(&world, "one").await);
        let (id, outside) = (id_of("one"), outside(&world));
        let set = |at: i64, meta: &str| Directive::set_alarm("a", world.at(at), &meta).unwrap();
        assert!(matches!(
            zero.probes.set_alarm(&id, "a", world.at(0), &()).await,
            Err(RequestError::NotOwner { .. })
        ));
        assert_eq!(zero.probes.direct(&id, set(3_600_000, "hour").id("first")).await.unwrap(), Posted::Inserted);
        world.pass(SECOND).await;
        assert_eq!(outside.direct("probe", &id, set(7_200_000, "two")).await.unwrap(), Posted::Inserted);
        world.pass(SECOND).await;
        let found = outside.alarms("probe", &id).await.unwrap();
        assert_eq!(found, one.probes.alarms(&id).await.unwrap());
        assert_eq!((found.len(), found[0].meta::<String>().unwrap(), found[0].due()), (1, "two".into(), world.at(7_200_000)));
        assert_eq!(world.script.lives(), 0, "nobody had to be built for it");

        outside.direct("probe", &id, Directive::fire_now("a").unwrap()).await.unwrap();
        outside.direct("probe", &id, Directive::fire_now("none such").unwrap()).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(world.script.fired_ids(), ["a"]);
        outside.direct("probe", &id, set(9_000_000, "again")).await.unwrap();
        // Of two in one millisecond either may be first.
        world.settle().await;
        outside.direct("probe", &id, Directive::cancel_alarm("a").unwrap()).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(outside.alarms("probe", &id).await.unwrap(), []);
        assert_eq!(world.script.taken_ids(), Vec::<String>::new(), "no directive was handed out as a message");
    }
}

on_each_store! {
    async fn directives_wait_for_a_host_and_a_crash_of_it_and_are_carried_out_once(world: World) {
        let (id, outside) = (id_of("zero"), outside(&world));
        // What it does is seen by what it undoes: requeued twice there would be two.
        let site = start(&world, "zero").await;
        world.script.on_alarm(|_, _, _| Box::pin(async { Err(Failed::Told("always")) }));
        site.probes.set_alarm(&id, "a", world.at(0), &()).await.unwrap();
        world.pass(SECOND).await;
        let dead = outside.dead_letters("probe", None, 10).await.unwrap();
        assert_eq!((dead.len(), dead[0].id(), dead[0].reason()), (1, "a", "always"));
        site.host.crash();
        assert_eq!(outside.direct("probe", &id, Directive::requeue(&dead[0]).id("r")).await.unwrap(), Posted::Inserted);
        assert_eq!(outside.direct("probe", &id, Directive::requeue(&dead[0]).id("r")).await.unwrap(), Posted::Duplicate);
        assert_eq!(outside.inbox("probe", &id).await.unwrap(), [], "it is not a message");
        world.script.on_alarm(|_, _, _| Box::pin(async { Ok(()) }));
        // It is carried out and the host dies before it hears of that.
        world.store.fail_next(Method::Commit, Fault::FailAfter);
        let site = start(&world, "zero").await;
        world.pass(10 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["a", "a"]);
        assert_eq!(outside.dead_letters("probe", None, 10).await.unwrap(), []);
        // A second of the same finds nothing to do.
        site.probes.direct(&id, Directive::requeue(&dead[0])).await.unwrap();
        site.probes.direct(&id, Directive::discard(&dead[0])).await.unwrap();
        world.pass(10 * SECOND).await;
        assert_eq!(world.script.fired_ids(), ["a", "a"]);
        assert_eq!(outside.dead_letters("probe", None, 10).await.unwrap(), []);
    }
}

on_each_store! {
    async fn dead_letters_of_all_hosts_are_listed_brought_back_and_discarded(world: World) {
        let (_zero, _one) = (start(&world, "zero").await, start(&world, "one").await);
        let outside = outside(&world);
        world.script.on_message(|_, _, _| Box::pin(async { Err(Failed::Told("always")) }));
        for host in ["zero", "one"] {
            for n in 0..2 {
                let message = NewPost::new("body").id(format!("{host}-{n}"));
                outside.post("probe", &id_of(host), message).await.unwrap();
                world.pass(SECOND).await;
            }
        }
        let dead = outside.dead_letters("probe", None, 10).await.unwrap();
        let ids: Vec<_> = dead.iter().map(|dead| dead.id().to_owned()).collect();
        assert_eq!(ids, ["zero-0", "zero-1", "one-0", "one-1"], "oldest first");
        let page = outside.dead_letters("probe", Some(&dead[0]), 2).await.unwrap();
        assert_eq!(page, dead[1..3]);
        world.script.on_message(|_, _, _| Box::pin(async { Ok(()) }));
        outside.direct("probe", dead[0].instance(), Directive::requeue(&dead[0])).await.unwrap();
        outside.direct("probe", dead[3].instance(), Directive::discard(&dead[3])).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(outside.dead_letters("probe", None, 10).await.unwrap(), dead[1..3]);
        assert_eq!(world.script.taken_ids().last().unwrap(), "zero-0");
    }
}

on_each_store! {
    async fn a_directive_nobody_understands_is_kept_as_a_dead_letter(world: World) {
        let site = start(&world, "zero").await;
        let (id, outside) = (id_of("zero"), outside(&world));
        let name = InstanceName { interface: "probe!".into(), instance: id.as_str().into() };
        let headers = vec![("do".to_owned(), "what-a-later-version-can".to_owned())];
        let shard = fleet().shard_of(&id).unwrap();
        let newer = NewMessage { shard, name, id: "d".into(), headers, body: "x".into() };
        world.store.post(&[newer]).await.unwrap();
        world.pass(20 * SECOND).await;
        let dead = outside.dead_letters("probe", None, 10).await.unwrap();
        assert!(matches!(dead[0].kind(), DeadKind::Directive(message) if message.id() == "d"), "{dead:?}");
        assert!(dead[0].reason().contains("what-a-later-version-can"), "{dead:?}");
        assert!(site.probes.discard(&dead[0]).await.unwrap());
        assert_eq!(site.probes.dead_letters(None, 10).await.unwrap(), []);
    }
}

on_each_store! {
    async fn no_message_can_pass_for_a_directive(world: World) {
        let site = start(&world, "zero").await;
        let (id, outside) = (id_of("zero"), outside(&world));
        let forged = NewPost::new("null").header("do", "set-alarm").header("alarm", "a").header("at", "0").id("forged");
        site.probes.post(&id, forged.clone()).await.unwrap();
        assert!(matches!(outside.post("probe!", &id, forged).await, Err(ContextError::InvalidId { .. })));
        world.pass(SECOND).await;
        assert_eq!(world.script.taken_ids(), ["forged"], "it is a message like any other");
        assert_eq!(outside.alarms("probe", &id).await.unwrap(), []);
    }
}

on_each_store! {
    async fn a_message_in_a_shard_that_is_not_its_instances_is_left_alone(world: World) {
        let site = start(&world, "zero").await;
        let id = id_of("zero");
        let own = fleet().shard_of(&id).unwrap();
        let other = site.host.shards().into_iter().find(|shard| *shard != own).unwrap();
        let post = async |shard: ShardId, message: &str| {
            let name = InstanceName { interface: "probe".into(), instance: id.as_str().into() };
            let message = NewMessage { shard, name, id: message.into(), headers: vec![], body: "x".into() };
            world.store.post(&[message]).await.unwrap();
        };
        post(other, "lost its way").await;
        post(own, "at home").await;
        world.pass(60 * SECOND).await;
        assert_eq!(world.script.taken_ids(), ["at home"]);
        assert!(world.store.renew(&Renewal::new(Incarnation(1), LEASE)).await.is_err(), "nobody else owns it");
    }
}

on_each_store! {
    async fn a_directive_takes_its_turn_behind_a_handler_that_runs(world: World) {
        let site = start(&world, "zero").await;
        let id = id_of("zero");
        let busy = system_tests::spawn(&site.probes, &id, wait(5 * SECOND));
        world.settle().await;
        site.probes.direct(&id, Directive::set_alarm("a", world.at(0), &()).unwrap()).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(world.script.fired_ids(), Vec::<String>::new());
        busy.await.unwrap().unwrap();
        world.pass(SECOND).await;
        assert_eq!(world.script.fired_ids(), ["a"]);
    }
}

on_each_store! {
    async fn what_an_interface_was_registered_without_is_refused_to_who_posts_sets_or_requeues_it(world: World) {
        let (id, outside) = (id_of("zero"), outside(&world));
        let site = start(&world, "zero").await;
        world.script.on_alarm(|_, _, _| Box::pin(async { Err(Failed::Told("always")) }));
        world.script.on_message(|_, _, _| Box::pin(async { Err(Failed::Told("always")) }));
        site.probes.set_alarm(&id, "dead", world.at(0), &()).await.unwrap();
        site.probes.post(&id, NewPost::new("body")).await.unwrap();
        site.probes.set_alarm(&id, "later", world.at(3_600_000), &()).await.unwrap();
        world.pass(SECOND).await;
        let dead = site.probes.dead_letters(None, 10).await.unwrap();
        assert_eq!(dead.len(), 2);
        let is_message = |kind: DeadKind| matches!(kind, DeadKind::Message(_));
        let (message, alarm) = if is_message(dead[0].kind()) { (&dead[0], &dead[1]) } else { (&dead[1], &dead[0]) };
        drop(site);

        // The same program, except that somebody has forgotten two lines.
        let mut builder = world.member("zero", &fleet()).lease(LEASE);
        let retry = RetryPolicy::new().attempts(1);
        let bare = builder.interface(world.factory()).retry(retry).register().unwrap();
        let _host = builder.start().await.unwrap();
        let set = || Directive::set_alarm("a", world.at(0), &()).unwrap();
        for (what, refused) in [
            ("inbox", bare.post(&id, NewPost::new("m")).await.map(drop)),
            ("inbox", bare.direct(&id, Directive::requeue(message)).await.map(drop)),
            ("inbox", bare.requeue(message).await.map(drop)),
            ("alarms", bare.set_alarm(&id, "a", world.at(0), &()).await),
            ("alarms", bare.set_alarm_if_absent(&id, "a", world.at(0), &()).await.map(drop)),
            ("alarms", bare.fire_now(&id, "later").await.map(drop)),
            ("alarms", bare.requeue(alarm).await.map(drop)),
            ("alarms", bare.direct(&id, set()).await.map(drop)),
            ("alarms", bare.direct(&id, Directive::fire_now("later").unwrap()).await.map(drop)),
            ("alarms", bare.direct(&id, Directive::requeue(alarm)).await.map(drop)),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, RequestError::Unhandled(_)) && !error.is_retryable(), "{error}");
            assert!(error.to_string().ends_with(&format!(": \"probe\" was registered without `with_{what}()`")), "{error}");
        }
        world.pass(SECOND).await;
        assert_eq!(outside.inbox("probe", &id).await.unwrap(), [], "nothing lies there for nobody");
        assert_eq!(outside.alarms("probe", &id).await.unwrap().len(), 1);

        // Who has no handle cannot know: the owner says it.
        outside.direct("probe", &id, set().id("blind")).await.unwrap();
        world.pass(SECOND).await;
        let dead = bare.dead_letters(None, 10).await.unwrap();
        let blind = dead.iter().find(|dead| dead.id() == "blind").unwrap();
        assert!(blind.reason().contains("`with_alarms()`"), "{}", blind.reason());

        // What lies there from before can be cleared away.
        bare.direct(&id, Directive::cancel_alarm("later").unwrap()).await.unwrap();
        for dead in &dead {
            bare.direct(&id, Directive::discard(dead)).await.unwrap();
        }
        world.pass(SECOND).await;
        assert_eq!(outside.alarms("probe", &id).await.unwrap(), []);
        assert_eq!(outside.dead_letters("probe", None, 10).await.unwrap(), []);
    }
}

on_each_store! {
    async fn what_is_stored_of_an_instance_is_read_by_who_does_not_own_it(world: World) {
        let (zero, one) = (start(&world, "zero").await, start(&world, "one").await);
        let (id, outside) = (id_of("one"), outside(&world));
        for key in ["a/1", "a/2", "a/3", "b"] {
            one.probes.request(&id, put(key, 7)).await.unwrap();
        }
        for range in [KeyRange::all(), KeyRange::prefix("a/"), KeyRange::from("a/").limit(2), KeyRange::from("a/2".."c")] {
            let read = zero.probes.stored(&id, range.clone()).await.unwrap();
            assert_eq!(outside.stored("probe", &id, range.clone()).await.unwrap(), read);
            let keys: Vec<_> = read.iter().map(|(key, _)| &**key).collect();
            let all = ["a/1", "a/2", "a/3", "b"];
            let expected = match range {
                range if range == KeyRange::all() => &all[..],
                range if range == KeyRange::prefix("a/") => &all[..3],
                range if range == KeyRange::prefix("a/").limit(2) => &all[..2],
                _ => &all[1..],
            };
            assert_eq!(keys, expected);
        }
        assert_eq!(outside.stored("other", &id, KeyRange::all()).await.unwrap(), []);
        assert!(matches!(zero.probes.stored("", KeyRange::all()).await, Err(RequestError::InvalidId { .. })));
        assert!(!zero.probes.is_running(&id));
    }
}

on_each_store! {
    async fn all_alarms_of_an_interface_are_read_page_by_page(world: World) {
        let (zero, one) = (start(&world, "zero").await, start(&world, "one").await);
        let mut expected = Vec::new();
        for n in 0..25 {
            let id = format!("id-{n}");
            let site = if zero.host.owns(&id).unwrap() { &zero } else { &one };
            site.probes.set_alarm(&id, "a", world.at(3_600_000 + n), &()).await.unwrap();
            site.probes.set_alarm(&id, "b", world.at(3_600_000 - n), &()).await.unwrap();
            expected.extend([(id.clone(), "a".to_owned()), (id, "b".to_owned())]);
        }
        // And one shard with many.
        let site = if zero.host.owns("id-7").unwrap() { &zero } else { &one };
        for n in 0..40 {
            site.probes.set_alarm("id-7", &format!("c-{n}"), world.at(3_600_000), &()).await.unwrap();
            expected.push(("id-7".to_owned(), format!("c-{n}")));
        }
        let outside = outside(&world);
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = outside.all_alarms("probe", after.as_ref(), 7).await.unwrap();
            found.extend(page.iter().map(|alarm| (alarm.instance().to_owned(), alarm.id().to_owned())));
            after = page.last().cloned();
            if page.len() < 7 {
                break;
            }
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(zero.probes.all_alarms(None, 100).await.unwrap().len(), 90, "from any host");
        assert!(outside.all_alarms("other", None, 10).await.unwrap().is_empty());
        // Each host has its own part of them, page by page too.
        let mut parts = Vec::new();
        for site in [&zero, &one] {
            let mut after = None;
            loop {
                let page = site.probes.own_alarms(after.as_ref(), 7).await.unwrap();
                assert!(page.iter().all(|alarm| site.host.owns(alarm.instance()).unwrap()));
                parts.extend(page.iter().map(|alarm| (alarm.instance().to_owned(), alarm.id().to_owned())));
                after = page.last().cloned();
                if page.len() < 7 {
                    break;
                }
            }
        }
        parts.sort();
        assert_eq!(parts, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn shards_with_few_alarms_are_listed_many_at_a_time() {
    let world = World::in_memory();
    let site = world.start().await;
    for n in 0..10 {
        site.probes.set_alarm(&n.to_string(), "a", world.at(3_600_000), &()).await.unwrap();
    }
    world.settle().await;
    let before = world.store.calls(Method::Load);
    assert_eq!(site.probes.all_alarms(None, 100).await.unwrap().len(), 10);
    let calls = world.store.calls(Method::Load) - before;
    assert!(calls <= 32, "{calls} calls for 1,024 shards");
    site.host.drain(Duration::from_secs(1)).await;
}
