// An input that cannot be kept.
//~ the trait bound `Order: serde::Deserialize<'de>` is not satisfied
//~ consider adding `#[derive(serde::Deserialize)]` to your `Order` type
//~ FlowsBuilder::flow`

use callback_flows::{Flow, FlowResult, Flows, FlowsBuilder};

pub struct Order {
    pub item: String,
}

async fn order(_: Flow, order: Order) -> FlowResult<usize> {
    Ok(order.item.len())
}

pub fn flows() -> FlowsBuilder {
    Flows::builder().flow("order", 1, order)
}
