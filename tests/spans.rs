//! The span around each handler, and around `on_stop`. It is the only test of its program, since tracing remembers per process whether anybody
//! listens.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use callback_flows::{Flow, Flows, UrlKeys};
use parking_lot::Mutex;
use stable_interfaces::testing::MemoryNetwork;
use stable_interfaces::{Context, ContextError, Fleet, Handle, NewPost, StableInterface};
use system_tests::{Failed, Probe, World, act, spawn, wait};
use tracing::Span;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

const SECOND: Duration = Duration::from_secs(1);

/// The fields of each span that was made, and what was said inside which spans.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        self.0 += &format!(" {}={}", field.name(), text.trim_matches('"'));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: LayerContext<'_, S>) {
        let span = context.span(id).unwrap();
        values.record(span.extensions_mut().get_mut::<Fields>().unwrap());
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: LayerContext<'_, S>) {
        let mut said = Fields::default();
        event.record(&mut said);
        if said.0.contains("message=flows of this host") {
            // But for the time that it took.
            let (counted, _) = said.0.split_once(" took=").unwrap();
            let level = event.metadata().level();
            self.0.lock().push(format!("{level}{counted}"));
        }
        if !said.0.contains("message=said") {
            return;
        }
        let spans = context.event_scope(event).into_iter().flatten();
        let spans = spans.map(|span| {
            let fields = span.extensions().get::<Fields>().unwrap().0.clone();
            format!("{}{fields}", span.name())
        });
        let spans: Vec<_> = spans.collect();
        self.0.lock().push(spans.join(" in "));
    }
}

#[tokio::test(start_paused = true)]
async fn each_poll_of_a_handler_and_of_on_stop_is_inside_a_span_that_names_it() {
    let spans = Spans::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans.clone())).unwrap();
    let world = World::in_memory();
    world.script.on_alarm(|_, _, alarm| {
        let fails = alarm.attempt() == 0;
        Box::pin(async move {
            tracing::info!("said");
            if fails { Err(Failed::Told("no")) } else { Ok(()) }
        })
    });
    world.script.on_message(|_, _, _| {
        Box::pin(async {
            tracing::info!("said");
            Ok(())
        })
    });
    let fleet = Fleet::new(["only"], 1).unwrap();
    let site = world.launch(world.member("only", &fleet), |probes| probes).await;
    let probes = site.probes.clone();
    let nested = act(move |_: &mut Probe, _| {
        Box::pin(async move {
            tracing::info!("said");
            let said = act(|me: &mut Probe, _| {
                let sleep = me.sleep(SECOND);
                Box::pin(async move {
                    sleep.await;
                    tracing::info!("said");
                    Ok(())
                })
            });
            probes.request("inner", said).await.map_err(|error| Failed::Nested(error.to_string()))?;
            tokio::task::yield_now().await;
            tracing::info!("said");
            Ok(())
        })
    });
    let busy = spawn(&site.probes, "outer", wait(SECOND));
    world.settle().await;
    // From the queue as well.
    let nested = spawn(&site.probes, "outer", nested);
    busy.await.unwrap().unwrap();
    nested.await.unwrap().unwrap();
    let outer = "handle interface=probe instance=outer shard=0";
    let inner = "handle interface=probe instance=inner shard=0";
    assert_eq!(*spans.0.lock(), [outer.to_owned(), format!("{inner} in {outer}"), outer.to_owned()]);
    spans.0.lock().clear();

    site.probes.set_alarm("a", "x", world.at(0), &()).await.unwrap();
    world.pass(10 * SECOND).await;
    site.probes.post("a", NewPost::new("").id("m")).await.unwrap();
    world.pass(SECOND).await;
    let a = "handle interface=probe instance=a shard=0";
    assert_eq!(
        *spans.0.lock(),
        [format!("{a} alarm=x attempt=0"), format!("{a} alarm=x attempt=1"), format!("{a} message=m attempt=0")]
    );
    spans.0.lock().clear();

    site.probes.stop("a").await.unwrap();
    let drained = site.host.drain(SECOND).await;
    assert!(drained.released, "{drained:?}");
    let stops = ["outer", "inner"].map(|id| format!("stop interface=probe instance={id} shard=0"));
    let mut said = std::mem::take(&mut *spans.0.lock());
    assert_eq!(said.remove(0), format!("stop interface=probe instance=a shard=0 in {a}"));
    said.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(said, stops);
    drop(site);
    a_flow_is_in_a_span_of_its_own_and_counted_when_its_host_starts(&spans).await;
    a_trace_goes_on_at_another_host(&spans).await;
}

/// Says something for whoever asks.
struct Speaker;

impl StableInterface for Speaker {
    const NAME: &'static str = "speaker";
    type Error = ContextError;
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Say;

impl Handle<Say> for Speaker {
    type Reply = ();

