//! Steps: run once, tried again, and never before what came before them is durable.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_result_that_the_code_had_not_seen_when_its_process_died_is_seen_once() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let mut go: Callback<u32> = flow.callback("go");
            let mut step =
                Box::pin(flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))));
            // Begun, and then not looked at for a while: its result waits in the journal.
            assert!(poll_fn(|task| Poll::Ready(step.as_mut().poll(task))).await.is_pending());
            go.next().await?;
            Ok(step.await?.to_string())
        }
    });
    assert_eq!(flow.engine.entries(), 1);
    flow.replay();
    flow.send(1, "callback:go#0", "1");
    flow.replay();
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("0", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_runs_once_and_its_result_is_in_every_replay() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let n = flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))).await?;
            flow.sleep(seconds(5)).await;
            Ok(n.to_string())
        }
    });
    flow.replay();
    flow.pass(5_000);
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("0", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_loses_a_race_is_dropped_and_never_run_by_a_replay() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let step = flow.step("slow").run(|_| {
                runs.fetch_add(1, Ordering::Relaxed);
                pending::<Result<(), IoError>>()
            });
            let lost = flow.timeout(seconds(5), step).await.is_err();
            flow.sleep(seconds(5)).await;
            Ok(lost.to_string())
        }
    });
    flow.pass(5_000);
    flow.replay();
    flow.pass(10_000);
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("true", 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_does_not_start_before_what_came_before_it_is_durable() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let run = code(move |flow| {
        let runs = counted.clone();
        async move {
            flow.step("count").run(async |_| Ok::<_, IoError>(runs.fetch_add(1, Ordering::Relaxed))).await?;
            Ok(String::new())
        }
    });
    let mut engine = engine(&run, Limits::default(), &SimClock::new(at(0)), Vec::new());
    engine.append(at(0), Event::Start { version: 1, run: 1, seed: 7, input: Bytes::new() });
    engine.settle(usize::MAX);
    engine.poll_steps(at(0));
    let (_, mark) = engine.take_page();
    engine.poll_steps(at(0));
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    engine.open(mark.unwrap());
    engine.poll_steps(at(0));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_tried_again_with_the_same_key_and_in_the_end_its_error_is_recorded() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let noted = keys.clone();
    let mut flow = Tested::start(move |flow| {
        let keys = noted.clone();
        async move {
            let retry = Retry::default().attempts(3);
            let step = flow.step("pay").retry(retry).run(|s| {
                keys.lock().push((s.attempt(), s.idempotency_key()));
                std::future::ready(Err::<(), _>(std::io::Error::other("the line is busy")))
            });
            Err(step.await.unwrap_err().into())
        }
    });
    for millis in [200, 1_000] {
        tokio::time::advance(Duration::from_millis(300)).await;
        flow.turn(millis);
    }
    assert_eq!(flow.failure(), "the line is busy (attempt 3)");
    let keys = keys.lock();
    assert_eq!(keys.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(keys.iter().all(|(_, key)| *key == keys[0].1 && key.len() == 32), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_is_not_tried_again() {
    let flow = Tested::start(async |flow: Flow| {
        let step = flow.step("pay").run(async |_| Err::<(), _>(Fatal::new("no such account")));
        Err(step.await.unwrap_err().into())
    });
    assert_eq!(flow.failure(), "no such account (attempt 1)");
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_the_next_attempt_outlives_the_process_with_the_attempts_that_were_made() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let mut flow = Tested::start(move |flow| {
        let attempts = noted.clone();
        async move {
            let retry = Retry::default().between(seconds(30), seconds(30));
            let step = flow.step("pay").retry(retry).run(|s| {
                attempts.lock().push(s.attempt());
                std::future::ready(if s.attempt() < 2 { Err(std::io::Error::other("busy")) } else { Ok(s.attempt()) })
            });
            Ok(step.await?.to_string())
        }
    });
    flow.replay();
    let wait = flow.engine.waits().remove(0);
    assert_eq!((wait.attempts, wait.last_error.as_deref()), (1, Some("busy")));
    let due = flow.engine.next_due().unwrap().as_millis();
    assert!((15_000..=30_000).contains(&due), "{due}");
    flow.pass(due - 1);
    assert_eq!(*attempts.lock(), [1], "not before its time");
    flow.pass(due);
    assert_eq!((flow.result(), &**attempts.lock()), ("2", &[1, 2][..]));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_may_run_once_at_most_is_interrupted_by_a_crash() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let mut flow = Tested::start(move |flow| {
        let runs = counted.clone();
        async move {
            let step = flow.step("charge").at_most_once().run(|_| {
                runs.fetch_add(1, Ordering::Relaxed);
                pending::<Result<(), IoError>>()
            });
            Ok(format!("{:?}", step.await))
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    flow.replay();
    assert_eq!((flow.result(), runs.load(Ordering::Relaxed)), ("Err(Interrupted)", 1));
    assert!(matches!(StepError::Interrupted.to_string().as_str(), text if text.contains("once at most")));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_is_an_error_and_no_failed_turn() {
    let flow = Tested::start_with(
        Limits { value_bytes: 100, ..Limits::default() },
        code(async |flow: Flow| {
            let step = flow.step("read").run(async |_| Ok::<_, IoError>("x".repeat(200)));
            Ok(format!("{:?}", step.await))
        }),
    );
    assert_eq!(flow.result(), "Err(TooLarge(202))");
}
