//! Values of up to a mebibyte, which are kept apart from the journal's pages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stable_interfaces::clock::{Clock, SystemClock};
use stable_interfaces::{Fleet, Host, HostBuilder, KeyRange, MemoryStore};

use super::journals::PAGES;
use super::{Call, Flows, FlowsBuilder, FlowsError};
use crate::status::RESULT_KEY;
use crate::{Callback, Flow, FlowResult, Outcome, StepError, UrlKeys};

/// The length of a text whose JSON has just a mebibyte.
const MEBIBYTE: usize = 1024 * 1024 - 2;
const TOKEN: &str = "https://broker.example/";

fn keys() -> UrlKeys {
    UrlKeys::new("k1", [7; 32]).unwrap()
}

fn text(of: char, bytes: usize) -> String {
    of.to_string().repeat(bytes)
}

/// Gives out the last of an input, a step's result and a call's body, each as large as it is told.
async fn grow(flow: Flow, input: String) -> FlowResult<String> {
    let bytes = input.len();
    let read = flow.step("read").run(|_| std::future::ready(Ok::<_, std::io::Error>(text('b', bytes)))).await?;
    let call = flow.callback::<String>("call").next().await?;
    assert_eq!((input.len(), read.len(), call.len()), (bytes, bytes, bytes));
    Ok(text('d', bytes))
}

fn builder() -> FlowsBuilder {
    Flows::builder().flow("grow", 1, grow).callbacks(TOKEN, keys())
}

async fn started(store: &MemoryStore, flows: FlowsBuilder) -> (Host, Flows) {
    let mut host = Host::local(store.clone());
    let flows = flows.register(&mut host).unwrap();
    (host.start().await.unwrap(), flows)
}

async fn call(flows: &Flows, flow: &str, body: String) -> Result<super::Delivered, FlowsError> {
    flows.deliver(&keys().sign(flow, 1, "callback:call#0"), Call::new(format!("\"{body}\""))).await
}

async fn rows(flows: &Flows, flow: &str, prefix: &str) -> Vec<(String, usize)> {
    let rows = flows.stored(flow, KeyRange::prefix(prefix)).await.unwrap();
    rows.iter().map(|(key, row)| (key.to_string(), row.len())).collect()
}

