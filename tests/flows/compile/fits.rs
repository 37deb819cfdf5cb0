// A flow that is as it has to be.

use std::sync::Arc;

use callback_flows::{Flow, FlowResult, Flows, FlowsBuilder};

async fn order(partner: Arc<String>, flow: Flow, item: String) -> FlowResult<String> {
    let mut accepted = flow.callback::<String>("accepted");
    let offered = flow.step("offer").run(|_| async { Ok::<_, std::io::Error>(format!("{partner} {item}")) }).await?;
    let by = accepted.next().await?;
    Ok(format!("{offered} {by}"))
}

pub fn flows(partner: Arc<String>) -> FlowsBuilder {
    Flows::builder().flow("order", 1, move |flow, item| order(partner.clone(), flow, item))
}
