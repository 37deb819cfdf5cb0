//! Flows that decide more at once than fits into one commit, with a crash at each of their commits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use stable_interfaces::clock::{Clock as _, SystemClock};
use stable_interfaces::{Host, KeyRange, MemoryStore};

use super::journals::PAGES;
use crate::testing::{TestFlows, crash_everywhere};
use crate::{Call, Delivered, Flow, FlowResult, Flows, FlowsBuilder, Outcome, State, UrlKeys};

/// Flows whose commits have room for next to nothing.
fn builder(page_bytes: usize) -> FlowsBuilder {
    let mut builder = Flows::builder().flow("child", 1, async |_: Flow, n: u32| Ok(n + 1)).callbacks(
        "https://flows.example",
        UrlKeys::new("k1", "a secret of 32 random bytes ....").expect("it is long enough"),
    );
    builder.registry.limits.page_bytes = page_bytes;
    builder
}

/// Begins so many children and steps at once, and takes a call, and another one in its next run.
async fn many(ran: Arc<Mutex<Vec<String>>>, flow: Flow, (count, run): (u32, u32)) -> FlowResult<(u32, u32)> {
    let mut call = flow.callback::<u32>("call");
    let mut children: Vec<_> = (0..count).map(|n| flow.spawn("child", &format!("{run}-{n}"), &n)).collect();
    let keys: Vec<_> = (0..count).map(|n| format!("{run}-{n}")).collect();
    let steps = keys.iter().map(|key| {
        flow.step_for("step", key).run(|_| {
            ran.lock().push(key.clone());
            std::future::ready(Ok::<_, std::io::Error>(1_u32))
        })
    });
    let steps: u32 = join_all(steps).await.into_iter().map(Result::unwrap).sum();
    let ended = join_all(children.iter_mut().map(|child| child.result::<u32>())).await;
    let ended: u32 = ended.into_iter().map(Result::unwrap).sum();
    let called = call.next().await?;
    if run == 1 {
        return flow.continue_with(&(count, 2));
    }
    join_all((0..count).map(|n| flow.branch(&n.to_string()).sleep(Duration::from_millis(5)))).await;
    Ok((steps + ended, called))
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_decides_more_than_a_commit_takes_loses_and_repeats_nothing_wherever_it_dies() {
    let crashes = crash_everywhere(async |t| {
        let ran = Arc::<Mutex<Vec<String>>>::default();
        let code = ran.clone();
        t.deploy(builder(150).flow("many", 1, move |flow, input| many(code.clone(), flow, input))).await.unwrap();
        t.start("many", "1", &(7, 1)).await.unwrap();
        let url = t.url("many", "1", "call").await;
        t.deliver(&url, Call::new("17").id("a")).await.unwrap();
        t.deliver(&url, Call::new("18").id("b")).await.unwrap();
        assert_eq!(t.done::<(u32, u32)>("many", "1").await.unwrap(), (7 + 28, 18));
        let ran = ran.lock().clone();
        assert_eq!(ran.iter().collect::<BTreeSet<_>>().len(), 14, "{ran:?}");
        assert!(ran.len() <= 14 + 7, "only what was under way as the process died ran again: {ran:?}");
    })
    .await;
    assert!(crashes > 50, "{crashes}");
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_there_from_its_first_commit_on_and_a_step_begins_with_the_last() {
    let (store, ran) = (MemoryStore::new(), Arc::<Mutex<Vec<String>>>::default());
    let mut host = Host::local(store.clone());
    let code = ran.clone();
    let flows = builder(100).flow("many", 1, move |flow, input| many(code.clone(), flow, input));
    let flows = flows.register(&mut host).unwrap();
    let host = host.start().await.unwrap();
    flows.start("many", "1", &(50, 1)).await.unwrap();
    // The answer to the start counts for all of it.
    let pages = flows.stored("many/1", KeyRange::prefix(PAGES)).await.unwrap().len();
    assert!(pages > 20, "{pages}");
    assert_eq!(flows.get("many", "1").await.unwrap().unwrap().state, State::Going);
    SystemClock::default().sleep(Duration::from_secs(1)).await;
    assert_eq!(ran.lock().len(), 50);
    let token = flows.url("many/1", "callback:call#0");
    assert_eq!(flows.deliver(&token, Call::new("17")).await.unwrap(), Delivered::Taken);
    assert_eq!(flows.deliver(&token, Call::new("18")).await.unwrap(), Delivered::Taken);
    let Outcome::Done(result) = flows.ended("many", "1").await.unwrap() else { panic!("it has failed") };
    assert_eq!(result.get(), format!("[{},18]", 50 + 50 * 51 / 2));
    flows.check(&flows.journal("many", "1").await.unwrap()).unwrap();
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn operations_of_long_names_that_are_more_than_a_commit_takes_begin_and_end_at_once() {
    let t = TestFlows::new();
    let code = async |flow: Flow, (): ()| {
        let branches = (0..9_000).map(|n| flow.branch(&format!("{n:0>240}")));
        let timers = join_all(branches.map(|branch| branch.branch(&"x".repeat(200)).sleep(Duration::from_secs(3_600))));
        Ok(timers.await.len())
    };
    t.deploy(Flows::builder().flow("long", 1, code)).await.unwrap();
    t.start("long", "1", &()).await.unwrap();
    let status = t.status("long", "1").await.unwrap();
    assert!(status.bytes > 2 * 1024 * 1024, "{status:?}");
    t.crash().await.unwrap();
    assert_eq!(t.done::<usize>("long", "1").await.unwrap(), 9_000);
    assert_eq!(t.status("long", "1").await.unwrap().entries, 9_001);
}
