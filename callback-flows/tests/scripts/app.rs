//! An application with scripts: a partner that keeps what it was asked, and flows that ask it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use callback_flows::script::{
    CallCx, CallError, Dispatch, HttpRequest, HttpResponse, Script, ScriptFlows, ScriptFlowsBuilder,
};
use callback_flows::testing::TestFlows;
use callback_flows::{Flows, FlowsBuilder, Outcome, UrlKeys};
use parking_lot::Mutex;
use serde_json::{Value, json};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A call as the partner has received it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) call: String,
    pub(crate) arguments: Value,
    pub(crate) key: String,
    pub(crate) attempt: u32,
}

type Answers = dyn Fn(&Asked) -> Result<Value, CallError> + Send + Sync;

/// The partner: it outlives the processes that call it.
pub(crate) struct Partner {
    pub(crate) asked: Mutex<Vec<Asked>>,
    /// All that it has done, once for each key.
    pub(crate) done: Mutex<BTreeMap<String, (String, Value)>>,
    answers: Box<Answers>,
    takes: Box<dyn Fn(&Asked) -> Duration + Send + Sync>,
}

impl Partner {
    pub(crate) fn new(answers: impl Fn(&Asked) -> Result<Value, CallError> + Send + Sync + 'static) -> Arc<Partner> {
        Partner::slow(answers, |_| Duration::ZERO)
    }

    /// One that takes its time for each attempt.
    pub(crate) fn slow(
        answers: impl Fn(&Asked) -> Result<Value, CallError> + Send + Sync + 'static,
        takes: impl Fn(&Asked) -> Duration + Send + Sync + 'static,
    ) -> Arc<Partner> {
        let (answers, takes) = (Box::new(answers), Box::new(takes));
        Arc::new(Partner { asked: Mutex::default(), done: Mutex::default(), answers, takes })
    }

    /// One that answers with what it is asked.
    pub(crate) fn echo() -> Arc<Partner> {
        Partner::new(|asked| Ok(asked.arguments.clone()))
    }

    pub(crate) async fn call(
        self: Arc<Self>,
        call: &'static str,
        cx: CallCx,
        arguments: Value,
    ) -> Result<Value, CallError> {
        let asked = Asked { call: call.into(), arguments, key: cx.idempotency_key(), attempt: cx.attempt() };
        self.take(&asked).await;
        let answer = (self.answers)(&asked)?;
        let known = self.done.lock().insert(asked.key, (asked.call.clone(), asked.arguments.clone()));
        if let Some(known) = known {
            assert_eq!(known, (asked.call, asked.arguments), "one key, and another request");
        }
        Ok(answer)
    }

    /// Notes what it is asked, and lets time pass.
    async fn take(&self, asked: &Asked) {
        self.asked.lock().push(asked.clone());
        let time = (self.takes)(asked);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    /// The calls that it was asked for so far, with their arguments.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        self.asked.lock().iter().map(|asked| (asked.call.clone(), asked.arguments.clone())).collect()
    }
}

/// The functions that all scripts of these tests may call.
pub(crate) fn functions(partner: &Arc<Partner>) -> ScriptFlowsBuilder {
    let call = |name: &'static str| {
        let partner = partner.clone();
        move |cx: CallCx, arguments: Value| partner.clone().call(name, cx, arguments)
    };
    let web = partner.clone();
    ScriptFlows::builder()
        .call("ask", call("ask"))
        .call("stripe.payment_intents.create", call("stripe.payment_intents.create"))
        .call("stripe.refunds.create", call("stripe.refunds.create"))
        .call("stripe.customers.create", call("stripe.customers.create"))
        .dispatch(
            Dispatch::new("new_payment_intent", "create", "stripe.payment_intents.create")
                .fields(["amount", "currency", "customer"]),
        )
        .dispatch(Dispatch::new("new_customer", "create", "stripe.customers.create").fields(["name", "email"]))
        .http(move |request| send(web.clone(), request))
}

/// The partner by HTTP: `/ask` takes and gives JSON.
async fn send(partner: Arc<Partner>, request: HttpRequest) -> Result<HttpResponse, CallError> {
    let header = |name: &str| request.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let arguments = json!({
        "method": request.method,
        "url": request.url,
        "type": header("content-type"),
        "body": String::from_utf8(request.body.to_vec()).unwrap(),
    });
    let asked = Asked { call: "http".into(), arguments, key: header("idempotency-key").unwrap(), attempt: 0 };
    partner.take(&asked).await;
    match (partner.answers)(&asked) {
        Ok(value) => {
            let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
            Ok(HttpResponse { status: 200, headers, body: value.to_string().into() })
        }
        Err(error) => Err(error),
    }
}

/// Flows with these scripts.
pub(crate) fn flows(scripts: ScriptFlowsBuilder) -> FlowsBuilder {
    let mut flows = Flows::builder().callbacks("https://shop.example/callbacks", UrlKeys::new("k1", [7; 32]).unwrap());
    scripts.register(&mut flows).unwrap();
    flows
}

/// A process with one script, `main`, that was started as `script/1`.
pub(crate) async fn started(partner: &Arc<Partner>, main: &'static str, args: Value) -> TestFlows {
    let t = TestFlows::new();
    t.deploy(flows(functions(partner).script("main", main))).await.unwrap();
    t.start("script", "1", &input("main", args)).await.unwrap();
    t
}

/// An input for a script with these arguments.
pub(crate) fn input(script: &str, args: Value) -> Script {
    let Value::Object(args) = args else { panic!("arguments are an object") };
    args.iter().fold(Script::named(script), |script, (name, value)| script.arg(name, value))
}

/// The end of `script/1`, as its JSON or the error that it has failed with.
pub(crate) async fn ended(t: &TestFlows) -> Result<Value, String> {
    match t.ended("script", "1").await.unwrap() {
        Outcome::Done(value) => Ok(serde_json::from_str(value.get()).unwrap()),
        Outcome::Failed(error) => Err(error),
        other => panic!("it has ended with {other:?}"),
    }
}

/// The result of a script that is started, and runs to its end without anybody else.
pub(crate) async fn result_of(main: &'static str, args: Value) -> Result<Value, String> {
    ended(&started(&Partner::echo(), main, args).await).await
}
