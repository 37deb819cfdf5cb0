//! Scripts from top to bottom: calls, callbacks, time, children, undo.

use callback_flows::script::CallError;
use callback_flows::testing::{TestFlows, crash_everywhere};
use callback_flows::{Call, Outcome, State};
use futures_util::StreamExt as _;
use serde_json::json;

use crate::app::{Asked, Partner, SECOND, ended, flows, functions, input, result_of, started};

const CHECKOUT: &str = r#"
let intent;
try { intent = stripe.payment_intents.create(#{ amount: order.amount, currency: "usd", customer: order.customer }, #{ retry: 5, timeout: "20s" }); }
catch (e) { if e.type == "card_error" { return #{ outcome: "declined", why: e.message }; } throw e; }
on_undo(|| stripe.refunds.create(#{ payment_intent: intent.id }));
let paid = callback("paid");
let event = paid.next("15m");
if event == () { throw "not paid in time"; }
set_context("payment_status", event.data.object.status);
call_flow("new_subscription", #{ customer: order.customer, price: "price_monthly" });
"#;
const SUBSCRIPTION: &str = r#"ask(#{ subscribe: customer, price: price }).price"#;

fn partner() -> std::sync::Arc<Partner> {
    Partner::new(|asked: &Asked| match &*asked.call {
        "stripe.payment_intents.create" if asked.arguments["customer"] == "poor" => {
            Err(CallError::new("card_error", "insufficient funds").code("card_declined").status(402))
        }
        "stripe.payment_intents.create" => Ok(json!({ "id": format!("pi_{}", asked.key) })),
        _ => Ok(asked.arguments.clone()),
    })
}

async fn checkout(t: &TestFlows, partner: &std::sync::Arc<Partner>, customer: &str) {
    let scripts = functions(partner).script("checkout", CHECKOUT).script("new_subscription", SUBSCRIPTION);
    t.deploy(flows(scripts)).await.unwrap();
    let order = json!({ "order": { "amount": 2000, "customer": customer } });
    t.start("script", "1", &input("checkout", order)).await.unwrap();
    t.run_until_parked().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_payment_that_is_called_back_is_done_once_whatever_dies() {
    let deaths = crash_everywhere(async |t| {
        let partner = partner();
        checkout(t, &partner, "ada").await;
        let event = json!({ "data": { "object": { "status": "succeeded" } } }).to_string();
        t.deliver(&t.url("script", "1", "paid").await, Call::new(event)).await.unwrap();
        assert_eq!(ended(t).await.unwrap(), json!("price_monthly"), "what its last line gives");
        let done: Vec<_> = partner.done.lock().values().map(|(call, _)| call.clone()).collect();
        assert_eq!(done.len(), 2, "a payment and a subscription: {done:?}");
    })
    .await;
    assert!(deaths >= 8, "{deaths}");
}

#[tokio::test(start_paused = true)]
async fn a_payment_that_nobody_calls_back_is_refunded_once_whatever_dies() {
    crash_everywhere(async |t| {
        let partner = partner();
        checkout(t, &partner, "ada").await;
        let failed = ended(t).await.unwrap_err();
        assert_eq!(failed, "checkout.rhai:8:18: not paid in time");
        let done: Vec<_> = partner.done.lock().values().cloned().collect();
        assert_eq!(done.len(), 2, "{done:?}");
        let refund = done.iter().find(|(call, _)| call == "stripe.refunds.create").unwrap();
        assert!(refund.1["payment_intent"].as_str().unwrap().starts_with("pi_"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_payment_is_refunded() {
    let (t, partner) = (TestFlows::new(), partner());
    checkout(&t, &partner, "ada").await;
    t.ask(async |flows| flows.cancel("script", "1").await).await.unwrap();
    assert!(matches!(t.ended("script", "1").await.unwrap(), Outcome::Cancelled));
    assert_eq!(partner.calls().last().unwrap().0, "stripe.refunds.create");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_a_map_that_a_script_may_catch() {
    let (t, partner) = (TestFlows::new(), partner());
    checkout(&t, &partner, "poor").await;
    assert_eq!(ended(&t).await.unwrap(), json!({ "outcome": "declined", "why": "insufficient funds" }));
    assert_eq!(partner.asked.lock().len(), 1, "what is declined is not tried again");
}

#[tokio::test(start_paused = true)]
async fn a_call_is_tried_again_as_its_script_says_under_one_key_and_not_before_the_partner_allows_it() {
    let partner = Partner::new(|asked| match asked.attempt {
        1 => Err(CallError::new("rate_limit", "slowly").retry_after(90 * SECOND)),
        2 => Err(CallError::new("server_error", "broken").status(500).retry()),
        _ => Ok(json!(asked.attempt)),
    });
    let t = started(&partner, "ask(#{}, #{ retry: 2 })", json!({})).await;
    t.advance(89 * SECOND).await;
    assert_eq!(partner.asked.lock().len(), 1, "it was told to wait");
    assert_eq!(ended(&t).await, Ok(json!(3)));
    let keys: std::collections::BTreeSet<_> = partner.asked.lock().iter().map(|asked| asked.key.clone()).collect();
    assert_eq!(keys.len(), 1);

    let partner = Partner::new(|_| Err(CallError::new("server_error", "broken").status(500).retry()));
    let main = "try { ask(#{}, #{ retry: 2 }) } catch (e) { return e; }";
    let t = started(&partner, main, json!({})).await;
    let error = json!({ "type": "server_error", "code": null, "status": 500, "message": "broken" });
    assert_eq!(ended(&t).await, Ok(error));
    assert_eq!(partner.asked.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn time_passes_as_a_script_says_and_a_wait_shows_its_line() {
    let partner = Partner::echo();
    let t = started(&partner, "let from = now();\nsleep(\"15m\");\n  sleep(0.5);\nnow() - from", json!({})).await;
    t.run_until_parked().await.unwrap();
    let status = t.status("script", "1").await.unwrap();
    assert_eq!(status.waits[0].at.as_deref(), Some("main.rhai:2:1"));
    t.advance(900 * SECOND).await;
    assert_eq!(t.status("script", "1").await.unwrap().waits[0].at.as_deref(), Some("main.rhai:3:3"));
    assert_eq!(ended(&t).await, Ok(json!(900_500)));
}

#[tokio::test(start_paused = true)]
async fn a_callback_gives_its_calls_in_order_as_values_and_is_closed_with_its_script() {
    let main = r#"
        let c = callback("c");
        if !c.url.starts_with("https://shop.example/callbacks/") { throw "no URL"; }
        let first = c.next();
        let second = c.next_call("1h");
        c.close();
        try { c.next() } catch (e) { print(e) }
        let again = callback("c");
        #{ first: first, second: [second.id, second.body], third: again.next("1s") }
    "#;
    let t = started(&Partner::echo(), main, json!({})).await;
    t.run_until_parked().await.unwrap();
    let status = t.status("script", "1").await.unwrap();
    assert_eq!(status.waits[0].at.as_deref(), Some("main.rhai:4:23"));
    let url = t.url("script", "1", "c").await;
    t.deliver(&url, Call::new(r#"{"a": [1]}"#)).await.unwrap();
    t.deliver(&url, Call::new("no JSON, \"").id("m-2")).await.unwrap();
    let result = json!({ "first": { "a": [1] }, "second": ["m-2", "no JSON, \""], "third": null });
    assert_eq!(ended(&t).await, Ok(result));
    assert_eq!(printed(&t).await, ["the callback \"c\" is closed"]);
}

/// All that `script/1` has printed.
async fn printed(t: &TestFlows) -> Vec<String> {
    let events = t.ask(async |flows| flows.events("script", "1", 0).await).await.unwrap();
    let events: Vec<_> = events.map(Result::unwrap).collect().await;
    let printed = events.iter().filter(|event| event.name() == "print");
    printed.map(|event| serde_json::from_str(event.value().get()).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn prints_and_events_come_once_over_all_runs_and_deaths() {
    let main = r#"
        print("begun");
        for n in 0..3 { let a = ask(n); print(`asked ${a}`); }
        all([|| { print("left"); ask("l"); print("left done") }, || { print("right"); ask("r"); print("right done") }]);
        print("done");
    "#;
    crash_everywhere(async |t| {
        t.deploy(flows(functions(&Partner::echo()).script("main", main))).await.unwrap();
        t.start("script", "1", &input("main", json!({}))).await.unwrap();
        ended(t).await.unwrap();
        let all = printed(t).await;
        assert_eq!(all[..6], ["begun", "asked 0", "asked 1", "asked 2", "left", "right"]);
        assert_eq!((all.len(), &*all[8]), (9, "done"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn several_calls_are_under_way_at_once_and_give_their_results_in_order() {
    let partner = Partner::echo();
    let main = r#"
        let x = 1;
        let c = callback("c");
        all([|| { sleep(3); c.next() }, || { let a = ask(x); sleep(1); a + ask(10) }, || "at once"])
    "#;
    let t = started(&partner, main, json!({})).await;
    t.run_until_parked().await.unwrap();
    assert_eq!(t.status("script", "1").await.unwrap().waits.len(), 2);
    t.advance(2 * SECOND).await;
    assert_eq!(partner.calls().len(), 2, "one does not wait for the other");
    t.deliver(&t.url("script", "1", "c").await, Call::new("7")).await.unwrap();
    assert_eq!(ended(&t).await, Ok(json!([7, 11, "at once"])));
}

#[tokio::test(start_paused = true)]
async fn of_several_calls_that_fail_the_first_in_order_is_thrown_when_all_are_over() {
    let main = r#"all([|| { sleep(2); throw "slow" }, || throw "quick", || { sleep(5); ask("after") }])"#;
    let partner = Partner::echo();
    let t = started(&partner, main, json!({})).await;
    let failed = ended(&t).await.unwrap_err();
    assert!(failed.starts_with("main.rhai:1:21: slow\n  in a closure"), "{failed}");
    assert_eq!(partner.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_script_says_where_and_how_it_came_there() {
    let main = "fn pay(order) {\n    check(order.amount)\n}\nfn check(amount) {\n    if amount > 1 { throw #{ type: \"too_much\", amount: amount }; }\n}\npay(order);";
    let failed = result_of(main, json!({ "order": { "amount": 2 } })).await.unwrap_err();
    let said = "main.rhai:5:21: {\"amount\":2,\"type\":\"too_much\"}\n  in `check`, called at main.rhai:2:5\n  in `pay`, called at main.rhai:7:1";
    assert_eq!(failed, said);
    let failed = result_of("let a = 1;\n  ask(a, 2)", json!({})).await;
    assert_eq!(failed, Err("main.rhai:2:3: the options of a call are an object, `#{..}`, and not i64".into()));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_fails_is_an_error_that_may_be_caught() {
    let t = TestFlows::new();
    let main = r#"try { call_flow("child", #{ n: 3 }) } catch (e) { return e.type + ": " + e.message; }"#;
    let scripts = functions(&Partner::echo()).script("main", main).script("child", "throw `no ${n}`");
    t.deploy(flows(scripts)).await.unwrap();
    t.start("script", "1", &input("main", json!({}))).await.unwrap();
    assert_eq!(ended(&t).await, Ok(json!("flow_failed: child.rhai:1:1: no 3")));
}

#[tokio::test(start_paused = true)]
async fn requests_are_json_have_a_key_and_give_status_headers_and_body() {
    let partner = Partner::new(|asked| match asked.arguments["url"].as_str().unwrap() {
        "https://a/gone" => Err(CallError::from_response(404, &[], br#"{"error": {"message": "no such thing"}}"#)),
        _ => Ok(asked.arguments.clone()),
    });
    let main = r#"
        let a = http.get("https://a/b", #{ query: #{ q: "x y&z" } });
        let b = http.post("https://a/b", #{ n: [1, "two"] }, #{ timeout: "5s", headers: #{ "X-A": "1" } });
        let c = http.put("https://a/b", #{ n: [1, "two"] }, #{ form: true });
        let d;
        try { http.get("https://a/gone"); } catch (e) { d = [e.status, e.message]; }
        [a.status, a.headers["content-type"], a.body.url, b.body.body, b.body.type, c.body.body, d]
    "#;
    let t = started(&partner, main, json!({})).await;
    let form = "n%5B0%5D=1&n%5B1%5D=two";
    let result = json!([
        200,
        "application/json",
        "https://a/b?q=x%20y%26z",
        "{\"n\":[1,\"two\"]}",
        "application/json",
        form,
        [404, "no such thing"]
    ]);
    assert_eq!(ended(&t).await, Ok(result));
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_started_once_though_its_script_has_changed_meanwhile() {
    let t = TestFlows::new();
    let with = |text| flows(functions(&Partner::echo()).script("main", text));
    t.deploy(with("sleep(10); 1")).await.unwrap();
    t.start("script", "1", &input("main", json!({ "a": 1 }))).await.unwrap();
    t.deploy(with("sleep(10); 2")).await.unwrap();
    let again = t.start("script", "1", &input("main", json!({ "a": 1 }))).await.unwrap();
    assert_eq!(again, callback_flows::Started::Already);
    let other = t.start("script", "1", &input("main", json!({ "a": 2 }))).await;
    assert!(matches!(other, Err(callback_flows::FlowsError::Conflict)), "{other:?}");
    assert_eq!(t.status("script", "1").await.unwrap().state, State::Going);
    assert_eq!(ended(&t).await, Ok(json!(1)), "it keeps the text that it was started with");
}
