//! Journals that are kept: those of every version replay, and what they say has a text that stays.

use stable_interfaces::{Host, MemoryStore};

use super::TestFlows;
use super::tests::{SECOND, builder, order};
use crate::{BlockedKind, Call, Flow, Flows, FlowsBuilder, Journal, Retry};

/// Flows with everything that a journal can tell of.
fn all_kinds() -> FlowsBuilder {
    let failing = |text: &'static str| move |_| std::future::ready(Err::<(), _>(std::io::Error::other(text)));
    builder()
        .flow("order", 1, move |flow, item| order(std::sync::Arc::default(), flow, item))
        .flow("refused", 2, move |flow: Flow, (): ()| async move {
            flow.step("ask").input(&17).retry(Retry::default().attempts(2)).run(failing("no")).await?;
            Ok(())
        })
        .flow("patient", 1, move |flow: Flow, (): ()| async move {
            let retry = Retry::default().between(60 * SECOND, 60 * SECOND);
            flow.branch("later").step_for("ask", "a/b").retry(retry).run(failing("not now")).await?;
            Ok(())
        })
        .flow("once", 1, async |flow: Flow, (): ()| {
            let charge = flow.step("charge").at_most_once();
            Ok(charge.run(|_| std::future::pending::<Result<(), std::io::Error>>()).await.is_err())
        })
        .flow("large", 1, async |flow: Flow, bytes: usize| {
            let read = flow.step("read").run(|_| std::future::ready(Ok::<_, std::io::Error>("x".repeat(bytes))));
            Ok(read.await.is_err())
        })
        .flow("raw", 1, async |flow: Flow, (): ()| {
            let mut all = flow.callback::<()>("all");
            let (first, second) = (all.next_raw().await, all.next_raw().await);
            Ok((first.headers().count(), second.body().len()))
        })
        .flow("undone", 1, async |flow: Flow, (): ()| {
            let nothing = |_| std::future::ready(Ok::<_, std::io::Error>(()));
            flow.step("seat").run(nothing).await?;
            flow.undo("seat", nothing);
            if flow.patched("meals") {
                flow.step("meal").run(nothing).await?;
            }
            flow.callback::<()>("never").next_raw().await;
            Ok(())
        })
        .flow("both", 1, async |flow: Flow, (): ()| {
            let (a, b) = (flow.branch("a"), flow.branch("b"));
            let number = |n: u32| move |_| std::future::ready(Ok::<_, std::io::Error>(n));
            let (a, b) = tokio::join!(a.step("n").run(number(1)), b.step("n").run(number(2)));
            flow.sleep(SECOND).await;
            Ok((a? + b?, flow.uuid(), flow.now()))
        })
        .flow("half", 1, async |_: Flow, n: u32| Ok(n / 2))
        .flow("family", 1, async |flow: Flow, (): ()| {
            drop(flow.spawn("half", "1", &8));
            let (mut half, mut other) = (flow.spawn("half", "2", &8), flow.spawn("other", "1", &8));
            Ok((half.result::<u32>().await?, other.result::<u32>().await.is_err()))
        })
        .flow("runs", 1, async |flow: Flow, sum: u32| {
            let (mut numbers, mut end) = (flow.callback::<u32>("numbers"), flow.signal::<String>("end"));
            let number = numbers.next().await?;
            flow.emit("number", &number)?;
            if sum + number < 6 {
                return flow.continue_with(&(sum + number));
            }
            Ok(format!("{} {}", sum + number, end.next().await?))
        })
}

/// The journals of each kind of entry: a name, and the flow.
const KINDS: [(&str, &str, &str); 11] = [
    ("start-result-message-done", "order", "called"),
    ("fired", "order", "late"),
    ("failure-failed", "refused", "1"),
    ("attempt", "patient", "1"),
    ("intent-interrupted", "once", "1"),
    ("too-large", "large", "1"),
    ("raw-messages", "raw", "1"),
    ("cancel-undo-patch", "undone", "1"),
    ("branches", "both", "1"),
    ("children", "family", "1"),
    ("continued", "runs", "1"),
];

/// Runs them all, and gives out their journals.
async fn journals_of_today() -> Vec<(&'static str, Journal)> {
    let t = TestFlows::new();
    t.deploy(all_kinds()).await.unwrap();
    t.start("order", "called", "a pizza").await.unwrap();
    t.start("large", "1", &300_000).await.unwrap();
    for name in ["refused", "patient", "once", "raw", "undone", "both", "family"] {
        t.start(name, "1", &()).await.unwrap();
    }
    t.start("runs", "1", &0).await.unwrap();
    t.ask(async |flows| flows.signal_call("runs", "1", "end", Call::new("\"now\"").id("s-1")).await).await.unwrap();
    t.advance(SECOND).await;
    t.crash().await.unwrap();
    t.run_until_parked().await.unwrap();
    let numbers = t.url("runs", "1", "numbers").await;
    for number in ["1", "2", "3"] {
        t.deliver(&numbers, Call::new(number)).await.unwrap();
        t.crash().await.unwrap();
    }
    t.deliver(&t.url("order", "called", "accepted").await, Call::new("\"ada\"").id("c-1")).await.unwrap();
    let raw = t.url("raw", "1", "all").await;
    t.deliver(&raw, Call::new("{\"a\": 1}").header("content-type", "application/json")).await.unwrap();
    t.deliver(&raw, Call::new(vec![0, 159, 146, 150])).await.unwrap();
    t.ask(async |flows| flows.cancel("undone", "1").await).await.unwrap();
    t.start("order", "late", "a pizza").await.unwrap();
    t.advance(5 * SECOND).await;
    let mut journals = Vec::new();
    for (kind, name, id) in KINDS {
        journals.push((kind, t.ask(async |flows| flows.journal(name, id).await).await.unwrap()));
    }
    journals
}

