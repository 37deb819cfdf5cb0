// A callback of what cannot be read.
//~ the trait bound `Accept: serde::Deserialize<'de>` is not satisfied
//~ consider adding `#[derive(serde::Deserialize)]` to your `Accept` type
//~ Flow::callback

use callback_flows::{Flow, FlowResult};

pub struct Accept;

pub async fn order(flow: Flow) -> FlowResult<()> {
    flow.callback::<Accept>("accepted").next_raw().await;
    Ok(())
}
