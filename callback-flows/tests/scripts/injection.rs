//! Data that looks like source: stored, compared and printed as it is, and never run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use callback_flows::Call;
use callback_flows::script::{CallError, ScriptFlowsBuilder};
use callback_flows::testing::TestFlows;
use serde_json::{Value, json};

use crate::app::{Partner, ended, flows, functions, input};

/// Texts that would be something else if they were source, or a part of one.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "`${canary()}`",
        "${canary()}",
        "\"; canary(); \"",
        "\\\"); canary(); (\\\"",
        "'); canary(); ('",
        "// canary()\ncanary();",
        "*/ canary() /*",
        "\n\r\n\t\0canary()",
        "\u{2028}canary()\u{2029}",
        "canary();",
        "|| canary()",
        "fn f() { canary() } f()",
        "import \"canary\" as c;",
        "eval(\"canary()\")",
        "#{ a: canary() }",
        "{\"a\": canary()}",
        "canary",
        "../canary",
        "\u{feff}canary()",
        "😀`${1 + 1}`",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    texts.push("let x = canary();\n".repeat(200));
    texts.push("\"".repeat(20 * 1024));
    texts
}

/// Functions beside which a canary sits.
fn with_canary(partner: &Arc<Partner>) -> (ScriptFlowsBuilder, Arc<AtomicU32>) {
    let sung = Arc::<AtomicU32>::default();
    let (call, function) = (sung.clone(), sung.clone());
    let scripts = functions(partner)
        .call("canary_outside", move |_, _| {
            call.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, CallError>(Value::Null))
        })
        .functions(move |engine| {
            engine.register_fn("canary", move || {
                function.fetch_add(1, Ordering::Relaxed);
            });
        })
        .script("canary", "canary(); canary_outside();");
    (scripts, sung)
}

const MAIN: &str = r#"
let answered = ask(text);
let thrown;
try { ask(#{ fail: text }); } catch (e) { thrown = e.message; }
let c = callback("c");
let came = c.next_call();
set_context(text, text);
print(text);
let fetched = http.post("https://a", #{ text: text }, #{ headers: #{ "x-note": "plain" } }).body.body;
let injected = ();
try { http.get("https://a", #{ headers: #{ "x-note": text + "\r\nx-evil: 1" } }); } catch (e) { injected = e.type; }
let named;
try { call_flow(text); } catch (e) { named = e; }
let list = ["x", text, 7];
let found = [list.index_of(text), list.index_of(text, -1), ["x"].index_of(text)];
let mapped = [];
for attempt in [|| [1].map(text), || [1].filter(text), || [2, 1].sort(text), || [1, 2].reduce(text, 0), || [1].some(text)] {
    try { attempt.call(); mapped.push(text); } catch (e) { }
}
let same = answered == text && thrown == text && came.body == text && get_context(text) == text;
#{ same: same, header: came.headers["x-note"], text: text, fetched: parse_json(fetched).text == text,
   interpolated: `${text}` == text && mapped == [] && found == [1, -1, -1], injected: injected, named: type_of(named) }
"#;

#[tokio::test(start_paused = true)]
async fn whatever_is_said_by_whomever_stays_a_value() {
    for text in hostile() {
        let partner = Partner::new(|asked| match asked.arguments.get("fail") {
            Some(fail) => Err(CallError::new("refused", fail.as_str().unwrap())),
            None => Ok(asked.arguments.clone()),
        });
        let (scripts, sung) = with_canary(&partner);
        let t = TestFlows::new();
        t.deploy(flows(scripts.script("main", MAIN))).await.unwrap();
        t.start("script", "1", &input("main", json!({ "text": text }))).await.unwrap();
        t.run_until_parked().await.unwrap();
        let call = Call::new(json!(text).to_string()).header("x-note", &text);
        t.deliver(&t.url("script", "1", "c").await, call).await.unwrap();
        t.crash().await.unwrap();
        let result = ended(&t).await.unwrap();
        assert_eq!(result["text"], json!(text), "stored as it is");
        assert_eq!(result["header"], json!(text));
        for is_so in ["same", "fetched", "interpolated"] {
            assert_eq!(result[is_so], json!(true), "{is_so}: {text:?}");
        }
        assert_eq!(result["injected"], json!("invalid_request"), "no header of its own: {text:?}");
        // `canary` is in the library, and not in the set that the flow has begun with.
        assert_eq!(result["named"], json!("string"), "no script by a name from data: {text:?}");
        assert_eq!(sung.load(Ordering::Relaxed), 0, "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_180_kib_of_quotes_comes_as_it_is_and_one_that_cannot_be_kept_is_an_error() {
    let quotes = "\"".repeat(180 * 1024);
    let main = r#"
        let c = callback("c");
        let text = c.next();
        set_context("text", text);
        let kept = get_context("text") == text;
        set_context("text", ());
        let thrown = ();
        try { ask(text); } catch (e) { thrown = e.type; }
        [text.len(), kept, text.index_of("a"), thrown]
    "#;
    let (scripts, sung) = with_canary(&Partner::echo());
    let t = TestFlows::new();
    t.deploy(flows(scripts.script("main", main))).await.unwrap();
    t.start("script", "1", &input("main", json!({}))).await.unwrap();
    t.run_until_parked().await.unwrap();
    t.deliver(&t.url("script", "1", "c").await, Call::new(quotes)).await.unwrap();
    t.crash().await.unwrap();
    assert_eq!(ended(&t).await, Ok(json!([180 * 1024, true, -1, "too_large"])));
    assert_eq!(sung.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn source_that_comes_with_an_input_is_refused() {
    let (scripts, _) = with_canary(&Partner::echo());
    let t = TestFlows::new();
    t.deploy(flows(scripts.script("main", "1"))).await.unwrap();
    let input =
        json!({ "script": "main", "sources": { "main": "canary()" }, "format": 1, "hash": "", "rhai": "1.27.0" });
    let refused = t.start("script", "1", &input).await.unwrap_err();
    assert!(matches!(refused, callback_flows::FlowsError::Input { .. }), "{refused}");
    assert!(t.ask(async |flows| flows.get("script", "1").await).await.unwrap().is_none(), "nothing is stored");
}
