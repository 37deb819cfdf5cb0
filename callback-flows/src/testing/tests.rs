//! Flows under test, right ones and wrong ones.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt as _;
use parking_lot::Mutex as Lock;

use super::*;
use crate::{BlockedKind, Flow, FlowResult, Retry, UrlKeys};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A partner that outlives every process.
#[derive(Debug, Default)]
pub(super) struct Bank {
    /// The number of charges under each key.
    charged: Lock<BTreeMap<String, u32>>,
}

impl Bank {
    async fn charge(&self, key: String) -> Result<u32, std::io::Error> {
        let mut charged = self.charged.lock();
        let times = charged.entry(key).or_default();
        *times += 1;
        Ok(*times)
    }
}

/// Waits five seconds for somebody to accept an order, and charges for it.
pub(super) async fn order(bank: Arc<Bank>, flow: Flow, item: String) -> FlowResult<String> {
    let mut accepted = flow.callback::<String>("accepted");
    flow.step("offer").input(&item).run(|_| std::future::ready(Ok::<_, std::io::Error>(accepted.url()))).await?;
    tokio::select! {
        by = accepted.next() => {
            let by = by?;
            flow.step("charge").run(|s| bank.charge(s.idempotency_key())).await?;
            Ok(format!("{item} by {by}"))
        }
        () = flow.sleep(5 * SECOND) => Ok("nobody".into()),
    }
}

pub(super) fn builder() -> FlowsBuilder {
    Flows::builder().callbacks("https://broker.example", UrlKeys::new("k1", [7; 32]).unwrap())
}

fn orders(bank: &Arc<Bank>) -> FlowsBuilder {
    let bank = bank.clone();
    builder().flow("order", 1, move |flow, item| order(bank.clone(), flow, item))
}

#[tokio::test(start_paused = true)]
async fn an_order_is_started_called_and_done_while_no_real_time_passes() {
    let (t, bank) = (TestFlows::new(), Arc::default());
    t.deploy(orders(&bank)).await.unwrap();
    assert_eq!(t.start("order", "17", "a pizza").await.unwrap(), Started::New);
    t.run_until_parked().await.unwrap();
    assert_eq!(t.now(), BEGINNING, "steps that take no time take none");
    let url = t.url("order", "17", "accepted").await;
    assert_eq!(t.deliver(&url, Call::new("\"ada\"")).await.unwrap(), Delivered::Taken);
    assert_eq!(t.done::<String>("order", "17").await.unwrap(), "a pizza by ada");
    assert_eq!((t.attempts("offer"), t.attempts("charge"), bank.charged.lock().len()), (1, 1, 1));
    assert!(matches!(t.deliver(&url, Call::new("\"bob\"")).await, Err(FlowsError::Gone)));
    assert!(matches!(t.done::<u32>("order", "17").await, Err(TestError::Decode(_))));
}

