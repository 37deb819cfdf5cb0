//! A corpus of scripts under random orders of completion, with a crash before and after each commit: the same result and the same prints as
//! without a crash, and each outside call made under one key.
//!
//! `tests/run scripts`: `SEED=n` begins with that seed, `SCHEDULES=n` tries so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use callback_flows::script::CallError;
use callback_flows::testing::{TestFlows, crash_everywhere};
use callback_flows::{Call, FlowsError};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::app::{Asked, Partner, ended, flows, functions, input};

/// Scripts whose results do not depend on which answer comes first, though much of what they do does.
const CORPUS: &[(&str, &str)] = &[
    ("one call", "ask(1)"),
    ("a loop", "let sum = 0; for n in 0..4 { sum += ask(n); print(`sum ${sum}`); } sum"),
    ("a while", "let n = 0; while ask(n) < 3 { n += 1; } n"),
    ("a condition", "if ask(1) == 1 { print(\"one\"); ask(2) } else { ask(3) }"),
    ("a switch", "switch ask(\"b\") { \"a\" => ask(1), \"b\" => { print(\"b\"); ask(2) } _ => ask(3) }"),
    ("a closure", "let f = |n| ask(n) + 1; f.call(1) + f.call(2)"),
    (
        "a closure that counts",
        "let count = 0; let f = || { count += 1; ask(count) }; f.call(); f.call(); f.call(); count",
    ),
    ("a caught error", "let r = 0; try { ask(#{ fail: \"no\" }); } catch (e) { r = e.message; } ask(r)"),
    (
        "an error thrown on",
        "let r = []; try { try { ask(#{ fail: \"no\" }); } catch (e) { r.push(1); throw e; } } catch (e) { r.push(e.type); } r",
    ),
    (
        "catch all around calls",
        "let r = []; for n in 0..3 { try { r.push(ask(n)); if n == 1 { throw \"x\"; } } catch { r.push(\"caught\"); } } r",
    ),
    ("calls in map", "[1, 2, 3].map(|n| ask(n) * 2)"),
    (
        "calls in map, caught",
        "let r = []; try { r = [1, 2, 3].map(|n| { print(n); ask(n) }); } catch { r = \"lost\"; } r",
    ),
    (
        "calls in filter, caught",
        "let r = (); try { r = [1, 2, 3, 4].filter(|n| ask(n) % 2 == 0); } catch { r = \"lost\"; } print(r); r",
    ),
    (
        "calls in sort, caught",
        "let a = [3, 1, 2]; try { a.sort(|x, y| ask([x, y])[0] - y); } catch { a = \"lost\"; } a",
    ),
    ("calls in reduce", "[1, 2, 3].reduce(|sum, n| sum + ask(n), 0)"),
    ("calls in some and all", "[[1, 2].some(|n| ask(n) == 2), [1, 2].all(|n| ask(n) < 3)]"),
    ("an error in map", "let r = 0; try { [1, 2].map(|n| ask(#{ fail: `${n}` })) } catch (e) { r = e.message; } r"),
    (
        "nested functions",
        "fn inner(n) { print(`inner ${n}`); ask(n) } fn outer(n) { inner(n) + inner(n + 10) } outer(1) + outer(2)",
    ),
    ("a method on this", "fn double() { this = ask(this) * 2; } let n = 4; n.double(); n.double(); n"),
    ("all of three", "all([|| ask(1), || { sleep(2); ask(2) }, || { let a = ask(3); ask(a + 1) }])"),
    (
        "all with an error",
        "let r = 0; try { all([|| ask(1), || ask(#{ fail: \"no\" }), || ask(2)]) } catch (e) { r = e.message; } r",
    ),
    (
        "all within all",
        "all([|| all([|| ask(1), || ask(2)]), || { print(\"x\"); all([|| ask(3), || { sleep(1); 4 }]) }])",
    ),
    ("all in a loop", "let r = []; for n in 0..2 { r += all([|| ask([n, 0]), || ask([n, 1])]); } r"),
    ("sleeps", "let from = now(); sleep(3); let a = ask(now() - from >= 3000); sleep(\"1m\"); a"),
    (
        "a callback",
        "let c = callback(\"c\"); let sum = 0; for n in 0..3 { sum += c.next(); print(sum); ask(sum); } sum",
    ),
    (
        "a callback with a limit",
        "let c = callback(\"c\"); let r = []; for n in 0..4 { r.push(c.next(\"2h\")); } ask(r)",
    ),
    (
        "a callback beside calls",
        "let c = callback(\"c\"); all([|| c.next() + c.next() + c.next(), || ask(1) + ask(2)])",
    ),
    ("random and recorded", "let u = uuid(); let a = ask(#{ u: u }); a.u == u && uuid() != u"),
    ("a child", "call_flow(\"child\", #{ n: 1 }) + call_flow(\"child\", #{ n: 2 })"),
    ("children at once", "all([|| call_flow(\"child\", #{ n: 1 }), || call_flow(\"child\", #{ n: 2 }), || ask(3)])"),
    ("a child that fails", "let r = (); try { call_flow(\"failing\") } catch (e) { r = e.type; } ask(r)"),
    ("a module", "import \"shared\" as s; s::twice(2) + s::twice(3)"),
    ("requests", "http.get(\"https://a/1\").body.url + http.post(\"https://a/2\", #{ a: 1 }).body.url"),
    (
        "a dispatch",
        "new_customer().name(\"ada\").create(); new_customer().name(\"bob\").create(); set_context(\"main\", ask(1));",
    ),
    ("dispatches that fail", "for n in 0..3 { new_payment_intent().amount(n).customer(\"poor\").create(); }"),
    (
        "what is undone",
        "on_undo(|| { print(\"undo 1\"); ask(\"undo 1\"); }); let a = ask(1); on_undo(|| { all([|| ask(`undo ${a}`), || ask(\"undo b\")]); }); ask(2); throw \"undone\"",
    ),
    (
        "what is undone of a closure",
        "let made = []; for n in 0..2 { let id = ask(n); made.push(id); on_undo(|| ask(#{ undo: id, of: made })); } throw `${made}`",
    ),
];
/// The scripts beside it.
const OTHERS: &[(&str, &str)] = &[
    ("child", "print(`child ${n}`); let a = ask(#{ child: n }); a.child * 10"),
    ("failing", "ask(\"failing\"); throw \"failed\""),
    ("shared", "fn twice(n) { ask(n) + ask(n) }"),
    (
        "new_create_customer_response",
        "let seen = ask(parsed_data.name); set_context(seen, source); if seen == \"ada\" { new_payment_intent().amount(1).create(); }",
    ),
    ("new_create_customer_error", "throw parsed_error.message"),
    ("new_create_payment_intent_response", "print(\"paid\"); set_context(\"paid\", parsed_data.amount + ask(1));"),
    (
        "new_create_payment_intent_error",
        "let n = get_context(\"declined\") ?? 0; set_context(\"declined\", n + 1); ask(parsed_error.type); print(\"declined\");",
    ),
];

