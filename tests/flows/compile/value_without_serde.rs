// A step's value that cannot be kept.
//~ the trait bound `Receipt: serde::Serialize` is not satisfied
//~ consider adding `#[derive(serde::Serialize)]` to your `Receipt` type
//~ Step::<'a>::run`

use callback_flows::{Flow, FlowResult};

pub struct Receipt(pub u32);

pub async fn order(flow: Flow) -> FlowResult<u32> {
    let receipt = flow.step("pay").run(|_| std::future::ready(Ok::<_, std::io::Error>(Receipt(7)))).await?;
    Ok(receipt.0)
}
