//! Each operation in each situation of a flow and of its host, asked of its owner and of another host; and what goes on meanwhile.

use std::collections::BTreeSet;

use axum::body::to_bytes;
use serde_json::{Value, json};

use crate::app::{Answer, App, Asked, Door, RETENTION, SECOND, SIGNATURE, Seen, Telling, Told, World, fleet, owned_by};

/// The operations of the columns below.
const OPERATIONS: [&str; 10] =
    ["put", "put other", "post", "post other", "get", "wait", "follow", "events", "delete", "call"];

/// One of them, on the order of this ID.
fn ask<'a>(app: &'a App, seen: &'a Seen, operation: &str, id: &str, url: &str) -> Asked<'a> {
    let path = format!("/flows/order/{id}");
    let input = json!({ "id": if operation.ends_with("other") { "x" } else { id } }).to_string();
    let start = |asked: Asked<'a>| asked.header("content-type", "application/json").body(input.clone());
    match operation {
        "put" | "put other" => start(app.ask(seen, "PUT", &path)),
        "post" | "post other" => start(app.ask(seen, "POST", "/flows/order").header("idempotency-key", id)),
        "get" => app.ask(seen, "GET", &path),
        "wait" => app.ask(seen, "GET", &path).header("prefer", "wait=1"),
        "follow" => app.ask(seen, "GET", &format!("{path}?follow=1")),
        "events" => app.ask(seen, "GET", &format!("{path}/events")),
        "delete" => app.ask(seen, "DELETE", &path),
        "call" => app.ask(seen, "POST", url).body("\"fine\""),
        _ => unreachable!("it is none of them"),
    }
}

/// The status of an answer, and the type of problem that it is. A stream need not end.
async fn shown(asked: Asked<'_>) -> String {
    let (status, headers, body) = asked.open().await;
    if status < 400 {
        assert!(status != 202 || !headers.contains_key("location") || headers.contains_key("retry-after"));
        return status.to_string();
    }
    let body = to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let problem = Answer { status, headers, body }.is_a_problem();
    format!("{status} {}", problem["type"].as_str().unwrap().rsplit('#').next().unwrap())
}

/// An order of its own for each operation, which this host owns.
fn orders() -> Vec<String> {
    (0..).map(|salt| owned_by("one", salt)).take(OPERATIONS.len()).collect()
}

/// An ID of a flow with a long step, which that host owns.
fn stepping() -> String {
    let mut ids = (0..).map(|n: u32| n.to_string());
    ids.find(|id| fleet().locate(&format!("stepping/{id}")).unwrap().host == "one").unwrap()
}

/// Two hosts of which `one` has started orders.
async fn fleet_with(seen: &Seen, orders: &[String]) -> (World, App, App) {
    let world = seen.world();
    let (zero, one) = (world.member("zero").await, world.member("one").await);
    for id in orders {
        one.put(seen, id).await.is(202);
    }
    (world, zero, one)
}

/// The answers of a host, in the order of the operations.
async fn answers(app: &App, seen: &Seen, orders: &[String]) -> Vec<String> {
    let mut answers = Vec::new();
    for (operation, id) in OPERATIONS.iter().zip(orders) {
        answers.push(shown(ask(app, seen, operation, id, &app.world.url(id))).await);
    }
    answers
}

/// Answers in a situation that are not as they should be.
fn differing(situation: &str, asked_of: &str, answered: &[String], expected: &str) -> Vec<String> {
    let expected: Vec<&str> = expected.split(" | ").collect();
    assert_eq!(expected.len(), OPERATIONS.len(), "{expected:?}");
    let columns = OPERATIONS.iter().zip(answered).zip(expected);
    let differing = columns.filter(|((_, answered), expected)| answered != expected);
    differing.map(|((what, was), is)| format!("{situation}, {asked_of}: {what} gave {was} and not {is}")).collect()
}