/// All that is the same in every run of a script.
#[derive(Debug, PartialEq)]
struct Seen {
    result: Result<Value, String>,
    prints: Vec<String>,
    /// The number of keys that each call was made under, by its name and arguments.
    keys: BTreeMap<String, usize>,
}

/// A partner that answers after a time that the seed draws, and refuses what it is to refuse.
fn partner(seed: u64) -> Arc<Partner> {
    let answers = |asked: &Asked| {
        if let Some(fail) = asked.arguments.get("fail").and_then(Value::as_str) {
            return Err(CallError::new("refused", fail));
        }
        if asked.arguments.get("customer") == Some(&json!("poor")) {
            return Err(CallError::new("card_error", "no"));
        }
        Ok(asked.arguments.clone())
    };
    Partner::slow(answers, move |asked| latency(seed, &format!("{} {}", asked.call, asked.arguments), asked.attempt))
}

/// So long an attempt takes: by the seed and what is asked, so that each seed has an order of its own.
fn latency(seed: u64, asked: &str, attempt: u32) -> Duration {
    let mut drawn = fastrand::Rng::with_seed(seed);
    for byte in asked.bytes().chain([u8::try_from(attempt).unwrap_or(0)]) {
        drawn = fastrand::Rng::with_seed(drawn.u64(..) ^ u64::from(byte));
    }
    Duration::from_millis(drawn.u64(0..4_000))
}