#[tokio::test(start_paused = true)]
async fn values_of_a_mebibyte_outlive_their_process_beside_pages_that_are_small() {
    let store = MemoryStore::new();
    let (host, flows) = started(&store, builder().max_value(1024 * 1024)).await;
    flows.start("grow", "1", &text('a', MEBIBYTE)).await.unwrap();
    flows
        .wait("grow", "1", Duration::MAX, |status| status.waits.iter().any(|wait| wait.name.contains("call")))
        .await
        .unwrap();
    host.crash();

    let (host, flows) = started(&store, builder().max_value(1024 * 1024)).await;
    assert_eq!(call(&flows, "grow/1", text('c', MEBIBYTE)).await.unwrap(), super::Delivered::Taken);
    let Outcome::Done(result) = flows.ended("grow", "1").await.unwrap() else { panic!("it has no result") };
    assert_eq!(result.get(), format!("\"{}\"", text('d', MEBIBYTE)));

    let (bodies, pages): (Vec<_>, Vec<_>) =
        rows(&flows, "grow/1", PAGES).await.into_iter().partition(|(key, _)| key.contains("/b"));
    assert!(pages.iter().all(|(_, bytes)| *bytes < 512), "{pages:?}");
    let chunks: Vec<_> = bodies.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(chunks, [[256_000, 256_000, 256_000, 256_000, 24_576]; 3].concat());
    assert_eq!(rows(&flows, "grow/1", RESULT_KEY).await.len(), 5);
    // Raw.
    let body = flows.stored("grow/1", KeyRange::from(&*bodies[0].0).limit(1)).await.unwrap();
    assert_eq!(body[0].1, Bytes::from(format!("\"{}", text('a', 255_999))));

    let journal = flows.journal("grow", "1").await.unwrap();
    flows.check(&journal).unwrap();
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_result_of_a_kibibyte_has_no_row_of_its_own_and_a_longer_one_has() {
    let store = MemoryStore::new();
    let texts = || Flows::builder().flow("text", 1, async |_: Flow, bytes: usize| Ok(text('r', bytes)));
    let (host, flows) = started(&store, texts()).await;
    for (id, bytes) in [("short", 1_022), ("long", 1_023)] {
        flows.start("text", id, &bytes).await.unwrap();
        flows.ended("text", id).await.unwrap();
    }
    host.crash();
    let (host, flows) = started(&store, texts()).await;
    for (id, bytes, its_rows) in [("short", 1_022, 0), ("long", 1_023, 1)] {
        assert_eq!(rows(&flows, &format!("text/{id}"), RESULT_KEY).await.len(), its_rows, "{id}");
        let Outcome::Done(result) = flows.ended("text", id).await.unwrap() else { panic!("{id} has no result") };
        assert_eq!(result.get(), format!("\"{}\"", text('r', bytes)));
        flows.check(&flows.journal("text", id).await.unwrap()).unwrap();
    }
    host.drain(Duration::from_secs(1)).await;
}

/// A list in a list in a list.
#[derive(serde::Serialize)]
struct Nest(Vec<Nest>);

#[tokio::test(start_paused = true)]
async fn a_result_that_is_nested_as_deep_as_can_be_read_is_kept() {
    let code = async |_: Flow, depth: usize| Ok((1..depth).fold(Nest(Vec::new()), |inner, _| Nest(vec![inner])));
    let (host, flows) = started(&MemoryStore::new(), Flows::builder().flow("nest", 1, code)).await;
    for depth in [126, 127] {
        flows.start("nest", &depth.to_string(), &depth).await.unwrap();
        let Outcome::Done(result) = flows.ended("nest", &depth.to_string()).await.unwrap() else { panic!("{depth}") };
        assert_eq!(result.get(), ["[".repeat(depth), "]".repeat(depth)].concat());
    }
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_byte_more_than_may_be_is_refused_or_recorded_and_fails_no_turn() {
    let (host, flows) = started(
        &MemoryStore::new(),
        builder()
            .flow("step", 1, async |flow: Flow, bytes: usize| {
                let read = flow.step("read").run(|_| std::future::ready(Ok::<_, std::io::Error>(text('b', bytes))));
                Ok(matches!(read.await, Err(StepError::TooLarge(_))))
            })
            .flow("result", 1, async |_: Flow, bytes: usize| Ok(text('d', bytes)))
            .max_value(1024 * 1024),
    )
    .await;
    let large = flows.start("grow", "1", &text('a', MEBIBYTE + 1)).await.unwrap_err();
    assert_eq!(large.to_string(), "the input has 1048577 bytes, and may have 1048576");
    assert_eq!(flows.get("grow", "1").await.unwrap(), None);
    flows.start("grow", "1", "a").await.unwrap();
    let large = call(&flows, "grow/1", text('c', MEBIBYTE + 1)).await.unwrap_err();
    assert_eq!(large.to_string(), "the call has 1048577 bytes, and may have 1048576");
    for (bytes, is_too_large) in [(MEBIBYTE, "false"), (MEBIBYTE + 1, "true")] {
        flows.start("step", is_too_large, &bytes).await.unwrap();
        let Outcome::Done(result) = flows.ended("step", is_too_large).await.unwrap() else { panic!("it has failed") };
        assert_eq!(result.get(), is_too_large);
    }
    flows.start("result", "1", &(MEBIBYTE + 1)).await.unwrap();
    let Outcome::Failed(error) = flows.ended("result", "1").await.unwrap() else { panic!("it has a result") };
    assert_eq!(error, "its result has 1048577 bytes, and may have 1048576");
    let refused = builder().max_value(1024 * 1024 + 1).register(&mut Host::local(MemoryStore::new())).unwrap_err();
    assert_eq!(refused.to_string(), "values of 1048577 bytes cannot be kept, and up to 1048576 can");
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_largest_of_everything_in_one_turn_fits_into_one_commit() {
    let (host, flows) = started(
        &MemoryStore::new(),
        Flows::builder()
            // Steps that end together, and a result when the last of them has.
            .flow("burst", 1, async |flow: Flow, (): ()| {
                let all = (0..6).map(async |n: u32| {
                    let key = n.to_string();
                    flow.step_for("read", &key)
                        .run(|_| std::future::ready(Ok::<_, std::io::Error>(text('b', MEBIBYTE))))
                        .await
                });
                let all = futures_util::future::join_all(all).await;
                Ok(text('d', all.into_iter().map(|read| read.map_or(0, |read| read.len() / 6)).sum::<usize>()))
            })
            // A call that ends it.
            .flow("relay", 1, async |flow: Flow, (): ()| {
                let mut call: Callback<String> = flow.callback("call");
                Ok(call.next().await?)
            })
            .callbacks(TOKEN, keys())
            .max_value(1024 * 1024),
    )
    .await;
    flows.start("burst", "1", &()).await.unwrap();
    let Outcome::Done(result) = flows.ended("burst", "1").await.unwrap() else { panic!("it has failed") };
    assert!(result.get().len() > MEBIBYTE - 6);
    flows.start("relay", "1", &()).await.unwrap();
    call(&flows, "relay/1", text('c', MEBIBYTE)).await.unwrap();
    let Outcome::Done(result) = flows.ended("relay", "1").await.unwrap() else { panic!("it has failed") };
    assert_eq!(result.get().len(), MEBIBYTE + 2);
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn large_bodies_that_a_run_has_read_go_with_it_and_those_that_nobody_read_stay_where_they_are() {
    let store = MemoryStore::new();
    let code = async |flow: Flow, run: u32| -> FlowResult<usize> {
        let mut call = flow.callback::<String>("call");
        let first = call.next().await?.len();
        if run == 1 {
            // The second is there, and not taken.
            flow.step("read").run(|_| std::future::ready(Ok::<_, std::io::Error>(text('b', 20_000)))).await?;
            flow.signal::<()>("go").next().await?;
            return flow.continue_with(&2);
        }
        flow.signal::<()>("end").next().await?;
        Ok(first)
    };
    let builder = || Flows::builder().flow("both", 1, code).callbacks(TOKEN, keys());
    let (host, flows) = started(&store, builder()).await;
    flows.start("both", "1", &1).await.unwrap();
    call(&flows, "both/1", text('c', 10_000)).await.unwrap();
    call(&flows, "both/1", text('e', 30_000)).await.unwrap();
    flows.signal("both", "1", "go", &()).await.unwrap();
    flows.wait("both", "1", Duration::MAX, |status| status.run == 2).await.unwrap();
    Clock::sleep(&SystemClock::default(), Duration::from_secs(1)).await;
    let bodies = async |flows: &Flows| {
        let rows = rows(flows, "both/1", PAGES).await;
        rows.into_iter().filter(|(key, _)| key.contains("/b")).map(|(_, bytes)| bytes).collect::<Vec<_>>()
    };
    assert_eq!(bodies(&flows).await, [30_002], "of three");
    host.crash();

    let (host, flows) = started(&store, builder()).await;
    flows.signal("both", "1", "end", &()).await.unwrap();
    let Outcome::Done(result) = flows.ended("both", "1").await.unwrap() else { panic!("it has failed") };
    assert_eq!(result.get(), "30000");
    host.drain(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_has_to_be_stored_for_another_host_is_smaller() {
    let store = MemoryStore::with_clock(Arc::new(SystemClock::default()));
    let fleet = Fleet::new(["one", "two"], 8).unwrap();
    // The owner of half of all flows is not there.
    let mut host: HostBuilder = Host::builder("one", fleet.clone()).store(store);
    let flows = builder().max_value(1024 * 1024).register(&mut host).unwrap();
    let host = host.start().await.unwrap();
    let id = (0..100).map(|n| n.to_string()).find(|id| flows.interface.epoch(&format!("grow/{id}")).is_none()).unwrap();
    let what = "has 196609 bytes, and may have 196608";
    let large = flows.start("grow", &id, &text('a', 192 * 1024 - 1)).await.unwrap_err();
    assert_eq!(large.to_string(), format!("an input that is stored for the owner of its flow {what}"));
    flows.start("grow", &id, &text('a', 192 * 1024 - 2)).await.unwrap();
    let large = call(&flows, &format!("grow/{id}"), text('c', 192 * 1024 - 1)).await.unwrap_err();
    assert_eq!(large.to_string(), format!("a call that is stored for the owner of its flow {what}"));
    host.drain(Duration::from_secs(1)).await;
}
