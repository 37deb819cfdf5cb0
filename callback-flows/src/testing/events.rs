//! Events of flows whose process dies.

use super::tests::builder;
use super::*;
use crate::{Flow, FlowResult};

/// Says where it is, before, between and after two signals and a step.
async fn teller(flow: Flow, (): ()) -> FlowResult<()> {
    let mut go = flow.signal::<u32>("go");
    flow.progress(&0)?;
    for n in 1..=2 {
        let told = go.next().await?;
        flow.emit("told", &told)?;
        flow.step_for("work", &n.to_string()).run(async |_| Ok::<_, std::io::Error>(())).await?;
        flow.progress(&n)?;
    }
    flow.resource("https://shop.example/orders/17")
}

#[tokio::test(start_paused = true)]
async fn whatever_dies_each_event_is_stored_once_and_in_order() {
    let crashes = crash_everywhere(async |t| {
        t.deploy(builder().flow("teller", 1, teller)).await.unwrap();
        t.start("teller", "a", &()).await.unwrap();
        t.run_until_parked().await.unwrap();
        for n in [7, 8] {
            let send = async |flows: &Flows| {
                flows.signal_call("teller", "a", "go", Call::new(n.to_string()).id(n.to_string())).await
            };
            match t.ask(send).await {
                // By who had died after that, in its next life.
                Ok(_) | Err(FlowsError::Gone) => {}
                Err(error) => panic!("{error}"),
            }
            t.run_until_parked().await.unwrap();
        }
        t.ended("teller", "a").await.unwrap();
        let read = async |flows: &Flows| {
            let (mut events, mut lines) = (flows.events("teller", "a", 0).await?, Vec::new());
            while let Some(event) = events.next().await {
                let event = event?;
                lines.push(format!("{} {} {}", event.sequence(), event.name(), event.value().get()));
            }
            Ok(lines)
        };
        let expected = [
            "1 progress 0",
            "2 told 7",
            "3 progress 1",
            "4 told 8",
            "5 progress 2",
            "6 resource \"https://shop.example/orders/17\"",
            "7 succeeded null",
        ];
        assert_eq!(t.ask(read).await.unwrap(), expected);
        let status = t.status("teller", "a").await.unwrap();
        assert_eq!((status.progress, status.events), (Some(2.into()), 6));
    })
    .await;
    assert!(crashes >= 8, "{crashes}");
}