rows! {
    async fn each_operation_is_answered_in_each_situation_on_the_owner_and_on_another_host(seen: &Seen) {
        const HELD: &str = "202 | 409 conflict | 202 | 422 key-reused | 200 | 200 | 200 | 200 | 202 | 202";
        const AWAY: &str = "503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable | 503 unavailable";
        const OVER: &str = "202 | 409 conflict | 202 | 422 key-reused | 200 | 200 | 200 | 200 | 409 over | 410 closed";
        const PURGED: &str = "410 purged | 409 conflict | 410 purged | 422 key-reused | 410 purged | 410 purged | 410 purged | 410 purged | 410 purged | 410 closed";
        // What the owner has in memory it answers from there.
        const FROM_MEMORY: &str = "202 | 503 unavailable | 202 | 503 unavailable | 200 | 200 | 200 | 503 unavailable | 503 unavailable | 503 unavailable";
        let mut wrong = Vec::new();
        for (situation, asked_of, expected) in [
            ("going", "owner", HELD),
            ("going", "other", HELD),
            ("over", "owner", OVER),
            ("over", "other", OVER),
            ("purged", "owner", PURGED),
            ("purged", "other", PURGED),
            ("draining", "owner", HELD),
            ("draining", "other", HELD),
            ("owner away", "other", HELD),
            ("store down", "owner", FROM_MEMORY),
            ("store down", "other", if seen.door == Door::Wrong { FROM_MEMORY } else { AWAY }),
        ] {
            let orders = orders();
            let (world, zero, one) = fleet_with(seen, &orders).await;
            if situation == "over" || situation == "purged" {
                for id in &orders {
                    one.say(seen, id, "done").await.is(202);
                }
                tokio::time::sleep(if situation == "over" { SECOND } else { RETENTION + 5 * SECOND }).await;
            }
            world.store.set_down(situation == "store down");
            let answered = match situation {
                "owner away" => {
                    one.host.crash();
                    answers(&zero, seen, &orders).await
                }
                "draining" => {
                    one.ask(seen, "PUT", &format!("/flows/stepping/{}", stepping())).json(Value::Null).await.is(202);
                    one.settle().await;
                    let app = if asked_of == "owner" { &one } else { &zero };
                    // Held by the step, it drains for as long as the answers take.
                    tokio::join!(one.host.drain(20 * SECOND), answers(app, seen, &orders)).1
                }
                _ => answers(if asked_of == "owner" { &one } else { &zero }, seen, &orders).await,
            };
            wrong.extend(differing(situation, asked_of, &answered, expected));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    async fn what_was_never_started_is_not_found_on_any_host(seen: &Seen) {
        let (_world, zero, one) = fleet_with(seen, &[]).await;
        let id = &*owned_by("one", 1);
        for app in [&zero, &one] {
            for operation in ["get", "wait", "follow", "events"] {
                let answer = ask(app, seen, operation, id, "").send().await;
                answer.is_problem(404, "not-found");
            }
        }
        ask(&one, seen, "delete", id, "").send().await.is_problem(404, "not-found");
        let delete = ask(&zero, seen, "delete", id, "").send().await;
        match seen.door {
            // Its start may be on its way to the owner, as the cancellation is then.
            Door::Owner => drop(delete.is(202)),
            Door::Wrong => drop(delete.is_problem(404, "not-found")),
        }
    }

    async fn a_call_is_checked_on_the_host_that_gets_it_before_it_is_posted(seen: &Seen) {
        let (_world, zero, one) = fleet_with(seen, &[]).await;
        let (mut signed, mut typed) = (String::new(), String::new());
        // One of the two hosts does not own it.
        for (name, url) in [("signed", &mut signed), ("typed", &mut typed)] {
            *url = one.hook(seen, name).await;
        }
        for app in [&zero, &one] {
            let before = app.world.store.begun();
            app.ask(seen, "POST", &signed).header("x-hub-signature-256", "sha256=00").body("{}").send().await.is_problem(401, "unverified");
            app.ask(seen, "POST", &typed).body("{}").send().await.is_problem(400, "undecodable");
            app.ask(seen, "POST", &format!("{typed}A")).body("1").send().await.is_problem(404, "unknown-callback");
            assert_eq!(app.world.store.begun(), before, "calls of the store");
            app.ask(seen, "POST", &typed).body("1").send().await.is(202);
            let signature = format!("sha256={SIGNATURE}");
            let genuine = app.ask(seen, "POST", &signed).header("x-hub-signature-256", signature);
            genuine.header("x-github-delivery", "d-1").body("Hello, World!").send().await.is(202);
        }
        tokio::time::sleep(2 * SECOND).await;
        let told = async |name: &str| {
            let status = one.ask(seen, "GET", &format!("/flows/hook/{name}")).send().await.is(200).json();
            status["progress"].as_array().unwrap().len()
        };
        // Of two calls of one delivery, one is taken.
        assert_eq!((told("typed").await, told("signed").await), (2, 1));
    }

    async fn a_step_that_fails_is_shown_with_its_attempts_and_the_next_one(seen: &Seen) {
        let app = seen.world().alone().await;
        app.ask(seen, "PUT", "/flows/flaky/1").json(Value::Null).await.is(202);
        tokio::time::sleep(70 * SECOND).await;
        let status = app.ask(seen, "GET", "/flows/flaky/1").send().await.is(200).json();
        let step = &status["awaiting"][0];
        assert_eq!((step["kind"].as_str(), step["name"].as_str()), (Some("step"), Some("pay")), "{status}");
        let attempts = status["attempts"].as_u64().unwrap();
        assert!((3..=8).contains(&attempts), "{status}");
        assert!(step["since"].as_str() < step["deadline"].as_str() && step["deadline"].is_string(), "{status}");
    }

    async fn all_that_a_flow_tells_is_streamed_on_from_each_event_on_any_host_and_the_next(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        let ids = [false, true].map(|fails| {
            let mut salted = (0..).map(|salt| format!("{salt}-{fails}"));
            let is_ours = |id: &String| fleet().locate(&format!("telling/{id}")).unwrap().host == "one";
            (fails, salted.find(is_ours).unwrap())
        });
        let listen = async |app: &App, id: &str, after: usize| {
            let asked = app.ask(seen, "GET", &format!("/flows/telling/{id}/events"));
            asked.header("last-event-id", after.to_string()).listen().await
        };
        let mut told: Vec<Vec<Told>> = Vec::new();
        for (fails, id) in &ids {
            let input = serde_json::to_value(Telling { events: 6, bytes: 1, fails: *fails }).unwrap();
            one.ask(seen, "PUT", &format!("/flows/telling/{id}")).json(input).await.is(202);
            let mut whole = listen(&one, id, 0).await;
            let mut events: Vec<Told> = Vec::new();
            // While it goes on, somebody else begins behind each event, here and there.
            let mut others = Vec::new();
            while let Some(event) = whole.next().await {
                events.push(event);
                for app in [&zero, &one] {
                    if events.len() < 7 {
                        others.push((events.len(), listen(app, id, events.len()).await));
                    }
                }
            }
            for (after, other) in others {
                assert_eq!(other.all().await, events[after..], "behind {after}");
            }
            let names: Vec<&str> = events.iter().map(|event| &*event.name).collect();
            let end = if *fails { "failed" } else { "succeeded" };
            assert_eq!(names[..6], ["step-taken", "rest taken"].repeat(3));
            assert_eq!((names[6], names.len()), (end, 7));
            let sequence: Vec<String> = (1..=7).map(|n: u32| n.to_string()).collect();
            assert_eq!(events.iter().map(|event| &event.id).collect::<Vec<_>>(), sequence.iter().collect::<Vec<_>>());
            told.push(events);
        }
        one.host.crash();
        tokio::time::sleep(20 * SECOND).await;
        let next = world.member("one").await;
        for ((_, id), events) in ids.iter().zip(&told) {
            for after in 0..7 {
                for app in [&zero, &next] {
                    assert_eq!(listen(app, id, after).await.all().await, events[after..], "behind {after}");
                }
            }
        }
    }

    async fn who_is_to_come_back_is_told_different_times(seen: &Seen) {
        let app = seen.world().alone().await;
        app.world.store.set_down(true);
        let mut times = BTreeSet::new();
        for _ in 0..30 {
            let answer = app.get(seen, "17").await;
            times.insert(answer.header("retry-after").parse::<u64>().unwrap());
            answer.is_problem(503, "unavailable");
        }
        assert!(times.len() > 1 && times.iter().all(|seconds| (1..=4).contains(seconds)), "{times:?}");
    }

    async fn head_is_get_without_its_body_and_options_is_told_what_there_is(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        for (path, is_flow) in [("/flows/order/17", true), ("/flows/order/17/events", false), ("/flows/events", false), ("/flows/openapi.json", false)] {
            let (status, headers, body) = app.ask(seen, "HEAD", path).open().await;
            assert_eq!((status, headers.contains_key("etag")), (200, is_flow), "{path}");
            assert_eq!(to_bytes(body, 1 << 20).await.unwrap().len(), 0, "{path}");
        }
        assert_eq!(app.ask(seen, "HEAD", "/flows/order/18").open().await.0, 404);
        for path in ["/flows/order/17", "/flows/order", "/flows/events", "/flows/order/17/events", "/flows/openapi.json", "/callbacks/a", "/callbacks/openapi.json"] {
            let answer = app.ask(seen, "OPTIONS", path).send().await;
            assert!(!answer.header("allow").is_empty(), "{path}");
            answer.is_problem(405, "method-not-allowed");
        }
    }

    async fn who_follows_may_wait_for_what_the_flow_makes(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "any").await;
        let tag = app.ask(seen, "GET", "/flows/hook/any").send().await.is(200).header("etag").to_owned();
        let followed = app.ask(seen, "GET", "/flows/hook/any?follow=1").header("prefer", "wait=20").header("if-none-match", tag);
        let (followed, ()) = tokio::join!(followed.send(), async {
            tokio::time::sleep(3 * SECOND).await;
            app.ask(seen, "POST", &url).body("0").send().await.is(202);
        });
        assert_eq!(followed.is(303).header("location"), "/things/1?a=b");
    }
}
