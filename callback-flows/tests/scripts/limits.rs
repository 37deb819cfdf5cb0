//! Scripts that would harm their host: they fail with the reason, and the host goes on.

use callback_flows::BlockedKind;
use std::sync::atomic::{AtomicU32, Ordering};

use callback_flows::script::CallError;
use callback_flows::testing::{TestError, TestFlows};
use serde_json::json;

use crate::app::{Partner, ended, flows, functions, input, result_of};

#[tokio::test(start_paused = true)]
async fn a_script_that_takes_too_much_fails_with_that_reason() {
    for (main, reason) in [
        ("let n = 0;\nloop { n += 1; }", "it took more than 200000 operations in one run"),
        ("let n = 0;\ntry { loop { n += 1; } } catch { }\nask(1)", "it took more than 200000 operations in one run"),
        (
            "let a = [];\nfor n in 0..1000 { a.push(n); }\na.map(|n| { for m in 0..1000 { n + m; } });",
            "operations in one run",
        ),
        ("fn f(n) { f(n + 1) }\nf(0)", "Stack overflow"),
        ("let s = \"x\";\nloop { s += s; }", "Length of string too large"),
        ("let s = \"\";\ns.pad(1048576, 'x');", "Length of string too large"),
        ("let a = [];\nloop { a.push(1); }", "Size of array/BLOB too large"),
        ("let a = [];\nloop { a = [a]; }", "Size of array/BLOB too large"),
        ("let m = #{};\nloop { m = #{ m: m }; }", "Size of object map too large"),
        ("for n in 0..501 { uuid(); }", "it asks for more than 500 operations"),
        (
            "for n in 0..3 { set_context(`k${n}`, \"x\" + n); }\nlet s = \"x\";\nfor n in 0..17 { s += s; }\nfor n in 0..3 { set_context(`s${n}`, s); }",
            "the context would have",
        ),
    ] {
        let failed = result_of(main, json!({})).await.unwrap_err();
        assert!(failed.contains(reason), "{main}: {failed}");
        assert!(failed.starts_with("main.rhai:"), "{main}: {failed}");
    }
    assert_eq!(result_of("for n in 0..500 { uuid(); } 1", json!({})).await, Ok(json!(1)));
}

#[tokio::test(start_paused = true)]
async fn a_script_that_has_failed_for_a_limit_leaves_the_others_of_its_host_alone() {
    let t = TestFlows::new();
    let scripts =
        functions(&Partner::echo()).script("main", "let n = ask(1);\nsleep(5);\nn + 1").script("endless", "loop { }");
    t.deploy(flows(scripts)).await.unwrap();
    t.start("script", "1", &input("main", json!({}))).await.unwrap();
    for n in 0..5 {
        let id = format!("endless-{n}");
        t.start("script", &id, &input("endless", json!({}))).await.unwrap();
        assert!(matches!(t.ended("script", &id).await.unwrap(), callback_flows::Outcome::Failed(_)));
    }
    assert_eq!(ended(&t).await, Ok(json!(2)));
}

#[tokio::test(start_paused = true)]
async fn a_host_function_that_panics_blocks_the_flow_which_is_not_lost() {
    for main in ["ask(1);\nboom(1)", "ask(1);\nboom_outside(#{})"] {
        let with = |is_mended: bool| {
            let outside = move |_, _| {
                assert!(is_mended, "boom");
                std::future::ready(Ok::<_, CallError>(json!(2)))
            };
            let functions = functions(&Partner::echo()).functions(move |engine| {
                engine.register_fn("boom", move |n: i64| {
                    assert!(is_mended, "boom");
                    n + 1
                });
            });
            flows(functions.call("boom_outside", outside).script("main", main))
        };
        let t = TestFlows::new();
        t.deploy(with(false)).await.unwrap();
        t.start("script", "1", &input("main", json!({}))).await.unwrap();
        let Err(TestError::Blocked { why, .. }) = t.ended("script", "1").await else { panic!("it is not blocked") };
        assert_eq!((why.kind(), why.message()), (BlockedKind::Panicked, "its code panicked: boom"));
        t.deploy(with(true)).await.unwrap();
        // What wakes it up may see it end.
        let _ = t.ask(async |flows| flows.resume("script", "1").await).await;
        assert_eq!(ended(&t).await, Ok(json!(2)), "it goes on when that is mended");
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_that_asks_for_something_else_than_its_record_says_is_blocked_with_its_place() {
    for (main, says) in [
        (
            "ask(0);\n  ask(dice());\nask(3);",
            "main.rhai:2:3: it asks for `ask` with other arguments where its record has `ask`",
        ),
        ("if dice() % 2 == 1 { ask(0); } else {\n sleep(1); }\nask(3);", "where its record has `"),
    ] {
        let (t, drawn) = (TestFlows::new(), AtomicU32::new(0));
        let scripts = functions(&Partner::echo()).functions(move |engine| {
            // No function of its arguments alone, as those of a host have to be.
            engine.register_fn("dice", move || i64::from(drawn.fetch_add(1, Ordering::Relaxed)));
        });
        t.deploy(flows(scripts.script("main", main))).await.unwrap();
        t.start("script", "1", &input("main", json!({}))).await.unwrap();
        let Err(TestError::Blocked { why, .. }) = t.ended("script", "1").await else { panic!("it is not blocked") };
        assert_eq!(why.kind(), BlockedKind::Differs);
        assert!(why.message().contains(says) && why.message().starts_with("main.rhai:"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_script_calls_itself_so_deep_that_its_thread_has_no_stack_left() {
    let deep = |within: &str, times: usize| format!("{}{within}{}", "1 + (".repeat(times), ")".repeat(times));
    for main in [
        format!("fn f(n) {{ {} }}\nf(0)", deep("f(n)", 25)),
        format!("fn f(n) {{ [n].map(|n| {})[0] }}\nf(0)", deep("f(n)", 20)),
        format!("fn f(n) {{ all([|| {}])[0] }}\nf(0)", deep("f(n)", 20)),
        "fn f(n) { try { f(n) } catch (e) { f(n) } }\nf(0)".to_owned(),
        "fn f(n) { if true { for m in 0..1 { while true { switch n { 0 => f(n) } } } } }\nf(0)".to_owned(),
        "fn f(n) { [n].map(|n| [n].map(|n| [n].map(|n| f(n)))) }\nf(0)".to_owned(),
        "fn f(n) { let g = || f(n); [1, 2].sort(|a, b| g.call()); g.call() }\nf(0)".to_owned(),
    ] {
        let main: &'static str = Box::leak(main.into_boxed_str());
        let failed = result_of(main, json!({})).await.unwrap_err();
        assert!(failed.contains("Stack overflow") || failed.contains("operations"), "{main}: {failed}");
    }
    // And what is so deep that it is not even compiled.
    let main: &'static str = Box::leak(deep("1", 100).into_boxed_str());
    let refused = functions(&Partner::echo()).script("main", main).check().unwrap_err();
    assert!(refused.reason().contains("complexity"), "{refused}");
}
