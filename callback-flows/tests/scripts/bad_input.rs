//! Scripts and inputs that are refused: when the host starts, when a flow is started, or at the call, each with its place.

use std::collections::BTreeMap;

use callback_flows::script::{CallError, Dispatch, Script, ScriptFlows, ScriptFlowsBuilder};
use callback_flows::testing::TestFlows;
use callback_flows::{Flows, FlowsError};
use serde_json::json;

use crate::app::{Partner, flows, functions, result_of};

/// The reason why this script is refused, at the start of the host as at the start of a flow.
async fn refused(main: &'static str) -> String {
    let scripts = || functions(&Partner::echo());
    let at_start_up = scripts().script("main", main).check().unwrap_err().to_string();
    // On the disk it can have become so after the host has started.
    let directory = crate::changes::Directory::new();
    directory.write("main", "1");
    let t = TestFlows::new();
    t.deploy(flows(scripts().library(directory.path()))).await.unwrap();
    directory.write("main", main);
    let Err(FlowsError::Refused(refused)) = t.start("script", "1", &Script::named("main")).await else {
        panic!("it was taken")
    };
    assert_eq!(refused.to_string(), at_start_up);
    let stored = t.ask(async |flows| flows.get("script", "1").await).await.unwrap();
    assert!(stored.is_none(), "nothing is stored");
    at_start_up
}

#[tokio::test(start_paused = true)]
async fn a_script_that_cannot_run_is_refused_with_place_and_reason() {
    for (main, reason) in [
        ("let a = 1;\nlet b = ;", "main.rhai:2:9: "),
        ("let a = 1;\n  nothing(a);", "main.rhai:2:3: there is no function `nothing(..)`"),
        ("let a = [1];\na.nothing(1);", "main.rhai:2:3: there is no function `.nothing(..)`"),
        ("fn f(a) { g(a) }\nf(1);", "there is no function `g(..)`"),
        ("fn f(a) { a }\nf(1, 2);", "main.rhai:2:1: `f(..)` is called with 2 arguments, and takes 1"),
        ("if false {\n  sleep();\n}", "main.rhai:2:3: `sleep(..)` is called with 0 arguments, and takes 1"),
        ("let f = || {\n  [1].map(|x| nothing(x))\n};", "main.rhai:2:15: there is no function `nothing(..)`"),
        ("eval(\"1\")", "main.rhai:1:1: "),
        ("let f = Fn(\"sleep\");", "main.rhai:1:9: "),
        (
            "init_flows(\"a\");",
            "main.rhai:1:1: `init_flows(..)` has no place in a script; remove it: the host registers flows",
        ),
        (
            "\nconfigure_stripe(\"key\");",
            "main.rhai:2:1: `configure_stripe(..)` has no place in a script; remove it: keys are the host's",
        ),
        (
            "new_customer().create();",
            "main.rhai:1:1: `new_customer` needs the script `new_create_customer_response.rhai`",
        ),
    ] {
        let said = refused(main).await;
        assert!(said.contains(reason), "{main}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_not_refused() {
    let main = r#"
        fn f(a) { this + a }
        let m = #{ own: |x| x + 1 };
        m.other = |x| x + 2;
        let text = "abc".sub_string(0, 1).to_upper();
        let n = 1;
        [m.own(1), m.other(1), n.f(2), text, type_of(1), [3, 1].index_of(1), is_def_fn("f", 1), (0..2).len]
    "#;
    // `len` of a range is a property.
    let result = result_of(main, json!({})).await;
    assert!(result.is_ok() || result.as_ref().unwrap_err().contains("len"), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_an_input_is_refused_before_anything_is_stored() {
    let t = TestFlows::new();
    let large: &'static str = Box::leak(format!("// {}\n1", "x".repeat(200 * 1024)).into_boxed_str());
    let scripts = functions(&Partner::echo()).script("main", "1");
    t.deploy(flows(scripts)).await.unwrap();
    let too_large = functions(&Partner::echo()).script("main", large).check().unwrap_err();
    assert!(too_large.to_string().starts_with("main.rhai: it has 204"), "{too_large}");
    let unknown = t.start("script", "1", &Script::named("mian")).await;
    assert!(
        matches!(&unknown, Err(FlowsError::Refused(why)) if why.reason() == "there is no script \"mian\""),
        "{unknown:?}"
    );
    let no_json = BTreeMap::from([(vec![1], 2)]);
    let no_json = t.start("script", "1", &Script::named("main").arg("a", &no_json)).await;
    assert!(matches!(no_json, Err(FlowsError::Input { .. })), "{no_json:?}");
    let no_name = t.start("script", "1", &Script::named("main").arg("a b", &1)).await;
    assert!(matches!(&no_name, Err(FlowsError::Refused(why)) if why.field() == "args.a b"), "{no_name:?}");
    assert!(t.ask(async |flows| flows.get("script", "1").await).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_type_is_an_error_at_the_call() {
    for (main, place) in [
        ("let a = ask(1);\n  a + #{}", "main.rhai:2:5: "),
        ("let a = 1;\n   sleep([]);", "main.rhai:2:4: "),
        ("\n sleep(\"5 minutes\");", "main.rhai:2:2: 5 minutes is no time"),
        ("ask(#{}, #{ retries: 5 });", "main.rhai:1:1: `retries` is no option of a call"),
        ("ask(|| 1);", "main.rhai:1:1: the arguments: a value of the type `Fn` cannot be JSON"),
        ("stripe.payment_intent.create(#{});", "main.rhai:1:"),
        (
            "call_flow(\"ma\" + \"ni\");",
            "main.rhai:1:1: there is no script \"mani\" among those that this flow has begun with",
        ),
        ("import \"nothing\" as n;", "main.rhai:1:8: Module not found: nothing"),
    ] {
        let failed = result_of(main, json!({})).await.unwrap_err();
        assert!(failed.starts_with(place), "{main}: {failed}");
    }
}

#[test]
fn what_an_application_registers_wrongly_is_refused_when_its_host_starts() {
    let refused = |scripts: ScriptFlowsBuilder| scripts.register(&mut Flows::builder()).unwrap_err().to_string();
    let call = |name: &str| ScriptFlows::builder().call(name, |_, _| std::future::ready(Ok::<_, CallError>(json!(1))));
    assert!(refused(call("a b")).contains("the name of a call is an identifier"));
    assert!(
        refused(call("a").call("a", |_, _| std::future::ready(Ok::<_, CallError>(json!(1))))).contains("two calls")
    );
    assert!(refused(ScriptFlows::builder().script("Main", "1")).contains("the name of a script"));
    let dispatch = Dispatch::new("new_thing", "create", "things.create");
    assert!(
        refused(ScriptFlows::builder().dispatch(dispatch))
            .contains("it makes the call `things.create`, and there is none")
    );
    assert!(refused(ScriptFlows::builder().library("/nowhere")).starts_with("/nowhere: "));
}
