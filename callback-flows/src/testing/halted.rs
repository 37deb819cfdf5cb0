//! Flows that are blocked, because their code is not there or does not fit, and whose limits pass all the same.

use super::tests::{SECOND, builder};
use super::*;
use crate::{BlockedKind, Flow, FlowResult};

/// Waits a minute to be called, after a step with a limit that it keeps.
async fn wait(flow: Flow, (): ()) -> FlowResult<String> {
    let mut call = flow.callback::<String>("call");
    let step = flow.step("first").run(async |_| Ok::<_, std::io::Error>(()));
    flow.timeout(5 * SECOND, step).await??;
    tokio::select! {
        by = call.next() => Ok(by?),
        () = flow.sleep(60 * SECOND) => Ok("nobody".into()),
    }
}

/// Code that does not fit, each in its own way, and the reason for which it does not.
fn unfit() -> [(FlowsBuilder, BlockedKind); 4] {
    let differs_at_once = async |flow: Flow, (): ()| {
        flow.sleep(SECOND).await;
        Ok(String::new())
    };
    let differs_later = async |flow: Flow, (): ()| {
        let _call = flow.callback::<String>("call");
        let step = flow.step("first").run(async |_| Ok::<_, std::io::Error>(()));
        flow.timeout(5 * SECOND, step).await??;
        flow.sleep(30 * SECOND).await;
        Ok(String::new())
    };
    let panics = async |_: Flow, (): ()| -> FlowResult<String> { panic!("not today") };
    [
        (builder().flow("wait", 2, wait), BlockedKind::UnknownVersion),
        (builder().flow("wait", 1, differs_at_once), BlockedKind::Differs),
        (builder().flow("wait", 1, differs_later), BlockedKind::Differs),
        (builder().flow("wait", 1, panics), BlockedKind::Panicked),
    ]
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_a_flow_pass_while_its_code_is_not_there_and_a_call_wins_if_it_came_before() {
    for (unfit, kind) in unfit() {
        let t = TestFlows::new();
        t.deploy(builder().flow("wait", 1, wait)).await.unwrap();
        let ids = ["before", "after", "never"];
        for id in ids {
            t.start("wait", id, &()).await.unwrap();
        }
        t.run_until_parked().await.unwrap();
        let limit = t.now() + 60 * SECOND;
        t.deploy(unfit).await.unwrap();
        t.advance(50 * SECOND).await;
        let call = async |id: &str| {
            let call = Call::new(format!("\"{id}\""));
            assert_eq!(t.deliver(&t.url("wait", id, "call").await, call).await.unwrap(), Delivered::Taken, "{kind:?}");
        };
        call("before").await;
        let status = t.status("wait", "before").await.unwrap();
        let State::Blocked { why } = &status.state else { panic!("{status:?}") };
        assert_eq!(why.kind(), kind, "{why}");
        // As it waited when its code was there.
        let waits: Vec<_> = status.waits.iter().map(|wait| (&*wait.name, wait.until)).collect();
        assert_eq!(waits, [("callback:call#0", None), ("timer:60s#0", Some(limit))], "{kind:?}");
        t.advance(50 * SECOND).await;
        call("after").await;
        // The one that nobody has called has been looked at by itself.
        assert!(matches!(t.status("wait", "never").await.unwrap().state, State::Blocked { .. }), "{kind:?}");

        t.deploy(builder().flow("wait", 1, wait)).await.unwrap();
        t.advance(2 * SECOND).await;
        let mut ends = Vec::new();
        for id in ids {
            ends.push(t.done::<String>("wait", id).await.unwrap());
        }
        assert_eq!(ends, ["before", "nobody", "nobody"], "{kind:?}");
    }
}
