//! The rows.

use std::collections::BTreeSet;

use axum::body::{Body, Bytes};
use callback_flows::Call;
use futures_util::future::join_all;
use serde_json::{Value, json};
use stable_interfaces::testing::{Fault, Method};

use crate::app::{Door, RETENTION, SECOND, SIGNATURE, Seen, owned_by};

/// A test for each row, at the owner of all flows and at another host, and all of them in turn.
macro_rules! rows {
    ($(async fn $name:ident($seen:ident: &Seen) $body:block)*) => {
        $(async fn $name($seen: &Seen) $body)*

        mod each {
            use crate::app::Seen;
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(&Seen::default()).await;
                }
            )*
        }

        mod each_at_the_wrong_door {
            use crate::app::{Door, Seen};
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(&Seen::at(Door::Wrong)).await;
                }
            )*
        }

        pub(crate) async fn all(seen: &Seen) {
            $(Box::pin($name(seen)).await;)*
        }
    };
}

rows! {
    async fn a_start_is_accepted_with_the_place_to_look_and_so_is_the_same_again(seen: &Seen) {
        let app = seen.world().alone().await;
        for _ in 0..2 {
            let answer = app.put(seen, "17").await.is(202);
            assert_eq!(answer.header("location"), "/flows/order/17");
            assert_eq!(answer.header("retry-after"), "1");
            assert_eq!(answer.header("preference-applied"), "");
            let status = answer.json();
            assert_eq!((&status["id"], &status["name"], &status["version"]), (&json!("17"), &json!("order"), &json!(1)));
            assert_eq!(status["status"], "running");
            assert_eq!(status["awaiting"][0]["kind"], "callback");
            assert_eq!(status["awaiting"][0]["name"], "word");
            assert_eq!(status["awaiting"][1]["deadline"], "2023-11-14T22:14:20.000Z");
        }
        // As JSON the same, with other bytes.
        let again = app.ask(seen, "PUT", "/flows/order/17").header("content-type", "application/json");
        again.body("{ \"id\" :\"17\" }").send().await.is(202);
    }

    async fn another_input_under_one_id_is_a_conflict_that_names_the_first_field(seen: &Seen) {
        let app = seen.world().alone().await;
        let put = async |input: Value| app.ask(seen, "PUT", "/flows/order/17").json(input).await;
        put(json!({ "id": "a", "items": [{ "price": 1 }] })).await.is(202);
        for (input, field) in [
            (json!({ "id": "b", "items": [{ "price": 1 }] }), "id"),
            (json!({ "id": "a", "items": [{ "price": 2 }] }), "items[0].price"),
            (json!({ "id": "a", "items": [] }), "items[0]"),
            (json!({ "id": "a" }), "items"),
        ] {
            assert_eq!(put(input).await.is_problem(409, "conflict")["field"], field);
        }
        // Also when it is over.
        app.say(seen, "a", "fine").await.is(202);
        app.settle().await;
        put(json!({ "id": "a", "items": [{ "price": 1 }] })).await.is(202);
        assert_eq!(put(json!({ "id": "b" })).await.is_problem(409, "conflict")["field"], "id");
    }

    async fn a_key_is_the_id_and_with_another_body_it_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        let post = async |key: &str, id: &str| {
            app.ask(seen, "POST", "/flows/order").header("idempotency-key", key).json(json!({ "id": id })).await
        };
        for key in ["\"a/b ü\"", "\"a key\"", "bare"] {
            let is_ascii = key.is_ascii();
            let answer = post(key, "1").await;
            if !is_ascii {
                answer.is_problem(400, "invalid-request");
                continue;
            }
            let answer = answer.is(202);
            let location = answer.header("location").to_owned();
            assert_eq!(post(key, "1").await.is(202).header("location"), location);
            assert_eq!(post(key, "2").await.is_problem(422, "key-reused")["field"], "id");
            let found = app.ask(seen, "GET", &location).send().await.is(200);
            assert_eq!(found.json()["id"], key.trim_matches('"'));
        }
        let slash = post("\"a/b\"", "1").await.is(202);
        assert_eq!(slash.header("location"), "/flows/order/a%2Fb");
        app.ask(seen, "GET", "/flows/order/a%2Fb").send().await.is(200);
    }

    async fn without_a_key_each_request_starts_a_flow_of_its_own(seen: &Seen) {
        let app = seen.world().alone().await;
        let mut locations = BTreeSet::new();
        for _ in 0..3 {
            let answer = app.ask(seen, "POST", "/flows/order").json(json!({ "id": "1" })).await.is(202);
            locations.insert(answer.header("location").to_owned());
        }
        assert_eq!(locations.len(), 3);
        for location in locations {
            app.ask(seen, "GET", &location).send().await.is(200);
        }
    }

    async fn a_key_that_cannot_be_one_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        for key in ["", "\"a", "\"\"", "\"a\"b", "\u{fc}"] {
            let asked = app.ask(seen, "POST", "/flows/order").header("idempotency-key", key);
            asked.json(json!({ "id": "1" })).await.is_problem(400, "invalid-request");
        }
        let twice = app.ask(seen, "POST", "/flows/order").header("idempotency-key", "a").header("idempotency-key", "b");
        twice.json(json!({ "id": "1" })).await.is_problem(400, "invalid-request");
        for key in [".", "..", &"x".repeat(600)[..]] {
            let asked = app.ask(seen, "POST", "/flows/order").header("idempotency-key", key).json(json!({ "id": "1" })).await;
            assert_eq!(asked.status, 400, "{key}");
        }
    }

    async fn an_input_that_is_none_is_refused_before_anything_is_stored(seen: &Seen) {
        let app = seen.world().alone().await;
        let put = async |body: &str| {
            let asked = app.ask(seen, "PUT", "/flows/order/17").header("content-type", "application/json");
            asked.body(body.to_owned()).send().await
        };
        for body in ["", "{", "{\"id\":5,", "{} {}", "hello", "\u{fe}"] {
            put(body).await.is_problem(400, "not-json");
        }
        for (body, field) in [
            ("{}", "id"),
            ("{\"id\":5}", "id"),
            ("{\"id\":\"a\",\"items\":[{\"price\":1},{\"price\":-1}]}", "items[1].price"),
            ("{\"id\":\"a\",\"items\":[{}]}", "items[0].price"),
            ("{\"id\":\"\"}", "id"),
            ("[]", ""),
        ] {
            let problem = put(body).await.is_problem(422, "invalid-input");
            assert_eq!(problem["field"], field, "{problem}");
        }
        assert_eq!(put("{\"id\":\"\"}").await.is_problem(422, "invalid-input")["detail"], "an order has a name");
        let posted = app.ask(seen, "POST", "/flows/order").json(json!({ "id": "" })).await;
        posted.is_problem(422, "invalid-input");
        app.get(seen, "17").await.is_problem(404, "not-found");
    }

    async fn a_body_that_does_not_say_that_it_is_json_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        for media in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            for (method, path) in [("PUT", "/flows/order/17"), ("POST", "/flows/order")] {
                let asked = app.ask(seen, method, path).header("content-type", media).body("{\"id\":\"17\"}");
                asked.send().await.is_problem(415, "media-type");
            }
        }
        app.get(seen, "17").await.is_problem(404, "not-found");
    }

    async fn a_body_that_does_not_arrive_whole_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        let half = || {
            let chunks = [Ok(Bytes::from_static(b"{\"id\":")), Err(std::io::Error::other("gone"))];
            Body::from_stream(futures_util::stream::iter(chunks))
        };
        for (method, path) in [("PUT", "/flows/order/17"), ("POST", "/flows/order")] {
            let asked = app.ask(seen, method, path).header("content-type", "application/json").body(half());
            asked.send().await.is_problem(400, "broken-body");
        }
        app.put(seen, "18").await.is(202);
        let call = app.ask(seen, "POST", &app.world.url("18")).body(half()).send().await;
        call.is_problem(400, "broken-body");
    }

    async fn a_body_in_pieces_is_taken_and_one_that_is_too_large_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        let pieces = ["{\"id\"", ":", "\"17\"}"].map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
        let asked = app.ask(seen, "PUT", "/flows/order/17").header("content-type", "application/json");
        asked.body(Body::from_stream(futures_util::stream::iter(pieces))).send().await.is(202);
        let large = "x".repeat(256 * 1024 + 1);
        let in_pieces = || {
            let pieces: Vec<_> = large.as_bytes().chunks(10_000).map(Bytes::copy_from_slice).map(Ok::<_, std::io::Error>).collect();
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        for (method, path) in [("PUT", "/flows/order/18"), ("POST", "/flows/order"), ("POST", &*app.world.url("17"))] {
            for body in [Body::from(large.clone()), in_pieces()] {
                let asked = app.ask(seen, method, path).header("content-type", "application/json").body(body);
                asked.send().await.is_problem(413, "too-large");
            }
            let told = app.ask(seen, method, path).header("content-type", "application/json");
            told.header("content-length", "99999999").send().await.is_problem(413, "too-large");
        }
    }

    async fn a_name_that_no_flow_has_is_not_found(seen: &Seen) {
        let app = seen.world().alone().await;
        for name in ["none", "Order", "order%00", "%2e%2e"] {
            app.ask(seen, "PUT", &format!("/flows/{name}/17")).json(json!({})).await.is_problem(404, "unknown-flow");
            app.ask(seen, "POST", &format!("/flows/{name}")).json(json!({})).await.is_problem(404, "unknown-flow");
        }
        app.ask(seen, "GET", "/flows/none/17").send().await.is_problem(404, "not-found");
        app.ask(seen, "DELETE", "/flows/none/17").send().await.is_problem(404, "not-found");
    }

    async fn an_id_is_any_text_but_dots_alone_and_what_is_no_text(seen: &Seen) {
        let app = seen.world().alone().await;
        for id in ["a%2Fb", "a.b", "...", "%C3%A4", "%22%3Cscript%3E", "events", "%20", "%25", "..%2F.."] {
            let answer = app.ask(seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": "1" })).await.is(202);
            assert_eq!(answer.header("location"), format!("/flows/order/{id}"));
            let found = app.ask(seen, "GET", answer.header("location")).send().await.is(200);
            assert!(!found.json()["id"].as_str().unwrap().is_empty());
        }
        let long = "x".repeat(600);
        for id in ["%FF", ".", "..", "%2e%2e", "a%00b", &long] {
            let put = app.ask(seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": "1" })).await;
            put.is_problem(400, "invalid-id");
        }
        for id in ["%FF", "a%00b", &long] {
            app.ask(seen, "GET", &format!("/flows/order/{id}")).send().await.is_problem(400, "invalid-id");
            app.ask(seen, "DELETE", &format!("/flows/order/{id}")).send().await.is_problem(400, "invalid-id");
        }
        app.ask(seen, "POST", "/flows/%FF").json(json!({})).await.is_problem(400, "invalid-id");
    }

    async fn a_flow_may_be_named_as_the_path_of_all_events(seen: &Seen) {
        let app = seen.world().alone().await;
        let answer = app.ask(seen, "PUT", "/flows/events/1").json(Value::Null).await.is(202);
        assert_eq!(answer.json()["version"], 3);
        app.ask(seen, "POST", "/flows/events").json(Value::Null).await.is(202);
        app.ask(seen, "GET", "/flows/events/1").send().await.is(200);
    }

    async fn a_start_that_may_be_waited_for_is_answered_with_the_end(seen: &Seen) {
        let app = seen.world().alone().await;
        let put = app.ask(seen, "PUT", "/flows/events/1").header("prefer", "wait=10").json(Value::Null).await.is(200);
        assert_eq!(put.header("preference-applied"), "wait=10");
        assert_eq!((put.header("location"), put.header("retry-after")), ("/flows/events/1", ""));
        assert_eq!((&put.json()["status"], &put.json()["result"]), (&json!("succeeded"), &json!("done")));
        let post = app.ask(seen, "POST", "/flows/events").header("prefer", "wait=10").json(Value::Null).await.is(200);
        assert_eq!(post.json()["result"], "done");
        // It is over already.
        app.ask(seen, "PUT", "/flows/events/1").header("prefer", "wait=0").json(Value::Null).await.is(200);
        app.ask(seen, "PUT", "/flows/events/1").json(Value::Null).await.is(202);
    }

    async fn a_start_that_takes_longer_than_is_waited_for_is_accepted(seen: &Seen) {
        let app = seen.world().alone().await;
        let began = tokio::time::Instant::now();
        for (prefer, applied, seconds) in [("wait=2", "wait=2", 2), ("wait=0", "wait=0", 0), ("wait=-1", "", 0), ("x, wait=\"1\", wait=9", "wait=1", 1)] {
            let before = began.elapsed();
            let answer = app.ask(seen, "PUT", "/flows/order/17").header("prefer", prefer).json(json!({ "id": "17" })).await.is(202);
            assert_eq!(answer.header("preference-applied"), applied);
            assert_eq!((began.elapsed() - before).as_secs(), seconds, "{prefer}");
        }
        let before = began.elapsed();
        let twice = app.ask(seen, "PUT", "/flows/order/17").header("prefer", "wait=3").header("prefer", "wait=7");
        assert_eq!(twice.json(json!({ "id": "17" })).await.is(202).header("preference-applied"), "wait=3");
        assert_eq!((began.elapsed() - before).as_secs(), 3);
        let before = began.elapsed();
        let long = app.ask(seen, "PUT", "/flows/order/18").header("prefer", "wait=9999").json(json!({ "id": "18" })).await.is(202);
        assert_eq!(long.header("preference-applied"), "wait=30");
        assert_eq!((began.elapsed() - before).as_secs(), 30);
    }

    async fn of_more_than_a_thousand_waits_the_rest_is_not_held(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let waits = (0..1_001).map(|_| app.ask(seen, "GET", "/flows/order/17").header("prefer", "wait=5").send());
        let answers = join_all(waits).await;
        let applied = answers.iter().filter(|answer| answer.header("preference-applied") == "wait=5").count();
        assert_eq!((applied, answers.len()), (1_000, 1_001));
    }

    async fn a_look_shows_the_status_under_a_tag_until_it_changes(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let first = app.get(seen, "17").await.is(200);
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.len() > 10, "{tag}");
        assert_eq!(first.header("cache-control"), "private, no-cache");
        let again = async |tag: &str| app.ask(seen, "GET", "/flows/order/17").header("if-none-match", tag).send().await;
        for known in [&*tag, &format!("W/{tag}"), &format!("\"x\", {tag}"), "*"] {
            let answer = again(known).await.is(304);
            assert_eq!((answer.header("etag"), answer.body.len()), (&*tag, 0));
        }
        again("\"x\"").await.is(200);
        app.say(seen, "17", "fine").await.is(202);
        app.settle().await;
        let changed = again(&tag).await.is(200);
        assert_ne!(changed.header("etag"), tag);
        assert_eq!((&changed.json()["status"], &changed.json()["result"]), (&json!("succeeded"), &json!("fine")));
        assert_eq!(changed.json()["awaiting"], json!([]));
    }

    async fn a_failed_flow_is_found_with_its_problem(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        app.say(seen, "17", "fail").await.is(202);
        app.settle().await;
        let status = app.get(seen, "17").await.is(200).json();
        assert_eq!(status["status"], "failed");
        assert_eq!(status["problem"]["detail"], "there is no such thing");
        assert!(status["problem"]["type"].as_str().unwrap().ends_with("#flow-failed"));
        assert_eq!(status.get("result"), None);
    }

    async fn a_look_may_wait_for_the_end(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let began = tokio::time::Instant::now();
        let wait = async |seconds: &str| app.ask(seen, "GET", "/flows/order/17").header("prefer", seconds).send().await.is(200);
        let limit = wait("wait=3").await;
        assert_eq!((began.elapsed().as_secs(), limit.header("preference-applied")), (3, "wait=3"));
        assert_eq!(limit.json()["status"], "running");
        let (ended, ()) = tokio::join!(wait("wait=30"), async {
            tokio::time::sleep(5 * SECOND).await;
            app.say(seen, "17", "fine").await.is(202);
        });
        assert_eq!((began.elapsed().as_secs(), ended.header("preference-applied")), (8, "wait=30"));
        assert_eq!(ended.json()["status"], "succeeded");
    }

    async fn a_flow_that_was_purged_is_gone(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let url = app.world.url("17");
        app.say(seen, "17", "fine").await.is(202);
        tokio::time::sleep(RETENTION + 5 * SECOND).await;
        app.get(seen, "17").await.is_problem(410, "purged");
        app.put(seen, "17").await.is_problem(410, "purged");
        app.ask(seen, "DELETE", "/flows/order/17").send().await.is_problem(410, "purged");
        app.ask(seen, "POST", &url).body("1").send().await.is_problem(410, "closed");
        let posted = app.ask(seen, "POST", "/flows/order").header("idempotency-key", "17").json(json!({ "id": "17" })).await;
        posted.is_problem(410, "purged");
    }

    async fn a_flow_is_cancelled_once(seen: &Seen) {
        let app = seen.world().alone().await;
        app.ask(seen, "DELETE", "/flows/order/17").send().await.is_problem(404, "not-found");
        app.put(seen, "17").await.is(202);
        app.ask(seen, "DELETE", "/flows/order/17").send().await.is(202);
        app.settle().await;
        assert_eq!(app.get(seen, "17").await.is(200).json()["status"], "cancelled");
        app.ask(seen, "DELETE", "/flows/order/17").send().await.is_problem(409, "over");
    }

    async fn a_call_is_accepted_whatever_its_type_and_once_for_each_key(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let url = app.world.url("17");
        for _ in 0..3 {
            let asked = app.ask(seen, "POST", &url).header("idempotency-key", "\"c-1\"").header("content-type", "text/x-any");
            let answer = asked.body("\"fine\"").send().await;
            if answer.status == 410 {
                // The flow took the first one, and is over.
                break;
            }
            assert_eq!(answer.is(202).body.len(), 0);
        }
        app.settle().await;
        assert_eq!(app.get(seen, "17").await.is(200).json()["result"], "fine");
        app.ask(seen, "POST", &url).body("\"fine\"").send().await.is_problem(410, "closed");
    }

    async fn a_call_that_is_not_signed_as_it_should_be_is_refused_and_shows_no_secret(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "signed").await;
        let signature = format!("sha256={SIGNATURE}");
        let call = async |signature: &str, body: &'static str| {
            let asked = app.ask(seen, "POST", &url).header("x-hub-signature-256", signature);
            asked.header("x-github-delivery", "d-1").body(body).send().await
        };
        for _ in 0..2 {
            // The second one is the same call, and answered in the same way.
            call(&signature, "Hello, World!").await.is(202);
        }
        for at in 0..signature.len() {
            let other = if &signature[at..=at] == "0" { "1" } else { "0" };
            let changed = format!("{}{other}{}", &signature[..at], &signature[at + 1..]);
            let answer = call(&changed, "Hello, World!").await;
            assert_eq!(answer.header("www-authenticate"), "Webhook-Signature");
            let problem = answer.is_problem(401, "unverified").to_string();
            assert!(!problem.contains("757107ea") && !problem.contains("Everybody"), "{problem}");
        }
        call(&signature, "Hello, World?").await.is_problem(401, "unverified");
        app.ask(seen, "POST", &url).body("Hello, World!").send().await.is_problem(401, "unverified");
        app.settle().await;
        let path = "/flows/hook/signed";
        let progress = app.ask(seen, "GET", path).send().await.is(200).json()["progress"].clone();
        assert_eq!(progress, json!([["Hello, World!", []]]));
        let old = app.hook(seen, "old").await;
        app.ask(seen, "POST", &old).body("1").send().await.is_problem(401, "unverified");
    }

    async fn a_body_that_is_not_of_the_type_of_its_callback_is_refused(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "typed").await;
        for body in ["", "x", "\"1\"", "-1", "1 1"] {
            app.ask(seen, "POST", &url).body(body).send().await.is_problem(400, "undecodable");
        }
        app.ask(seen, "POST", &url).body("1").send().await.is(202);
    }

    async fn a_policy_says_the_answer_the_id_and_the_headers_that_are_kept(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "replied").await;
        for id in ["1", "1", "2"] {
            let asked = app.ask(seen, "POST", &url).header("x-id", id).header("x-trace", "t").header("cookie", "secret");
            assert_eq!(asked.body("0").send().await.is(200).body, b"thanks");
        }
        app.settle().await;
        let status = app.ask(seen, "GET", "/flows/hook/replied").send().await.is(200).json();
        assert_eq!(status["progress"], json!([["0", ["x-trace: t"]], ["0", ["x-trace: t"]]]));
    }

    async fn a_callback_is_called_by_other_methods_where_its_policy_says_so(seen: &Seen) {
        let app = seen.world().alone().await;
        let link = app.hook(seen, "link").await;
        app.ask(seen, "GET", &format!("{link}?b=2&a=%C3%A4")).send().await.is(202);
        app.ask(seen, "GET", &link).send().await.is(202);
        app.ask(seen, "PUT", &link).body("x").send().await.is(202);
        // Whoever looks at a link does not call.
        let head = app.ask(seen, "HEAD", &link).open().await;
        assert_eq!((head.0, head.1["allow"].to_str().unwrap()), (405, "GET,POST,PUT"));
        app.settle().await;
        let status = app.ask(seen, "GET", "/flows/hook/link").send().await.is(200).json();
        assert_eq!(status["progress"], json!([["{\"a\":\"ä\",\"b\":\"2\"}", []], ["{}", []], ["x", []]]));
        app.ask(seen, "PUT", &link).header("content-length", "99999999").send().await.is_problem(413, "too-large");
        let (typed, signed) = (app.hook(seen, "typed").await, app.hook(seen, "signed").await);
        let replied = app.hook(seen, "replied").await;
        app.ask(seen, "DELETE", "/flows/hook/link").send().await.is(202);
        app.settle().await;
        for method in ["GET", "PUT"] {
            app.ask(seen, method, &typed).send().await.is_problem(400, "undecodable");
            app.ask(seen, method, &signed).send().await.is_problem(401, "unverified");
            app.ask(seen, method, &link).send().await.is_problem(410, "closed");
            let answer = app.ask(seen, method, &replied).send().await;
            assert_eq!(answer.header("allow"), "POST");
            answer.is_problem(405, "method-not-allowed");
        }
    }

    async fn who_follows_is_sent_to_what_the_flow_has_made(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "any").await;
        let follow = async |query: &str| app.ask(seen, "GET", &format!("/flows/hook/any?{query}")).send().await;
        follow("follow=1").await.is(200);
        app.ask(seen, "POST", &url).body("0").send().await.is(202);
        app.settle().await;
        assert_eq!(follow("follow=1").await.is(303).header("location"), "/things/1?a=b");
        assert_eq!(follow("follow=0").await.is(200).json()["resource"], "/things/1?a=b");
        follow("follow=1&follow=1").await.is_problem(400, "invalid-request");
    }

    async fn a_look_under_a_tag_may_wait_for_a_change(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "any").await;
        let path = "/flows/hook/any";
        let tag = app.ask(seen, "GET", path).send().await.is(200).header("etag").to_owned();
        let poll = async |tag: &str| {
            let began = tokio::time::Instant::now();
            let answer = app.ask(seen, "GET", path).header("if-none-match", tag).header("prefer", "wait=10").send().await;
            assert_eq!(answer.header("preference-applied"), "wait=10");
            (answer, began.elapsed().as_secs())
        };
        let (unchanged, seconds) = poll(&tag).await;
        assert_eq!((unchanged.is(304).header("etag"), seconds), (&*tag, 10));
        let ((changed, seconds), ()) = tokio::join!(poll(&tag), async {
            tokio::time::sleep(4 * SECOND).await;
            app.ask(seen, "POST", &url).body("0").send().await.is(202);
        });
        assert_eq!((changed.is(200).json()["progress"][0][0].as_str(), seconds), (Some("0"), 4));
        let (at_once, seconds) = poll(&tag).await;
        assert_eq!((at_once.is(200).status, seconds), (200, 0));
    }

    async fn events_are_streamed_in_order_and_go_on_behind_each_of_them_up_to_the_end(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "any").await;
        let listen = async |after: &str| {
            let asked = app.ask(seen, "GET", "/flows/hook/any/events");
            if after.is_empty() { asked.listen().await } else { asked.header("last-event-id", after).listen().await }
        };
        let mut live = listen("").await;
        for n in 0..3 {
            app.ask(seen, "POST", &url).body(n.to_string()).send().await.is(202);
        }
        app.settle().await;
        let names = ["progress", "resource", "progress", "progress"];
        let mut first = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let event = live.next().await.unwrap();
            assert_eq!((&*event.id, &*event.name), (&*(n + 1).to_string(), *name), "{event:?}");
            first.push(event);
        }
        assert_eq!((&*first[0].data, &*first[1].data), ("[[\"0\",[]]]", "\"/things/1?a=b\""));
        // One that is beyond all that there are counts as that of the newest.
        let (mut beyond, mut behind) = (listen("99").await, listen("2").await);
        assert_eq!(behind.next().await, Some(first[2].clone()));
        app.ask(seen, "DELETE", "/flows/hook/any").send().await.is(202);
        let end = live.next().await.unwrap();
        assert_eq!((&*end.id, &*end.name, &*end.data), ("5", "cancelled", "null"));
        assert_eq!((live.next().await, beyond.next().await, beyond.next().await), (None, Some(end.clone()), None));
        first.push(end);
        for after in 0..5 {
            assert_eq!(listen(&after.to_string()).await.all().await, first[after..], "behind {after}");
        }
        assert_eq!(listen("").await.all().await, first);
        for end in ["5", "6", "99999999999999999999999"] {
            let answer = app.ask(seen, "GET", "/flows/hook/any/events").header("last-event-id", end).send().await;
            assert_eq!(answer.is(204).body.len(), 0);
        }
        for odd in ["x", "-1", "1.5", "\u{fc}"] {
            let asked = app.ask(seen, "GET", "/flows/hook/any/events").header("last-event-id", odd);
            asked.send().await.is_problem(400, "invalid-request");
        }
    }

    async fn a_stream_shows_that_it_lives_every_fifteen_seconds(seen: &Seen) {
        let app = seen.world().alone().await;
        app.hook(seen, "any").await;
        for path in ["/flows/hook/any/events", "/flows/events"] {
            let mut events = app.ask(seen, "GET", path).listen().await;
            for _ in 0..3 {
                let began = tokio::time::Instant::now();
                assert_eq!(events.part().await.unwrap().text, ":");
                assert_eq!(began.elapsed().as_secs(), 15);
            }
        }
    }

    async fn a_host_that_leaves_ends_its_streams_within_a_second(seen: &Seen) {
        let app = seen.world().alone().await;
        app.hook(seen, "any").await;
        app.ask(seen, "PUT", "/flows/stepping/1").json(Value::Null).await.is(202);
        app.settle().await;
        let mut one = app.ask(seen, "GET", "/flows/hook/any/events").listen().await;
        let mut all = app.ask(seen, "GET", "/flows/events").listen().await;
        let began = tokio::time::Instant::now();
        let (_, ()) = tokio::join!(app.host.drain(20 * SECOND), async {
            for stream in [&mut one, &mut all] {
                assert!(stream.part().await.unwrap().text.starts_with("retry: "));
                assert_eq!(stream.part().await, None);
            }
            assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
            // Whoever comes back too early is not told that there is nothing more.
            assert_eq!(app.ask(seen, "GET", "/flows/hook/any/events").listen().await.all().await, []);
        });
    }

    async fn a_client_that_takes_nothing_for_half_a_minute_is_cut_off_and_goes_on_where_it_was(seen: &Seen) {
        let app = seen.world().alone().await;
        let url = app.hook(seen, "any").await;
        let mut slow = app.ask(seen, "GET", "/flows/hook/any/events").listen().await;
        for n in 0..3 {
            app.ask(seen, "POST", &url).body(n.to_string()).send().await.is(202);
        }
        assert_eq!(slow.next().await.unwrap().id, "1");
        tokio::time::sleep(31 * SECOND).await;
        assert_eq!(slow.next().await, None);
        let mut again = app.ask(seen, "GET", "/flows/hook/any/events").header("last-event-id", "1").listen().await;
        assert_eq!(again.next().await.unwrap().id, "2");
    }

    async fn a_stream_outlives_a_store_that_is_away_for_a_while(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        let id = &*owned_by("one", 1);
        one.put(seen, id).await.is(202);
        // On a host that has to look at the store.
        let mut events = zero.ask(seen, "GET", &format!("/flows/order/{id}/events")).listen().await;
        world.store.set_down(true);
        tokio::time::sleep(5 * SECOND).await;
        world.store.set_down(false);
        tokio::time::sleep(20 * SECOND).await;
        let url = world.url(id);
        let word = one.ask(seen, "POST", &url).body("\"fine\"").send();
        let (word, end) = tokio::join!(word, events.next());
        assert_eq!((word.is(202).status, &*end.unwrap().name), (202, "succeeded"));
        assert_eq!(events.next().await, None);
    }

    async fn events_of_all_flows_are_chosen_by_kind_and_by_name(seen: &Seen) {
        let app = seen.world().alone().await;
        let listen = async |query: &str| app.ask(seen, "GET", &format!("/flows/events{query}")).listen().await;
        let (mut all, mut failed) = (listen("").await, listen("?only=failed,%20blocked").await);
        let mut orders = listen("?name=order&only=started").await;
        app.hook(seen, "any").await;
        app.put(seen, "17").await.is(202);
        app.say(seen, "17", "fail").await.is(202);
        let mut told = Vec::new();
        for _ in 0..3 {
            let event = all.next().await.unwrap();
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!((&*event.id, data["at"].as_str().unwrap().len()), ("", "2023-11-14T22:14:20.000Z".len()));
            told.push(format!("{} {} {} {}", event.name, data["name"], data["id"], data["value"]));
        }
        let started = ["started \"hook\" \"any\" null", "started \"order\" \"17\" null"];
        let end = "failed \"order\" \"17\" \"there is no such thing\"";
        assert_eq!(told, [started[0], started[1], end]);
        assert_eq!(failed.next().await.unwrap().name, "failed");
        assert!(orders.next().await.unwrap().data.contains("\"17\""));
        for query in ["?only=nothing", "?only=", "?only=failed,", "?only=failed&only=started"] {
            let answer = app.ask(seen, "GET", &format!("/flows/events{query}")).send().await;
            answer.is_problem(400, "invalid-request");
        }
    }

    async fn a_client_that_is_too_slow_for_all_events_is_told_how_many_it_missed(seen: &Seen) {
        let app = seen.world().alone().await;
        let mut all = app.ask(seen, "GET", "/flows/events").listen().await;
        for n in 0..1_100 {
            app.flows.start("events", &n.to_string(), &Value::Null).await.unwrap();
        }
        let missed = all.next().await.unwrap();
        assert_eq!(missed.name, "missed");
        assert!((76..200).contains(&missed.data.parse::<u32>().unwrap()), "{missed:?}");
        assert_eq!(all.next().await, None);
    }

    async fn there_is_no_stream_of_a_flow_that_is_not_there(seen: &Seen) {
        let app = seen.world().alone().await;
        let stream = async |id: &str| app.ask(seen, "GET", &format!("/flows/order/{id}/events")).send().await;
        stream("17").await.is_problem(404, "not-found");
        stream("%FF").await.is_problem(400, "invalid-id");
        app.put(seen, "17").await.is(202);
        app.world.store.set_down(true);
        stream("18").await.is_problem(503, "unavailable");
        app.world.store.set_down(false);
        tokio::time::sleep(30 * SECOND).await;
        app.ask(seen, "DELETE", "/flows/order/17").send().await.is(202);
        tokio::time::sleep(RETENTION + 5 * SECOND).await;
        stream("17").await.is_problem(410, "purged");
    }

    async fn a_url_that_is_none_of_ours_is_refused_without_a_look_at_the_store(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        app.settle().await;
        let url = app.world.url("17");
        let before = app.world.store.begun();
        for at in "/callbacks/".len()..url.len() {
            let mut changed = url.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            app.ask(seen, "POST", &changed).body("\"fine\"").send().await.is_problem(404, "unknown-callback");
        }
        for method in ["GET", "PUT"] {
            app.ask(seen, method, "/callbacks/a").send().await.is_problem(404, "unknown-callback");
        }
        app.ask(seen, "POST", "/callbacks/%FF").send().await.is_problem(404, "unknown-callback");
        app.ask(seen, "POST", "/callbacks/a").send().await.is_problem(404, "unknown-callback");
        assert_eq!(app.world.store.begun(), before, "calls of the store");
    }

    async fn what_could_not_be_made_durable_is_to_be_tried_again(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        let link = app.hook(seen, "link").await;
        app.world.store.set_down(true);
        app.put(seen, "18").await.is_problem(503, "unavailable");
        app.ask(seen, "POST", "/flows/order").json(json!({ "id": "1" })).await.is_problem(503, "unavailable");
        app.get(seen, "18").await.is_problem(503, "unavailable");
        app.ask(seen, "DELETE", "/flows/order/18").send().await.is_problem(503, "unavailable");
        app.say(seen, "17", "fine").await.is_problem(503, "unavailable");
        for method in ["GET", "PUT"] {
            app.ask(seen, method, &link).send().await.is_problem(503, "unavailable");
        }
        app.world.store.set_down(false);
        tokio::time::sleep(60 * SECOND).await;
        app.put(seen, "18").await.is(202);
    }

    async fn a_host_that_has_too_much_to_do_says_when_to_come_back(seen: &Seen) {
        let world = seen.world();
        let app = world.alone_as(|host| host.max_queued_commits(1).lanes(1), world.builder()).await;
        app.put(seen, "17").await.is(202);
        world.store.set_chance(Method::Commit, Fault::Delay(SECOND), 1.0);
        let put = |n: u32| {
            let app = &app;
            async move { app.put(seen, &n.to_string()).await }
        };
        let post = |_| app.ask(seen, "POST", "/flows/order").header("content-type", "application/json").body("{\"id\":\"p\"}").send();
        let (starts, posts) = tokio::join!(join_all((100..150).map(put)), join_all((0..50).map(post)));
        let deletes = join_all((100..150).map(|n| app.ask(seen, "DELETE", &format!("/flows/order/{n}")).send())).await;
        for answers in [starts, posts, deletes] {
            let too_many = answers.into_iter().find(|answer| answer.status == 429);
            too_many.expect("more was asked for than there is room for").is_problem(429, "too-many");
        }
        world.store.heal();
    }

    async fn a_flow_with_too_many_unread_calls_takes_no_more_for_now(seen: &Seen) {
        let world = seen.world();
        let patient = world.builder().max_journal(100_000, 1 << 30);
        let app = world.alone_with(patient).await;
        app.ask(seen, "PUT", "/flows/deaf/1").json(Value::Null).await.is(202);
        let url = app.world.url("deaf");
        for n in 0..10_000 {
            app.flows.deliver(&url, Call::new(n.to_string())).await.unwrap();
        }
        for method in ["GET", "POST", "PUT"] {
            app.ask(seen, method, &url).send().await.is_problem(429, "too-many");
        }
    }

    async fn of_two_bodies_under_one_new_id_at_once_one_is_accepted_on_any_host(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        let id = &*owned_by("one", 1);
        let path = |n: u32| format!("/flows/order/{id}-{n}");
        let body = |name: &str| json!({ "id": name });
        for (n, first, second) in [(0, &one, &one), (1, &zero, &zero), (2, &zero, &one), (3, &one, &zero)] {
            let (a, b) = tokio::join!(
                first.ask(seen, "PUT", &path(n)).json(body("a")),
                second.ask(seen, "PUT", &path(n)).json(body("b")),
            );
            let (accepted, refused) = if a.status == 202 { (a, b) } else { (b, a) };
            assert_eq!(accepted.is(202).json()["status"], "running", "{n}");
            assert_eq!(refused.is_problem(409, "conflict")["field"], "id");
        }
    }

    async fn all_is_answered_on_a_host_that_does_not_own_the_flow(seen: &Seen) {
        let world = seen.world();
        let (zero, _one) = (world.member("zero").await, world.member("one").await);
        let id = &*owned_by("one", 1);
        zero.get(seen, id).await.is_problem(404, "not-found");
        assert_eq!(zero.put(seen, id).await.is(202).json()["status"], "running");
        zero.put(seen, id).await.is(202);
        let other = zero.ask(seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": "x" })).await;
        assert_eq!(other.is_problem(409, "conflict")["field"], "id");
        let found = zero.get(seen, id).await.is(200);
        let path = format!("/flows/order/{id}");
        zero.ask(seen, "GET", &path).header("if-none-match", found.header("etag")).send().await.is(304);
        let waited = zero.ask(seen, "GET", &path).header("prefer", "wait=20").send();
        let (ended, ()) = tokio::join!(waited, async {
            tokio::time::sleep(5 * SECOND).await;
            zero.say(seen, id, "fine").await.is(202);
        });
        assert_eq!(ended.is(200).json()["result"], "fine");
        zero.ask(seen, "DELETE", &path).send().await.is_problem(409, "over");
        let told = zero.ask(seen, "GET", &format!("{path}/events")).listen().await.all().await;
        assert_eq!(told.iter().map(|event| &*event.name).collect::<Vec<_>>(), ["succeeded"]);
        zero.ask(seen, "POST", &world.url(id)).body("1").send().await.is_problem(410, "closed");
        let second = &*owned_by("one", 2);
        zero.put(seen, second).await.is(202);
        let waited = zero.ask(seen, "PUT", &format!("/flows/order/{second}")).header("prefer", "wait=5");
        let (waited, ()) = tokio::join!(waited.json(json!({ "id": second })), async {
            zero.ask(seen, "DELETE", &format!("/flows/order/{second}")).send().await.is(202);
        });
        assert_eq!(waited.is(200).json()["status"], "cancelled");
    }

    async fn who_waits_on_another_host_is_sent_to_the_owner_where_its_address_is_known(seen: &Seen) {
        let world = seen.world();
        let of_peer = |host: &str| (host == "one").then(|| "https://one.example/flows/".to_owned());
        let zero = world.member_with("zero", world.builder().peers(of_peer)).await;
        let one = world.member_with("one", world.builder().peers(of_peer)).await;
        let id = &*owned_by("one", 1);
        let path = format!("/flows/order/{id}");
        zero.put(seen, id).await.is(202);
        let wait = zero.ask(seen, "GET", &format!("{path}?follow=1")).header("prefer", "wait=5").send().await.is(307);
        assert_eq!(wait.header("location"), format!("https://one.example/flows/order/{id}?follow=1"));
        let stream = zero.ask(seen, "GET", &format!("{path}/events")).header("last-event-id", "7").send().await.is(307);
        assert_eq!(stream.header("location"), format!("https://one.example/flows/order/{id}/events"));
        zero.get(seen, id).await.is(200);
        // Its owner answers itself, and so does a host that does not know the owner's address.
        one.ask(seen, "GET", &path).header("prefer", "wait=1").send().await.is(200);
        let other = &*owned_by("zero", 1);
        one.put(seen, other).await.is(202);
        one.ask(seen, "GET", &format!("/flows/order/{other}")).header("prefer", "wait=1").send().await.is(200);
    }

    async fn a_start_whose_owner_is_away_is_accepted_after_two_seconds_and_taken_when_it_is_back(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        let id = &*owned_by("one", 1);
        one.host.crash();
        let began = tokio::time::Instant::now();
        assert_eq!(zero.put(seen, id).await.is(202).json()["status"], "accepted");
        assert!((1..=2).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        zero.get(seen, id).await.is_problem(404, "not-found");
        tokio::time::sleep(20 * SECOND).await;
        let _one = world.member("one").await;
        zero.settle().await;
        assert_eq!(zero.get(seen, id).await.is(200).json()["status"], "running");
    }

    async fn of_two_starts_under_one_id_the_second_is_refused_also_while_the_owner_is_away(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        one.host.crash();
        // One after the other, and both at once.
        let id = &*owned_by("one", 1);
        zero.put(seen, id).await.is(202);
        let other = zero.ask(seen, "PUT", &format!("/flows/order/{id}")).json(json!({ "id": "x" })).await;
        assert_eq!(other.is_problem(409, "conflict")["field"], "id");
        assert_eq!(zero.put(seen, id).await.is(202).json()["status"], "accepted");
        let key = |text: &str| format!("\"{text}\"");
        let post = |input| zero.ask(seen, "POST", "/flows/order").header("idempotency-key", key(id)).json(input);
        post(json!({ "id": "x" })).await.is_problem(422, "key-reused");
        let mut accepted = Vec::new();
        for n in 2..6 {
            let id = owned_by("one", n);
            let path = format!("/flows/order/{id}");
            let put = |input: &str| zero.ask(seen, "PUT", &path).json(json!({ "id": input }));
            let (a, b) = tokio::join!(put("a"), put("b"));
            let (input, accepted_one, refused) = if a.status == 202 { ("a", a, b) } else { ("b", b, a) };
            accepted_one.is(202);
            assert_eq!(refused.is_problem(409, "conflict")["field"], "id");
            accepted.push((id, input));
        }
        tokio::time::sleep(20 * SECOND).await;
        let _one = world.member("one").await;
        zero.settle().await;
        for (id, input) in accepted {
            let path = format!("/flows/order/{id}");
            zero.ask(seen, "PUT", &path).json(json!({ "id": input })).await.is(202);
        }
    }

    async fn a_start_of_which_it_is_not_known_whether_it_is_the_first_is_to_be_repeated(seen: &Seen) {
        let world = seen.world();
        let (zero, one) = (world.member("zero").await, world.member("one").await);
        one.host.crash();
        let id = &*owned_by("one", 1);
        let (answer, ()) = tokio::join!(zero.put(seen, id), async {
            tokio::time::sleep(SECOND).await;
            world.store.set_chance(Method::Load, Fault::FailBefore, 1.0);
        });
        let retry = answer.header("retry-after").to_owned();
        answer.is_problem(503, "unavailable");
        assert!(!retry.is_empty());
        world.store.heal();
        zero.put(seen, id).await.is(202);
    }

    async fn a_host_that_drains_accepts_what_the_next_owner_will_do(seen: &Seen) {
        let app = seen.world().alone().await;
        app.put(seen, "17").await.is(202);
        app.put(seen, "19").await.is(202);
        app.ask(seen, "PUT", "/flows/stepping/1").json(Value::Null).await.is(202);
        app.settle().await;
        tokio::join!(app.drain_owner(20 * SECOND), async {
            let started = app.put(seen, "18").await.is(202).json();
            app.put(seen, "17").await.is(202);
            app.say(seen, "17", "fine").await.is(202);
            app.ask(seen, "DELETE", "/flows/order/19").send().await.is(202);
            if seen.door == Door::Wrong {
                // The next owner may have it by now, and nobody is sent away.
                return;
            }
            assert_eq!(started["status"], "accepted");
            let began = tokio::time::Instant::now();
            let wait = app.ask(seen, "GET", "/flows/order/17").header("prefer", "wait=30").send().await;
            assert_eq!(wait.is(200).json()["status"], "running");
            assert_eq!(began.elapsed().as_secs(), 0, "nobody is held by a host that leaves");
        });
        let next = app.world.alone().await;
        next.settle().await;
        assert_eq!(next.get(seen, "17").await.is(200).json()["result"], "fine");
        assert_eq!(next.get(seen, "18").await.is(200).json()["status"], "running");
        assert_eq!(next.get(seen, "19").await.is(200).json()["status"], "cancelled");
    }

    async fn other_paths_and_methods_are_problems_too(seen: &Seen) {
        let app = seen.world().alone().await;
        for path in ["/flows/a/b/c", "/flows/a/b/events/c", "/callbacks/a/b"] {
            app.ask(seen, "POST", path).send().await.is_problem(404, "no-such-path");
        }
        for (method, path, allowed) in [
            ("PATCH", "/flows/order/17", "GET,HEAD,PUT,DELETE"),
            ("DELETE", "/flows/order", "POST"),
            ("POST", "/flows/order/17", "GET,HEAD,PUT,DELETE"),
            ("DELETE", "/callbacks/a", "GET,HEAD,PUT,POST"),
        ] {
            let answer = app.ask(seen, method, path).send().await;
            let allow: BTreeSet<String> = answer.header("allow").split(',').map(str::to_owned).collect();
            answer.is_problem(405, "method-not-allowed");
            assert_eq!(allow, allowed.split(',').map(str::to_owned).collect(), "{method} {path}");
        }
    }
}

/// The statuses that the documents list, by operation.
async fn listed() -> BTreeSet<(String, u16)> {
    let seen = Seen::default();
    let app = seen.world().alone().await;
    let mut listed = BTreeSet::new();
    for router in ["flows", "callbacks"] {
        let document = app.ask(&seen, "GET", &format!("/{router}/openapi.json")).send().await.is(200).json();
        assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{document}");
        assert_eq!(document["servers"][0]["url"], ".", "its paths are beside it");
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    let operation = format!("{} {router} {path}", method.to_uppercase());
                    listed.insert((operation, status.parse().unwrap()));
                }
            }
        }
    }
    listed
}

