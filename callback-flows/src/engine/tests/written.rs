//! Decisions of a flow that are too much for one commit.

use futures_util::future::join_all;

use super::*;
use crate::journal::Journal;

/// A flow that begins so many steps, timers and a callback at once, and then has the steps' results.
fn many(count: usize, runs: &Arc<AtomicU32>) -> Code {
    let runs = runs.clone();
    code(move |flow| {
        let runs = runs.clone();
        async move {
            let keys: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let mut go: Callback<u32> = flow.callback("go");
            let timers = keys.iter().map(|key| flow.branch(key).sleep(seconds(5)));
            let timers = join_all(timers);
            let count = async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed));
            let steps = join_all(keys.iter().map(|key| flow.step_for("count", key).run(count))).await;
            timers.await;
            Ok(format!("{} {}", steps.into_iter().filter(Result::is_ok).count(), go.next().await?))
        }
    })
}

fn small() -> Limits {
    Limits { page_bytes: 200, ..Limits::default() }
}

/// The engine of a flow that has been started, and what it writes before a step may start: each page in a commit of its own.
fn begun(code: &Code, clock: &SimClock, runs: &AtomicU32) -> (Engine, Vec<Page>, u64) {
    let mut engine = engine(code, small(), clock, Vec::new());
    engine.append(at(0), Event::Start { version: 1, run: 1, seed: 7, input: Bytes::from_static(b"null") });
    engine.settle(usize::MAX);
    let mut pages = Vec::new();
    loop {
        let (page, mark) = engine.take_page();
        pages.push(Page::decode(&page.encode()).unwrap());
        assert!(page.encode().page.len() < 300, "{page:?}");
        if let Some(mark) = mark {
            return (engine, pages, mark);
        }
        // Nothing goes on before all of it is durable.
        engine.append_message(&pages);
        assert!(engine.settle(usize::MAX) && engine.has_rest());
        engine.poll_steps(at(0));
        assert_eq!(runs.load(Ordering::Relaxed), 0);
    }
}

impl Engine {
    /// Takes a message in between the first two commits.
    fn append_message(&mut self, pages: &[Page]) {
        if pages.len() == 1 {
            let message = Message { id: "m".into(), headers: Vec::new(), body: Bytes::from_static(b"17") };
            self.append(at(0), Event::Message { callback: "callback:go#0".into(), message });
        }
    }
}

#[test]
fn what_is_too_much_for_one_commit_is_written_in_several_and_no_step_starts_before_the_last() {
    let (runs, clock) = (Arc::default(), SimClock::new(at(0)));
    let code = many(40, &runs);
    let (mut engine, pages, mark) = begun(&code, &clock, &runs);
    assert!(pages.len() > 10, "{}", pages.len());
    assert!(pages[..pages.len() - 1].iter().all(|page| page.settled_to == 0), "the start is not taken in by half");
    engine.open(mark);
    engine.settle(usize::MAX);
    engine.poll_steps(at(0));
    assert_eq!(runs.load(Ordering::Relaxed), 40);

    // It is the journal that it would be in one page.
    let text = Journal::new("test", "1", pages).to_json().unwrap();
    assert_eq!(text.matches("\"name\"").count(), 81, "{text}");
}

#[test]
fn a_flow_that_dies_between_two_commits_of_one_decision_decides_it_anew() {
    for died_after in 1.. {
        let (runs, clock) = (Arc::default(), SimClock::new(at(0)));
        let code = many(20, &runs);
        let (_, pages, _) = begun(&code, &clock, &runs);
        if died_after > pages.len() {
            assert!(died_after > 5);
            return;
        }
        let mut flow = Tested { limits: small(), ..Tested::start_with(Limits::default(), code) };
        runs.store(0, Ordering::Relaxed);
        flow.stored = pages[..died_after].to_vec();
        flow.messages = 1;
        flow.replay();
        if died_after < 3 {
            // The message that had come may not have been among what was durable.
            flow.append_message("callback:go#0", "17");
        }
        assert_eq!(runs.load(Ordering::Relaxed), 20, "after {died_after} commits");
        flow.pass(5_000);
        assert_eq!(flow.result(), "20 17");
        let pages = flow.stored.clone();
        let shared = Shared::new(
            "test/1".into(),
            Arc::new(flow.clock.clone()),
            Arc::new(SeededRandom::new(1)),
            flow.limits,
            None,
            Arc::new(()),
        );
        Engine::check(shared, flow.code.clone(), pages).unwrap();
    }
}

#[test]
fn code_that_was_changed_before_all_of_a_decision_was_durable_may_decide_otherwise() {
    let (runs, clock) = (Arc::default(), SimClock::new(at(0)));
    let (_, pages, _) = begun(&many(20, &runs), &clock, &runs);
    let changed = many(3, &runs);
    let mut flow = Tested { limits: small(), ..Tested::start_with(Limits::default(), changed) };
    flow.stored = pages[..pages.len() - 1].to_vec();
    flow.replay();
    flow.pass(5_000);
    assert_eq!(flow.result(), "3 17");

    let mut flow = Tested { limits: small(), ..Tested::start_with(Limits::default(), many(3, &runs)) };
    flow.stored = pages;
    flow.replay();
    flow.assert_blocked(BlockedKind::Differs, "and does not begin it now");
}

#[tokio::test(start_paused = true)]
async fn timers_that_fire_at_once_are_written_in_several_commits_and_each_fires_once() {
    let mut flow = Tested::start_with(
        small(),
        code(async |flow: Flow| {
            let timers = (0..50)
                .map(|n| flow.branch(&format!("a branch with a name of some length, number {n}")).sleep(seconds(5)));
            Ok(join_all(timers).await.len().to_string())
        }),
    );
    let before = flow.stored.len();
    flow.pass(5_000);
    assert_eq!(flow.result(), "50");
    assert!(flow.stored.len() > before + 20, "{} pages", flow.stored.len());
}

#[test]
fn an_entry_that_is_larger_than_a_page_has_one_of_its_own() {
    let mut flow = Tested::start_with(
        small(),
        code(async |flow: Flow| {
            let mut go: Callback<String> = flow.callback("go");
            Ok(go.next().await?.len().to_string())
        }),
    );
    let before = flow.stored.len();
    flow.send(1, "callback:go#0", &format!("{:?}", "x".repeat(1_000)));
    assert_eq!(flow.result(), "1000");
    assert_eq!(flow.stored.len(), before + 1, "with the end");
}

#[test]
fn whatever_the_code_begins_counts_for_the_length_of_its_journal() {
    let limits = Limits { bytes: 10_000, ..Limits::default() };
    let code = code(async |flow: Flow| {
        join_all((0..1_000).map(|n| flow.branch(&n.to_string()).sleep(seconds(5)))).await;
        Ok(String::new())
    });
    let mut flow = Tested::start_with(limits, code.clone());
    flow.assert_blocked(BlockedKind::TooLong, "and may have 10000 and 10000");
    flow.limits = Limits::default();
    flow.replay();
    assert_eq!(*flow.engine.phase(), Phase::Going);
    let bytes = flow.engine.bytes();
    flow.replay();
    assert_eq!((flow.engine.bytes(), bytes > 20_000), (bytes, true));
}