#[tokio::test(start_paused = true)]
async fn time_passes_as_far_as_it_is_told_to_and_what_is_due_by_then_has_happened() {
    let t = TestFlows::new();
    t.deploy(orders(&Arc::default())).await.unwrap();
    for id in ["a", "b"] {
        t.start("order", id, "a pizza").await.unwrap();
    }
    t.advance(Duration::from_millis(4_999)).await;
    let url = t.url("order", "a", "callback:accepted#0").await;
    t.deliver(&url, Call::new("\"ada\"")).await.unwrap();
    t.advance(Duration::from_millis(1)).await;
    assert_eq!(t.now(), BEGINNING + 5 * SECOND);
    assert_eq!(t.done::<String>("order", "a").await.unwrap(), "a pizza by ada");
    assert!(
        matches!(t.result("order", "b").await.unwrap(), Some(Outcome::Done(result)) if result.get() == "\"nobody\"")
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_killed_leaves_flows_that_go_on_in_the_next() {
    let (t, bank) = (TestFlows::new(), Arc::default());
    t.deploy(orders(&bank)).await.unwrap();
    t.start("order", "17", "a pizza").await.unwrap();
    t.run_until_parked().await.unwrap();
    for _ in 0..3 {
        t.crash().await.unwrap();
    }
    assert_eq!(t.attempts("offer"), 1, "it is in the journal");
    t.deliver(&t.url("order", "17", "accepted").await, Call::new("\"ada\"")).await.unwrap();
    assert_eq!(t.done::<String>("order", "17").await.unwrap(), "a pizza by ada");
}

#[tokio::test(start_paused = true)]
async fn steps_are_made_up_by_name_in_every_branch_and_under_every_key() {
    let t = TestFlows::new();
    let sum = async |flow: Flow, (): ()| {
        let never = |_| std::future::ready(Err::<u32, _>(std::io::Error::other("it is not to be run")));
        let (branch, retry) = (flow.branch("b"), Retry::default().between(60 * SECOND, 60 * SECOND));
        let (a, b) = tokio::join!(flow.step_for("read", "x").run(never), branch.step("read").retry(retry).run(never));
        Ok(a? + b?)
    };
    t.deploy(builder().flow("sum", 1, sum)).await.unwrap();
    t.fake_with("read", |s| if s.attempt() < 3 { Err("not yet") } else { Ok(s.attempt()) });
    t.start("sum", "1", &()).await.unwrap();
    assert_eq!(t.done::<u32>("sum", "1").await.unwrap(), 6);
    assert_eq!(t.attempts("read"), 6);
    assert!(t.now() > BEGINNING + 60 * SECOND, "the waits between attempts have passed");

    t.fake("read", "a text");
    t.start("sum", "2", &()).await.unwrap();
    let wrong = t.done::<u32>("sum", "2").await.unwrap_err().to_string();
    assert!(wrong.contains("the fake value of the step is of another type"), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_is_not_in_the_journal_is_found() {
    let t = TestFlows::new();
    let lives = Arc::new(AtomicU32::new(0));
    let code = builder().flow("fickle", 1, move |flow: Flow, (): ()| {
        // What is in memory decides.
        let is_first = lives.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let name = if is_first { "heads" } else { "tails" };
            flow.callback::<String>(name).next_raw().await;
            Ok(())
        }
    });
    t.deploy(code).await.unwrap();
    t.start("fickle", "1", &()).await.unwrap();
    let Err(TestError::Blocked { flow, why }) = t.run_until_parked().await else { panic!("it was not found") };
    assert_eq!((&*flow, why.kind()), ("fickle/1", BlockedKind::Differs));
    assert!(why.message().contains("began `callback:heads#0`, and begins `callback:tails#0` now"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn code_that_does_not_fit_what_runs_is_found_when_it_is_deployed() {
    let t = TestFlows::new();
    t.deploy(orders(&Arc::default())).await.unwrap();
    t.start("order", "17", "a pizza").await.unwrap();
    t.run_until_parked().await.unwrap();
    let changed = async |flow: Flow, _: String| {
        flow.sleep(SECOND).await;
        Ok(())
    };
    t.deploy(builder().flow("order", 1, changed)).await.unwrap();
    let found = t.run_until_parked().await.unwrap_err().to_string();
    assert!(
        found.starts_with("the flow `order/17` is blocked: after entry 0 of its journal, the code began"),
        "{found}"
    );
    assert!(matches!(t.ended("order", "17").await, Err(TestError::Blocked { .. } | TestError::Waits { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_right_whatever_dies() {
    let deaths = crash_everywhere(async |t| {
        let bank = Arc::default();
        t.deploy(orders(&bank)).await.unwrap();
        t.start("order", "17", "a pizza").await.unwrap();
        t.run_until_parked().await.unwrap();
        t.deliver(&t.url("order", "17", "accepted").await, Call::new("\"ada\"")).await.unwrap();
        assert_eq!(t.done::<String>("order", "17").await.unwrap(), "a pizza by ada");
        assert_eq!(bank.charged.lock().len(), 1, "one key, however often");
    })
    .await;
    // Before and after each: the start, the offer, the call, and the charge, which is the end.
    assert!(deaths >= 8, "{deaths}");
}

#[tokio::test(start_paused = true)]
async fn a_partner_that_does_not_look_at_the_key_is_found_by_a_crash_at_each_write() {
    let test = crash_everywhere(async |t| {
        let bank = Arc::<Bank>::default();
        t.deploy(orders(&bank)).await.unwrap();
        t.start("order", "17", "a pizza").await.unwrap();
        t.run_until_parked().await.unwrap();
        t.deliver(&t.url("order", "17", "accepted").await, Call::new("\"ada\"")).await.unwrap();
        t.done::<String>("order", "17").await.unwrap();
        let times: u32 = bank.charged.lock().values().sum();
        if times != 1 {
            // No message is printed for this one.
            std::panic::resume_unwind(Box::new(times));
        }
    });
    let found = AssertUnwindSafe(test).catch_unwind().await.unwrap_err();
    assert_eq!(found.downcast_ref::<u32>(), Some(&2), "charged, and killed before that was durable");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_never_ends_is_named() {
    let t = TestFlows::new();
    let code = builder().flow("stuck", 1, async |flow: Flow, (): ()| {
        flow.step("for ever").run(|_| std::future::pending::<Result<(), std::io::Error>>()).await?;
        Ok(())
    });
    t.deploy(code).await.unwrap();
    t.start("stuck", "1", &()).await.unwrap();
    let found = t.run_until_parked().await.unwrap_err().to_string();
    assert_eq!(found, "the flow `stuck/1` still waits for `step:for ever#0`");
}
