//! Runs that go on as another one: what goes along, and what does not.

use super::*;
use crate::engine::continued::Continuation;

/// Adds numbers, and goes on as another run after each two of them.
fn adding() -> Code {
    Arc::new(|flow, input| {
        Box::pin(async move {
            let mut sum: u32 = serde_json::from_slice(&input).unwrap_or_default();
            let mut numbers = flow.callback::<u32>("numbers");
            let run = async {
                for _ in 0..2 {
                    match numbers.next().await? {
                        0 => return Ok(sum),
                        number => sum += number,
                    }
                }
                flow.continue_with(&sum)
            };
            match run.await {
                Ok(sum) => Ok(Bytes::from(sum.to_string())),
                Err(error) => Err(FlowError::into_stop(error)),
            }
        })
    })
}

impl Tested {
    fn next_run(&mut self) -> (u32, Continuation) {
        assert_eq!(*self.engine.phase(), Phase::Continued);
        let run = self.runs + 1;
        (run, self.engine.take_continuation().unwrap())
    }

    /// Begins the next run, as an instance does.
    fn switch(&mut self, millis: i64) {
        let (run, left) = self.next_run();
        self.runs = run;
        self.stored = vec![Page { entries: left.messages.clone(), ..Page::default() }];
        self.engine = engine(&self.code, self.limits, &self.clock, self.stored.clone());
        self.engine.count_from(left.next_seq);
        let carried = left.carried.into_iter().map(|(_, one)| one).collect();
        let event = Event::Continued { version: 1, run, seed: u64::from(run), input: left.input, carried };
        self.engine.append(at(millis), event);
        if left.is_cancelled {
            self.engine.append(at(millis), Event::Cancel);
        }
        self.turn(millis);
    }
}

#[tokio::test(start_paused = true)]
async fn no_message_is_lost_across_continue_with() {
    let mut flow = Tested::start_with(Limits::default(), adding());
    // More than this run takes, some of them in the turn in which it ends.
    flow.append_message("callback:numbers#0", "1");
    for number in ["2", "4", "8"] {
        flow.append_message("callback:numbers#0", number);
    }
    flow.turn(1);
    let before = flow.engine.entries();
    flow.switch(2);
    // It has taken two of them, and is over again.
    assert_eq!((*flow.engine.phase()).clone(), Phase::Continued);
    assert_eq!((before, flow.engine.entries()), (5, 1));
    flow.switch(3);
    flow.assert_waits_for(&["callback:numbers#0"]);
    flow.replay();
    flow.send(4, "callback:numbers#0", "16");
    flow.replay();
    flow.send(5, "callback:numbers#0", "32");
    flow.switch(6);
    flow.send(7, "callback:numbers#0", "0");
    assert_eq!(flow.result(), "63");
}

#[tokio::test(start_paused = true)]
async fn a_callback_keeps_its_address_over_runs_and_is_the_first_of_its_name() {
    let mut flow = Tested::start(async |flow: Flow| {
        // Closed before, and so over.
        drop(flow.callback::<u32>("numbers"));
        drop(flow.callback::<u32>("other"));
        let mut numbers = flow.callback::<u32>("numbers");
        let _kept = flow.branch("b").callback::<u32>("kept");
        numbers.next().await?;
        flow.continue_with(&())
    });
    flow.send(1, "b/callback:kept#0", "7");
    flow.send(2, "late/callback:c#0", "8");
    flow.send(3, "callback:numbers#1", "1");
    assert!(flow.engine.takes_messages("callback:numbers#1") && flow.engine.takes_messages("b/callback:kept#0"));
    assert!(!flow.engine.takes_messages("callback:numbers#0") && !flow.engine.takes_messages("callback:other#0"));
    let (_, left) = flow.next_run();
    let carried: Vec<_> =
        left.carried.iter().map(|(_, one)| (&*one.key, one.run, &*one.callback, one.unread.len())).collect();
    let expected = [
        ("b/callback:kept#0", 1, "b/callback:kept#0", 1),
        ("callback:numbers#0", 1, "callback:numbers#1", 0),
        ("late/callback:c#0", 1, "late/callback:c#0", 1),
    ];
    assert_eq!(carried, expected);
    assert_eq!(left.messages.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_request_to_cancel_that_comes_too_late_for_a_run_cancels_the_next_one() {
    let mut flow = Tested::start_with(Limits::default(), adding());
    flow.append_message("callback:numbers#0", "1");
    flow.append_message("callback:numbers#0", "2");
    flow.engine.append(at(1), Event::Cancel);
    flow.turn(1);
    flow.switch(2);
    assert_eq!(*flow.engine.phase(), Phase::Ended(Ended::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_run_should_be_continued_after_two_thousand_entries_or_two_mib_in_every_replay() {
    let asking = || {
        code(async |flow: Flow| {
            let mut all = flow.callback::<String>("all");
            let mut taken = 1;
            while !flow.should_continue() {
                all.next().await?;
                taken += 1;
            }
            pending_callback(&flow).await?;
            Ok(taken.to_string())
        })
    };
    for (body, expected) in [("\"x\"".to_owned(), 2_000), (format!("\"{}\"", "x".repeat(100 * 1_024)), 22)] {
        let mut flow = Tested::start_with(Limits::default(), asking());
        for n in 0..2_100 {
            flow.append_message("callback:all#0", &body);
            if n % 50 == 0 || n > 1_990 {
                flow.turn(1);
            }
            if n > expected + 60 {
                break;
            }
        }
        flow.replay();
        flow.assert_waits_for(&["callback:end#0"]);
        flow.send(2, "callback:end#0", "null");
        assert_eq!(flow.result(), expected.to_string());
    }
}