/// The flows alone, without a process.
fn registered(flows: FlowsBuilder) -> Flows {
    flows.register(&mut Host::local(MemoryStore::new())).unwrap()
}

fn stored(kind: &str) -> String {
    let path = format!("{}/tests/journals/{kind}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn journals_of_every_kind_that_were_ever_written_are_read_and_replay() {
    let flows = registered(all_kinds());
    let directory = format!("{}/tests/journals", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let journal = Journal::from_json(&std::fs::read_to_string(&path).unwrap()).unwrap();
        flows.check(&journal).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        count += 1;
    }
    assert!(count >= KINDS.len(), "only {count}");
    let all: String = KINDS.iter().map(|(kind, _, _)| stored(kind)).collect();
    let events = [
        "start",
        "result",
        "failure",
        "interrupted",
        "too_large",
        "attempt",
        "intent",
        "message",
        "fired",
        "child_ended",
        "continued",
    ];
    for word in events.iter().chain(&["posted", "starts", "headers", "body_hex", "input", "due", "done", "failed"]) {
        assert!(all.contains(&format!("\"{word}\": ")), "no journal has {word}");
    }
    assert!(all.contains("\"event\": \"cancel\"") && all.contains("\"ended\": \"cancelled\""));
}

#[tokio::test(start_paused = true)]
async fn journals_of_today_replay_and_come_back_from_their_texts() {
    let flows = registered(all_kinds());
    for (kind, journal) in journals_of_today().await {
        flows.check(&journal).unwrap_or_else(|why| panic!("{kind}: {why}"));
        let again = Journal::from_json(&journal.to_json().unwrap()).unwrap();
        assert_eq!(again.to_json().unwrap(), journal.to_json().unwrap(), "{kind}");
        flows.check(&again).unwrap_or_else(|why| panic!("{kind}: {why}"));
    }
}

#[tokio::test(start_paused = true)]
#[ignore = "writes the journals of this version that are not there yet; those that are there stay as they are"]
async fn journals_that_are_missing_are_written() {
    for (kind, journal) in journals_of_today().await {
        let path = format!("{}/tests/journals/{kind}.json", env!("CARGO_MANIFEST_DIR"));
        if !std::fs::exists(&path).unwrap() {
            std::fs::write(path, journal.to_json().unwrap() + "\n").unwrap();
        }
    }
}

#[test]
fn a_journal_is_held_against_what_the_code_does_today_to_its_end() {
    let journal = Journal::from_json(&stored("start-result-message-done")).unwrap();
    assert_eq!((journal.name(), journal.id(), journal.version()), ("order", "called", 1));
    let why = |code: FlowsBuilder| registered(code).check(&journal).unwrap_err();
    let by = |by: &'static str| {
        builder().flow("order", 1, move |flow: Flow, item: String| async move {
            let mut accepted = flow.callback::<String>("accepted");
            flow.step("offer").input(&item).run(async |_| Ok::<_, std::io::Error>(String::new())).await?;
            let (mut limit, mut next) = (std::pin::pin!(flow.sleep(5 * SECOND)), std::pin::pin!(accepted.next()));
            tokio::select! {
                by = &mut next => drop(by?),
                () = &mut limit => {}
            }
            if by == "waits for ever" {
                limit.await;
            }
            if by != "nothing" {
                flow.step("charge").run(async |_| Ok::<_, std::io::Error>(1)).await?;
            }
            Ok(format!("{item} by {by}"))
        })
    };
    registered(by("ada")).check(&journal).unwrap();
    let other = why(by("bob"));
    assert_eq!(other.kind(), BlockedKind::Differs);
    let ends = "its code ends with \"a pizza by bob\", and ended with \"a pizza by ada\" when its journal was written";
    assert_eq!(other.message(), ends);
    let nothing = why(by("nothing"));
    assert!(nothing.message().contains("the code began `step:charge#0`, and does not begin it now"), "{nothing}");
    let waits = why(by("waits for ever"));
    assert!(waits.message().contains("`step:charge#0`"), "{waits}");
    let missing = why(builder().flow("order", 2, async |_: Flow, (): ()| Ok(())));
    assert_eq!(
        (missing.kind(), missing.message()),
        (BlockedKind::UnknownVersion, "version 1 of `order`, with which it began, is not in this program",)
    );
}