    async fn handle(&mut self, _: &mut Context, _: Say) -> Result<(), ContextError> {
        tracing::info!("said");
        Ok(())
    }
}

/// Part of the one test of this program.
async fn a_trace_goes_on_at_another_host(spans: &Spans) {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (world, network) = (World::in_memory(), MemoryNetwork::new());
    let fleet = Fleet::new(["zero", "one"], 32).unwrap();
    let (trace, gone_on) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(Vec::new())));
    let member = async |name: &'static str| {
        let (current, gone_on) = (trace.clone(), gone_on.clone());
        let go_on = move |span: &Span, trace: &str| {
            gone_on.lock().push((name, span.metadata().unwrap().name(), trace.to_owned()));
        };
        let host = world.member(name, &fleet).transport(network.transport());
        let mut host = host.traces(move || current.lock().clone(), go_on);
        let speakers = host.interface(|_| Speaker).forward::<Say>("say").register().unwrap();
        (host.start().await.unwrap(), speakers)
    };
    let ((zero, speakers), (_one, _)) = (member("zero").await, member("one").await);
    world.settle().await;
    let id_of = |is_own| (0..).map(|n| n.to_string()).find(|id| zero.owns(id).unwrap() == is_own).unwrap();
    let (own, others) = (id_of(true), id_of(false));
    spans.0.lock().clear();
    let said = async |id: &str, now: Option<&str>| {
        *trace.lock() = now.map(str::to_owned);
        speakers.request(id, Say).await.unwrap();
        let said = std::mem::take(&mut *spans.0.lock()).remove(0);
        said.split_once(" in ").map(|(_, rest)| rest.to_owned())
    };
    assert_eq!(said(&others, Some(TRACE)).await, Some(format!("forwarded traceparent={TRACE}")));
    // Nothing to go on with, more than crosses, and not another host's.
    assert_eq!(said(&others, None).await, None);
    assert_eq!(said(&others, Some(&"0".repeat(256))).await, None);
    assert_eq!(said(&own, Some(TRACE)).await, None);
    assert_eq!(*gone_on.lock(), [("one", "forwarded", TRACE.to_owned())]);
}

/// Part of the one test of this program.
async fn a_flow_is_in_a_span_of_its_own_and_counted_when_its_host_starts(spans: &Spans) {
    let world = World::in_memory();
    let start = async |versions: &[u32]| {
        let code = async |flow: Flow, (): ()| {
            tracing::info!("said");
            let mut go = flow.callback::<u32>("go");
            let url = go.url();
            let mut mode = flow.signal::<String>("mode");
            match &*mode.next().await? {
                "panic" => panic!("as it was told"),
                "run" => {
                    let never = std::future::pending::<Result<(), std::io::Error>>;
                    flow.step("run").run(async |_| never().await).await?;
                }
                _ => tracing::info!(url, "said"),
            }
            Ok(go.next().await?)
        };
        let keys = UrlKeys::new("k1", [7; 32]).unwrap();
        let flows = Flows::builder().callbacks("https://broker.example", keys);
        let flows = versions.iter().fold(flows, |flows, version| flows.flow("one", *version, code));
        let mut host = world.local();
        let flows = flows.register(&mut host).unwrap();
        let host = host.start().await.unwrap();
        world.settle().await;
        (host, flows)
    };
    spans.0.lock().clear();
    let (host, flows) = start(&[1, 2]).await;
    for (id, mode) in [("a", "wait"), ("b", "panic"), ("c", "run"), ("d", "none")] {
        flows.start("one", id, &()).await.unwrap();
        if mode != "none" {
            flows.signal("one", id, "mode", mode).await.unwrap();
        }
    }
    world.pass(SECOND).await;
    let mut said = std::mem::take(&mut *spans.0.lock());
    assert_eq!(said.remove(0), "INFO message=flows of this host waiting=0 running=0 blocked=0");
    assert_eq!(said.len(), 5);
    for (said, id) in said.iter().zip(["a", "a", "b", "c", "d"]) {
        let handled =
            format!("flow name=one id={id} version=2 run=1 in handle interface=flow instance=one/{id} shard=");
        assert!(said.starts_with(&handled), "{said}");
    }
    host.crash();
    // What was said is not said again.
    let (host, flows) = start(&[1, 2]).await;
    world.pass(2 * SECOND).await;
    flows.signal("one", "d", "mode", "wait").await.unwrap();
    let said = std::mem::take(&mut *spans.0.lock());
    assert_eq!(said[0], "INFO message=flows of this host waiting=2 running=1 blocked=1");
    assert!(said.len() == 2 && said[1].starts_with("flow name=one id=d "), "{said:?}");
    host.crash();
    let (host, _) = start(&[1]).await;
    world.pass(2 * SECOND).await;
    let said = std::mem::take(&mut *spans.0.lock());
    let missing = "message=flows of this host; register the versions that are missing waiting=2 running=1 blocked=1 missing=one@2";
    assert_eq!(said, [format!("WARN {missing}")]);
    host.drain(SECOND).await;
}
