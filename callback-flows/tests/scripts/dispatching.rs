//! Calls that a script does not wait for, and the scripts that their answers begin.

use callback_flows::Call;
use callback_flows::script::CallError;
use callback_flows::testing::{TestFlows, crash_everywhere};
use serde_json::json;

use crate::app::{Asked, Partner, ended, flows, functions, input};

const MAIN: &str = r#"
set_context("customer", name);
new_customer().name(name).create();
"#;
const CUSTOMER: &str = r#"
set_context("customer_id", parsed_data.id);
set_context("answered_by", source);
new_payment_intent().amount(2000).currency("usd").customer(get_context("customer_id")).create();
new_payment_intent().amount(1).set("currency", "eur").customer("poor").retry(0).timeout("5s").create();
"#;
const CUSTOMER_ERROR: &str = r#"set_context("failed", parsed_error.message);"#;
const INTENT: &str = r#"
let confirmed = ask(parsed_data.id);
set_context("paid", confirmed);
"#;
const INTENT_ERROR: &str = r#"set_context("declined", parsed_error);"#;

fn partner() -> std::sync::Arc<Partner> {
    Partner::new(|asked: &Asked| match &*asked.call {
        "stripe.payment_intents.create" if asked.arguments["customer"] == "poor" => {
            Err(CallError::new("card_error", "insufficient funds").status(402))
        }
        "stripe.payment_intents.create" => Ok(json!({ "id": "pi_1" })),
        "stripe.customers.create" => Ok(json!({ "id": format!("cus_{}", asked.arguments["name"].as_str().unwrap()) })),
        _ => Ok(asked.arguments.clone()),
    })
}

#[tokio::test(start_paused = true)]
async fn answers_begin_their_scripts_which_may_dispatch_again_and_the_result_is_the_context() {
    let deaths = crash_everywhere(async |t: &TestFlows| {
        let partner = partner();
        let scripts = functions(&partner)
            .script("main", MAIN)
            .script("new_create_customer_response", CUSTOMER)
            .script("new_create_customer_error", CUSTOMER_ERROR)
            .script("new_create_payment_intent_response", INTENT)
            .script("new_create_payment_intent_error", INTENT_ERROR);
        t.deploy(flows(scripts)).await.unwrap();
        t.start("script", "1", &input("main", json!({ "name": "ada" }))).await.unwrap();
        let declined = json!({ "type": "card_error", "code": null, "status": 402, "message": "insufficient funds" });
        let context = json!({
            "customer": "ada", "customer_id": "cus_ada", "answered_by": "stripe", "paid": "pi_1", "declined": declined,
        });
        assert_eq!(ended(t).await, Ok(context));
        assert_eq!(partner.done.lock().len(), 3, "each once: {:?}", partner.done.lock());
    })
    .await;
    assert!(deaths >= 8, "{deaths}");
}

#[tokio::test(start_paused = true)]
async fn a_response_script_that_fails_fails_the_flow_and_what_was_registered_is_undone() {
    let (t, partner) = (TestFlows::new(), partner());
    let scripts = functions(&partner)
        .script("main", "on_undo(|| ask(\"undone\")); new_customer().name(\"ada\").create();")
        .script("new_create_customer_response", "\n  throw parsed_data.id;")
        .script("new_create_customer_error", CUSTOMER_ERROR);
    t.deploy(flows(scripts)).await.unwrap();
    t.start("script", "1", &input("main", json!({}))).await.unwrap();
    assert_eq!(ended(&t).await, Err("new_create_customer_response.rhai:2:3: cus_ada".into()));
    assert_eq!(partner.calls().last().unwrap(), &("ask".to_owned(), json!("undone")));
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_a_script_leaves_open_is_the_same_one_in_the_scripts_that_answers_begin() {
    let deaths = crash_everywhere(async |t: &TestFlows| {
        let partner = partner();
        let scripts = functions(&partner)
            .script("main", "new_customer().name(callback(\"paid\").url).create();")
            .script("new_create_customer_response", "ask(1); new_payment_intent().customer(\"poor\").create();")
            .script("new_create_customer_error", CUSTOMER_ERROR)
            .script("new_create_payment_intent_response", INTENT)
            .script(
                "new_create_payment_intent_error",
                "let paid = callback(\"paid\"); let calls = [paid.next(), paid.next()]; paid.close(); set_context(\"calls\", calls);",
            );
        t.deploy(flows(scripts)).await.unwrap();
        t.start("script", "1", &input("main", json!({}))).await.unwrap();
        t.run_until_parked().await.unwrap();
        // The partner was given its URL by the first script, and calls it twice.
        let url = partner.calls()[0].1["name"].as_str().unwrap().to_owned();
        for call in ["1", "2"] {
            t.deliver(&url, Call::new(call).id(call)).await.unwrap();
        }
        assert_eq!(ended(t).await, Ok(json!({ "calls": [1, 2] })));
    })
    .await;
    assert!(deaths >= 8, "{deaths}");
}