async fn run(t: &TestFlows, script: &'static str, seed: u64) -> Seen {
    let partner = partner(seed);
    let mut scripts = functions(&partner).script("main", script);
    for (name, text) in OTHERS {
        scripts = scripts.script(name, text);
    }
    t.deploy(flows(scripts)).await.unwrap();
    t.start("script", "1", &input("main", json!({}))).await.unwrap();
    if script.contains("callback(") {
        t.run_until_parked().await.unwrap();
        let url = t.url("script", "1", "c").await;
        for n in 1..=3 {
            match t.deliver(&url, Call::new(n.to_string()).id(format!("m-{n}"))).await {
                Ok(_) | Err(FlowsError::Gone) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    let result = ended(t).await;
    let mut prints = Vec::new();
    let ids = ["1"].into_iter().map(str::to_owned).chain(children(&partner));
    for id in ids {
        let Ok(events) = t.ask(async |flows| flows.events("script", &id, 0).await).await else { continue };
        let events: Vec<_> = events.map(Result::unwrap).collect().await;
        let printed = events.iter().filter(|event| event.name() == "print");
        prints.extend(printed.map(|event| event.value().get().to_owned()));
    }
    prints.sort();
    let mut keys = BTreeMap::<_, BTreeSet<_>>::new();
    for asked in &*partner.asked.lock() {
        let arguments = if asked.arguments.get("u").is_some() { "random".into() } else { asked.arguments.to_string() };
        keys.entry(format!("{} {arguments}", asked.call)).or_default().insert(asked.key.clone());
    }
    let keys = keys.into_iter().map(|(call, keys)| (call, keys.len())).collect();
    Seen { result, prints, keys }
}

/// The IDs that children of `script/1` may have had.
fn children(partner: &Partner) -> impl Iterator<Item = String> + use<> {
    let has_any = partner.asked.lock().iter().any(|asked| asked.arguments.get("child").is_some());
    let paths = ["0.0", "0.1", "0.0.0.0", "0.0.1.0"];
    paths.into_iter().filter(move |_| has_any).map(|path| format!("1~{path}"))
}

/// A setting of the run, or what it is without one.
fn setting(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(or)
}

fn seeds() -> impl Iterator<Item = u64> {
    let first = setting("SEED", 1);
    first..first + setting("SCHEDULES", if std::env::var_os("QUICK").is_some() { 1 } else { 3 })
}

#[tokio::test(start_paused = true)]
async fn scripts_come_to_the_same_in_every_order_and_whatever_dies() {
    let mut deaths = 0;
    let is_quick = std::env::var_os("QUICK").is_some();
    for (number, (name, script)) in CORPUS.iter().enumerate() {
        let expected = run(&TestFlows::new(), script, 0).await;
        assert!(!matches!(&expected.result, Ok(Value::String(lost)) if lost == "lost"), "{name}: {expected:?}");
        for seed in seeds() {
            // In a hurry, most of them are only run in another order.
            if is_quick && number % 4 != 0 {
                assert_eq!(run(&TestFlows::new(), script, seed).await, expected, "{name}, SEED={seed}");
                continue;
            }
            let died = crash_everywhere(async |t| {
                let seen = run(t, script, seed).await;
                assert_eq!(seen, expected, "{name}, SEED={seed}");
            });
            deaths += died.await;
        }
    }
    println!("{} scripts, {deaths} deaths", CORPUS.len());
    assert!(CORPUS.len() >= 20 && deaths >= 50, "{deaths}");
}