#[tokio::test(start_paused = true)]
async fn the_document_says_that_results_are_any_json() {
    let seen = Seen::default();
    let app = seen.world().alone().await;
    let document = app.ask(&seen, "GET", "/flows/openapi.json").send().await.is(200).json();
    for field in ["result", "progress"] {
        let schema = &document["components"]["schemas"]["FlowStatus"]["properties"][field];
        assert!(schema.is_object() && schema.get("type").is_none(), "{field}: {schema}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_documents_list_each_status_that_the_rows_have_seen_and_no_other() {
    let seen = Seen::default();
    all(&seen).await;
    crate::situations::all(&seen).await;
    let listed = listed().await;
    let operations: BTreeSet<&String> = listed.iter().map(|(operation, _)| operation).collect();
    let mut seen = seen.all();
    // As the policy of that callback says.
    assert!(seen.remove(&("POST callbacks /{token}".to_owned(), 200)));
    // A method that an operation does not have is an operation of no document.
    let seen: BTreeSet<_> = seen.into_iter().filter(|(operation, _)| operations.contains(operation)).collect();
    let (missing, unseen) = (seen.difference(&listed), listed.difference(&seen));
    let (missing, unseen): (Vec<_>, Vec<_>) = (missing.collect(), unseen.collect());
    assert!(missing.is_empty() && unseen.is_empty(), "not in a document: {missing:?}; not seen: {unseen:?}");
}
